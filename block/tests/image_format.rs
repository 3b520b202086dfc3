//! Images of other formats: refused, unless a guest may have written their signatures.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod common;

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use block::{
    Backend, CacheMode, DiskFormat, DiskOptions, FormatVerdict, ImageFormat, OpenError,
    ProbedFormat, RawFile, Survey,
};
use fixtures::host::{Loop, Mount, sh};
use fixtures::{Ext4, Formatted, needs};
use rustix::fs::{XattrFlags, fgetxattr, fremovexattr, fsetxattr};
use tempfile::{NamedTempFile, TempDir};

use common::log::logged;
use common::{MIB, numbered, scratch};

const MARK: &str = "user.bulkhead.raw";
const QCOW2: &[u8] = b"QFI\xfb\0\0\0\x03";

fn options() -> DiskOptions {
    DiskOptions::new(CacheMode::WriteBack)
}

fn insisting() -> DiskOptions {
    DiskOptions { format: DiskFormat::Raw, ..options() }
}

/// An image of 1 MiB with bytes at an offset.
fn image(at: u64, bytes: &[u8]) -> NamedTempFile {
    let image = NamedTempFile::new_in(scratch()).unwrap();
    image.as_file().set_len(MIB).unwrap();
    image.as_file().write_all_at(bytes, at).unwrap();
    image
}

/// The format for which a disk is refused, and the remedy.
fn refused(path: &Path, options: &DiskOptions) -> Option<(ImageFormat, String)> {
    match RawFile::open(path, options) {
        Ok(_) => None,
        Err(OpenError::Foreign { format, remedy, .. }) => Some((format, remedy)),
        Err(error) => panic!("{error}"),
    }
}

fn refused_format(path: &Path, options: &DiskOptions) -> Option<ImageFormat> {
    refused(path, options).map(|(format, _)| format)
}

#[test]
fn another_format_is_refused_and_unchanged() {
    for cache in [CacheMode::WriteBack, CacheMode::None] {
        let image = image(0, QCOW2);
        let before = fs::read(image.path()).unwrap();
        let options = DiskOptions::new(cache);
        let error = RawFile::open(image.path(), &options).unwrap_err().to_string();
        assert!(error.contains("not a raw image but qcow2; make a raw copy with"), "{error}");
        assert!(RawFile::open(image.path(), &options.clone().read_only()).is_err());
        assert_eq!(fs::read(image.path()).unwrap(), before);
        let insisting = DiskOptions { format: DiskFormat::Raw, ..options };
        assert_eq!(refused(image.path(), &insisting), None);
    }
}

#[test]
fn the_last_sector_is_probed() {
    let vhd = image(MIB - 512, b"conectix");
    assert_eq!(refused_format(vhd.path(), &options()), Some(ImageFormat::Vhd));
}

/// A guest may use LVM or encryption, and install from a file system that it does not write.
#[test]
fn contents_of_raw_disks_are_served() {
    for (at, bytes, format) in [
        (0, &b"LUKS\xba\xbe\0\x01"[..], ImageFormat::Luks),
        (512, b"LABELONE", ImageFormat::Lvm2),
        (32_769, b"CD001", ImageFormat::Iso9660),
    ] {
        let image = image(at, bytes);
        let probed = ProbedFormat::of(image.as_file()).unwrap();
        assert_eq!(probed.found, Some(format));
        let suspect = |options: &DiskOptions| {
            matches!(probed.verdict(image.path(), options), FormatVerdict::Suspect { .. })
        };
        let is_iso = format == ImageFormat::Iso9660;
        assert_eq!(suspect(&options()), is_iso, "{format}: a disk that is written");
        assert!(!suspect(&options().read_only()), "{format}");
        assert!(!suspect(&insisting()), "{format}");
        assert_eq!(refused(image.path(), &options()), None, "{format}");
    }
}

/// Whether the image is refused after its guest has written the signature of a format.
fn is_locked_out(first_start: &DiskOptions) -> bool {
    let image = image(4096, &[1]);
    drop(RawFile::open(image.path(), first_start).unwrap());
    image.as_file().write_all_at(QCOW2, 0).unwrap();
    refused(image.path(), &options()).is_some()
}

#[test]
fn a_guest_is_not_locked_out_by_its_own_bytes() {
    assert!(!is_locked_out(&options()));
    assert!(!is_locked_out(&insisting()));
    assert!(is_locked_out(&options().read_only()), "no guest could write it");
    assert!(is_locked_out(&insisting().read_only()), "no guest could write it");
}

#[test]
fn an_image_that_insists_once_is_raw_from_then_on() {
    let image = image(0, QCOW2);
    assert!(refused(image.path(), &options()).is_some());
    drop(RawFile::open(image.path(), &insisting()).unwrap());
    assert_eq!(refused(image.path(), &options()), None);
    let probed = ProbedFormat::of(image.as_file()).unwrap();
    assert_eq!((probed.found, probed.is_marked), (Some(ImageFormat::Qcow2), true));
    let verdict = probed.verdict(image.path(), &options());
    assert!(matches!(verdict, FormatVerdict::Suspect { .. }), "{verdict:?}");
}

/// A copy has no mark, and a second start changes nothing.
#[test]
fn the_mark_is_set_once() {
    let image = image(0, &[]);
    drop(RawFile::open(image.path(), &options()).unwrap());
    let changed = || {
        let metadata = image.path().metadata().unwrap();
        (metadata.ctime(), metadata.ctime_nsec())
    };
    let before = changed();
    std::thread::sleep(Duration::from_millis(20));
    drop(RawFile::open(image.path(), &options()).unwrap());
    assert_eq!(changed(), before);
    let copy = image.path().with_extension("copy");
    fs::copy(image.path(), &copy).unwrap();
    assert!(!ProbedFormat::of(&File::open(&copy).unwrap()).unwrap().is_marked);
    fs::remove_file(copy).unwrap();
}

fn is_marked(path: &Path) -> bool {
    ProbedFormat::of(&File::open(path).unwrap()).unwrap().is_marked
}

/// `cp other.qcow2 vm.img` writes into the same file, which keeps its attributes.
#[test]
fn the_mark_does_not_survive_another_image() {
    let image = image(0, &[]);
    drop(RawFile::open(image.path(), &options()).unwrap());
    let other = numbered(0, MIB / 2);
    fs::write(image.path(), [QCOW2, &other[QCOW2.len()..]].concat()).unwrap();
    assert!(!is_marked(image.path()));
    let (format, remedy) = refused(image.path(), &options()).unwrap();
    assert_eq!(format, ImageFormat::Qcow2);
    assert!(remedy.contains("write `format = \"raw\"`"), "{remedy}");
    assert_eq!(refused(image.path(), &insisting()), None);
    assert!(is_marked(image.path()));
}

/// A size that the owner changes while the disk is not in use.
#[test]
fn a_clean_image_of_another_size_is_marked_again() {
    let image = image(0, &[]);
    for size in [MIB, 2 * MIB, MIB / 2] {
        image.as_file().set_len(size).unwrap();
        drop(RawFile::open(image.path(), &options()).unwrap());
        image.as_file().write_all_at(QCOW2, 0).unwrap();
        assert_eq!(refused(image.path(), &options()), None, "{size}");
        image.as_file().write_all_at(&[0; 8], 0).unwrap();
    }
}

/// The mark of an earlier version.
#[test]
fn a_mark_without_a_size_is_none() {
    let image = image(0, QCOW2);
    for value in ["1", "", "+1048576x", "99999999999999999999999999"] {
        fsetxattr(image.as_file(), MARK, value.as_bytes(), XattrFlags::empty()).unwrap();
        assert!(!is_marked(image.path()), "{value}");
        assert!(refused(image.path(), &options()).is_some(), "{value}");
    }
}

#[test]
fn a_disk_that_grows_stays_marked() {
    let image = image(0, &[]);
    let disk = RawFile::open(image.path(), &options()).unwrap();
    disk.resize(Some(2 * MIB)).unwrap();
    assert!(is_marked(image.path()));
    image.as_file().set_len(3 * MIB).unwrap();
    assert!(!is_marked(image.path()), "the disk does not know this size");
    disk.resize(None).unwrap();
    assert!(is_marked(image.path()));
    image.as_file().write_all_at(QCOW2, 0).unwrap();
    drop(disk);
    assert_eq!(refused(image.path(), &options()), None);
}

/// Only a disk that was marked stays so.
#[test]
fn growth_marks_nothing() {
    let image = image(0, &[]);
    let reader = RawFile::open(image.path(), &options().read_only()).unwrap();
    image.as_file().set_len(2 * MIB).unwrap();
    reader.resize(None).unwrap();
    drop(reader);
    let disk = RawFile::open(image.path(), &options()).unwrap();
    fremovexattr(image.as_file(), MARK).unwrap();
    disk.resize(Some(3 * MIB)).unwrap();
    assert!(!is_marked(image.path()));
}

/// A start on a store that hangs waits for no mark that exists.
#[test]
fn a_marked_image_opens_on_a_frozen_store() {
    if !needs::root() {
        return;
    }
    let mut store = Ext4::new(4096);
    let image = store.file(MIB, 0);
    drop(RawFile::open(&image, &options()).unwrap());
    store.freeze();
    let start = Instant::now();
    let opened = RawFile::open(&image, &options());
    let elapsed = start.elapsed();
    store.thaw();
    assert!(opened.is_ok() && elapsed < Duration::from_secs(20), "{elapsed:?}");
}

/// A mark would hide its format when it can be read again.
#[test]
fn an_image_that_cannot_be_read_is_not_marked() {
    if !needs::root() {
        return;
    }
    let store = Formatted::new(&["mkfs.ext4", "-q", "-F"], "noatime");
    let image = store.file("disk");
    File::create(&image).unwrap().write_all_at(&vec![1; 1 << 20], 0).unwrap();
    File::open(&image).unwrap().sync_all().unwrap();
    // The loop device fails reads beyond the end of its file.
    let below = File::options().write(true).open(store.image()).unwrap();
    let size = below.metadata().unwrap().len();
    below.set_len(first_block(&image)).unwrap();
    let read = || {
        let file = File::open(&image).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        file.read_at(&mut [0; 512], 0)
    };
    assert_eq!(read().unwrap_err().raw_os_error(), Some(libc::EIO));
    drop(RawFile::open(&image, &options()).unwrap());
    let marked = || fgetxattr(File::open(&image).unwrap(), MARK, &mut [0_u8; 32][..]).is_ok();
    assert!(!marked());
    below.set_len(size).unwrap();
    read().unwrap();
    drop(RawFile::open(&image, &options()).unwrap());
    assert!(marked(), "when it can be read");
}

/// Offset on its device of the first block of a file, in bytes.
fn first_block(path: &Path) -> u64 {
    let extents = sh("filefrag", &["-b1024", "-v", path.to_str().unwrap()]);
    // `   0:        0..    1023:      34817..     35840:   1024:             last,eof`
    let first = extents.lines().find_map(|line| line.trim().strip_prefix("0:")).unwrap();
    let device = first.split(':').nth(1).unwrap();
    device.split("..").next().unwrap().trim().parse::<u64>().unwrap() * 1024
}

/// Else the guest's own bytes lock it out after a power cut.
#[test]
fn the_mark_is_durable_before_the_guest_runs() {
    if !needs::root() {
        return;
    }
    let mut store = Ext4::new(4096);
    let image = store.file(MIB, 0);
    drop(RawFile::open(&image, &options()).unwrap());
    store.cut_power();
    assert!(is_marked(&image));
}

/// The lines about the mark that a start logs.
fn logged_about_mark(image: &Path, options: &DiskOptions) -> Vec<String> {
    let (disk, mut lines) = logged(|| RawFile::open(image, options));
    disk.unwrap();
    lines.retain(|line| line.contains("marked"));
    lines
}

#[test]
fn an_image_that_cannot_be_marked_is_named() {
    if !needs::root() {
        return;
    }
    let remedy = r#"`format = "raw"`"#;
    // A file system without attributes.
    let plain = Mount::new("ramfs", "mode=700");
    let image = plain.file(MIB);
    let lines = logged_about_mark(&image, &options());
    let is = |lines: &[String], level| {
        assert!(
            matches!(lines, [line] if line.starts_with(level) && line.contains(remedy)),
            "{lines:?}"
        );
    };
    is(&lines, "INFO");
    assert!(logged_about_mark(&image, &insisting()).is_empty());
    assert!(logged_about_mark(&image, &options().read_only()).is_empty());
    // No space for another attribute.
    let store = Ext4::new(4096);
    let image = store.file(MIB, 0);
    let file = File::open(&image).unwrap();
    for len in (0..4000).rev().step_by(4) {
        let attribute = format!("user.{len}");
        let _ = fsetxattr(&file, attribute, &vec![1; len], XattrFlags::empty());
    }
    let lines = logged_about_mark(&image, &options());
    is(&lines, "WARN");
    assert!(logged_about_mark(&image, &insisting()).is_empty());
    // Nothing to tell of one that is marked, or has been before.
    let ordinary = self::image(0, &[]);
    for _ in 0..2 {
        assert!(logged_about_mark(ordinary.path(), &options()).is_empty());
    }
}

#[test]
fn a_refused_disk_is_not_marked() {
    let image = image(0, QCOW2);
    for _ in 0..2 {
        assert!(refused(image.path(), &options()).is_some());
    }
    assert!(!ProbedFormat::of(image.as_file()).unwrap().is_marked);
}

/// Of an image that is in use, not even the first block is read: the read could hang.
#[test]
fn the_lock_is_taken_before_the_format_is_read() {
    let image = image(0, QCOW2);
    let _user = RawFile::open(image.path(), &insisting().read_only()).unwrap();
    let error = RawFile::open(image.path(), &options()).unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
}

#[test]
fn a_probe_keeps_the_access_time() {
    let image = image(0, QCOW2);
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    image.as_file().set_times(FileTimes::new().set_accessed(long_ago)).unwrap();
    assert!(refused(image.path(), &options()).is_some());
    ProbedFormat::of(image.as_file()).unwrap();
    assert_eq!(image.path().metadata().unwrap().accessed().unwrap(), long_ago);
}

#[test]
fn a_survey_names_the_format_before_the_size() {
    let image = image(0, QCOW2);
    let found = Survey::open(image.path(), None).unwrap().format().unwrap();
    assert_eq!(found.0.found, Some(ImageFormat::Qcow2));
    assert!(matches!(found.1, FormatVerdict::Foreign { .. }), "{found:?}");
    image.as_file().set_len(1000).unwrap();
    let error = Survey::open(image.path(), None).unwrap_err();
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
}

/// Its content is the guest's, and it cannot be marked.
#[test]
fn a_block_device_is_served_with_a_warning() {
    if !needs::root() {
        return;
    }
    let image = image(0, QCOW2);
    let device = Loop::new(image.path());
    assert_eq!(refused(&device.0, &options()), None);
    let probed = ProbedFormat::of(&File::open(&device.0).unwrap()).unwrap();
    let FormatVerdict::Suspect { remedy, .. } = probed.verdict(&device.0, &options()) else {
        panic!("{probed:?}");
    };
    assert!(remedy.contains(&format!("`qemu-img info {}`", device.0.display())), "{remedy}");
}

/// The command of a remedy, run by a shell as a user would.
fn follow(remedy: &str) {
    let command = remedy.split('`').nth(1).unwrap();
    let run = Command::new("sh").args(["-c", command]).output().unwrap();
    let errors = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(run.status.success(), "{command}: {errors}");
}

/// The disk of [`numbered`] bytes as `convert` makes it: refused as `format`; the remedy gives back
/// the disk in another file.
fn check_conversion(format: ImageFormat, convert: impl FnOnce(&str, &str)) {
    let folder = TempDir::new_in(scratch()).unwrap();
    let [disk, foreign] = ["disk", "a disk"].map(|name| folder.path().join(name));
    fs::write(&disk, numbered(0, MIB)).unwrap();
    convert(disk.to_str().unwrap(), foreign.to_str().unwrap());
    let before = fs::read(&foreign).unwrap();
    // A name that is taken is not used.
    let taken = folder.path().join("a disk.raw");
    fs::write(&taken, "precious").unwrap();
    let survey = |path: &Path| ProbedFormat::of(&File::open(path).unwrap()).unwrap();
    assert_eq!(survey(&foreign).found, Some(format));
    let FormatVerdict::Foreign { remedy, .. } = survey(&foreign).verdict(&foreign, &options())
    else {
        panic!("{format} is served");
    };
    follow(&remedy);
    assert_eq!(fs::read(&foreign).unwrap(), before, "{format}");
    assert_eq!(fs::read(&taken).unwrap(), b"precious");
    let mut raw = fs::read(folder.path().join("a disk.raw.1")).unwrap();
    // A VHD has whole cylinders.
    assert!(raw.split_off(usize::try_from(MIB).unwrap()).iter().all(|byte| *byte == 0));
    assert_eq!(raw, numbered(0, MIB), "{format}");
}

#[test]
fn images_of_qemu_are_known_and_their_remedies_work() {
    for (format, name, more) in [
        (ImageFormat::Qcow2, "qcow2", "compat=1.1"),
        (ImageFormat::Qcow2, "qcow2", "compat=0.10"),
        (ImageFormat::Qcow, "qcow", ""),
        (ImageFormat::Vmdk, "vmdk", "subformat=monolithicSparse"),
        (ImageFormat::VmdkDescriptor, "vmdk", "subformat=monolithicFlat"),
        (ImageFormat::Vdi, "vdi", ""),
        (ImageFormat::Vhd, "vpc", "subformat=dynamic"),
        (ImageFormat::Vhd, "vpc", "subformat=fixed"),
        (ImageFormat::Vhdx, "vhdx", ""),
        (ImageFormat::Qed, "qed", ""),
        (ImageFormat::Parallels, "parallels", ""),
    ] {
        let options = if more.is_empty() { vec![] } else { vec!["-o", more] };
        check_conversion(format, |disk, image| {
            let convert = ["convert", "-f", "raw", "-O", name];
            sh("qemu-img", &[&convert[..], &options, &[disk, image]].concat());
        });
    }
}

#[test]
fn compressed_images_are_known_and_their_remedies_work() {
    for (format, program) in [(ImageFormat::Gzip, "gzip"), (ImageFormat::Xz, "xz")] {
        check_conversion(format, |disk, image| {
            sh("sh", &["-c", &format!("{program} -c {disk} >'{image}'")]);
        });
    }
}
