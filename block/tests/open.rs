//! Opening: what can be a disk, who may use it, and what it looks like.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod common;

use std::path::Path;
use std::thread;
use std::time::Duration;

use block::{Backend, CacheMode, DiskOptions, OpenError, RawFile};
use tempfile::NamedTempFile;

use common::{KIB, MIB, numbered_file, open, scratch};

fn refusal(path: &Path, mode: CacheMode) -> OpenError {
    RawFile::open(path, &DiskOptions::new(mode)).expect_err("not a disk")
}

#[test]
fn a_file_has_the_geometry_the_host_names() {
    let file = numbered_file(MIB);
    let disk = open(file.path(), CacheMode::WriteBack);
    let geometry = disk.geometry();
    assert_eq!(geometry.capacity, MIB);
    assert_eq!((geometry.logical_block, geometry.physical_block), (512, 4096));
    assert_eq!(geometry.discard.map(|discard| discard.alignment), Some(0));
    drop(disk);

    let disk = RawFile::open(file.path(), &DiskOptions::new(CacheMode::None).read_only()).unwrap();
    assert!(disk.read_only());
    assert_eq!(disk.geometry().discard, None, "nothing to discard on a read-only disk");
}

#[test]
fn probing_for_holes_leaves_the_file_alone() {
    let file = numbered_file(MIB - 512);
    drop(open(file.path(), CacheMode::WriteBack));
    assert_eq!(std::fs::read(file.path()).unwrap(), common::numbered(0, MIB - 512));
}

#[test]
fn what_cannot_be_a_disk_is_refused_with_its_reason() {
    let text = |path: &Path| refusal(path, CacheMode::WriteBack).to_string();
    assert!(text(&scratch()).contains("neither"));
    assert!(text(Path::new("/dev/null")).contains("neither"));
    assert!(text(&scratch().join("missing")).contains("find it"));

    let file = NamedTempFile::new_in(scratch()).unwrap();
    assert!(text(file.path()).contains("empty"));
    file.as_file().set_len(1000).unwrap();
    assert!(text(file.path()).contains("1000 bytes is not a multiple"));
}

#[test]
fn a_writable_disk_has_one_user() {
    let file = numbered_file(64 * KIB);
    let first = open(file.path(), CacheMode::WriteBack);
    let second = refusal(file.path(), CacheMode::WriteBack);
    assert!(
        matches!(second, OpenError::InUse { pid: Some(pid), .. } if pid == std::process::id()),
        "{second}"
    );
    assert!(
        RawFile::open(file.path(), &DiskOptions::new(CacheMode::WriteBack).read_only()).is_err()
    );
    drop(first);

    let reader =
        RawFile::open(file.path(), &DiskOptions::new(CacheMode::WriteBack).read_only()).unwrap();
    RawFile::open(file.path(), &DiskOptions::new(CacheMode::WriteBack).read_only())
        .expect("readers share");
    refusal(file.path(), CacheMode::WriteBack);
    drop(reader);
}

/// The kernel lets go of a killed process's disk only a moment after its end.
#[test]
fn a_disk_about_to_be_free_is_waited_for() {
    let file = numbered_file(64 * KIB);
    let first = open(file.path(), CacheMode::WriteBack);
    let ending = thread::spawn(|| {
        thread::sleep(Duration::from_millis(100));
        drop(first);
    });
    open(file.path(), CacheMode::WriteBack);
    ending.join().unwrap();
}

#[test]
fn direct_io_names_its_lack() {
    // No FUSE or the like at hand: procfs has regular files without direct I/O.
    let refusal = RawFile::open(
        Path::new("/proc/self/status"),
        &DiskOptions::new(CacheMode::None).read_only(),
    )
    .expect_err("no direct I/O");
    assert!(refusal.to_string().contains("direct I/O"), "{refusal}");
}
