//! Resizing a disk in use.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod common;

use block::{Backend, CacheMode, DiskOptions, Durability, RawFile, ResizeError};

use common::{KIB, MIB, Rig, errno, numbered, numbered_file, open};

#[test]
fn a_grown_disk_accepts_requests_up_to_its_new_end() {
    let file = numbered_file(MIB);
    let disk = open(file.path(), CacheMode::WriteBack);
    let mut rig = Rig::new(&disk);
    let beyond = MIB + 64 * KIB;
    assert_eq!(errno(rig.fill(beyond, 4 * KIB, 7, Durability::Volatile)), Some(libc::EINVAL));

    assert_eq!(disk.resize(Some(2 * MIB)).unwrap(), 2 * MIB);
    assert_eq!(disk.geometry().capacity, 2 * MIB);
    assert_eq!(file.as_file().metadata().unwrap().len(), 2 * MIB);
    rig.fill(beyond, 4 * KIB, 7, Durability::Volatile).unwrap();
    assert!(rig.read(beyond, 4 * KIB).unwrap().iter().all(|&byte| byte == 7));
    assert!(rig.read(0, MIB).unwrap() == numbered(0, MIB), "the old data is unchanged");
    let end = rig.fill(2 * MIB - 512, KIB, 7, Durability::Volatile);
    assert_eq!(errno(end), Some(libc::EINVAL), "beyond the new end");
}

#[test]
fn a_size_that_the_host_has_changed_is_adopted() {
    let file = numbered_file(MIB);
    let disk =
        RawFile::open(file.path(), &DiskOptions::new(CacheMode::WriteBack).read_only()).unwrap();
    assert_eq!(disk.resize(None).unwrap(), MIB, "nothing changed");
    file.as_file().set_len(3 * MIB).unwrap();
    assert_eq!(disk.geometry().capacity, MIB, "not before the resize");
    assert_eq!(disk.resize(None).unwrap(), 3 * MIB);
    assert_eq!(disk.geometry().capacity, 3 * MIB);
}

#[test]
fn a_disk_never_shrinks() {
    let file = numbered_file(MIB);
    let disk = open(file.path(), CacheMode::WriteBack);
    let refusal = disk.resize(Some(MIB / 2)).unwrap_err();
    assert!(matches!(refusal, ResizeError::Shrink { .. }), "{refusal}");
    assert_eq!(file.as_file().metadata().unwrap().len(), MIB, "the file was not truncated");

    // Nor below a size that another process has set and the guest does not know yet.
    file.as_file().set_len(4 * MIB).unwrap();
    assert!(matches!(disk.resize(Some(2 * MIB)), Err(ResizeError::Shrink { .. })));
    assert_eq!(file.as_file().metadata().unwrap().len(), 4 * MIB);

    file.as_file().set_len(MIB / 2).unwrap();
    assert!(matches!(disk.resize(None), Err(ResizeError::Shrink { .. })));
    assert_eq!(disk.geometry().capacity, MIB);
}

#[test]
fn a_refused_resize_reports_the_reason() {
    let file = numbered_file(MIB);
    let disk = open(file.path(), CacheMode::WriteBack);
    let refusal = disk.resize(Some(MIB + 100)).unwrap_err();
    assert!(matches!(refusal, ResizeError::Unaligned { .. }), "{refusal}");
    assert_eq!(file.as_file().metadata().unwrap().len(), MIB);
    let too_large = disk.resize(Some(u64::MAX - 511)).unwrap_err();
    assert!(matches!(too_large, ResizeError::Host { .. }), "{too_large}");
    assert_eq!(disk.geometry().capacity, MIB);
    drop(disk);

    let reader =
        RawFile::open(file.path(), &DiskOptions::new(CacheMode::WriteBack).read_only()).unwrap();
    assert!(matches!(reader.resize(Some(2 * MIB)), Err(ResizeError::ReadOnly)));
}

#[test]
fn the_status_names_the_engine() {
    let file = numbered_file(MIB);
    let disk = open(file.path(), CacheMode::WriteBack);
    assert_eq!(disk.status().engine.name, "auto", "unknown before the first engine");
    drop(Rig::new(&disk));
    assert_eq!(disk.status().engine.name, "io_uring");
    assert!(disk.status().lost_writes.is_none());
}
