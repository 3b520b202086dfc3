//! Opening a disk: suitable files, exclusive use, geometry.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod common;

use std::fs::{File, FileTimes, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use block::{Backend, CacheMode, DiskOptions, OpenError, RawFile};
use tempfile::NamedTempFile;

use common::{KIB, MIB, Rig, numbered_file, open, scratch};

fn refusal(path: &Path, mode: CacheMode) -> OpenError {
    RawFile::open(path, &DiskOptions::new(mode)).expect_err("not a disk")
}

#[test]
fn a_file_has_the_geometry_that_the_host_reports() {
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
fn probing_for_hole_punching_keeps_the_content() {
    let file = numbered_file(MIB - 512);
    drop(open(file.path(), CacheMode::WriteBack));
    assert_eq!(std::fs::read(file.path()).unwrap(), common::numbered(0, MIB - 512));
}

#[test]
fn unsuitable_files_are_refused_with_the_reason() {
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

/// The kernel releases the lock of a killed process shortly after its end.
#[test]
fn open_waits_for_a_lock_that_is_soon_released() {
    let file = numbered_file(64 * KIB);
    let first = open(file.path(), CacheMode::WriteBack);
    let ending = thread::spawn(|| {
        thread::sleep(Duration::from_millis(100));
        drop(first);
    });
    open(file.path(), CacheMode::WriteBack);
    ending.join().unwrap();
}

/// As by `layer reset` while a machine starts.
#[test]
fn a_file_that_is_replaced_while_its_lock_is_awaited_is_not_opened() {
    let (old, new) = (numbered_file(MIB), numbered_file(2 * MIB));
    let path = old.path().to_owned();
    let first = open(&path, CacheMode::WriteBack);
    let waits = thread::spawn(move || RawFile::open(&path, &DiskOptions::new(CacheMode::None)));
    thread::sleep(Duration::from_millis(200));
    std::fs::rename(new.path(), old.path()).unwrap();
    drop(first);
    let opened = waits.join().unwrap().unwrap();
    assert_eq!(opened.geometry().capacity, 2 * MIB);
    drop(opened);
    // Its name is gone.
    File::create(new.path()).unwrap();
}

/// The access time of a file after a read of the disk over it.
fn access_time_after_read(disk: &RawFile, path: &Path) -> SystemTime {
    // Older than the last modification, so that `relatime` would update it.
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    let times = FileTimes::new().set_accessed(long_ago);
    File::open(path).unwrap().set_times(times).unwrap();
    Rig::new(disk).read(0, 4 * KIB).unwrap();
    std::fs::metadata(path).unwrap().accessed().unwrap()
}

#[test]
fn reads_do_not_update_the_access_time() {
    let file = numbered_file(64 * KIB);
    for mode in [CacheMode::WriteBack, CacheMode::None] {
        let disk = open(file.path(), mode);
        let accessed = access_time_after_read(&disk, file.path());
        assert_eq!(accessed, SystemTime::UNIX_EPOCH + Duration::from_secs(1), "{mode}");
    }
}

#[test]
fn a_file_of_another_owner_can_be_a_disk() {
    if !fixtures::needs::root() {
        return;
    }
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(64 * KIB).unwrap();
    let read_write_for_all = Permissions::from_mode(0o666);
    std::fs::set_permissions(file.path(), read_write_for_all).unwrap();
    let path = file.path().to_owned();
    thread::spawn(move || {
        // Changes the user of this thread only.
        rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(65534)).unwrap();
        let disk = open(&path, CacheMode::WriteBack);
        assert_eq!(Rig::new(&disk).read(0, 512).unwrap(), vec![0; 512]);
    })
    .join()
    .unwrap();
}

#[test]
fn missing_direct_io_is_the_reported_reason() {
    // procfs has regular files without direct I/O.
    let refusal = RawFile::open(
        Path::new("/proc/self/status"),
        &DiskOptions::new(CacheMode::None).read_only(),
    )
    .expect_err("no direct I/O");
    assert!(refusal.to_string().contains("direct I/O"), "{refusal}");
}

/// A link in `/dev`, gone when it is dropped, with its folder if that is new.
struct DeviceLink(std::path::PathBuf);

impl DeviceLink {
    fn new(link: &str, target: &Path) -> Self {
        let link = std::path::PathBuf::from(link);
        // It exists where udev runs.
        let _ = std::fs::create_dir(link.parent().unwrap());
        std::os::unix::fs::symlink(target, &link).unwrap();
        Self(link)
    }
}

impl Drop for DeviceLink {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap();
        // It may have other links.
        let _ = std::fs::remove_dir(self.0.parent().unwrap());
    }
}

/// The device that got the number of another one.
#[test]
fn a_link_to_another_device_is_refused() {
    if !fixtures::needs::root() {
        return;
    }
    let file = numbered_file(MIB);
    let device = fixtures::host::Loop::new(file.path());
    let link = DeviceLink::new("/dev/block/240:77777", &device.0);
    let refused = refusal(&link.0, CacheMode::WriteBack);
    assert!(matches!(refused, OpenError::WrongLink { .. }), "{refused}");
    let reason = "/dev/block/240:77777 names 240:77777, but leads to 7:";
    assert!(refused.to_string().contains(reason), "{refused}");
    assert_eq!(std::fs::read(file.path()).unwrap(), common::numbered(0, MIB));
    open(&device.0, CacheMode::WriteBack);
}
