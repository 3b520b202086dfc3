//! Damage that a check finds, and states that are none.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use block::{CacheMode, DiskOptions, LayeredDisk, check_layer, create_layer};
use fixtures::scratch;
use tempfile::TempDir;

use super::format::{LayerFile, SLOT};

/// A folder with `2.layer` over `1.layer` over `base.img`.
pub(crate) fn chain() -> (TempDir, impl Fn(&str) -> PathBuf) {
    let folder = TempDir::new_in(scratch()).unwrap();
    let path = folder.path().to_owned();
    let at = move |name: &str| path.join(name);
    std::fs::write(at("base.img"), vec![7; 1 << 20]).unwrap();
    create_layer(&at("1.layer"), &at("base.img"), None).unwrap();
    create_layer(&at("2.layer"), &at("1.layer"), None).unwrap();
    (folder, at)
}

/// The findings, as the file, whether it is a problem, and the text.
fn findings(path: &Path) -> Vec<(String, bool, String)> {
    let report = check_layer(path, || {});
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let findings = report.findings.into_iter();
    findings.map(|finding| (name(&finding.path), finding.is_problem, finding.what)).collect()
}

/// The one finding.
fn only(path: &Path) -> (String, bool, String) {
    let findings = findings(path);
    assert_eq!(findings.len(), 1, "{findings:?}");
    findings.into_iter().next().unwrap()
}

fn assert_only(path: &Path, file: &str, is_problem: bool, text: &str) {
    let (found, problem, what) = only(path);
    assert_eq!((found.as_str(), problem), (file, is_problem), "{what}");
    assert!(what.contains(text), "{what}");
}

#[test]
fn a_sound_chain_has_no_findings() {
    let (_folder, at) = chain();
    let report = check_layer(&at("2.layer"), || {});
    assert_eq!((report.levels.len(), report.findings), (3, vec![]));
}

/// The older header counts, which opens without a word.
#[test]
fn a_damaged_newer_header_is_found() {
    // Of a layer that was frozen: generation 2, in slot 0.
    let (_folder, at) = chain();
    let file = LayerFile::open(&at("1.layer")).file;
    let mut slot = [0; SLOT];
    file.read_exact_at(&mut slot, 0).unwrap();
    file.write_all_at(&[!slot[100]], 100).unwrap();
    assert_only(&at("1.layer"), "1.layer", true, "the newer header, in slot 0, is damaged");
    let chained = findings(&at("2.layer"));
    assert!(chained.iter().any(|(_, _, what)| what.contains("is not frozen")), "{chained:?}");
    assert!(chained.iter().any(|(_, _, what)| what.contains("has changed")), "{chained:?}");

    // The older one is damaged: less is lost.
    file.write_all_at(&slot, 0).unwrap();
    assert_eq!(findings(&at("2.layer")), []);
    file.write_all_at(&[1], SLOT as u64 + 100).unwrap();
    assert_only(&at("2.layer"), "1.layer", true, "one of its two headers, in slot 1, is damaged");
    file.write_all_at(&[0; SLOT], SLOT as u64).unwrap();
    assert_only(&at("2.layer"), "1.layer", true, "one of its two headers, in slot 1, is missing");
}

#[test]
fn a_torn_first_write_is_found() {
    let (_folder, at) = chain();
    let layer = LayerFile::open(&at("2.layer"));
    layer.file.write_all_at(&layer.slot[..512], 0).unwrap();
    layer.file.write_all_at(&[2], 32).unwrap();
    assert_only(&at("2.layer"), "2.layer", true, "the newer header, in slot 0, is damaged");
    layer.file.write_all_at(b"01234567", 0).unwrap();
    assert_only(&at("2.layer"), "2.layer", true, "the newer header, in slot 0, is missing");
}

#[test]
fn headers_in_the_wrong_place_or_of_other_times_are_found() {
    let (_folder, at) = chain();
    let layer = LayerFile::open(&at("1.layer"));
    let mut slot = layer.slot.clone();
    slot[32] = 8;
    layer.write_slot(0, &slot);
    assert_only(&at("2.layer"), "1.layer", true, "generations 1 and 8");
    slot[32] = 3;
    layer.write_slot(0, &slot);
    let found = findings(&at("2.layer"));
    assert!(found[0].2.contains("slot 0 has generation 3, whose place is the other"), "{found:?}");
    slot[32] = 2;
    slot[200] = 1;
    layer.write_slot(0, &slot);
    assert_only(&at("2.layer"), "1.layer", true, "slot 0 has bytes where the format has zeroes");
    // A feature that a reader may ignore.
    slot[200] = 0;
    slot[24] = 1;
    layer.write_slot(0, &slot);
    assert_eq!(findings(&at("2.layer")), []);
}

#[test]
fn the_length_and_the_map_are_examined() {
    let (_folder, at) = chain();
    let layer = LayerFile::open(&at("2.layer"));
    let whole = layer.data_at() + layer.size();
    layer.file.set_len(whole + 4096).unwrap();
    assert_only(&at("2.layer"), "2.layer", false, "4096 bytes longer than its disk");
    layer.file.set_len(whole - 4096).unwrap();
    assert_only(&at("2.layer"), "2.layer", true, "was truncated");
    layer.file.set_len(whole).unwrap();
    assert_eq!(findings(&at("2.layer")), []);
    layer.set_bit(255);
    assert_eq!(findings(&at("2.layer")), []);
    layer.set_bit(256);
    layer.set_bit(1 << 20);
    assert_only(&at("2.layer"), "2.layer", true, "it has 2 blocks beyond the end");
}

#[test]
fn data_without_a_bit_is_harmless() {
    let (_folder, at) = chain();
    let layer = LayerFile::open(&at("2.layer"));
    for block in 10..20 {
        layer.write_data(block, &[1; 4096]);
        if block % 2 == 0 {
            layer.set_bit(block);
        }
    }
    layer.file.sync_all().unwrap();
    assert_only(&at("2.layer"), "2.layer", false, "has 20480 bytes of data in blocks");
}

#[test]
fn bases_are_examined() {
    let (_folder, at) = chain();
    let base = File::options().write(true).open(at("base.img")).unwrap();
    base.write_all_at(&[1], 0).unwrap();
    assert_only(&at("2.layer"), "base.img", true, "other content");
    std::fs::remove_file(at("base.img")).unwrap();
    assert_only(&at("2.layer"), "1.layer", true, "is missing; if it was moved");

    // One that records no identity: nothing but the state of the base tells.
    let (_folder, at) = chain();
    let upper = LayerFile::open(&at("2.layer"));
    let mut slot = upper.slot.clone();
    slot[112..128].fill(0);
    upper.write_slot(1, &slot);
    let lower = LayerFile::open(&at("1.layer"));
    let mut slot = lower.slot.clone();
    slot[128..144].fill(0);
    lower.write_slot(0, &slot);
    assert_only(&at("2.layer"), "1.layer", true, "is not frozen");
}

#[test]
fn files_that_are_no_layers_are_found() {
    let (_folder, at) = chain();
    assert_only(&at("base.img"), "base.img", true, "neither of its two headers");
    assert_only(&at("absent"), "absent", true, "cannot find it");
    let whole = std::fs::read(at("1.layer")).unwrap();
    std::fs::write(at("short"), &whole[..200]).unwrap();
    assert_only(&at("short"), "short", true, "both of its headers are damaged");
}

/// A chain that ends in itself.
#[test]
fn an_endless_chain_ends() {
    let (_folder, at) = chain();
    let layer = LayerFile::open(&at("2.layer"));
    let mut slot = layer.slot.clone();
    let own = at("2.layer").to_str().unwrap().to_owned();
    slot[84..88].copy_from_slice(&u32::try_from(own.len()).unwrap().to_le_bytes());
    slot[256..].fill(0);
    slot[256..256 + own.len()].copy_from_slice(own.as_bytes());
    layer.write_slot(1, &slot);
    let report = check_layer(&at("2.layer"), || {});
    assert_eq!(report.levels.len(), 16);
    assert!(report.findings.last().unwrap().what.contains("at most 16"), "{report:?}");
}

#[test]
fn writers_are_named() {
    let (_folder, at) = chain();
    let options = DiskOptions::new(CacheMode::WriteBack);
    let disk = LayeredDisk::open(&at("2.layer"), &at("1.layer"), &options).unwrap();
    assert_only(&at("2.layer"), "2.layer", false, "its last changes may be missing");
    drop(disk);
    let _writer = block::RawFile::open(&at("base.img"), &options).unwrap();
    assert_only(&at("2.layer"), "base.img", true, "is open for writing");
}
