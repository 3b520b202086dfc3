//! Commits of frozen layers below disks that are written meanwhile.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod common;

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use block::{
    CacheMode, CommitOptions, DiskOptions, Durability, EngineKind, LayerMerge, LayeredDisk,
    MergeError, MergeProgress, MergedLayer, Named, OpenError, check_layer, commit_layer,
    create_layer, snapshot,
};
use fixtures::Random;
use tempfile::TempDir;

use common::{KIB, MIB, Memory, Rig, numbered, scratch};

const SIZE: u64 = 12 * MIB;
const LIMIT: Duration = Duration::from_secs(20);
const SECTOR: usize = 512;

/// A disk in a folder of its own.
struct Fixture {
    folder: TempDir,
    options: DiskOptions,
}

impl Fixture {
    /// A layer over a raw image, or over a layer over one.
    fn new(cache: CacheMode, engine: EngineKind, has_layer_below: bool) -> Self {
        let folder = tempfile::tempdir_in(scratch()).unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("raw"), numbered(0, SIZE)).unwrap();
        if has_layer_below {
            create_layer(&path("base"), &path("raw"), None).unwrap();
        } else {
            std::fs::rename(path("raw"), path("base")).unwrap();
        }
        create_layer(&path("vm.layer"), &path("base"), None).unwrap();
        let options = DiskOptions { engine, block_size: Some(512), ..DiskOptions::new(cache) };
        Self { folder, options }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn open(&self) -> LayeredDisk {
        self.try_open().unwrap()
    }

    fn try_open(&self) -> Result<LayeredDisk, OpenError> {
        LayeredDisk::open(&self.path("vm.layer"), &self.path("base"), &self.options)
    }

    fn names(&self) -> Vec<String> {
        let entries = self.folder.path().read_dir().unwrap().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn freeze(disk: &LayeredDisk, name: &str) {
    snapshot(&[(disk, OsString::from(name))], LIMIT).unwrap();
}

fn commit(disk: &LayeredDisk) -> Result<MergedLayer, MergeError> {
    LayerMerge::begin(disk, false)?.run(&MergeProgress::default(), LIMIT)
}

fn refusal(disk: &LayeredDisk) -> String {
    LayerMerge::begin(disk, false).err().unwrap().to_string()
}

fn write(rig: &mut Rig, at: u64, byte: u8, len: u64) {
    let mut memory = Memory::filled(byte, len);
    rig.run(common::write(at, Durability::Volatile), memory.whole()).unwrap();
}

/// The whole disk, by an engine.
fn content(rig: &mut Rig) -> Vec<u8> {
    (0..SIZE / MIB).flat_map(|at| rig.read(at * MIB, MIB).unwrap()).collect()
}

/// The whole disk at a path, without an engine.
fn content_of(path: &Path) -> Vec<u8> {
    let folder = tempfile::tempdir_in(scratch()).unwrap();
    let image = folder.path().join("image");
    block::flatten_layer(path, &image, &mut |_| {}).unwrap();
    std::fs::read(image).unwrap()
}

/// One queue that writes its own sectors everywhere on the disk, and keeps a model of them.
fn write_own(
    disk: &LayeredDisk,
    queue: usize,
    queues: usize,
    written: &AtomicU64,
    stop: &AtomicBool,
) -> Vec<u8> {
    let mut rig = Rig::new(disk);
    let mut model = content(&mut rig);
    let mut random = Random::new(queue as u64 + 1);
    let sectors = model.len() / SECTOR;
    while !stop.load(Ordering::SeqCst) {
        // Neighbouring sectors, of one block, belong to different queues.
        let sector = random.below(sectors / queues) * queues + queue;
        let at = sector * SECTOR;
        if random.below(4) == 0 {
            let found = rig.read(at as u64, SECTOR as u64).unwrap();
            assert!(found == model[at..at + SECTOR], "sector {sector} reads otherwise");
            continue;
        }
        let byte = u8::try_from(random.below(256)).unwrap();
        let durability =
            if random.below(8) == 0 { Durability::Durable } else { Durability::Volatile };
        let mut memory = Memory::filled(byte, SECTOR as u64);
        rig.run(common::write(at as u64, durability), memory.whole()).unwrap();
        model[at..at + SECTOR].fill(byte);
        written.fetch_add(1, Ordering::SeqCst);
    }
    model
}

fn a_disk_is_written_while_layers_are_merged(cache: CacheMode, engine: EngineKind, below: bool) {
    const QUEUES: usize = 3;
    const ROUNDS: usize = 3;
    let fixture = Fixture::new(cache, engine, below);
    let disk = fixture.open();
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let models: Vec<_> = thread::scope(|scope| {
        let (disk, stop, written) = (&disk, &stop, &written);
        let writers: Vec<_> = (0..QUEUES)
            .map(|queue| scope.spawn(move || write_own(disk, queue, QUEUES, written, stop)))
            .collect();
        let merge = || {
            for round in 0..ROUNDS {
                let before = written.load(Ordering::SeqCst);
                let deadline = Instant::now() + LIMIT;
                while written.load(Ordering::SeqCst) < before + 300 {
                    assert!(Instant::now() < deadline, "the writers hang");
                    thread::sleep(Duration::from_millis(1));
                }
                freeze(disk, &format!("vm.{round}.layer"));
                let merged = commit(disk).map_err(|error| error.to_string())?;
                println!("{} {}: {merged:?}", cache.name(), engine.name());
                assert!(merged.merged >= 4 * KIB && merged.kept.is_none());
            }
            Ok::<_, String>(())
        };
        let result = merge();
        stop.store(true, Ordering::SeqCst);
        let models = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        result.unwrap();
        models
    });
    let expected: Vec<u8> = (0..models[0].len() / SECTOR)
        .flat_map(|sector| models[sector % QUEUES][sector * SECTOR..][..SECTOR].to_vec())
        .collect();
    assert!(content(&mut Rig::new(&disk)) == expected, "the running disk");
    block::Backend::sync(&disk).unwrap();
    drop(disk);
    assert!(content_of(&fixture.path("vm.layer")) == expected, "the files");
    let names = if below { vec!["base", "raw", "vm.layer"] } else { vec!["base", "vm.layer"] };
    assert_eq!(fixture.names(), names);
    let report = check_layer(&fixture.path("vm.layer"), || {});
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    fixture.open();
}

#[test]
fn written_over_a_raw_base() {
    a_disk_is_written_while_layers_are_merged(CacheMode::None, EngineKind::IoUring, false);
}

#[test]
fn written_over_a_layer() {
    a_disk_is_written_while_layers_are_merged(CacheMode::WriteBack, EngineKind::Threads, true);
}

#[test]
fn written_through_over_a_layer() {
    a_disk_is_written_while_layers_are_merged(CacheMode::WriteThrough, EngineKind::IoUring, true);
}

/// The frozen layer below a disk that is open, and its base.
fn frozen(below: bool) -> (Fixture, LayeredDisk, Vec<u8>) {
    let fixture = Fixture::new(CacheMode::WriteBack, EngineKind::Threads, below);
    let disk = fixture.open();
    let mut rig = Rig::new(&disk);
    for (at, byte) in [(0, 1), (3 * MIB + 512, 2), (SIZE - 4 * KIB, 3), (8 * MIB, 4)] {
        write(&mut rig, at, byte, 4 * KIB - at % 4096);
    }
    let mut zeroes = Memory::filled(0, MIB);
    rig.run(common::write(5 * MIB, Durability::Volatile), zeroes.whole()).unwrap();
    drop(rig);
    freeze(&disk, "vm.a.layer");
    let mut rig = Rig::new(&disk);
    write(&mut rig, 3 * MIB + 4 * KIB, 5, 4 * KIB);
    write(&mut rig, 0, 6, 512);
    let expected = content(&mut rig);
    drop(rig);
    (fixture, disk, expected)
}

#[test]
fn the_base_has_what_the_frozen_layer_had() {
    for below in [false, true] {
        let (fixture, disk, expected) = frozen(below);
        let frozen = content_of(&fixture.path("vm.a.layer"));
        let before = fixture.names();
        let merged = commit(&disk).unwrap();
        assert_eq!(merged.merged, MIB + 4 * 4 * KIB);
        assert!(content(&mut Rig::new(&disk)) == expected);
        drop(disk);
        assert!(content_of(&fixture.path("vm.layer")) == expected);
        let base = if below {
            content_of(&fixture.path("base"))
        } else {
            std::fs::read(fixture.path("base")).unwrap()
        };
        assert!(base == frozen);
        let left: Vec<_> = before.into_iter().filter(|name| name != "vm.a.layer").collect();
        assert_eq!(fixture.names(), left);
    }
}

/// Merges a part of a layer.
fn interrupt(disk: &LayeredDisk) {
    let progress = MergeProgress::of_at_most(MIB);
    let result = LayerMerge::begin(disk, false).unwrap().run(&progress, LIMIT);
    assert!(matches!(result, Err(MergeError::Stopped)), "{result:?}");
    let (done, total) = progress.bytes();
    assert!((1..total).contains(&done), "{done} of {total}");
}

/// A disk whose frozen layer has all blocks.
fn full(below: bool) -> (Fixture, LayeredDisk, Vec<u8>) {
    let (fixture, disk, _) = frozen(below);
    commit(&disk).unwrap();
    let mut rig = Rig::new(&disk);
    (0..SIZE / MIB).for_each(|at| write(&mut rig, at * MIB, u8::try_from(at + 1).unwrap(), MIB));
    drop(rig);
    freeze(&disk, "vm.a.layer");
    let mut rig = Rig::new(&disk);
    write(&mut rig, 2 * MIB, 0xaa, 64 * KIB);
    let expected = content(&mut rig);
    block::Backend::sync(&disk).unwrap();
    (fixture, disk, expected)
}

#[test]
fn a_merge_that_was_stopped_can_be_run_again() {
    for below in [false, true] {
        let (fixture, disk, expected) = full(below);
        interrupt(&disk);
        assert!(content(&mut Rig::new(&disk)) == expected);
        drop(disk);
        assert!(content_of(&fixture.path("vm.layer")) == expected);
        let disk = fixture.open();
        assert!(content(&mut Rig::new(&disk)) == expected);
        // A snapshot above it is merged first.
        freeze(&disk, "vm.b.layer");
        for layer in ["vm.b.layer", "vm.a.layer"] {
            let merged = commit(&disk).unwrap();
            assert!(merged.layer.ends_with(layer), "{merged:?}");
            assert!(content(&mut Rig::new(&disk)) == expected);
        }
        drop(disk);
        assert!(content_of(&fixture.path("vm.layer")) == expected);
        assert!(check_layer(&fixture.path("vm.layer"), || {}).findings.is_empty());
    }
}

/// The layer keeps its identity, as its disk stands on it.
#[test]
fn a_merge_that_was_stopped_can_be_finished_without_a_machine() {
    for below in [false, true] {
        let (fixture, disk, expected) = full(below);
        interrupt(&disk);
        drop(disk);
        let (layer, remove) = (
            fixture.path("vm.a.layer"),
            CommitOptions { remove: true, ..CommitOptions::default() },
        );
        let refusal = commit_layer(&layer, remove, &mut |_| {}).unwrap_err().to_string();
        assert!(
            refusal.contains("vm.layer stands on it; run the command without --remove"),
            "{refusal}"
        );
        commit_layer(&layer, CommitOptions::default(), &mut |_| {}).unwrap();
        assert!(content_of(&fixture.path("vm.layer")) == expected);
        assert!(check_layer(&fixture.path("vm.layer"), || {}).findings.is_empty());
        let disk = fixture.open();
        assert_eq!(commit(&disk).unwrap().merged, 0);
        assert!(content(&mut Rig::new(&disk)) == expected);
    }
}

#[test]
fn a_merge_of_files_that_others_use_is_refused() {
    let (fixture, disk, expected) = frozen(true);
    let other = fixture.path("other.layer");
    create_layer(&other, &fixture.path("base"), None).unwrap();
    let refusal = refusal(&disk);
    assert!(refusal.contains("base: other layers stand on it"), "{refusal}");
    assert!(refusal.contains("other.layer") && !refusal.contains("vm."), "{refusal}");
    let open = LayeredDisk::open(&other, &fixture.path("base"), &fixture.options).unwrap();
    let result = LayerMerge::begin(&disk, true);
    assert!(matches!(result, Err(MergeError::Open(OpenError::InUse { .. }))), "{result:?}");
    drop(open);
    // Another reader may come and go after a refusal.
    let reader = LayeredDisk::open(&other, &fixture.path("base"), &fixture.options).unwrap();
    drop(reader);
    let merge = LayerMerge::begin(&disk, true).unwrap();
    let result = LayeredDisk::open(&other, &fixture.path("base"), &fixture.options);
    assert!(matches!(result, Err(OpenError::InUse { .. })), "{result:?}");
    let second = LayerMerge::begin(&disk, true).err().unwrap().to_string();
    assert!(second.contains("is being merged already"), "{second}");
    let frozen = snapshot(&[(&disk, OsString::from("vm.b.layer"))], LIMIT).unwrap_err();
    assert!(frozen.to_string().contains("is being merged; wait"), "{frozen}");
    drop(merge);
    drop(LayeredDisk::open(&other, &fixture.path("base"), &fixture.options).unwrap());
    LayerMerge::begin(&disk, true).unwrap().run(&MergeProgress::default(), LIMIT).unwrap();
    assert!(content(&mut Rig::new(&disk)) == expected);
    let broken = LayeredDisk::open(&other, &fixture.path("base"), &fixture.options).unwrap_err();
    assert!(broken.to_string().contains("another layer, or one that was written"), "{broken}");
}

#[test]
fn layers_that_cannot_be_merged_are_refused() {
    let fixture = Fixture::new(CacheMode::WriteBack, EngineKind::Threads, false);
    let disk = fixture.open();
    let found = refusal(&disk);
    assert!(found.contains("base directly, and has no frozen layer below it"), "{found}");
    freeze(&disk, "vm.a.layer");
    let base = fixture.path("base");
    let mode =
        |mode| std::fs::set_permissions(&base, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o444);
    assert!(refusal(&disk).contains("its mode forbids writes"));
    mode(0o644);
    std::fs::rename(fixture.path("vm.a.layer"), fixture.path("moved")).unwrap();
    assert!(refusal(&disk).contains("vm.a.layer: it was moved while the machine runs"));
    std::fs::rename(fixture.path("moved"), fixture.path("vm.a.layer")).unwrap();
    drop(disk);
    // The configuration names it.
    let named =
        LayeredDisk::open(&fixture.path("vm.layer"), &fixture.path("vm.a.layer"), &fixture.options);
    assert!(refusal(&named.unwrap()).contains("it is the `base` of the disk in the configuration"));
    let read_only = fixture.options.clone().read_only();
    let disk = LayeredDisk::open(&fixture.path("vm.layer"), &base, &read_only).unwrap();
    assert!(refusal(&disk).contains("it is read-only"));
    drop(disk);
    let folder = fixture.path("folder");
    std::fs::create_dir(&folder).unwrap();
    create_layer(&folder.join("x.layer"), &fixture.path("vm.a.layer"), None).unwrap();
    let disk = LayeredDisk::open(&folder.join("x.layer"), &base, &fixture.options).unwrap();
    assert!(refusal(&disk).contains("it is in another folder than the disk"));
    drop(disk);
    commit(&fixture.open()).unwrap();
}

#[test]
fn a_base_that_has_changed_is_refused() {
    let (fixture, disk, expected) = full(false);
    let base = std::fs::File::options().write(true).open(fixture.path("base")).unwrap();
    let modified = base.metadata().unwrap().modified().unwrap();
    base.set_modified(modified + Duration::from_secs(7)).unwrap();
    for force in [false, true] {
        let refusal = LayerMerge::begin(&disk, force).err().unwrap().to_string();
        assert!(refusal.contains("has changed since the layer was made"), "{refusal}");
    }
    base.set_modified(modified).unwrap();
    // Its own merge changes it.
    interrupt(&disk);
    commit(&disk).unwrap();
    assert!(content(&mut Rig::new(&disk)) == expected);
}

#[test]
fn a_layer_that_others_stand_on_is_kept() {
    for below in [false, true] {
        let (fixture, disk, expected) = frozen(below);
        let copy = fixture.path("copy.layer");
        create_layer(&copy, &fixture.path("vm.a.layer"), None).unwrap();
        let of_copy = content_of(&copy);
        let merged = commit(&disk).unwrap();
        assert_eq!(merged.kept.as_deref(), Some("other layers stand on it"));
        assert!(content(&mut Rig::new(&disk)) == expected);
        drop(disk);
        assert!(content_of(&copy) == of_copy);
        assert!(check_layer(&copy, || {}).findings.is_empty());
        // The next merge into the base would break the copy.
        let disk = fixture.open();
        write(&mut Rig::new(&disk), 0, 9, 4 * KIB);
        freeze(&disk, "vm.b.layer");
        let found = refusal(&disk);
        assert!(found.contains("vm.a.layer") && found.contains("copy.layer"), "{found}");
    }
}

#[test]
fn a_base_grows_to_the_size_of_the_layer() {
    for below in [false, true] {
        let (fixture, disk, _) = frozen(below);
        commit(&disk).unwrap();
        block::Backend::resize(&disk, Some(SIZE + MIB)).unwrap();
        freeze(&disk, "vm.b.layer");
        block::Backend::resize(&disk, Some(SIZE + 2 * MIB)).unwrap();
        let mut rig = Rig::new(&disk);
        write(&mut rig, SIZE + 4 * KIB, 7, 4 * KIB);
        drop(rig);
        commit(&disk).unwrap();
        let mut rig = Rig::new(&disk);
        assert_eq!(rig.read(SIZE, 4 * KIB).unwrap(), vec![0; 4096]);
        assert_eq!(rig.read(SIZE + 4 * KIB, 4 * KIB).unwrap(), vec![7; 4096]);
        drop((rig, disk));
        let info = block::layer_info(&fixture.path("vm.layer")).unwrap();
        assert_eq!((info[0].size, info[1].size), (SIZE + 2 * MIB, SIZE + MIB));
        fixture.open();
    }
}
