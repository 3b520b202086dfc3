//! Headers as bytes.

use super::*;

fn header() -> Header {
    let base = BaseIdentity {
        kind: BaseKind::File,
        size: 10 << 30,
        seconds: -3,
        nanoseconds: 7,
        sample: 0x1234_5678,
        uuid: Uuid([9; 16]),
    };
    Header::new(Uuid([1; 16]), 10 << 30, base, Path::new("../debian.img"))
}

fn slots(first: Option<&Header>, second: Option<&Header>) -> [u8; SLOT * SLOTS] {
    let mut slots = [0; SLOT * SLOTS];
    for (index, header) in [first, second].into_iter().enumerate() {
        if let Some(header) = header {
            slots[index * SLOT..][..SLOT].copy_from_slice(&header.encode().unwrap());
        }
    }
    slots
}

#[test]
fn a_header_is_read_as_it_was_written() {
    let pending_name = Some("vm1.monday.layer".into());
    let frozen = Header { frozen: Some(Uuid([3; 16])), pending_name, ..header() };
    let merged = Some(("vm1.sunday.layer".into(), Uuid([5; 16])));
    let merging = Header { merge: Some(Uuid([4; 16])), merged, ..header() };
    let receiving = Header { is_receiving: true, ..frozen.clone() };
    assert_eq!(merging.encode().unwrap()[144..160], [4; 16]);
    assert_eq!(merging.encode().unwrap()[160..176], [5; 16]);
    assert_eq!(receiving.encode().unwrap()[16..24], [3, 0, 0, 0, 0, 0, 0, 0]);
    let old = Header { has_unflushed_map: false, ..header() };
    assert_eq!(old.encode().unwrap()[16..24], [0; 8]);
    for header in [header(), frozen, merging, receiving, old] {
        assert_eq!(Header::decode(&slots(None, Some(&header))), Ok(header.clone()));
        assert_eq!(Header::decode(&slots(Some(&header), None)), Ok(header));
    }
}

#[test]
fn the_parts_of_a_file_do_not_overlap() {
    for map_bytes in [0, BLOCK, 8192 * BLOCK, SIZE_MAX / PAGE_COVERS * BLOCK] {
        let new = Header { map_bytes, ..header() };
        let unflushed_at = new.unflushed_at().unwrap();
        assert_eq!(unflushed_at, 8192 + map_bytes);
        assert!(new.data_at() >= unflushed_at + BLOCK + map_bytes);
        let old = Header { has_unflushed_map: false, ..new };
        assert_eq!((old.unflushed_at(), old.data_at() % (1 << 20)), (None, 0));
        assert_eq!(old.data_at(), unflushed_at.next_multiple_of(1 << 20));
    }
}

#[test]
fn the_newer_slot_counts_unless_it_is_torn() {
    let old = header();
    let new = Header { size: 20 << 30, ..header() }.next();
    assert_ne!(old.slot_at(), new.slot_at());
    assert_eq!(Header::decode(&slots(Some(&new), Some(&old))), Ok(new.clone()));
    assert_eq!(Header::decode(&slots(Some(&old), Some(&new))), Ok(new.clone()));
    for torn in [512, 1024, 2048] {
        let mut slots = slots(Some(&new), Some(&old));
        slots[..torn].fill(0);
        assert_eq!(Header::decode(&slots), Ok(old.clone()), "{torn}");
    }
}

/// Whatever one byte becomes, the header is refused or still the same.
#[test]
fn each_changed_byte_is_noticed() {
    let header = header();
    let whole = slots(None, Some(&header));
    for at in SLOT..2 * SLOT {
        let mut slots = whole;
        slots[at] ^= 0x10;
        assert!(Header::decode(&slots).is_err(), "byte {at}");
    }
}

#[test]
fn invalid_fields_are_refused() {
    let base = header();
    for (header, expected) in [
        (Header { size: 0, ..base.clone() }, "its size is invalid, or larger than its map"),
        (Header { size: 4097, ..base.clone() }, "its size is invalid, or larger than its map"),
        (
            Header { size: base.size_max() + BLOCK, ..base.clone() },
            "its size is invalid, or larger than its map",
        ),
        (Header { map_bytes: 1, ..base.clone() }, "the size of its map is invalid"),
        (Header { map_bytes: 1 << 62, ..base.clone() }, "the size of its map is invalid"),
        (Header { base_path: "a\0b".into(), ..base }, "the path of its base is invalid"),
    ] {
        let found = Header::decode(&slots(Some(&header), None));
        assert_eq!(found, Err(HeaderError::Field(expected)));
    }
}

#[test]
fn a_pending_name_is_one_of_the_folder() {
    for name in [".", "..", "a/b", "a\0b", "", &"x".repeat(256)] {
        let header = Header { pending_name: Some(name.into()), ..header() };
        assert_eq!(header.encode(), Err(HeaderError::Field(PENDING_INVALID)), "{name}");
    }
    let mut slot = header().encode().unwrap();
    for (len, text) in [(2, "..."), (3, "../"), (256, "abc"), (u32::MAX, "abc"), (4, "abc")] {
        slot[PENDING_LEN_AT..][..4].copy_from_slice(&len.to_le_bytes());
        slot[PENDING_AT..][..3].copy_from_slice(text.as_bytes());
        assert_eq!(
            name(&slot, PENDING_LEN_AT, PENDING_AT, PENDING_INVALID),
            Err(HeaderError::Field(PENDING_INVALID)),
            "{len}"
        );
    }
}

#[test]
fn newer_formats_are_refused() {
    let whole = slots(None, Some(&header()));
    let mut version = whole;
    version[SLOT + 8] = 2;
    assert_eq!(Header::decode(&version), Err(HeaderError::Version(2)));
    let mut features = whole;
    features[SLOT + 16] = 0x40;
    features[SLOT + 12..SLOT + 16].fill(0);
    let checksum = crc32fast::hash(&features[SLOT..]);
    features[SLOT + 12..SLOT + 16].copy_from_slice(&checksum.to_le_bytes());
    assert_eq!(Header::decode(&features), Err(HeaderError::Features(0x40)));
    assert_eq!(Header::decode(&[0; SLOT * SLOTS]), Err(HeaderError::Signature));
}
