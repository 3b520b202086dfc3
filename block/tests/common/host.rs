//! Hosts made for a test: small file systems and loop devices. They need root.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::scratch;

/// Runs a command and returns its first line.
pub(crate) fn sh(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: mounting a file system needs root");
    }
    root
}

/// A mounted file system, gone with the last file open in it.
pub(crate) struct Mount(TempDir);

impl Mount {
    pub(crate) fn new(kind: &str, options: &str) -> Self {
        let dir = TempDir::new_in(scratch()).unwrap();
        let target = dir.path().to_str().unwrap();
        sh("mount", &["-t", kind, "-o", options, "bulkhead-test", target]);
        Self(dir)
    }

    pub(crate) fn file(&self, size: u64) -> PathBuf {
        let path = self.0.path().join("disk");
        File::create(&path).unwrap().set_len(size).unwrap();
        path
    }

    pub(crate) fn grow(&self, size: &str) {
        let options = format!("remount,size={size}");
        sh("mount", &["-o", &options, self.0.path().to_str().unwrap()]);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        sh("umount", &["--lazy", self.0.path().to_str().unwrap()]);
    }
}

/// A loop device, gone with its last user.
pub(crate) struct Loop(pub(crate) PathBuf);

impl Loop {
    pub(crate) fn new(file: &Path) -> Self {
        Self(sh("losetup", &["--find", "--show", file.to_str().unwrap()]).into())
    }

    /// One with sectors of 4096 bytes.
    pub(crate) fn with_large_sectors(file: &Path) -> Self {
        let file = file.to_str().unwrap();
        let sectors = "--sector-size=4096";
        Self(sh("losetup", &[sectors, "--direct-io=on", "--find", "--show", file]).into())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        sh("losetup", &["--detach", self.0.to_str().unwrap()]);
    }
}
