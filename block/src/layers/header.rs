//! The header of a layer file: two slots of 4 KiB, of which the valid one with the higher
//! generation counts, so that a torn write of one leaves the other. `docs/layer-format.md` has the
//! format byte by byte. Pure.

use std::ffi::{OsStr, OsString};
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
/// Required feature: a merge into the layer is in progress.
const RECEIVING: u64 = 1;
/// Required feature: an unflushed map lies between the map and the data.
const UNFLUSHED_MAP: u64 = 2;
/// All required features.
const KNOWN: u64 = RECEIVING | UNFLUSHED_MAP;
/// Longest path of a base, in bytes.
const PATH_MAX: usize = 2048;
/// Where the path starts in a slot.
const PATH_AT: usize = 256;
/// Where the identity of the merged layer's content is in a slot.
const MERGED_FROZEN_AT: usize = 160;
/// Where the length of the pending name is in a slot.
const PENDING_LEN_AT: usize = 192;
/// Where the pending name starts in a slot.
const PENDING_AT: usize = 2304;
/// Where the length of the merged layer's name is in a slot.
const MERGED_LEN_AT: usize = 196;
/// Where the merged layer's name starts in a slot.
const MERGED_AT: usize = 2560;
/// Longest name, in bytes.
const NAME_MAX: usize = 255;
const PENDING_INVALID: &str = "the name that a snapshot gives it is invalid";
const MERGED_INVALID: &str = "the name of a merged layer is invalid";

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
    /// Its content is being merged into its base, which has this identity while it is changed.
    pub(super) merge: Option<Uuid>,
    /// The layer above is being merged into it: its content is neither the old nor the new one.
    pub(super) is_receiving: bool,
    /// An unflushed map ([`super::unflushed`]) lies between the map and the data. Only layers of
    /// early versions have none.
    pub(super) has_unflushed_map: bool,
    /// Size of the map in bytes, whole pages.
    pub(super) map_bytes: u64,
    /// The base as it was when the layer was made.
    pub(super) base: BaseIdentity,
    /// Path of the base; a relative one starts at the folder of the layer.
    pub(super) base_path: PathBuf,
    /// The name of a frozen layer in its folder, until a snapshot has given it that name.
    pub(super) pending_name: Option<OsString>,
    /// A frozen layer that was merged into the base and is not needed any more, until it is
    /// certainly removed: its name in the folder, and the identity of its content.
    pub(super) merged: Option<(OsString, Uuid)>,
}

impl Header {
    /// The header of a new layer.
    pub(super) fn new(uuid: Uuid, size: u64, base: BaseIdentity, base_path: &Path) -> Self {
        let covered = size.saturating_mul(4).clamp(SIZE_RESERVED, SIZE_MAX);
        let map_bytes = covered.div_ceil(PAGE_COVERS) * BLOCK;
        let base_path = base_path.to_owned();
        Self {
            generation: 1,
            uuid,
            size,
            frozen: None,
            merge: None,
            is_receiving: false,
            has_unflushed_map: true,
            map_bytes,
            base,
            base_path,
            pending_name: None,
            merged: None,
        }
    }

    /// Its identity as a base.
    pub(super) fn identity(&self) -> BaseIdentity {
        BaseIdentity::of_layer(self.frozen.unwrap_or_default(), self.size)
    }

    /// Position of the map in the file, in bytes.
    pub(super) const fn map_at() -> u64 {
        (SLOT * SLOTS) as u64
    }

    /// Number of pages of the map.
    pub(super) fn map_pages(&self) -> usize {
        usize::try_from(self.map_bytes / BLOCK).unwrap_or(usize::MAX)
    }

    /// Position of the unflushed map in the file, in bytes: a page that tells when its bits count,
    /// and then bits as those of the map. `None` if the layer has none.
    pub(super) fn unflushed_at(&self) -> Option<u64> {
        self.has_unflushed_map.then(|| Self::map_at() + self.map_bytes)
    }

    /// Position of the disk's first byte in the file.
    pub(super) fn data_at(&self) -> u64 {
        let map_end = Self::map_at() + self.map_bytes;
        let end = self.unflushed_at().map_or(map_end, |at| at + BLOCK + self.map_bytes);
        // The data is aligned to 1 MiB, as partitions are.
        end.next_multiple_of(1 << 20)
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
        let receiving = if self.is_receiving { RECEIVING } else { 0 };
        let required = receiving | if self.has_unflushed_map { UNFLUSHED_MAP } else { 0 };
        field.put(&required.to_le_bytes());
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
        field.put(&self.merge.unwrap_or_default().0);
        field.at = PATH_AT;
        field.put(path);
        if let Some(name) = &self.pending_name {
            field.put_name(name, PENDING_LEN_AT, PENDING_AT, PENDING_INVALID)?;
        }
        if let Some((name, frozen)) = &self.merged {
            field.put_name(name, MERGED_LEN_AT, MERGED_AT, MERGED_INVALID)?;
            field.at = MERGED_FROZEN_AT;
            field.put(&frozen.0);
        }
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

/// The header of a slot.
///
/// # Errors
///
/// See [`HeaderError`].
pub(super) fn decode_slot(slot: &[u8]) -> Result<Header, HeaderError> {
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
    let features = known(field.u64()?)?;
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
    let (frozen, merge, merged_frozen) = (field.uuid()?, field.uuid()?, field.uuid()?);
    let path = usize::try_from(path_len)
        .ok()
        .filter(|len| (1..=PATH_MAX).contains(len))
        .and_then(|len| slot.get(PATH_AT..PATH_AT + len))
        .filter(|path| !path.contains(&0))
        .ok_or(HeaderError::Field("the path of its base is invalid"))?;
    let base_path = PathBuf::from(OsStr::from_bytes(path));
    let pending_name = name(slot, PENDING_LEN_AT, PENDING_AT, PENDING_INVALID)?;
    // Without an identity any file could have the name.
    let merged = name(slot, MERGED_LEN_AT, MERGED_AT, MERGED_INVALID)?.zip(merged_frozen);
    let header = Header {
        generation,
        uuid,
        size,
        frozen,
        merge,
        is_receiving: features & RECEIVING != 0,
        has_unflushed_map: features & UNFLUSHED_MAP != 0,
        map_bytes,
        base,
        base_path,
        pending_name,
        merged,
    };
    check(&header, block, reserved)?;
    Ok(header)
}

/// The required features, all of which this program knows.
fn known(features: u64) -> Result<u64, HeaderError> {
    let unknown = features & !KNOWN;
    if unknown == 0 { Ok(features) } else { Err(HeaderError::Features(unknown)) }
}

/// A name in a slot, whose length and bytes are at these places.
fn name(
    slot: &[u8],
    len_at: usize,
    at: usize,
    invalid: &'static str,
) -> Result<Option<OsString>, HeaderError> {
    let len = Reader(slot.get(len_at..).unwrap_or_default()).u32()?;
    if len == 0 {
        return Ok(None);
    }
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let name = slot.get(at..at.saturating_add(len));
    let name = name.filter(|name| is_file_name(name)).ok_or(HeaderError::Field(invalid))?;
    Ok(Some(OsStr::from_bytes(name).to_owned()))
}

/// Whether it names a file of a folder.
fn is_file_name(name: &[u8]) -> bool {
    let is_special = name.is_empty() || name == b"." || name == b"..";
    !is_special && name.len() <= NAME_MAX && !name.contains(&b'/') && !name.contains(&0)
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

    /// Writes a name with its length.
    fn put_name(
        &mut self,
        name: &OsStr,
        len_at: usize,
        at: usize,
        invalid: &'static str,
    ) -> Result<(), HeaderError> {
        let name = name.as_bytes();
        if !is_file_name(name) {
            return Err(HeaderError::Field(invalid));
        }
        self.at = len_at;
        self.put(&u32::try_from(name.len()).unwrap_or_default().to_le_bytes());
        self.at = at;
        self.put(name);
        Ok(())
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

    /// `None` for zeroes.
    fn uuid(&mut self) -> Result<Option<Uuid>, HeaderError> {
        let uuid = Uuid(self.take().ok_or(HeaderError::Damaged)?);
        Ok((uuid != Uuid::default()).then_some(uuid))
    }

    fn u32(&mut self) -> Result<u32, HeaderError> {
        self.take().map(u32::from_le_bytes).ok_or(HeaderError::Damaged)
    }

    fn u64(&mut self) -> Result<u64, HeaderError> {
        self.take().map(u64::from_le_bytes).ok_or(HeaderError::Damaged)
    }
}

#[cfg(test)]
mod tests;
