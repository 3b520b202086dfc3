//! `bulkhead layer map`, `diff` and `check`: the output and the exit code of the built program.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed helper fails its test")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use fixtures::scratch;
use serde_json::{Value, json};
use snapbox::cmd::{Command, OutputAssert};
use snapbox::str;
use tempfile::TempDir;

const BLOCK: u64 = 4096;
const BLOCK_BYTES: usize = 4096;
/// Where the map of a layer starts (docs/layer-format.md).
const MAP_AT: u64 = 8192;
/// Where the data starts, as the map of a new layer has room for 1 TiB.
const DATA_AT: u64 = 65 << 20;

fn layer(folder: &TempDir, arguments: &[&str]) -> OutputAssert {
    let program = Command::new(snapbox::cmd::cargo_bin!("bulkhead")).current_dir(folder.path());
    program.arg("layer").args(arguments).assert()
}

/// Sets the bit of a block of the first eight, and writes its data if there is any.
fn write_block(path: &Path, block: u64, data: Option<u8>) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, MAP_AT).unwrap();
    file.write_all_at(&[byte[0] | 1 << block], MAP_AT).unwrap();
    if let Some(data) = data {
        file.write_all_at(&[data; BLOCK_BYTES], DATA_AT + block * BLOCK).unwrap();
    }
    file.sync_all().unwrap();
}

/// A folder with a layer over a layer over an image of 64 KiB, of which the first 12 KiB are data.
fn folder() -> TempDir {
    let folder = TempDir::new_in(scratch()).unwrap();
    let image = folder.path().join("base.img");
    fs::write(&image, vec![7; 12 << 10]).unwrap();
    let image = File::options().write(true).open(&image).unwrap();
    image.set_len(64 << 10).unwrap();
    image.sync_all().unwrap();
    layer(&folder, &["create", "--base", "base.img", "1.layer"]).success();
    write_block(&folder.path().join("1.layer"), 1, Some(8));
    let size = ["create", "--base", "1.layer", "--size", "80KiB", "2.layer"];
    layer(&folder, &size).success();
    let top = folder.path().join("2.layer");
    write_block(&top, 2, Some(7));
    write_block(&top, 3, None);
    write_block(&top, 4, Some(9));
    folder
}

#[test]
fn the_map_names_the_level_of_each_range() {
    let run = layer(&folder(), &["map", "2.layer"]);
    run.code(0).stderr_eq("").stdout_eq(str![[r#"
2.layer: 80 KiB

  LEVEL  PATH
      0  2.layer
      1  [..]/1.layer
      2  [..]/base.img

  START  BYTES  LEVEL  CONTENT
      0   4096      2  data
   4096   4096      1  data
   8192   4096      0  data
  12288   4096      0  zeroes
  16384   4096      0  data
  20480  45056      2  zeroes
  65536  16384      -  zeroes

  7 ranges: 16 KiB of data, 64 KiB of zeroes

"#]]);
}

#[test]
fn changes_and_differences_are_shown() {
    let folder = folder();
    layer(&folder, &["diff", "2.layer"]).code(0).stderr_eq("").stdout_eq(str![[r#"
2.layer: changes over [..]/1.layer, of 80 KiB

  LEVEL  PATH
      0  2.layer

  START  BYTES  LEVEL  CONTENT
   8192   4096      0  data
  12288   4096      0  zeroes
  16384   4096      0  data

  3 ranges: 8 KiB of data, 4 KiB of zeroes

"#]]);
    // Block 2 is equal, and so are the zeroes.
    let content = ["diff", "--content", "--from", "base.img", "2.layer"];
    layer(&folder, &content).code(0).stderr_eq("").stdout_eq(str![[r#"
2.layer: differences from [..]/base.img, of 80 KiB

  LEVEL  PATH
      0  2.layer
      1  [..]/1.layer

  START  BYTES  LEVEL  CONTENT
   4096   4096      1  data
  16384   4096      0  data

  2 ranges: 8 KiB of data, 0 bytes of zeroes

"#]]);
    let run = layer(&folder, &["diff", "--from", "2.layer", "2.layer"]);
    run.code(1).stdout_eq("").stderr_eq(str![[r#"
error: 2.layer: the layer does not stand on it; `bulkhead layer info` shows what it stands on

"#]]);
}

fn parsed(output: &OutputAssert) -> Value {
    serde_json::from_slice(&output.get_output().stdout).unwrap()
}

#[test]
fn ranges_as_json() {
    let folder = folder();
    let found = parsed(&layer(&folder, &["diff", "--json", "2.layer"]).success());
    let range = |start: u64, data: bool| json!({ "start": start, "bytes": BLOCK, "level": 0, "data": data });
    let ranges = [range(2 * BLOCK, true), range(3 * BLOCK, false), range(4 * BLOCK, true)];
    assert_eq!(found, json!({ "size_bytes": 80 << 10, "levels": ["2.layer"], "ranges": ranges }));
    let map = parsed(&layer(&folder, &["map", "--json", "2.layer"]).success());
    assert_eq!(map["ranges"].as_array().unwrap().len(), 7);
    assert_eq!(map["ranges"][6]["level"], Value::Null);
    // No changes.
    layer(&folder, &["create", "--base", "2.layer", "3.layer"]).success();
    let none = parsed(&layer(&folder, &["diff", "--json", "3.layer"]).success());
    assert_eq!(none["ranges"], json!([]));
}

/// More ranges than are on their way at a time, to a reader that leaves.
#[test]
fn many_ranges_are_printed_as_they_are_found() {
    let folder = TempDir::new_in(scratch()).unwrap();
    File::create(folder.path().join("base.img")).unwrap().set_len(1 << 30).unwrap();
    layer(&folder, &["create", "--base", "base.img", "1.layer"]).success();
    let file = File::options().write(true).open(folder.path().join("1.layer")).unwrap();
    file.write_all_at(&vec![0x55; 1 << 15], MAP_AT).unwrap();
    let map = parsed(&layer(&folder, &["map", "--json", "1.layer"]).success());
    assert_eq!(map["ranges"].as_array().unwrap().len(), 1 << 18);
    let program = snapbox::cmd::cargo_bin!("bulkhead").display().to_string();
    let script = format!("{program} layer map 1.layer | head -n 9; echo ${{PIPESTATUS[0]}}");
    let run = Command::new("bash").current_dir(folder.path()).args(["-c", &script]).assert();
    run.code(0).stderr_eq("").stdout_eq(str![[r#"
1.layer: 1 GiB

  LEVEL  PATH
      0  1.layer
      1  [..]/base.img

       START       BYTES  LEVEL  CONTENT
           0        4096      0  zeroes
        4096        4096      1  zeroes
0

"#]]);
}

#[test]
fn a_check_tells_problems_from_remarks() {
    let folder = folder();
    let run = layer(&folder, &["check", "2.layer"]);
    run.code(0).stderr_eq("").stdout_eq("2.layer: sound, 3 levels\n");
    let file = File::options().write(true).open(folder.path().join("2.layer")).unwrap();
    file.write_all_at(&[1; BLOCK_BYTES], DATA_AT + 10 * BLOCK).unwrap();
    file.sync_all().unwrap();
    layer(&folder, &["check", "2.layer"]).code(0).stderr_eq("").stdout_eq(str![[r#"
remark: 2.layer: has 4096 bytes of data in blocks that it does not answer for: harmless leftovers of writes that were cut short
2.layer: sound, 3 levels

"#]]);
    file.write_all_at(&[1], 100).unwrap();
    let run = layer(&folder, &["check", "--json", "2.layer"]).code(1).stderr_eq("");
    let found = parsed(&run);
    assert_eq!(found["sound"], false);
    let kinds: Vec<_> = found["findings"].as_array().unwrap().iter().collect();
    assert_eq!(kinds.len(), 2, "{found}");
    assert!(kinds[0]["what"].as_str().unwrap().contains("slot 0, is missing"), "{found}");
    assert_eq!((&kinds[0]["problem"], &kinds[1]["problem"]), (&json!(true), &json!(false)));
    let absent = layer(&folder, &["check", "absent"]);
    absent.code(1).stderr_eq("").stdout_eq(str![[r#"
problem: absent: cannot find it: No such file or directory (os error 2)
absent: 1 problem

"#]]);
}

/// A path of a header is untrusted text.
#[test]
fn control_characters_of_a_path_are_not_printed() {
    let folder = TempDir::new_in(scratch()).unwrap();
    File::create(folder.path().join("a\x1b[31mb")).unwrap().set_len(1 << 20).unwrap();
    layer(&folder, &["create", "--base", "a\x1b[31mb", "1.layer"]).success();
    for command in [&["map", "1.layer"][..], &["diff", "1.layer"]] {
        let output = layer(&folder, command).success();
        let text = String::from_utf8(output.get_output().stdout.clone()).unwrap();
        assert!(!text.contains('\x1b') && text.contains("a\u{fffd}[31mb"), "{text:?}");
    }
    fs::remove_file(folder.path().join("a\x1b[31mb")).unwrap();
    for command in ["map", "check", "diff"] {
        let output = layer(&folder, &[command, "1.layer"]).code(1);
        let output = output.get_output();
        let text = [&output.stdout[..], &output.stderr[..]].concat();
        assert!(!text.contains(&0x1b), "{:?}", String::from_utf8(text));
    }
}
