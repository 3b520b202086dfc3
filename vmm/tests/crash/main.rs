//! `bulkhead crash`: the output and the exit code of the built program, on logs of the tests.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed helper fails its test")]

mod explore;
mod ext4;
mod log;
mod log_file;
mod states;

use std::fs;
use std::path::Path;

use snapbox::cmd::{Command, OutputAssert};
use tempfile::TempDir;

use self::log_file::LogFile;

const BLOCK: u64 = 4096;

/// Accepts a disk whose commit record, if it has one, is about data that is there.
const CHECK: &str = "read kind <$BULKHEAD_DISK; test \"$kind\" != commit || \
    dd if=$BULKHEAD_DISK bs=4096 skip=1 count=1 status=none | grep -q data || \
    { echo 'the data is missing'; exit 4; }";

fn program(folder: &Path) -> Command {
    let program = Command::new(snapbox::cmd::cargo_bin!("bulkhead")).current_dir(folder);
    // Colours would be in the way.
    program.env("NO_COLOR", "1")
}

fn crash(folder: &TempDir, arguments: &[&str]) -> OutputAssert {
    program(folder.path()).arg("crash").args(arguments).assert()
}

/// A disk of 32 KiB of zeroes, and the log of a commit; if it is `safe` with a flush between the
/// data and its commit record.
fn folder(safe: bool) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("base.img"), vec![0; 32 << 10]).unwrap();
    let mut log = LogFile::new();
    log.mark("start");
    log.write(BLOCK, b"data\n");
    if safe {
        log.flush();
    }
    log.write(0, b"commit\n");
    log.mark("committed\x1b[31m");
    log.flush();
    log.write(3 * BLOCK, b"more\n");
    log.end("the machine was stopped");
    log.save(&folder.path().join("disk.log"));
    folder
}
