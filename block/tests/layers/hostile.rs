//! Streams with any bytes: an error that leaves no file, or the disk that the stream describes.

use std::path::PathBuf;

use fixtures::{Random, scratch};
use proptest::prelude::*;
use tempfile::TempDir;

use super::format::{BLOCK, LayerFile, read_disk, u64_at};
use super::model::names;
use super::streams::{exported, import};

/// Blocks of the disk.
const BLOCKS: u64 = 16;

/// A folder with a base and a layer over it, which has a block of data and one of zeroes.
fn folder() -> (TempDir, PathBuf, PathBuf) {
    let folder = TempDir::new_in(scratch()).unwrap();
    let (base, layer) = (folder.path().join("base.img"), folder.path().join("a.layer"));
    std::fs::write(&base, vec![0x55; BLOCKS as usize * BLOCK]).unwrap();
    block::create_layer(&layer, &base, None).unwrap();
    let file = LayerFile::open(&layer);
    file.set_bit(3);
    file.write_data(3, &[7; BLOCK]);
    file.set_bit(5);
    (folder, base, layer)
}

/// Whatever one byte becomes, the stream is refused.
#[test]
fn each_changed_byte_is_noticed() {
    let (folder, base, layer) = folder();
    let stream = exported(&layer, None);
    let new = folder.path().join("new.layer");
    let before = names(folder.path());
    let random = &mut Random::new(1);
    for at in 0..stream.len() {
        let mut stream = stream.clone();
        stream[at] ^= 1 << random.below(8);
        let error = import(&stream, &base, &new, false).unwrap_err().to_string();
        // Before anything is made of its fields.
        let is_header = error.contains("the checksum of its header");
        assert_eq!(is_header, (12..128).contains(&at), "byte {at}: {error}");
    }
    assert_eq!(names(folder.path()), before);
    import(&stream, &base, &new, false).unwrap();
}

#[test]
fn each_truncation_is_noticed() {
    let (folder, base, layer) = folder();
    let mut stream = exported(&layer, None);
    let new = folder.path().join("new.layer");
    let before = names(folder.path());
    for len in 0..stream.len() {
        let error = import(&stream[..len], &base, &new, false).unwrap_err().to_string();
        assert!(error.contains("cut off at byte"), "{len}: {error}");
    }
    stream.push(0);
    let error = import(&stream, &base, &new, false).unwrap_err().to_string();
    assert!(error.contains("more bytes after its end"), "{error}");
    assert_eq!(names(folder.path()), before);
}

/// A record of a stream that is written by hand, as `docs/layer-stream.md` has it.
#[derive(Clone, Debug)]
struct Record {
    kind: u32,
    start: u64,
    len: u64,
    data: Vec<u8>,
}

/// A stream with the header of `stream` and any records; `end` changes the last one.
fn written(stream: &[u8], records: &[Record], end: (u64, u64)) -> Vec<u8> {
    let mut bytes = stream[..128].to_vec();
    let mut heads = bytes.clone();
    let mut sum = 0_u64;
    for record in records {
        let head = head(record.kind, record.start, record.len, &[], &record.data);
        heads.extend(&head);
        bytes.extend(&head);
        bytes.extend(&record.data);
        sum = sum.wrapping_add(record.len);
    }
    let (count, sum) = (records.len() as u64 ^ end.0, sum ^ end.1);
    bytes.extend(head(3, count, sum, &heads, &[]));
    bytes
}

fn head(kind: u32, start: u64, len: u64, before: &[u8], data: &[u8]) -> Vec<u8> {
    let mut head = [kind.to_le_bytes(), [0; 4]].concat();
    head.extend(start.to_le_bytes());
    head.extend(len.to_le_bytes());
    let checksum = crc32fast::hash(&[before, &head, data].concat());
    head[4..8].copy_from_slice(&checksum.to_le_bytes());
    head
}

/// The disk of the records, if they are valid.
fn expected(records: &[Record], base: &[u8]) -> Option<Vec<u8>> {
    let (mut disk, mut next) = (base.to_vec(), 0);
    for Record { kind, start, len, data } in records {
        let end = start.checked_add(*len).filter(|end| *end <= disk.len() as u64)?;
        let is_whole = *len > 0 && start % BLOCK as u64 == 0 && len % BLOCK as u64 == 0;
        if !matches!(kind, 1 | 2) || !is_whole || *start < next {
            return None;
        }
        let part = &mut disk[*start as usize..end as usize];
        if *kind == 1 {
            part.copy_from_slice(data);
        } else {
            part.fill(0);
        }
        next = end;
    }
    Some(disk)
}

fn records() -> impl Strategy<Value = Vec<Record>> {
    let block = BLOCK as u64;
    let start = prop_oneof![
        12 => (0..BLOCKS).prop_map(move |it| it * block),
        1 => any::<u64>(),
        1 => 0..BLOCKS * block,
        1 => Just(u64::MAX - block + 1),
    ];
    let len = prop_oneof![
        12 => (1..3u64).prop_map(move |it| it * block),
        1 => Just(0),
        1 => any::<u64>(),
        1 => 0..BLOCKS * block,
        1 => Just(1 << 63),
    ];
    let kind = prop_oneof![8 => 1..3u32, 1 => 0..5u32];
    let record = (kind, start, len, any::<u8>()).prop_map(|(kind, start, len, byte)| {
        let data = if kind == 1 { vec![byte; len.min(1 << 17) as usize] } else { Vec::new() };
        Record { kind, start, len, data }
    });
    let sort = |(mut records, is_sorted): (Vec<Record>, bool)| {
        if is_sorted {
            records.sort_by_key(|record| record.start);
        }
        records
    };
    (proptest::collection::vec(record, 0..5), proptest::bool::weighted(0.8)).prop_map(sort)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Their checksums are right, so that only their ranges can be wrong.
    #[test]
    fn any_records_are_refused_or_applied(
        records in records(),
        end in prop_oneof![9 => Just((0, 0)), 1 => (0..3u64, 0..3u64)],
    ) {
        let (folder, base, layer) = folder();
        let stream = written(&exported(&layer, None), &records, end);
        let new = folder.path().join("new.layer");
        let before = names(folder.path());
        let disk = expected(&records, &std::fs::read(&base).unwrap()).filter(|_| end == (0, 0));
        match (import(&stream, &base, &new, false), disk) {
            (Ok(_), Some(disk)) => prop_assert!(read_disk(&new, true) == disk),
            (Err(error), None) => {
                prop_assert_eq!(names(folder.path()), before, "{}", error);
            }
            (found, disk) => prop_assert!(false, "{:?}, valid: {}", found, disk.is_some()),
        }
    }

    /// A header with a right checksum, whatever its fields.
    #[test]
    fn any_header_is_refused_or_applied(
        at in 8..128usize,
        field in prop_oneof![any::<u64>(), 0..5u64, (0..60u32).prop_map(|bit| 1 << bit)],
    ) {
        let (folder, base, layer) = folder();
        let mut stream = exported(&layer, None);
        let at = at.min(120);
        stream[at..at + 8].copy_from_slice(&field.to_le_bytes());
        stream[12..16].fill(0);
        let checksum = crc32fast::hash(&stream[..128]);
        stream[12..16].copy_from_slice(&checksum.to_le_bytes());
        let records = [
            Record { kind: 1, start: 3 * 4096, len: 4096, data: vec![7; BLOCK] },
            Record { kind: 2, start: 5 * 4096, len: 4096, data: vec![] },
        ];
        let stream = written(&stream, &records, (0, 0));
        let new = folder.path().join("new.layer");
        let before = names(folder.path());
        match import(&stream, &base, &new, false) {
            Ok(imported) => {
                // A larger disk over the same base, or a field without an effect on the content.
                prop_assert_eq!(imported.size, u64_at(&stream, 64));
                let disk = expected(&records, &std::fs::read(&base).unwrap()).unwrap();
                if imported.size < 1 << 30 {
                    prop_assert!(read_disk(&new, true)[..disk.len()] == disk);
                }
            }
            Err(_) => prop_assert_eq!(names(folder.path()), before),
        }
    }
}

/// A record with more than 1 MiB of data, which would take memory.
#[test]
fn a_record_with_much_data_is_refused() {
    let folder = TempDir::new_in(scratch()).unwrap();
    let (base, layer) = (folder.path().join("base.img"), folder.path().join("a.layer"));
    std::fs::File::create(&base).unwrap().set_len(64 << 20).unwrap();
    block::create_layer(&layer, &base, None).unwrap();
    let stream = exported(&layer, None);
    let new = folder.path().join("new.layer");
    for (len, is_good) in [(1 << 20, true), ((1 << 20) + 4096, false)] {
        let data = vec![1; len];
        let record = Record { kind: 1, start: 0, len: len as u64, data };
        let written = written(&stream, &[record], (0, 0));
        assert_eq!(import(&written, &base, &new, false).is_ok(), is_good, "{len}");
        let _ = std::fs::remove_file(&new);
    }
}

#[test]
fn newer_streams_are_refused() {
    let (folder, base, layer) = folder();
    let stream = exported(&layer, None);
    let new = folder.path().join("new.layer");
    let refused = |at: usize, byte: u8, reason: &str| {
        let mut stream = stream.clone();
        stream[at] = byte;
        stream[12..16].fill(0);
        let checksum = crc32fast::hash(&stream[..128]);
        stream[12..16].copy_from_slice(&checksum.to_le_bytes());
        let error = import(&stream, &base, &new, true).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    };
    refused(8, 2, "version 2");
    refused(16, 0x40, "features (0x40)");
    refused(0, b'X', "signature");
    refused(127, 1, "a field of its header is invalid");
    refused(73, 0x20, "a field of its header is invalid");
    // Sizes: no whole blocks, above 64 TiB, none, and less than that of the base.
    refused(64, 1, "a field of its header is invalid");
    refused(70, 1, "a field of its header is invalid");
    refused(66, 0, "a field of its header is invalid");
    refused(82, 2, "a field of its header is invalid");
    refused(104, 1, "its base has no valid identity");
    refused(76, 3, "its base has no valid identity");
    refused(76, 4, "the kind of its base is unknown");
    let error = import(b"", &base, &new, true).unwrap_err().to_string();
    assert!(error.contains("cut off at byte 0"), "{error}");
}
