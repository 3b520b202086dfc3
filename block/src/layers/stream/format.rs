//! The header and the heads of the records of a stream. Pure.

use std::io;

use super::super::identity::{BaseIdentity, BaseKind};
use super::super::unit::{BLOCK, BLOCK_SIZE};
use super::super::uuid::Uuid;

/// The signature of a stream.
const MAGIC: [u8; 8] = *b"BLKHSTRM";
/// Version of the format.
const VERSION: u32 = 1;
/// Size of the header in bytes.
pub(super) const HEADER: usize = 128;
/// Size of the head of a record in bytes.
pub(super) const HEAD: usize = 24;
/// Most data of a record in bytes.
pub(super) const DATA_MAX: usize = 1 << 20;
/// Where the header and each head have their checksum.
const HEADER_CHECKSUM_AT: usize = 12;
const HEAD_CHECKSUM_AT: usize = 4;
/// Largest size of a disk: that of a layer.
const SIZE_MAX: u64 = 1 << 46;

/// Why a stream cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    #[error("it is not the stream of a layer: it has not the signature")]
    Signature,
    #[error("its format is version {0}, this program knows version {VERSION}; use a newer one")]
    Version(u32),
    #[error("it needs features ({0:#x}) that this program does not know; use a newer one")]
    Features(u64),
    /// The place is that of a record, or 0.
    #[error("it is damaged at byte {at}: {what}; export the layer again")]
    Damaged { at: u64, what: &'static str },
    #[error("it was cut off at byte {0}; export the layer again")]
    Truncated(u64),
    #[error(
        "it has more bytes after its end, at byte {0}: it is damaged, or two streams in one file"
    )]
    Trailing(u64),
    #[error("{0}")]
    Host(io::Error),
}

/// The content of a stream's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StreamHeader {
    /// Of the exported layer.
    pub(super) uuid: Uuid,
    /// The identity of its content, if it was frozen.
    pub(super) frozen: Option<Uuid>,
    /// Size of its disk in bytes.
    pub(super) size: u64,
    /// The base that the changes apply to.
    pub(super) base: BaseIdentity,
}

impl StreamHeader {
    pub(super) fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut fields = FieldWriter { bytes: &mut bytes, at: 0 };
        fields.put(&MAGIC);
        fields.put(&VERSION.to_le_bytes());
        fields.put(&[0; 4]); // The checksum.
        fields.put(&0u64.to_le_bytes()); // Features that a reader has to know.
        fields.put(&0u64.to_le_bytes()); // Features that it may ignore.
        fields.put(&self.uuid.0);
        fields.put(&self.frozen.unwrap_or_default().0);
        fields.put(&self.size.to_le_bytes());
        fields.put(&BLOCK_SIZE.to_le_bytes());
        fields.put(&self.base.kind.number().to_le_bytes());
        fields.put(&self.base.size.to_le_bytes());
        fields.put(&self.base.seconds.to_le_bytes());
        fields.put(&self.base.nanoseconds.to_le_bytes());
        fields.put(&self.base.sample.to_le_bytes());
        fields.put(&self.base.uuid.0);
        let checksum = crc32fast::hash(&bytes);
        FieldWriter { bytes: &mut bytes, at: HEADER_CHECKSUM_AT }.put(&checksum.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; HEADER]) -> Result<Self, StreamError> {
        let damaged = |what| StreamError::Damaged { at: 0, what };
        let mut fields = FieldReader(bytes);
        if fields.take() != Some(MAGIC) {
            return Err(StreamError::Signature);
        }
        // The fields up to the checksum have their place in each version.
        let version = fields.u32();
        if version != VERSION {
            return Err(StreamError::Version(version));
        }
        if fields.u32() != checksum(bytes, HEADER_CHECKSUM_AT, crc32fast::Hasher::new()) {
            return Err(damaged("the checksum of its header"));
        }
        let (features, _ignored) = (fields.u64(), fields.u64());
        if features != 0 {
            return Err(StreamError::Features(features));
        }
        let (uuid, frozen) = (fields.uuid(), fields.uuid());
        let (size, block, kind) = (fields.u64(), fields.u32(), fields.u32());
        let base = BaseIdentity {
            kind: BaseKind::of(kind).ok_or(damaged("the kind of its base is unknown"))?,
            size: fields.u64(),
            seconds: fields.u64().cast_signed(),
            nanoseconds: fields.u32(),
            sample: fields.u32(),
            uuid: fields.uuid(),
        };
        let is_zero = fields.0.iter().all(|byte| *byte == 0);
        let fits = size != 0 && size.is_multiple_of(BLOCK) && size <= SIZE_MAX && base.size <= size;
        if block != BLOCK_SIZE || !is_zero || !fits {
            return Err(damaged("a field of its header is invalid"));
        }
        if (base.kind == BaseKind::Layer) != (base.uuid != Uuid::default()) {
            return Err(damaged("its base has no valid identity"));
        }
        let frozen = (frozen != Uuid::default()).then_some(frozen);
        Ok(Self { uuid, frozen, size, base })
    }
}

/// The kind of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordKind {
    /// The bytes of the range follow.
    Data = 1,
    /// The range is zero.
    Zeroes = 2,
    /// The last record: the number of those before it, and the bytes of their ranges.
    End = 3,
}

/// The head of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordHead {
    pub(super) kind: RecordKind,
    pub(super) start: u64,
    pub(super) len: u64,
}

impl RecordHead {
    /// The bytes of the head of a record whose checksum also covers what `before` has hashed.
    pub(super) fn encode(self, before: crc32fast::Hasher, data: &[u8]) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        let mut fields = FieldWriter { bytes: &mut bytes, at: 0 };
        fields.put(&(self.kind as u32).to_le_bytes());
        fields.put(&[0; 4]); // The checksum.
        fields.put(&self.start.to_le_bytes());
        fields.put(&self.len.to_le_bytes());
        let checksum = record_checksum(&bytes, before, data);
        FieldWriter { bytes: &mut bytes, at: HEAD_CHECKSUM_AT }.put(&checksum.to_le_bytes());
        bytes
    }

    /// The head, unless its kind is unknown, and its checksum.
    pub(super) fn decode(bytes: &[u8; HEAD]) -> (Option<Self>, u32) {
        let mut fields = FieldReader(bytes);
        let (kind, checksum) = (fields.u32(), fields.u32());
        let kinds = [RecordKind::Data, RecordKind::Zeroes, RecordKind::End];
        let kind = kinds.into_iter().find(|known| *known as u32 == kind);
        let (start, len) = (fields.u64(), fields.u64());
        (kind.map(|kind| Self { kind, start, len }), checksum)
    }
}

/// The checksum of a record.
pub(super) fn record_checksum(head: &[u8; HEAD], before: crc32fast::Hasher, data: &[u8]) -> u32 {
    let mut hasher = before;
    hash_without_checksum(head, HEAD_CHECKSUM_AT, &mut hasher);
    hasher.update(data);
    hasher.finalize()
}

fn checksum(bytes: &[u8], checksum_at: usize, mut hasher: crc32fast::Hasher) -> u32 {
    hash_without_checksum(bytes, checksum_at, &mut hasher);
    hasher.finalize()
}

/// Hashes the bytes with the checksum as zeroes.
fn hash_without_checksum(bytes: &[u8], checksum_at: usize, hasher: &mut crc32fast::Hasher) {
    hasher.update(bytes.get(..checksum_at).unwrap_or_default());
    hasher.update(&[0; 4]);
    hasher.update(bytes.get(checksum_at + 4..).unwrap_or_default());
}

/// Writes fields one behind the other.
struct FieldWriter<'b> {
    bytes: &'b mut [u8],
    at: usize,
}

impl FieldWriter<'_> {
    fn put(&mut self, field: &[u8]) {
        if let Some(part) = self.bytes.get_mut(self.at..self.at + field.len()) {
            part.copy_from_slice(field);
        }
        self.at += field.len();
    }
}

/// Reads fields one behind the other. The bytes have all of them.
struct FieldReader<'b>(&'b [u8]);

impl FieldReader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    fn u32(&mut self) -> u32 {
        self.take().map_or(0, u32::from_le_bytes)
    }

    fn u64(&mut self) -> u64 {
        self.take().map_or(0, u64::from_le_bytes)
    }

    fn uuid(&mut self) -> Uuid {
        Uuid(self.take().unwrap_or_default())
    }
}
