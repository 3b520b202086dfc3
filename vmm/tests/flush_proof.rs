//! `bulkhead disk prove`: the built program on this host's storage. Needs root and tracefs.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a failed helper fails its test

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use fixtures::host::{Loop, Mount, sh};
use fixtures::{Ext4, needs, wait_for, with_default_signals};
use serde_json::{Value, json};
use tempfile::TempDir;

const INSTANCES: &str = "/sys/kernel/tracing/instances";
const LEN: usize = 1 << 20;

fn program() -> Command {
    let mut program = with_default_signals(snapbox::cmd::cargo_bin!("bulkhead"));
    program.args(["disk", "prove"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    program
}

fn prove(arguments: &[&str]) -> Output {
    if !Path::new(INSTANCES).exists() {
        sh("mount", &["-t", "tracefs", "tracefs", "/sys/kernel/tracing"]);
    }
    program().args(arguments).output().unwrap()
}

fn parsed(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

fn error(arguments: &[&str]) -> String {
    let output = prove(arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// The verdicts of the modes with flushes.
fn verdicts(proof: &Value) -> Vec<&str> {
    let modes = proof["modes"].as_array().unwrap();
    let flushing = modes.iter().filter(|mode| mode["cache"] != "unsafe");
    flushing.map(|mode| mode["flush"].as_str().unwrap()).collect()
}

/// A file with data, and a loop device of it.
fn device() -> (TempDir, Vec<u8>, Loop) {
    let folder = TempDir::new_in(fixtures::scratch()).unwrap();
    let data: Vec<u8> = (0..=250).cycle().take(LEN).collect();
    let path = folder.path().join("disk");
    fs::write(&path, &data).unwrap();
    let device = Loop::new(&path);
    (folder, data, device)
}

/// Other tests may flush the drive below meanwhile, but nothing else uses the loop device.
#[test]
fn flushes_reach_a_device_whose_data_stays() {
    if !needs::root() {
        return;
    }
    let (folder, data, device) = device();
    let path = device.0.to_str().unwrap();
    let proof = parsed(&prove(&["--json", path, "--offset", "65536"]));
    assert_eq!(proof["storeys"][0], json!({ "name": path, "kind": "loop" }));
    let modes = proof["modes"].as_array().unwrap();
    assert_eq!(modes.len(), 5);
    for mode in modes.iter().filter(|mode| mode["cache"] != "unsafe") {
        let expected = json!({ "written": 8, "flushed": 8, "flushed_while_idle": 0,
            "written_while_idle": 0 });
        assert_eq!(mode["seen"][0], expected, "{mode}");
        assert_eq!(mode["seen"][1], Value::Null, "a file system has no record: {mode}");
        assert_ne!(mode["flush"], "not kept", "{mode}");
    }
    assert_eq!(modes[4]["flush"], "not kept");
    let mut stored = vec![0; LEN];
    device_file(&device).read_exact_at(&mut stored, 0).unwrap();
    assert_eq!(stored, data);
    drop(folder);
}

fn device_file(device: &Loop) -> File {
    File::open(&device.0).unwrap()
}

#[test]
fn a_device_that_gets_no_flush_is_caught() {
    if !needs::root() {
        return;
    }
    let (_folder, _, device) = device();
    let _queue = device.write_through();
    let output = prove(&["--json", device.0.to_str().unwrap(), "--offset", "0"]);
    let proof = parsed(&output);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(verdicts(&proof), ["not kept"; 4]);
    let seen = json!({ "written": 8, "flushed": 0, "flushed_while_idle": 0,
            "written_while_idle": 0 });
    assert_eq!(proof["modes"][0]["seen"][0], seen);
}

/// The report groups modes with the same verdict, and nothing is left in the folder.
#[test]
fn a_folder_in_memory_is_caught() {
    if !needs::root() {
        return;
    }
    let mount = Mount::new("tmpfs", "size=16m");
    let path = mount.path().to_str().unwrap();
    let output = prove(&[path]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    let expected = "  none, directsync, writethrough, writeback\n    NOT kept: ";
    assert!(text.contains(expected), "{text}");
    assert!(text.contains("is a tmpfs, in memory"), "{text}");
    assert_eq!(fs::read_dir(path).unwrap().count(), 0);
}

#[test]
fn unsuitable_targets_are_errors() {
    if !needs::root() {
        return;
    }
    let (folder, _, device) = device();
    let path = device.0.to_str().unwrap();
    let image = folder.path().join("disk");
    let image = image.to_str().unwrap();
    for (arguments, message) in [
        (vec![path], "name a range to write to with --offset"),
        (vec![path, "--offset", "512"], "starts at a multiple of 65536, not at 512"),
        (vec![path, "--offset", "589824"], "has 1048576 bytes: no 524288 from 589824"),
        (vec![path, "--offset", "18446744073709486080"], "has 1048576 bytes"),
        (vec![image, "--offset", "0"], "--offset is for a device"),
        (vec!["/missing"], "No such file or directory"),
        (vec!["/dev/null"], "neither"),
    ] {
        let error = error(&arguments);
        assert!(error.contains(message), "{arguments:?}: {error}");
    }
}

/// A device that a machine writes is refused: its data would be written back over newer data.
#[test]
fn a_device_in_use_is_refused() {
    if !needs::root() {
        return;
    }
    let (_folder, _, device) = device();
    let options = block::DiskOptions::new(block::CacheMode::None);
    let _machine = block::RawFile::open(&device.0, &options).unwrap();
    let error = error(&[device.0.to_str().unwrap(), "--offset", "0"]);
    assert!(error.contains("in use by"), "{error}");
}

/// On a frozen file system the proof hangs in its first write until the thaw.
#[test]
fn a_signal_ends_the_proof_and_leaves_nothing() {
    if !needs::root() {
        return;
    }
    let mut store = Ext4::new(4096);
    store.freeze();
    let child = program().arg(store.path()).spawn().unwrap();
    let pid = child.id();
    let hangs = || {
        let status = format!("/proc/{pid}/task/{}/status", prover(pid)?);
        fs::read_to_string(status).ok()?.contains("State:\tD").then_some(())
    };
    wait_for(hangs).unwrap();
    sh("kill", &["-INT", &pid.to_string()]);
    let heard = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let pending = status.lines().find(|line| line.starts_with("ShdPnd"))?;
        pending.ends_with("0000000000000000").then_some(())
    };
    wait_for(heard).unwrap();
    store.thaw();
    let output = child.wait_with_output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("stopped by a signal"), "{message}");
    assert_eq!(output.status.code(), Some(1));
    let left = fs::read_dir(store.path()).unwrap().filter_map(Result::ok);
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("bulkhead")), "{left:?}");
    assert!(!Path::new(INSTANCES).join(format!("bulkhead-prove-{pid}")).exists());
}

/// The thread of the proof, which is called `query`.
fn prover(pid: u32) -> Option<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?.filter_map(Result::ok);
    let mut ids = tasks.map(|task| task.file_name().to_string_lossy().into_owned());
    ids.find(|task| {
        let name = fs::read_to_string(format!("/proc/{pid}/task/{task}/comm"));
        name.is_ok_and(|name| name.trim() == "query")
    })
}
