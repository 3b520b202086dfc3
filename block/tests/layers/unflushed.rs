//! Writes that a killed service has completed and not flushed: all that reads a layer sees them,
//! and all that changes one keeps them.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use block::{
    Backend, CacheMode, CommitOptions, DiskOptions, LayeredDisk, check_layer, commit_layer,
    create_layer, flatten_layer, freeze_layer, layer_info, rebase_layer, reset_layer,
};
use fixtures::scratch;
use tempfile::TempDir;

use super::format::{BLOCK, LayerFile, read_disk};

const BLOCKS: usize = 40;
/// A block that the service has written.
const WRITTEN: u64 = 33;

fn options() -> DiskOptions {
    DiskOptions { survives_kill: true, ..DiskOptions::new(CacheMode::WriteBack) }
}

struct Killed {
    folder: TempDir,
    /// The disk as the guest has it.
    disk: Vec<u8>,
}

impl Killed {
    /// A layer whose service was killed after the write of a block.
    fn new() -> Self {
        let folder = TempDir::new_in(scratch()).unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("base.img"), vec![7; BLOCKS * BLOCK]).unwrap();
        create_layer(&at("top.layer"), &at("base.img"), None).unwrap();
        drop(LayeredDisk::open(&at("top.layer"), &at("base.img"), &options()).unwrap());
        let layer = LayerFile::open(&at("top.layer"));
        layer.write_data(WRITTEN, &[9; BLOCK]);
        layer.note(WRITTEN);
        let mut disk = vec![7; BLOCKS * BLOCK];
        disk[usize::try_from(WRITTEN).unwrap() * BLOCK..][..BLOCK].fill(9);
        assert_ne!(read_disk(&at("top.layer"), true), disk, "the map lacks the block");
        Self { folder, disk }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The content of a layer by way of the program.
    fn flattened(&self, name: &str) -> Vec<u8> {
        let image = self.at("flat.img");
        let _ = std::fs::remove_file(&image);
        flatten_layer(&self.at(name), &image, &mut |_| {}).unwrap();
        std::fs::read(&image).unwrap()
    }
}

fn answered(path: &Path) -> u64 {
    layer_info(path).unwrap()[0].answered
}

#[test]
fn readers_see_what_a_killed_service_has_completed() {
    let killed = Killed::new();
    let top = killed.at("top.layer");
    assert_eq!(answered(&top), BLOCK as u64);
    assert_eq!(check_layer(&top, || {}).findings, []);
    assert_eq!(killed.flattened("top.layer"), killed.disk);
    assert_ne!(read_disk(&top, true), killed.disk, "a reader changes no layer");
}

/// The next program that uses the disk flushes it in the usual order, whether or not it serves it.
#[test]
fn a_flush_covers_what_a_killed_service_has_completed() {
    for options in [options(), DiskOptions::new(CacheMode::WriteBack)] {
        let killed = Killed::new();
        let top = killed.at("top.layer");
        let disk = LayeredDisk::open(&top, &killed.at("base.img"), &options).unwrap();
        disk.sync().unwrap();
        assert_eq!(read_disk(&top, true), killed.disk);
    }
}

#[test]
fn a_disk_that_is_only_read_has_them_and_writes_nothing() {
    let killed = Killed::new();
    let (top, base) = (killed.at("top.layer"), killed.at("base.img"));
    let disk = LayeredDisk::open(&top, &base, &options().read_only()).unwrap();
    disk.sync().unwrap();
    let pieces = disk.allocation(block::ByteOffset(0), 9).unwrap();
    assert_eq!(pieces.len(), 3, "{pieces:?}");
    assert_ne!(read_disk(&top, true), killed.disk);
}

#[test]
fn commands_keep_what_a_killed_service_has_completed() {
    let killed = Killed::new();
    freeze_layer(&killed.at("top.layer")).unwrap();
    assert_eq!(read_disk(&killed.at("top.layer"), true), killed.disk, "freeze");

    let killed = Killed::new();
    create_layer(&killed.at("over.layer"), &killed.at("top.layer"), None).unwrap();
    assert_eq!(read_disk(&killed.at("over.layer"), true), killed.disk, "create");

    let killed = Killed::new();
    let options = CommitOptions { force: false, remove: false };
    let merged = commit_layer(&killed.at("top.layer"), options, &mut |_| {}).unwrap().merged;
    assert_eq!(merged, BLOCK as u64);
    assert_eq!(read_disk(&killed.at("base.img"), false), killed.disk, "commit");
    assert_eq!(answered(&killed.at("top.layer")), 0);

    let killed = Killed::new();
    std::fs::write(killed.at("other.img"), vec![8; BLOCKS * BLOCK]).unwrap();
    rebase_layer(&killed.at("top.layer"), &killed.at("other.img"), &mut |_| {}).unwrap();
    assert_eq!(read_disk(&killed.at("top.layer"), true), killed.disk, "rebase");

    let killed = Killed::new();
    reset_layer(&killed.at("top.layer")).unwrap();
    assert_eq!(answered(&killed.at("top.layer")), 0);
    assert_eq!(killed.flattened("top.layer"), vec![7; BLOCKS * BLOCK], "reset");
}

/// A snapshot was killed when the old top was frozen and had its name, and the disk was still
/// written through it.
#[test]
fn a_killed_snapshot_keeps_what_the_old_top_has_completed() {
    type Open = fn(&Killed);
    let opens: [(&str, Open); 3] = [
        ("a start", |killed| {
            let base = killed.at("base.img");
            drop(LayeredDisk::open(&killed.at("over.layer"), &base, &options()).unwrap());
        }),
        ("another layer", |killed| {
            create_layer(&killed.at("more.layer"), &killed.at("top.layer"), None).unwrap();
        }),
        ("a command", |killed| {
            let (top, base) = (killed.at("over.layer"), killed.at("top.layer"));
            rebase_layer(&top, &base, &mut |_| {}).unwrap();
        }),
    ];
    for (name, open) in opens {
        let killed = Killed::new();
        create_layer(&killed.at("over.layer"), &killed.at("top.layer"), None).unwrap();
        let before = killed.disk.clone();
        let mut disk = killed.disk.clone();
        disk[5 * BLOCK..6 * BLOCK].fill(4);
        let old = LayerFile::open(&killed.at("top.layer"));
        old.write_data(5, &[4; BLOCK]);
        old.note(5);
        assert_eq!(killed.flattened("over.layer"), before, "a frozen layer was flushed");
        let mut slot = old.slot.clone();
        slot[192] = 9;
        slot[2304..2313].copy_from_slice(b"top.layer");
        old.write_slot(0, &slot);
        assert_eq!(killed.flattened("over.layer"), disk, "{name}: a reader");
        assert_eq!(read_disk(&killed.at("over.layer"), true), before, "{name}: nothing written");
        open(&killed);
        assert_eq!(read_disk(&killed.at("over.layer"), true), disk, "{name}");
        assert_eq!(LayerFile::open(&killed.at("top.layer")).slot[192], 0, "{name}");
    }
}

/// A copy may have the bits without the data, as one that was taken from the device.
#[test]
fn a_copy_of_the_file_has_only_what_was_flushed() {
    let killed = Killed::new();
    std::fs::copy(killed.at("top.layer"), killed.at("copy.layer")).unwrap();
    assert_eq!(answered(&killed.at("copy.layer")), 0);
    // Opened to be served, it forgets them for good.
    drop(LayeredDisk::open(&killed.at("copy.layer"), &killed.at("base.img"), &options()).unwrap());
    let copy = LayerFile::open(&killed.at("copy.layer"));
    let mut bits = [1; BLOCK];
    copy.file.read_exact_at(&mut bits, copy.unflushed_at() + BLOCK as u64).unwrap();
    assert_eq!(bits, [0; BLOCK]);
    let first = copy.first_page();
    let metadata = copy.file.metadata().unwrap();
    assert_eq!(first[..8], *b"BLKHUNFL");
    assert_eq!(first[32..40], metadata.dev().to_le_bytes());
    assert_eq!(first[40..48], metadata.ino().to_le_bytes());
}

/// Whatever the page before the bits holds, they count only if it is the one that was written.
#[test]
fn a_damaged_page_lets_no_bit_count() {
    let killed = Killed::new();
    let layer = LayerFile::open(&killed.at("top.layer"));
    let first = layer.first_page();
    for at in 0..48 {
        let mut damaged = first;
        damaged[at] ^= 0x10;
        layer.file.write_all_at(&damaged, layer.unflushed_at()).unwrap();
        assert_eq!(answered(&killed.at("top.layer")), 0, "byte {at}");
    }
    layer.file.write_all_at(&first, layer.unflushed_at()).unwrap();
    assert_eq!(answered(&killed.at("top.layer")), BLOCK as u64);
}

#[test]
fn a_bit_beyond_the_disk_is_damage() {
    let killed = Killed::new();
    let (top, base) = (killed.at("top.layer"), killed.at("base.img"));
    LayerFile::open(&top).note(BLOCKS as u64);
    for options in [options(), options().read_only()] {
        let error = LayeredDisk::open(&top, &base, &options).unwrap_err().to_string();
        assert!(error.contains("blocks beyond the end of the disk"), "{error}");
    }
    let findings = check_layer(&top, || {}).findings;
    assert!(findings.iter().any(|finding| finding.is_problem), "{findings:?}");
}

/// A layer of an early version, which has no room for the unflushed map.
#[test]
fn a_layer_without_room_is_not_served() {
    let folder = TempDir::new_in(scratch()).unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("base.img"), vec![7; BLOCKS * BLOCK]).unwrap();
    create_layer(&at("top.layer"), &at("base.img"), None).unwrap();
    let layer = LayerFile::open(&at("top.layer"));
    let mut slot = layer.slot.clone();
    slot[16] = 0;
    layer.write_slot(1, &slot);
    let layer = LayerFile::open(&at("top.layer"));
    assert_eq!(layer.data_at(), 33 << 20);
    layer.write_data(3, &[1; BLOCK]);
    layer.set_bit(3);
    let error = LayeredDisk::open(&at("top.layer"), &at("base.img"), &options()).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("`bulkhead layer create --base "), "{error}");
    // All else works.
    let options = DiskOptions::new(CacheMode::WriteBack);
    drop(LayeredDisk::open(&at("top.layer"), &at("base.img"), &options).unwrap());
    assert_eq!(answered(&at("top.layer")), BLOCK as u64);
    reset_layer(&at("top.layer")).unwrap();
    assert_eq!(LayerFile::open(&at("top.layer")).slot[16], 2, "a new file has room");
}

/// A file that ends within its unflushed map.
#[test]
fn a_truncated_layer_is_refused() {
    let killed = Killed::new();
    let layer = LayerFile::open(&killed.at("top.layer"));
    for end in [layer.unflushed_at(), layer.unflushed_at() + 512, layer.unflushed_at() + 8192] {
        layer.file.set_len(end).unwrap();
        let opened = LayeredDisk::open(&killed.at("top.layer"), &killed.at("base.img"), &options());
        let error = opened.unwrap_err().to_string();
        assert!(error.contains("it was truncated"), "{error}");
        assert!(check_layer(&killed.at("top.layer"), || {}).problems() > 0);
    }
}
