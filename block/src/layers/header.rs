//! The header of a layer file: two slots of 4 KiB, of which the valid one with the higher
//! generation counts, so that a torn write of one leaves the other. `docs/layer-format.md` has the
//! format byte by byte. Pure.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::identity::{BaseIdentity, BaseKind};
use super::unit::{BLOCK, BLOCK_SIZE};
use super::uuid::Uuid;
use crate::image_format::LAYER_MAGIC;

/// Size of a slot in bytes.
pub(super) const SLOT: usize = 4096;
/// Number of slots, at the start of the file.
pub(super) const SLOTS: usize = 2;
/// Version of the format.
const VERSION: u32 = 1;
/// Disk covered by one page of the map, in bytes.
pub(super) const PAGE_COVERS: u64 = BLOCK * BLOCK * 8;
/// Largest size of a disk, 64 TiB: its map has 2 GiB.
const SIZE_MAX: u64 = 1 << 46;
/// Size for which a new layer has map space at least, in bytes.
const SIZE_RESERVED: u64 = 1 << 40;
/// Longest path of a base, in bytes.
const PATH_MAX: usize = 2048;
/// Where the path starts in a slot.
const PATH_AT: usize = 256;

/// Why a file is no layer that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HeaderError {
    /// It has not the signature of a layer.
    #[error("it is not a layer: neither of its two headers has the signature")]
    Signature,
    /// Neither header is intact.
    #[error("both of its headers are damaged; restore the layer from a backup")]
    Damaged,
    /// The format is newer.
    #[error("its format is version {0}, this program knows version {VERSION}; use a newer one")]
    Version(u32),
    /// It requires features that this program does not know.
    #[error("it needs features ({0:#x}) that this program does not know; use a newer one")]
    Features(u64),
    /// A field is invalid, although the checksum is right.
    #[error("its header is invalid: {0}")]
    Field(&'static str),
}

/// The content of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Counts the writes of the header.
    pub(super) generation: u64,
    /// Identity of the layer.
    pub(super) uuid: Uuid,
    /// Size of the disk in bytes, a multiple of 4096.
    pub(super) size: u64,
    /// The identity of its content, once it is the base of others and never written again.
    pub(super) frozen: Option<Uuid>,
    /// Size of the map in bytes, whole pages.
    pub(super) map_bytes: u64,
    /// The base as it was when the layer was made.
    pub(super) base: BaseIdentity,
    /// Path of the base; a relative one starts at the folder of the layer.
    pub(super) base_path: PathBuf,
}

impl Header {
    /// The header of a new layer.
    pub(super) fn new(uuid: Uuid, size: u64, base: BaseIdentity, base_path: &Path) -> Self {
        let covered = size.saturating_mul(4).clamp(SIZE_RESERVED, SIZE_MAX);
        let map_bytes = covered.div_ceil(PAGE_COVERS) * BLOCK;
        let base_path = base_path.to_owned();
        Self { generation: 1, uuid, size, frozen: None, map_bytes, base, base_path }
    }

    /// Its identity as a base.
    pub(super) fn identity(&self) -> BaseIdentity {
        BaseIdentity::of_layer(self.frozen.unwrap_or_default(), self.size)
    }

    /// Position of the map in the file, in bytes.
    pub(super) const fn map_at() -> u64 {
        (SLOT * SLOTS) as u64
    }

    /// Position of the disk's first byte in the file.
    pub(super) fn data_at(&self) -> u64 {
        // The data is aligned to 1 MiB, as partitions are.
        (Self::map_at() + self.map_bytes).next_multiple_of(1 << 20)
    }

    /// Largest size for which there is map space, in bytes.
    pub(super) fn size_max(&self) -> u64 {
        (self.map_bytes / BLOCK).saturating_mul(PAGE_COVERS).min(SIZE_MAX)
    }

    /// The header whose write is next: it replaces the older slot.
    pub(super) fn next(self) -> Self {
        Self { generation: self.generation.wrapping_add(1), ..self }
    }

    /// Position in the file of the slot that this header is written to.
    pub(super) fn slot_at(&self) -> u64 {
        (self.generation % SLOTS as u64) * SLOT as u64
    }

    /// The bytes of a slot.
    ///
    /// # Errors
    ///
    /// The path of the base is too long.
    pub(super) fn encode(&self) -> Result<[u8; SLOT], HeaderError> {
        let path = self.base_path.as_os_str().as_bytes();
        if path.is_empty() || path.len() > PATH_MAX {
            return Err(HeaderError::Field("the path of its base is longer than 2048 bytes"));
        }
        let mut slot = [0; SLOT];
        let mut field = Fields { slot: &mut slot, at: 0 };
        field.put(&LAYER_MAGIC);
        field.put(&VERSION.to_le_bytes());
        field.put(&[0; 4]); // The checksum.
        field.put(&0u64.to_le_bytes()); // Features that a reader has to know.
        field.put(&0u64.to_le_bytes()); // Features that it may ignore.
        field.put(&self.generation.to_le_bytes());
        field.put(&self.uuid.0);
        field.put(&self.size.to_le_bytes());
        field.put(&(BLOCK_SIZE).to_le_bytes());
        field.put(&0u32.to_le_bytes());
        field.put(&self.map_bytes.to_le_bytes());
        field.put(&self.base.kind.number().to_le_bytes());
        field.put(&u32::try_from(path.len()).unwrap_or_default().to_le_bytes());
        field.put(&self.base.size.to_le_bytes());
        field.put(&self.base.seconds.to_le_bytes());
        field.put(&self.base.nanoseconds.to_le_bytes());
        field.put(&self.base.sample.to_le_bytes());
        field.put(&self.base.uuid.0);
        field.put(&self.frozen.unwrap_or_default().0);
        field.at = PATH_AT;
        field.put(path);
        let checksum = crc32fast::hash(&slot);
        Fields { slot: &mut slot, at: 12 }.put(&checksum.to_le_bytes());
        Ok(slot)
    }

    /// The header of a file that starts with `slots`.
    ///
    /// # Errors
    ///
    /// See [`HeaderError`].
    pub(super) fn decode(slots: &[u8; SLOT * SLOTS]) -> Result<Self, HeaderError> {
        let (first, second) = slots.split_at(SLOT);
        let (first, second) = (decode_slot(first), decode_slot(second));
        match (first, second) {
            (Ok(first), Ok(second)) if first.uuid != second.uuid => {
                Err(HeaderError::Field("its two headers are of different layers"))
            }
            (Ok(first), Ok(second)) => {
                Ok(if first.generation > second.generation { first } else { second })
            }
            // A newer program may have written the other one.
            (Err(error @ (HeaderError::Version(_) | HeaderError::Features(_))), _)
            | (_, Err(error @ (HeaderError::Version(_) | HeaderError::Features(_)))) => Err(error),
            (Ok(header), Err(_)) | (Err(_), Ok(header)) => Ok(header),
            (Err(HeaderError::Signature), Err(error)) | (Err(error), Err(_)) => Err(error),
        }
    }
}

fn decode_slot(slot: &[u8]) -> Result<Header, HeaderError> {
    let mut field = Reader(slot);
    if field.take() != Some(LAYER_MAGIC) {
        return Err(HeaderError::Signature);
    }
    // The fields up to the checksum have their place in each version.
    let version = field.u32()?;
    if version != VERSION {
        return Err(HeaderError::Version(version));
    }
    let checksum = field.u32()?;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(slot.get(..12).unwrap_or_default());
    hasher.update(&[0; 4]);
    hasher.update(slot.get(16..).unwrap_or_default());
    if hasher.finalize() != checksum {
        return Err(HeaderError::Damaged);
    }
    let features = field.u64()?;
    if features != 0 {
        return Err(HeaderError::Features(features));
    }
    let _ignored = field.u64()?;
    let generation = field.u64()?;
    let uuid = Uuid(field.take().ok_or(HeaderError::Damaged)?);
    let size = field.u64()?;
    let (block, reserved) = (field.u32()?, field.u32()?);
    let map_bytes = field.u64()?;
    let (kind, path_len) = (field.u32()?, field.u32()?);
    let base = BaseIdentity {
        kind: BaseKind::of(kind).ok_or(HeaderError::Field("the kind of its base is unknown"))?,
        size: field.u64()?,
        seconds: field.u64()?.cast_signed(),
        nanoseconds: field.u32()?,
        sample: field.u32()?,
        uuid: Uuid(field.take().ok_or(HeaderError::Damaged)?),
    };
    let frozen = Uuid(field.take().ok_or(HeaderError::Damaged)?);
    let frozen = (frozen != Uuid::default()).then_some(frozen);
    let path = usize::try_from(path_len)
        .ok()
        .filter(|len| (1..=PATH_MAX).contains(len))
        .and_then(|len| slot.get(PATH_AT..PATH_AT + len))
        .filter(|path| !path.contains(&0))
        .ok_or(HeaderError::Field("the path of its base is invalid"))?;
    let base_path = PathBuf::from(OsStr::from_bytes(path));
    let header = Header { generation, uuid, size, frozen, map_bytes, base, base_path };
    check(&header, block, reserved)?;
    Ok(header)
}

fn check(header: &Header, block: u32, reserved: u32) -> Result<(), HeaderError> {
    let field = |why| Err(HeaderError::Field(why));
    if u64::from(block) != BLOCK {
        return field("its block size is not 4096 bytes");
    }
    if reserved != 0 {
        return field("a reserved field is not zero");
    }
    if !header.map_bytes.is_multiple_of(BLOCK) || header.map_bytes > SIZE_MAX / PAGE_COVERS * BLOCK
    {
        return field("the size of its map is invalid");
    }
    if header.size == 0 || !header.size.is_multiple_of(BLOCK) || header.size > header.size_max() {
        return field("its size is invalid, or larger than its map");
    }
    Ok(())
}

/// Writes fields one behind the other.
struct Fields<'s> {
    slot: &'s mut [u8; SLOT],
    at: usize,
}

impl Fields<'_> {
    fn put(&mut self, bytes: &[u8]) {
        if let Some(part) = self.slot.get_mut(self.at..self.at + bytes.len()) {
            part.copy_from_slice(bytes);
        }
        self.at += bytes.len();
    }
}

/// Reads fields one behind the other.
struct Reader<'s>(&'s [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    fn u32(&mut self) -> Result<u32, HeaderError> {
        self.take().map(u32::from_le_bytes).ok_or(HeaderError::Damaged)
    }

    fn u64(&mut self) -> Result<u64, HeaderError> {
        self.take().map(u64::from_le_bytes).ok_or(HeaderError::Damaged)
    }
}

#[cfg(test)]
mod tests {
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
        let frozen = Header { frozen: Some(Uuid([3; 16])), ..header() };
        for header in [header(), frozen] {
            assert_eq!(Header::decode(&slots(None, Some(&header))), Ok(header.clone()));
            assert_eq!(Header::decode(&slots(Some(&header), None)), Ok(header));
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
}
