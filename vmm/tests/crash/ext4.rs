//! `bulkhead crash explore` on a file system: changes of debugfs, which writes without a journal.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use fixtures::{needs, wait_for};
use serde_json::Value;
use tempfile::TempDir;

use crate::crash;
use crate::log_file::LogFile;

const BLOCK: usize = 4096;

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The writes that make one image of another.
fn record(log: &mut LogFile, before: &[u8], after: &[u8]) {
    for (block, (old, new)) in before.chunks(BLOCK).zip(after.chunks(BLOCK)).enumerate() {
        if old != new {
            log.write((block * BLOCK) as u64, new);
        }
    }
}

/// A file system of `mebibytes`, and the log of some files that were written to it.
fn file_system(mebibytes: u64, files: usize) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let base = path("base.img");
    fs::File::create(&base).unwrap().set_len(mebibytes << 20).unwrap();
    run(Command::new("mkfs.ext4").arg("-q").arg(&base));
    fs::copy(&base, path("now.img")).unwrap();
    fs::write(path("file"), vec![7; 30_000]).unwrap();
    let mut log = LogFile::new();
    let mut before = fs::read(&base).unwrap();
    for number in 0..files {
        let write = format!("write {} file{number}", path("file").display());
        run(Command::new("debugfs").args(["-w", "-R", &write]).arg(path("now.img")));
        let after = fs::read(path("now.img")).unwrap();
        record(&mut log, &before, &after);
        log.flush();
        log.mark(&format!("file{number}"));
        before = after;
    }
    log.save(&path("disk.log"));
    folder
}

fn explore(folder: &Path, check: &str, more: &[&str]) -> (Option<i32>, Value) {
    let program = Command::new(snapbox::cmd::cargo_bin!("bulkhead"))
        .current_dir(folder)
        .args(["crash", "explore", "disk.log", "--base", "base.img", "--json", "--check", check])
        .args(more)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&program.stderr);
    (program.status.code(), serde_json::from_slice(&program.stdout).expect(&text))
}

#[test]
fn a_file_system_without_its_journal_fails() {
    if !needs::root() {
        return;
    }
    let folder = file_system(16, 2);
    let (code, found) = explore(folder.path(), "e2fsck -fn $BULKHEAD_DISK", &[]);
    assert_eq!(code, Some(3), "{found:#}");
    let state = found["failures"][0]["state"].as_str().unwrap();
    let again = ["open", "disk.log", "--base", "base.img", state, "--run"];
    crash(&folder, &[&again[..], &["e2fsck -fn $BULKHEAD_DISK"]].concat()).code(3);
    // A repaired disk is accepted, and is not the disk of the next check.
    let repair = "e2fsck -fy $BULKHEAD_DISK; e2fsck -fn $BULKHEAD_DISK";
    crash(&folder, &[&again[..], &[repair]].concat()).code(0);
    crash(&folder, &[&again[..], &["e2fsck -fn $BULKHEAD_DISK"]].concat()).code(3);
}

#[test]
fn a_state_is_mounted_from_a_loop_device() {
    if !needs::root() {
        return;
    }
    let folder = file_system(16, 1);
    let mounts = "mount $BULKHEAD_DISK $BULKHEAD_TMP && ls $BULKHEAD_TMP >/dev/null";
    let more = ["--loop", "--states", "20", "--atomic", "request"];
    let (code, found) = explore(folder.path(), mounts, &more);
    assert_eq!((code, &found["end"]), (Some(0), &"states".into()), "{found:#}");
}

#[test]
fn a_killed_exploration_leaves_no_loop_device() {
    if !needs::root() {
        return;
    }
    let folder = file_system(16, 1);
    let mut program = Command::new(snapbox::cmd::cargo_bin!("bulkhead"));
    program.args(["crash", "explore", "disk.log", "--base", "base.img", "--loop", "--check"]);
    // Until the program is killed the file system has data that is not on its device.
    program.arg("mount $BULKHEAD_DISK $BULKHEAD_TMP && head -c 999999 /dev/zero | tr '\\0' Z >$BULKHEAD_TMP/x && echo $BULKHEAD_DISK >device.new && mv device.new device; sleep 2");
    program.env("TMPDIR", folder.path()).current_dir(folder.path());
    let mut program = program.args(["--jobs", "1"]).spawn().unwrap();
    let device = folder.path().join("device");
    wait_for(|| device.exists().then_some(())).unwrap();
    // No thread of the program has the mounts of the check, which it could not unmount at its end.
    let threads = fs::read_dir(format!("/proc/{}/task", program.id())).unwrap();
    let mounts = threads.map(|it| fs::read_link(it.unwrap().path().join("ns/mnt")).unwrap());
    assert_eq!(mounts.collect::<HashSet<_>>().len(), 1);
    program.kill().unwrap();
    program.wait().unwrap();
    let device = fs::read_to_string(device).unwrap();
    let file =
        format!("/sys/block/{}/loop/backing_file", device.trim().rsplit_once('/').unwrap().1);
    wait_for(|| (!Path::new(&file).exists()).then_some(())).unwrap();
}

/// `cargo test --release -p vmm --test crash -- --ignored --nocapture states_a_second`
#[test]
#[ignore = "a measurement"]
fn states_a_second() {
    let folder = file_system(64, 3);
    for jobs in ["1", "2"] {
        let more = ["--keep-going", "--states", "1500", "--jobs", jobs];
        let check = "e2fsck -fn $BULKHEAD_DISK >/dev/null 2>&1; exit 0";
        let (_, found) = explore(folder.path(), check, &more);
        let number = |name: &str| found[name].as_f64().unwrap();
        let (checks, pruned, seconds) = (number("checks"), number("pruned"), number("seconds"));
        let rate = checks / seconds;
        eprintln!(
            "{jobs} at a time: {rate:.0} checks/s, {checks} checks, {pruned} known, {seconds:.1} s"
        );
    }
}
