//! The identity of a base: what tells one that changed from the one that a layer was made over.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};

use super::unit::{BLOCK, BLOCK_BYTES};
use super::uuid::Uuid;
use crate::host_file::{reopen, without_access_times};

/// Blocks of the base that are read.
const SAMPLES: u64 = 16;
/// Bytes of each.
const SAMPLE: u64 = BLOCK;

/// The kind of a base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BaseKind {
    /// A raw image file.
    File,
    /// A block device of the host.
    Device,
    /// Another layer.
    Layer,
}

impl BaseKind {
    /// Its number in the header.
    pub(super) fn number(self) -> u32 {
        match self {
            Self::File => 1,
            Self::Device => 2,
            Self::Layer => 3,
        }
    }

    /// The kind with this number in the header.
    pub(super) fn of(number: u32) -> Option<Self> {
        [Self::File, Self::Device, Self::Layer].into_iter().find(|kind| kind.number() == number)
    }
}

/// The identity of a base when a layer was made over it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BaseIdentity {
    /// The kind of the base.
    pub(super) kind: BaseKind,
    /// Size of its disk in bytes.
    pub(super) size: u64,
    /// Its modification time since 1970; 0 for a device and a layer.
    pub(super) seconds: i64,
    /// The nanoseconds of its modification time.
    pub(super) nanoseconds: u32,
    /// CRC-32 of blocks at fixed places; 0 for a layer.
    pub(super) sample: u32,
    /// The identity of a frozen layer's content; zeroes for others.
    pub(super) uuid: Uuid,
}

impl BaseIdentity {
    /// That of a raw image or a device. Reads some blocks of it.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(super) fn of_raw(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let is_device = metadata.file_type().is_block_device();
        let size = rustix::fs::seek(file, rustix::fs::SeekFrom::End(0))?;
        let (kind, seconds, nanoseconds) = if is_device {
            (BaseKind::Device, 0, 0)
        } else {
            let nanoseconds = u32::try_from(metadata.mtime_nsec()).unwrap_or_default();
            (BaseKind::File, metadata.mtime(), nanoseconds)
        };
        let sample = sample(file, size)?;
        Ok(Self { kind, size, seconds, nanoseconds, sample, uuid: Uuid::default() })
    }

    /// That of a layer with this identity of its content.
    pub(super) fn of_layer(uuid: Uuid, size: u64) -> Self {
        let kind = BaseKind::Layer;
        Self { kind, size, seconds: 0, nanoseconds: 0, sample: 0, uuid }
    }

    /// How `found` differs, as a clause about the base; `None` if it does not.
    pub(super) fn difference(&self, found: &Self) -> Option<String> {
        if self.kind != found.kind {
            return Some("is of another kind".to_owned());
        }
        if self.uuid != found.uuid {
            return Some("is another layer, or was written".to_owned());
        }
        if self.size != found.size {
            return Some(format!("has {} bytes, not {}", found.size, self.size));
        }
        if self.sample != found.sample {
            return Some("has other content".to_owned());
        }
        let times = [(self.seconds, self.nanoseconds), (found.seconds, found.nanoseconds)];
        let time = |(seconds, nanoseconds): (i64, u32)| format!("@{seconds}.{nanoseconds:09}");
        let modified = || format!("was modified at {}, not {}", time(times[1]), time(times[0]));
        (times[0] != times[1]).then(modified)
    }
}

/// The checksum of blocks at equal distances and of the last one. Reads through the page cache.
fn sample(file: &File, size: u64) -> io::Result<u32> {
    let file = without_access_times(reopen(file, rustix::fs::OFlags::CLOEXEC)?);
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = [0; BLOCK_BYTES];
    let last = size.saturating_sub(SAMPLE);
    let places = (0..SAMPLES).map(|index| (size / SAMPLES * index / SAMPLE * SAMPLE).min(last));
    for at in places.chain([last]) {
        let bytes = usize::try_from(size.min(SAMPLE)).unwrap_or_default();
        let part = buffer.get_mut(..bytes).unwrap_or_default();
        file.read_exact_at(part, at)?;
        hasher.update(part);
    }
    Ok(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_base_is_noticed() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let before = BaseIdentity::of_raw(&file).unwrap();
        assert_eq!(before.difference(&before), None);
        assert_eq!(BaseIdentity::of_raw(&file).unwrap().difference(&before), None);

        let mut later = before.clone();
        later.seconds += 1;
        assert!(before.difference(&later).unwrap().starts_with("was modified at @"));
        file.write_all_at(&[1], (1 << 20) - 1).unwrap();
        let other = BaseIdentity::of_raw(&file).unwrap();
        assert_eq!(before.difference(&other).unwrap(), "has other content");
        file.set_len(2 << 20).unwrap();
        let larger = BaseIdentity::of_raw(&file).unwrap();
        assert_eq!(before.difference(&larger).unwrap(), "has 2097152 bytes, not 1048576");
        let layer = BaseIdentity::of_layer(Uuid([7; 16]), 1 << 20);
        assert_eq!(before.difference(&layer).unwrap(), "is of another kind");
        let other = BaseIdentity::of_layer(Uuid([8; 16]), 1 << 20);
        assert_eq!(layer.difference(&other).unwrap(), "is another layer, or was written");
    }

    #[test]
    fn a_small_base_is_sampled() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(512).unwrap();
        let before = BaseIdentity::of_raw(&file).unwrap();
        file.write_all_at(&[1], 511).unwrap();
        assert_ne!(BaseIdentity::of_raw(&file).unwrap().sample, before.sample);
    }
}
