//! `bulkhead layer export` and `import`: the built program, its exit codes, and kills at each of
//! its writes. Needs strace.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed helper fails its test")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command as Process, Output, Stdio};

use fixtures::scratch;
use serde_json::Value;
use snapbox::cmd::{Command, OutputAssert};
use snapbox::str;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
/// Where the map of a layer starts (docs/layer-format.md).
const MAP_AT: u64 = 8192;
/// Where the data starts, as the map of a new layer has room for 1 TiB.
const DATA_AT: u64 = 65 << 20;
const PROGRAM: &str = env!("CARGO_BIN_EXE_bulkhead");

fn layer(folder: &TempDir, arguments: &[&str]) -> OutputAssert {
    let program = Command::new(PROGRAM).current_dir(folder.path());
    program.arg("layer").args(arguments).assert()
}

/// A folder with a layer over an image of 300 MiB: data in three pages of its map, and zeroes.
fn folder() -> TempDir {
    let folder = TempDir::new_in(scratch()).unwrap();
    File::create(folder.path().join("base.img")).unwrap().set_len(300 * MIB).unwrap();
    layer(&folder, &["create", "--base", "base.img", "1.layer"]).success();
    let path = folder.path().join("1.layer");
    let file = File::options().read(true).write(true).open(path).unwrap();
    for at in [0, 130 * MIB, 290 * MIB] {
        let data: Vec<u8> = (0..MIB / 2).map(|at| (at % 251) as u8).collect();
        file.write_all_at(&data, DATA_AT + at).unwrap();
        file.write_all_at(&[0xff; 16], MAP_AT + at / BLOCK / 8).unwrap();
    }
    file.write_all_at(&[0xff], MAP_AT + 200 * MIB / BLOCK / 8).unwrap();
    file.sync_all().unwrap();
    folder
}

#[test]
fn a_layer_moves_through_a_file() {
    let folder = folder();
    layer(&folder, &["export", "1.layer", "1.stream"]).code(0).stderr_eq("").stdout_eq(str![[r#"
1.stream: 1.5 MiB that 1.layer changed over [..]/base.img, 1.5 MiB of it data

"#]]);
    fs::create_dir(folder.path().join("other")).unwrap();
    fs::copy(folder.path().join("base.img"), folder.path().join("other/base.img")).unwrap();
    let import = ["import", "--base", "other/base.img", "1.stream", "other/1.layer"];
    layer(&folder, &import).code(0).stderr_eq("").stdout_eq(str![[r#"
other/1.layer: layer of 300 MiB over other/base.img, 1.5 MiB changed

"#]]);
    assert!(records(&folder, "other/1.layer") == records(&folder, "1.layer"));
    layer(&folder, &["check", "other/1.layer"]).code(0);
    // Neither is written over.
    layer(&folder, &import).code(1).stdout_eq("").stderr_eq(str![[r#"
error: other/1.layer: it exists already; a layer is never made over a file

"#]]);
    let again = layer(&folder, &["export", "1.layer", "1.stream"]);
    again.code(1).stdout_eq("").stderr_eq(str![[r#"
error: 1.stream: it exists already; a stream is never written over a file

"#]]);
}

#[test]
fn a_layer_moves_through_a_pipe() {
    let folder = folder();
    let script = format!(
        "set -o pipefail; {PROGRAM} layer export 1.layer - | {PROGRAM} layer import --base base.img \
         2.layer; {PROGRAM} layer export 1.layer - | {PROGRAM} layer import --base base.img - \
         3.layer --json"
    );
    let run = Command::new("bash").current_dir(folder.path()).args(["-ec", &script]).assert();
    let run = run.code(0).stderr_eq("");
    let text = String::from_utf8(run.get_output().stdout.clone()).unwrap();
    let (line, json) = text.split_once('\n').unwrap();
    assert_eq!(line, "2.layer: layer of 300 MiB over base.img, 1.5 MiB changed");
    let json: Value = serde_json::from_str(json).unwrap();
    assert_eq!(json["frozen"], false);
    assert_eq!(json["changed_bytes"], 3 * MIB / 2 + 8 * BLOCK);
    assert_eq!(json["data_bytes"], 3 * MIB / 2);
    for copy in ["2.layer", "3.layer"] {
        assert!(records(&folder, copy) == records(&folder, "1.layer"));
    }
    // A reader that leaves.
    let script = format!(
        "{PROGRAM} layer export 1.layer - | head -c 1000 >/dev/null; \
                          echo ${{PIPESTATUS[0]}}"
    );
    let run = Command::new("bash").current_dir(folder.path()).args(["-c", &script]).assert();
    run.stdout_eq("1\n").stderr_eq(str![[r#"
error: standard output: cannot write it: Broken pipe (os error 32)

"#]]);
}

/// Frozen layers keep their identity, so that streams of those above apply to them.
#[test]
fn a_chain_moves_level_by_level() {
    let folder = folder();
    layer(&folder, &["create", "--base", "1.layer", "2.layer"]).success();
    layer(&folder, &["export", "1.layer", "1.stream"]).success();
    layer(&folder, &["export", "2.layer", "2.stream"]).success();
    let lower = layer(&folder, &["import", "--base", "base.img", "1.stream", "low.layer"]);
    lower.code(0).stderr_eq("").stdout_eq(str![[r#"
low.layer: layer of 300 MiB over base.img, 1.5 MiB changed, frozen as the exported one

"#]]);
    let upper = layer(&folder, &["import", "--base", "low.layer", "2.stream", "up.layer"]);
    upper.code(0).stderr_eq("").stdout_eq(str![[r#"
up.layer: layer of 300 MiB over low.layer, 0 bytes changed

"#]]);
    layer(&folder, &["check", "up.layer"]).code(0).stdout_eq("up.layer: sound, 3 levels\n");
    // All levels above the base are those of the one that has changes.
    layer(&folder, &["export", "--from", "base.img", "up.layer", "whole.stream"]).success();
    layer(&folder, &["import", "--base", "base.img", "whole.stream", "whole.layer"]).success();
    assert!(records(&folder, "whole.layer") == records(&folder, "1.layer"));

    let raw = ["import", "--base", "base.img", "2.stream", "raw.layer"];
    layer(&folder, &raw).code(1).stdout_eq("").stderr_eq(str![[r#"
error: base.img: the base of the stream is a layer; if its content is certainly the same, add `--force`

"#]]);
    layer(&folder, &[&raw[..], &["--force"]].concat()).code(0).stderr_eq("");
}

#[test]
fn results_as_json_and_misuse() {
    let folder = folder();
    let run = layer(&folder, &["export", "--json", "1.layer", "1.stream"]).success();
    let json: Value = serde_json::from_slice(&run.get_output().stdout).unwrap();
    assert_eq!(json["data_bytes"], 3 * MIB / 2);
    assert_eq!(json["size_bytes"], 300 * MIB);
    let mixed = layer(&folder, &["export", "--json", "1.layer", "-"]);
    mixed.code(2).stdout_eq("").stderr_eq(str![[r#"
error: the stream cannot go to standard output as `--json` does; name a new file, or redirect it

"#]]);
    fs::write(
        folder.path().join("short"),
        &fs::read(folder.path().join("1.stream")).unwrap()[..500],
    )
    .unwrap();
    let cut = layer(&folder, &["import", "--base", "base.img", "short", "2.layer"]);
    cut.code(1).stdout_eq("").stderr_eq(str![[r#"
error: short: it was cut off at byte 500; export the layer again

"#]]);
    let absent = layer(&folder, &["import", "--base", "base.img", "absent", "2.layer"]);
    absent.code(1).stdout_eq("").stderr_eq(str![[r#"
error: absent: cannot open it: No such file or directory (os error 2)

"#]]);
    File::create(folder.path().join("other.img")).unwrap().set_len(MIB).unwrap();
    let other = ["import", "--base", "other.img", "--force", "1.stream", "2.layer"];
    layer(&folder, &other).code(1).stdout_eq("").stderr_eq(str![[r#"
error: other.img: it is not the base of the stream: it has 1048576 bytes, not 314572800; name a copy of that base

"#]]);
    assert_eq!(names(&folder), ["1.layer", "1.stream", "base.img", "other.img", "short"]);
}

fn names(folder: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(folder.path()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

/// The records of a layer's stream, without what depends on its identity.
fn records(folder: &TempDir, path: &str) -> Vec<u8> {
    let run = layer(folder, &["export", path, "-"]).success();
    let stream = &run.get_output().stdout;
    stream[128..stream.len() - 24].to_vec()
}

/// Runs the program, and kills it at the call `call` for the `nth` time.
fn killed_at(folder: &Path, arguments: &[&str], call: &str, nth: usize) -> Output {
    let inject = format!("inject={call}:signal=KILL:when={nth}");
    Process::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject])
        .args(["--", PROGRAM, "layer"])
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .expect("strace starts")
}

/// Kills a command at each of its calls that may change a file. A name is there only if the file is
/// complete, and the next run works. Returns the number of kills.
fn kill_everywhere(folder: &TempDir, command: &[&str], new: &str, is_complete: impl Fn()) -> usize {
    let before = names(folder);
    let mut kills = 0;
    for call in ["openat", "ftruncate", "write", "pwrite64", "fsync", "fdatasync", "linkat"] {
        for nth in 1.. {
            let run = killed_at(folder.path(), command, call, nth);
            let is_named = folder.path().join(new).exists();
            if is_named {
                is_complete();
                fs::remove_file(folder.path().join(new)).unwrap();
            }
            assert_eq!(names(folder), before, "{call} {nth}");
            if run.status.signal() != Some(libc::SIGKILL) {
                assert!(run.status.success() && is_named, "{call} {nth}: {run:?}");
                break;
            }
            kills += 1;
        }
    }
    kills
}

#[test]
fn a_killed_export_leaves_no_part_of_a_file() {
    let folder = folder();
    layer(&folder, &["export", "1.layer", "whole"]).success();
    let path = |name: &str| folder.path().join(name);
    let whole = fs::read(path("whole")).unwrap();
    let kills = kill_everywhere(&folder, &["export", "1.layer", "new"], "new", || {
        assert!(fs::read(path("new")).unwrap() == whole);
    });
    // At least its file, its writes, two syncs and its name.
    assert!(kills > 15, "{kills}");
}

#[test]
fn a_killed_import_leaves_no_part_of_a_file() {
    let folder = folder();
    layer(&folder, &["export", "1.layer", "whole"]).success();
    let expected = records(&folder, "1.layer");
    let command = ["import", "--base", "base.img", "whole", "new"];
    let kills = kill_everywhere(&folder, &command, "new", || {
        assert!(records(&folder, "new") == expected);
        layer(&folder, &["check", "new"]).code(0).stdout_eq("new: sound, 2 levels\n");
    });
    assert!(kills > 15, "{kills}");
}

/// The calls that make a file durable and give it its name, in order.
fn durable_calls(folder: &TempDir, arguments: &[&str]) -> Vec<String> {
    let log = folder.path().join("trace");
    let traced = "trace=write,pwrite64,fsync,fdatasync,linkat";
    let run = Process::new("strace")
        .args(["-f", "-qq", "-y", "-s", "0", "-e", "signal=none", "-o", log.to_str().unwrap()])
        .args(["-e", traced, "--", PROGRAM, "layer"])
        .args(arguments)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()
        .expect("strace starts");
    assert!(run.status.success(), "{run:?}");
    let log = fs::read_to_string(log).unwrap();
    let call = |line: &str| line.split_once(' ').unwrap().1.trim_start().to_owned();
    let is_file = |call: &String| !call.contains("<pipe:") && !call.contains("/dev/null");
    let calls = log.lines().map(call).filter(is_file);
    let mut names: Vec<_> = calls.map(|call| call.split('(').next().unwrap().to_owned()).collect();
    names.dedup();
    names
}

/// A file has its name when its content is durable, and a layer its header when its data is.
#[test]
fn a_name_is_given_to_durable_files() {
    let folder = folder();
    let export = durable_calls(&folder, &["export", "1.layer", "1.stream"]);
    assert_eq!(export, ["write", "fsync", "linkat", "fsync"]);
    let import = ["import", "--base", "base.img", "1.stream", "2.layer"];
    let import = durable_calls(&folder, &import);
    assert_eq!(import, ["pwrite64", "fsync", "pwrite64", "fdatasync", "linkat", "fsync"]);
}
