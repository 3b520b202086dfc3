//! Exports and imports of random chains.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use block::{
    CacheMode, DiskOptions, ImportedLayer, LayerChain, LayerExport, LayerImport, LayeredDisk,
    OpenError,
};
use fixtures::host::Loop;
use fixtures::{Random, needs};

use super::format::{LayerFile, read_disk};
use super::model::{Block, Chain, names};

/// The stream of a layer.
pub(crate) fn exported(path: &Path, from: Option<&Path>) -> Vec<u8> {
    let mut stream = Vec::new();
    let mut done = 0;
    let export = LayerExport::open(path, from).unwrap();
    export.to_writer(&mut stream, Path::new("stream"), |bytes| done += bytes).unwrap();
    assert_eq!(done, export.size());
    stream
}

pub(crate) fn import(
    stream: &[u8],
    base: &Path,
    path: &Path,
    force: bool,
) -> Result<ImportedLayer, OpenError> {
    LayerImport::open(stream, Path::new("stream"))?.to_layer(base, path, force, |_| {})
}

#[test]
fn an_imported_layer_has_the_same_disk() {
    for seed in 1..=25 {
        let random = &mut Random::new(seed);
        let depth = 1 + random.below(3);
        let model = Chain::new(random, depth, 80);
        assert!(read_disk(&model.path(0), true) == model.disk(), "seed {seed}: the model is right");
        let (folder, copy) = model.copy_base();
        let top = model.path(0);

        // Everything above the base, in one stream.
        let stream = exported(&top, Some(&model.path(model.base())));
        let path = folder.path().join("whole.layer");
        let imported = import(&stream, &copy, &path, false).unwrap();
        assert_eq!(imported.size, (model.blocks() * 4096) as u64);
        assert!(read_disk(&path, true) == model.disk(), "seed {seed}");

        // Level by level, from the base up.
        let mut below = copy.clone();
        for level in (0..model.base()).rev() {
            let stream = exported(&model.path(level), None);
            let path = folder.path().join(format!("{level}.layer"));
            let imported = import(&stream, &below, &path, false).unwrap();
            assert_eq!(imported.is_frozen, level > 0);
            let [one, other] = [&model.path(level), &path].map(|path| LayerFile::open(path));
            assert_eq!(one.frozen(), other.frozen());
            assert_eq!(one.slot[40..56] == other.slot[40..56], level > 0, "the identity");
            below = path;
        }
        assert!(read_disk(&below, true) == model.disk(), "seed {seed}");
        let report = block::check_layer(&below, || {});
        assert_eq!(report.findings, [], "seed {seed}");

        // And over a layer that was imported, all levels above at once.
        if depth == 3 {
            let stream = exported(&top, Some(&model.path(2)));
            let path = folder.path().join("two.layer");
            import(&stream, &folder.path().join("2.layer"), &path, false).unwrap();
            assert!(read_disk(&path, true) == model.disk(), "seed {seed}");
        }
    }
}

/// The stream has the changes and no more.
#[test]
fn a_stream_has_what_was_changed() {
    let model = Chain::new(&mut Random::new(5), 2, 200);
    let top = model.path(0);
    let export = LayerExport::open(&top, None).unwrap();
    let mut stream = Vec::new();
    let exported = export.to_writer(&mut stream, Path::new("stream"), |_| {}).unwrap();
    let of = |kind: fn(&Block) -> bool| model.levels[0].iter().filter(|block| kind(block)).count();
    let data = of(|block| matches!(block, Block::Data(_))) * 4096;
    assert_eq!(exported.data, data as u64);
    assert_eq!(exported.changed, (of(|block| *block != Block::Inherited) * 4096) as u64);
    let records = (stream.len() - 128 - data) / 24;
    assert_eq!(128 + data + 24 * records, stream.len());
    assert!(records < 200, "{records}");
    assert_eq!(export.base(), model.path(1));
}

/// A file system with space for a number of bytes.
struct Full(usize);

impl std::io::Write for Full {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = bytes.len().min(self.0);
        self.0 -= written;
        if written == 0 { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(written) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_export_that_finds_no_space_fails() {
    let model = Chain::new(&mut Random::new(5), 1, 4);
    let export = LayerExport::open(&model.path(0), None).unwrap();
    let len = exported(&model.path(0), None).len();
    for space in [0, 1, 127, 128, 500, len - 1, len] {
        let result = export.to_writer(Full(space), Path::new("stream"), |_| {});
        assert_eq!(result.is_ok(), space == len, "{space} of {len}");
    }
}

/// No program writes the layer meanwhile, and one that is written is not exported.
#[test]
fn an_export_excludes_writers() {
    let model = Chain::new(&mut Random::new(9), 2, 20);
    let (top, base) = (model.path(0), model.path(1));
    let options = DiskOptions::new(CacheMode::WriteBack);
    let open = || LayeredDisk::open(&top, &base, &options);
    let export = LayerExport::open(&top, None).unwrap();
    assert!(matches!(open(), Err(OpenError::InUse { .. })));
    // Readers are welcome.
    LayerExport::open(&top, None).unwrap();
    drop(export);
    let writer = open().unwrap();
    assert!(matches!(LayerExport::open(&top, None), Err(OpenError::InUse { .. })));
    drop(writer);
    LayerExport::open(&top, None).unwrap();
}

#[test]
fn an_export_to_a_file_is_complete_or_none() {
    let model = Chain::new(&mut Random::new(9), 1, 20);
    let export = LayerExport::open(&model.path(0), None).unwrap();
    let out = model.folder.path().join("a.stream");
    export.to_file(&out, |_| {}).unwrap();
    assert!(std::fs::read(&out).unwrap() == exported(&model.path(0), None));
    std::fs::write(&out, "mine").unwrap();
    let error = export.to_file(&out, |_| {}).unwrap_err().to_string();
    assert!(error.contains("exists already"), "{error}");
    assert_eq!(std::fs::read(&out).unwrap(), b"mine");

    let before = names(model.folder.path());
    let absent = model.folder.path().join("absent/a.stream");
    export.to_file(&absent, |_| {}).unwrap_err();
    assert_eq!(names(model.folder.path()), before);
    // A file system without files that have no name.
    let error = export.to_file(Path::new("/proc/a.stream"), |_| {}).unwrap_err().to_string();
    assert!(error.contains("write to standard output, `-`"), "{error}");
}

#[test]
fn only_the_base_of_a_stream_is_accepted() {
    let size = |model: &Chain, level| std::fs::metadata(model.path(level)).unwrap().len();
    let is_even = |model: &Chain| {
        let middle = LayerFile::open(&model.path(1)).size();
        size(model, 2) == middle && middle == (model.blocks() * 4096) as u64
    };
    let mut models = (1..).map(|seed| Chain::new(&mut Random::new(seed), 2, 40));
    let model = models.find(is_even).unwrap();
    let over_layer = exported(&model.path(0), None);
    let over_base = exported(&model.path(0), Some(&model.path(2)));
    let (folder, copy) = model.copy_base();
    let path = folder.path().join("new.layer");
    let refused = |stream: &[u8], base: &Path, force: bool, reason: &str| {
        let error = import(stream, base, &path, force).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        assert!(!path.exists());
    };
    // A layer instead of a raw base, and the reverse: only a user can know.
    refused(&over_layer, &copy, false, "the base of the stream is a layer; if its content");
    let frozen = model.path(1);
    let other = folder.path().join("other.img");
    std::fs::copy(&copy, &other).unwrap();
    let file = File::options().write(true).open(&other).unwrap();
    file.write_all_at(&[0x77], 0).unwrap();
    refused(&over_base, &other, false, "other content");
    refused(&over_base, &other, true, "other content");
    file.set_len(512).unwrap();
    refused(&over_base, &other, true, "bytes, not");
    // A layer that can still be written was never a base.
    refused(&over_layer, &model.path(0), true, "not frozen");
    assert_eq!(LayerFile::open(&model.path(0)).frozen(), [0; 16]);
    // The right ones.
    import(&over_base, &copy, &path, false).unwrap();
    refused_existing(&over_base, &copy, &path);
    std::fs::remove_file(&path).unwrap();
    import(&over_layer, &frozen, &path, false).unwrap();
}

fn refused_existing(stream: &[u8], base: &Path, path: &Path) {
    let before = std::fs::read(path).unwrap();
    let error = import(stream, base, path, true).unwrap_err().to_string();
    assert!(error.contains("exists already"), "{error}");
    assert!(std::fs::read(path).unwrap() == before);
}

/// A base that the user vouches for: the layer is no longer the exported one.
#[test]
fn a_forced_import_gets_an_identity_of_its_own() {
    let folder = tempfile::TempDir::new_in(fixtures::scratch()).unwrap();
    let at = |name: &str| folder.path().join(name);
    File::create(at("base.img")).unwrap().set_len(1 << 20).unwrap();
    for (path, base) in [("1.layer", "base.img"), ("2.layer", "1.layer"), ("3.layer", "2.layer")] {
        block::create_layer(&at(path), &at(base), None).unwrap();
    }
    let stream = exported(&at("2.layer"), None);
    let same = import(&stream, &at("1.layer"), &at("same.layer"), true).unwrap();
    assert!(same.is_frozen, "nothing had to be forced");
    import(&stream, &at("base.img"), &at("forced.layer"), false).unwrap_err();
    let forced = import(&stream, &at("base.img"), &at("forced.layer"), true).unwrap();
    assert!(!forced.is_frozen && forced.uuid != same.uuid);
    let other = import(&stream, &at("2.layer"), &at("other.layer"), false).unwrap_err();
    assert!(other.to_string().contains("another layer"), "{other}");
}

/// A copy of a device in a file, and the reverse: the content is compared, the kind is the user's.
#[test]
fn a_base_may_move_between_files_and_devices() {
    if !needs::root() {
        return;
    }
    let model = Chain::new(&mut Random::new(21), 0, 40);
    let (folder, copy) = model.copy_base();
    let at = |name: &str| folder.path().join(name);
    let device = Loop::new(&copy);
    let size = Some(48 * 4096);
    block::create_layer(&at("file.layer"), &model.path(0), size).unwrap();
    block::create_layer(&at("device.layer"), &device.0, size).unwrap();
    for (from, to) in [("file.layer", &device.0), ("device.layer", &model.path(0))] {
        let layer = LayerFile::open(&at(from));
        layer.set_bit(7);
        layer.write_data(7, &[0x42; 4096]);
        layer.file.sync_all().unwrap();
        let chain = LayerChain::open(&at(from)).unwrap();
        assert_eq!(chain.pieces().map(|piece| piece.unwrap().range.len).sum::<u64>(), 48 * 4096);
        let stream = exported(&at(from), None);
        let moved = at(&format!("moved-{from}"));
        let error = import(&stream, to, &moved, false).unwrap_err().to_string();
        assert!(error.contains("a block device; if its content"), "{error}");
        import(&stream, to, &moved, true).unwrap();
        assert!(read_disk(&moved, true) == read_disk(&at(from), true), "{from}");
    }
}
