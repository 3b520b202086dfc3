//! The identity of a base: what tells one that changed from the one that a layer was made over.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use super::unit::{BLOCK, BLOCK_BYTES};
use super::uuid::Uuid;
use crate::host_file::{reopen, without_access_times};
use crate::shell::shell_path;

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

    /// How `found`, at `path`, differs; `None` if it does not.
    pub(super) fn change(&self, found: &Self, path: &Path) -> Option<BaseChange> {
        let restore = || "restore it, or make a new layer".to_owned();
        let changed = |what: String| Some(BaseChange { what, remedy: restore() });
        if self.kind != found.kind {
            return changed("another kind of file".to_owned());
        }
        if self.uuid != found.uuid {
            return changed("another layer, or one that was written".to_owned());
        }
        if self.size != found.size {
            return changed(format!("{} bytes instead of {}", found.size, self.size));
        }
        if self.sample != found.sample {
            return changed("other content".to_owned());
        }
        let is_same = (self.seconds, self.nanoseconds) == (found.seconds, found.nanoseconds);
        (!is_same).then(|| BaseChange {
            what: "another modification time".to_owned(),
            remedy: format!(
                "{}; or, if its content is certainly the same: `touch -d @{}.{:09} {}`",
                restore(),
                self.seconds,
                self.nanoseconds,
                shell_path(path)
            ),
        })
    }
}

/// A base that is not the one that a layer was made over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseChange {
    /// Its present property that differs, as a noun.
    pub what: String,
    /// The remedy.
    pub remedy: String,
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
        let change = |one: &BaseIdentity, other: &BaseIdentity| one.change(other, Path::new("a b"));
        let what = |one: &BaseIdentity, other: &BaseIdentity| change(one, other).unwrap().what;
        assert_eq!(change(&before, &before), None);
        assert_eq!(change(&BaseIdentity::of_raw(&file).unwrap(), &before), None);

        let later = BaseIdentity { seconds: before.seconds + 1, ..before.clone() };
        let touched = change(&later, &before).unwrap();
        assert_eq!(touched.what, "another modification time");
        let touch = format!("`touch -d @{}.{:09} 'a b'`", later.seconds, later.nanoseconds);
        assert!(touched.remedy.contains(&touch), "{}", touched.remedy);
        file.write_all_at(&[1], (1 << 20) - 1).unwrap();
        let other = BaseIdentity::of_raw(&file).unwrap();
        assert_eq!(what(&before, &other), "other content");
        file.set_len(2 << 20).unwrap();
        let larger = BaseIdentity::of_raw(&file).unwrap();
        assert_eq!(what(&before, &larger), "2097152 bytes instead of 1048576");
        let layer = BaseIdentity::of_layer(Uuid([7; 16]), 1 << 20);
        assert_eq!(what(&before, &layer), "another kind of file");
        let other = BaseIdentity::of_layer(Uuid([8; 16]), 1 << 20);
        assert_eq!(what(&layer, &other), "another layer, or one that was written");
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
