//! The lock on an image, against `qemu-storage-daemon` in both directions.
//!
//! An export of the daemon denies nothing to others; a guest's disk of QEMU denies writes and
//! resizes, which the driver `blkdebug` does here.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;

use fixtures::{OwnedChild, killed_with_parent, wait_for};
use lab::ServeProcess;
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// How QEMU uses the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    WritableExport,
    ReadOnlyExport,
    /// A read-only disk of a guest.
    ReadOnlyDisk,
}

/// Starts the daemon in `folder` on its file `disk.img`.
///
/// # Errors
///
/// The daemon's message if it refuses the image.
fn daemon(folder: &Path, how: Use) -> Result<OwnedChild, String> {
    let (read_only, writable) = match how {
        Use::WritableExport => ("off", "on"),
        Use::ReadOnlyExport | Use::ReadOnlyDisk => ("on", "off"),
    };
    let file = format!("file,node-name=file,filename=disk.img,locking=on,read-only={read_only}");
    let denied = "unshare-child-perms.0=write,unshare-child-perms.1=resize";
    let disk = format!("blkdebug,node-name=disk,image=file,read-only={read_only},{denied}");
    let (nodes, exported) = match how {
        Use::ReadOnlyDisk => (vec![file, disk], "disk"),
        Use::WritableExport | Use::ReadOnlyExport => (vec![file], "file"),
    };
    let (log, socket) = (folder.join("qemu.log"), folder.join("qemu.sock"));
    let _ = fs::remove_file(&socket);
    let child = killed_with_parent("qemu-storage-daemon")
        .current_dir(folder)
        .args(nodes.iter().flat_map(|node| ["--blockdev", node]))
        .arg("--export")
        .arg(format!(
            "vhost-user-blk,id=export,node-name={exported},writable={writable},\
             addr.type=unix,addr.path=qemu.sock"
        ))
        .stdin(Stdio::null())
        .stderr(File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let mut child = OwnedChild(child);
    let opened = wait_for(|| match child.0.try_wait().unwrap() {
        // env(1) found no such program.
        Some(status) if status.code() == Some(127) => {
            panic!("qemu-storage-daemon is missing: run resources/tests/host-packages.sh")
        }
        Some(_) => Some(false),
        None => socket.exists().then_some(true),
    });
    match opened.expect("the daemon exports the image or ends") {
        true => Ok(child),
        false => Err(fs::read_to_string(&log).unwrap()),
    }
}

/// A folder with the image.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    File::create(folder.path().join("disk.img")).unwrap().set_len(MIB).unwrap();
    folder
}

/// Serves the image in `folder`, which QEMU does not have open.
fn serve(folder: &Path, keys: &str) -> ServeProcess {
    ServeProcess::start_at(&folder.join("disk.img"), keys)
}

/// Runs the program in `folder`, for at most 20 s; its exit code and output.
fn bulkhead(folder: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let program = lab::bulkhead_binary().unwrap();
    let mut command = killed_with_parent("timeout");
    let run = command.arg("20").arg(program).args(arguments).current_dir(folder).output().unwrap();
    let text = [run.stdout, run.stderr].concat();
    (run.status.code(), String::from_utf8(text).unwrap())
}

/// Exit code and output of `serve`, which must end.
fn try_serve(folder: &Path, keys: &str) -> (Option<i32>, String) {
    let config = format!("[disk]\nid = \"data\"\npath = \"disk.img\"\n{keys}\n");
    fs::write(folder.join("disk.toml"), config).unwrap();
    bulkhead(folder, &["serve", "--socket", "disk.sock", "disk.toml"])
}

/// `lock` of `disk inspect`: its state and process.
fn inspected_lock(folder: &Path) -> (String, u64) {
    let (code, text) = bulkhead(folder, &["disk", "inspect", "--json", "disk.img"]);
    assert_eq!(code, Some(0), "{text}");
    let lock = &serde_json::from_str::<Value>(&text).unwrap()["lock"];
    (lock["state"].as_str().unwrap().to_owned(), lock["pid"].as_u64().unwrap_or_default())
}

#[test]
fn writer_of_qemu_excludes_writers_and_readers() {
    let folder = folder();
    let qemu = daemon(folder.path(), Use::WritableExport).unwrap();
    let pid = qemu.0.id();
    assert_eq!(inspected_lock(folder.path()), ("exclusive".to_owned(), pid.into()));
    for keys in ["", "readonly = true"] {
        let (code, log) = try_serve(folder.path(), keys);
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains(&format!("in use by process {pid}")), "{keys}: {log}");
        let (code, log) = bulkhead(folder.path(), &["check", "disk.toml"]);
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains(&format!("process {pid} (qemu-storage-da) holds it")), "{log}");
    }
    drop(qemu);
    assert_eq!(inspected_lock(folder.path()), ("free".to_owned(), 0));
    serve(folder.path(), "").terminate();
}

#[test]
fn readers_of_qemu_share_the_image_with_readers() {
    for how in [Use::ReadOnlyExport, Use::ReadOnlyDisk] {
        let folder = folder();
        let qemu = daemon(folder.path(), how).unwrap();
        let pid = qemu.0.id();
        assert_eq!(inspected_lock(folder.path()), ("shared".to_owned(), pid.into()), "{how:?}");
        serve(folder.path(), "readonly = true").terminate();
    }
}

#[test]
fn reader_of_qemu_that_denies_writes_excludes_writers() {
    let folder = folder();
    let qemu = daemon(folder.path(), Use::ReadOnlyDisk).unwrap();
    let (code, log) = try_serve(folder.path(), "");
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains(&format!("in use by process {}", qemu.0.id())), "{log}");
}

/// The other direction of the rule: such an export sees an image that changes.
#[test]
fn reader_of_qemu_that_denies_nothing_admits_a_writer() {
    let folder = folder();
    let qemu = daemon(folder.path(), Use::ReadOnlyExport).unwrap();
    let mut served = serve(folder.path(), "");
    let (state, pid) = inspected_lock(folder.path());
    assert_eq!(state, "exclusive");
    assert_eq!(pid, u64::from(served.pid()), "the writer is named, not the reader");
    served.terminate();
    let config = "[disk]\nid = \"data\"\npath = \"disk.img\"\n";
    fs::write(folder.path().join("disk.toml"), config).unwrap();
    let (code, log) = bulkhead(folder.path(), &["check", "disk.toml"]);
    assert!(code == Some(0) && !log.contains("in use"), "{}: {log}", qemu.0.id());
}

#[test]
fn our_writer_excludes_qemu() {
    let folder = folder();
    let mut served = serve(folder.path(), "");
    let refusal = daemon(folder.path(), Use::WritableExport).unwrap_err();
    assert!(refusal.contains("Failed to get \"write\" lock"), "{refusal}");
    let refusal = daemon(folder.path(), Use::ReadOnlyDisk).unwrap_err();
    assert!(refusal.contains("Failed to get shared \"write\" lock"), "{refusal}");
    daemon(folder.path(), Use::ReadOnlyExport).expect("the export does not deny writes");
    served.terminate();
    daemon(folder.path(), Use::WritableExport).expect("the lock is released");
}

#[test]
fn our_reader_shares_the_image_with_readers_of_qemu_only() {
    let folder = folder();
    let _served = serve(folder.path(), "readonly = true");
    let refusal = daemon(folder.path(), Use::WritableExport).unwrap_err();
    assert!(refusal.contains("Failed to get \"write\" lock"), "{refusal}");
    for how in [Use::ReadOnlyExport, Use::ReadOnlyDisk] {
        daemon(folder.path(), how).unwrap_or_else(|refusal| panic!("{how:?}: {refusal}"));
    }
}

#[test]
fn disabled_lock_opens_beside_qemu_with_a_warning() {
    let folder = folder();
    let _qemu = daemon(folder.path(), Use::WritableExport).unwrap();
    let mut served = serve(folder.path(), "lock = \"off\"");
    assert!(
        served.log().contains("does not keep other machines off the image"),
        "{}",
        served.log()
    );
    served.terminate();
}
