//! `bulkhead crash explain` and `open`.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::process::Stdio;

use fixtures::{needs, wait_for, with_default_signals};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use snapbox::cmd::OutputAssert;
use snapbox::str;
use tempfile::TempDir;

use crate::{CHECK, crash, folder};

fn about(folder: &TempDir, request: &str, state: &str, more: &[&str]) -> OutputAssert {
    crash(folder, &[&[request, "disk.log", "--base", "base.img", state], more].concat())
}

#[test]
fn a_state_is_explained() {
    let folder = folder(false);
    about(&folder, "explain", "2-0", &[]).code(0).stderr_eq("").stdout_eq(str![[r#"
state 2-0: the power is cut after 2 completions; 2 writes were not durable

  mark before   "committed�[31m" after 2 at 0.002500 s
  flush before  none
  flush after   flush 2 at 0.002500 s
  mark after    none

  LOST  OFFSET  BYTES      ISSUED   COMPLETED  QUEUE  POWER CUT  PART
     0    4096    512  0.000000 s  0.000500 s      0  completed  whole

"#]]);
    about(&folder, "explain", "4", &[]).code(0).stderr_eq("").stdout_eq(str![[r#"
state 4: the power is cut after 4 completions; 1 write was not durable

  mark before   "committed�[31m" after 2 at 0.002500 s
  flush before  flush 2 at 0.002500 s
  flush after   none
  mark after    none

  No write is lost.

"#]]);
    let run = about(&folder, "explain", "2-0", &["--json"]).code(0).stderr_eq("");
    let explained: Value = serde_json::from_slice(&run.get_output().stdout).unwrap();
    assert_eq!(explained["lost"][0]["write"]["offset_bytes"], 4096);
    assert_eq!(explained["mark_before"]["after"], 2);
}

#[test]
fn names_of_no_state_are_refused() {
    let folder = folder(false);
    about(&folder, "explain", "x", &[]).code(2).stdout_eq("");
    about(&folder, "explain", "99", &[]).code(2).stdout_eq("").stderr_eq(str![[r#"
error: disk.log: there is no state after 99 completions: the recording has 4 requests

"#]]);
    about(&folder, "open", "2-7", &[]).code(2).stdout_eq("").stderr_eq(str![[r#"
error: disk.log: request 7 is no write, discard or zeroing that was issued before the power cut

"#]]);
}

#[test]
fn a_check_runs_on_a_state() {
    if !needs::root() {
        return;
    }
    let folder = folder(false);
    let run = about(&folder, "open", "2-0", &["--run", CHECK]).code(3);
    run.stdout_eq("the data is missing\n").stderr_eq("the check failed: exit status 4\n");
    about(&folder, "open", "2", &["--run", CHECK]).code(0).stdout_eq("").stderr_eq("");
    about(&folder, "open", "2", &["--run", "cat $BULKHEAD_MARKS"]).code(0);
    let uses_loop = ["--loop", "--run", "echo $BULKHEAD_DISK; od -An -c -N6 $BULKHEAD_DISK"];
    let run = about(&folder, "open", "2", &uses_loop).code(0).stderr_eq("");
    run.stdout_eq("/dev/loop[..]\n   c   o   m   m   i   t\n");
    about(&folder, "open", "2", &["--run", "true", "--to", "x.img"]).code(2);
}

#[test]
fn a_state_is_written_as_a_sparse_image() {
    let folder = folder(false);
    about(&folder, "open", "2-0", &["--to", "2-0.img"]).code(0).stderr_eq("").stdout_eq(str![[
        r#"
2-0.img: state 2-0, 32 KiB, 4 KiB of it data

"#
    ]]);
    let image = folder.path().join("2-0.img");
    let mut expected = vec![0; 32 << 10];
    expected[..7].copy_from_slice(b"commit\n");
    assert!(fs::read(&image).unwrap() == expected);
    assert!(fs::metadata(&image).unwrap().blocks() <= 8);
    // An image that exists is not touched.
    fs::write(&image, "mine").unwrap();
    about(&folder, "open", "4", &["--to", "2-0.img"]).code(1).stdout_eq("").stderr_eq(str![[r#"
error: cannot write 2-0.img: File exists (os error 17)

"#]]);
    assert_eq!(fs::read(&image).unwrap(), b"mine");
    let run = about(&folder, "open", "4", &["--to", "4.img", "--json"]).code(0);
    let answer: Value = serde_json::from_slice(&run.get_output().stdout).unwrap();
    assert_eq!((&answer["size_bytes"], &answer["data_bytes"]), (&32768.into(), &12288.into()));
}

#[test]
fn an_interrupted_image_is_removed() {
    let folder = folder(false);
    // Large enough that a signal arrives while its zeroes are read.
    let base = fs::File::options().write(true).open(folder.path().join("base.img")).unwrap();
    base.set_len(1 << 40).unwrap();
    let mut program = with_default_signals(snapbox::cmd::cargo_bin!("bulkhead"));
    program.args(["crash", "open", "disk.log", "--base", "base.img", "4", "--to", "4.img"]);
    let mut program = program.current_dir(folder.path()).spawn().unwrap();
    let image = folder.path().join("4.img");
    wait_for(|| image.exists().then_some(())).unwrap();
    kill_process(Pid::from_child(&program), Signal::INT).unwrap();
    assert_eq!(program.wait().unwrap().code(), Some(130));
    assert!(!image.exists());
}

#[test]
fn a_state_is_a_file_until_a_signal() {
    if !needs::root() {
        return;
    }
    let folder = folder(false);
    let mut program = with_default_signals(snapbox::cmd::cargo_bin!("bulkhead"));
    program.args(["crash", "open", "disk.log", "--base", "base.img", "2-0"]);
    let mut program = program.current_dir(folder.path()).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(program.stdout.take().unwrap()).lines().map(Result::unwrap);
    let lines: Vec<String> = lines.take(3).collect();
    assert_eq!(lines[0], "state 2-0, until Ctrl-C:");
    let [disk, marks] = [1, 2].map(|line| lines[line].split_whitespace().nth(1).unwrap());
    assert_eq!(fs::read(disk).unwrap()[..7], *b"commit\n");
    assert_eq!(fs::read(marks).unwrap(), "start\ncommitted\u{fffd}[31m\n".as_bytes());
    // It can be written, and the base cannot.
    let file = fs::File::options().write(true).open(disk).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"mine", 0).unwrap();
    assert_eq!(fs::read(disk).unwrap()[..7], *b"mineit\n");
    assert!(fs::read(folder.path().join("base.img")).unwrap().iter().all(|byte| *byte == 0));
    // Also while someone has it open.
    kill_process(Pid::from_child(&program), Signal::TERM).unwrap();
    assert_eq!(program.wait().unwrap().code(), Some(0));
    let mount = std::path::Path::new(disk).ancestors().nth(2).unwrap();
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(mount.to_str().unwrap()));
    assert!(!mount.exists());
}

#[test]
fn a_check_of_a_state_ends_with_its_time_limit_or_a_signal() {
    if !needs::root() {
        return;
    }
    let folder = folder(false);
    let more = ["--run", "sleep 60", "--timeout", "1s"];
    about(&folder, "open", "4", &more).code(3).stderr_eq(str![[r#"
the check failed: no end within 1 s

"#]]);
    about(&folder, "open", "4", &["--timeout", "1s"]).code(2);
    let mut program = with_default_signals(snapbox::cmd::cargo_bin!("bulkhead"));
    let check = "touch started; exec sleep 60";
    program.args(["crash", "open", "disk.log", "--base", "base.img", "4", "--run", check]);
    let mut program = program.current_dir(folder.path()).spawn().unwrap();
    let started = folder.path().join("started");
    wait_for(|| started.exists().then_some(())).unwrap();
    kill_process(Pid::from_child(&program), Signal::INT).unwrap();
    assert_eq!(program.wait().unwrap().code(), Some(130));
}
