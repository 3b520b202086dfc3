//! The state of a layer and of the files below it, read without a lock and without a write. May
//! block.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, SeekFrom};

use super::file::{base_path, host_error, read_header};
use super::header::Header;
use super::identity::{BaseChange, BaseIdentity, BaseKind};
use super::map_file::{read_map, require_length};
use super::merge::require_whole;
use super::open::{LEVELS_MAX, missing, too_long};
use super::unit::BLOCK;
use super::uuid::Uuid;
use crate::host_file::{find, reopen};
use crate::{CacheMode, DiskOptions, FormatVerdict, ImageFormat, OpenError, ProbedFormat};

/// A layer, or what is below one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LevelInfo {
    /// Its file or device.
    pub path: PathBuf,
    /// The identity of a layer; `None` for a raw base.
    pub uuid: Option<Uuid>,
    /// Size of its disk in bytes.
    pub size: u64,
    /// It is never written: a base of others.
    pub is_frozen: bool,
    /// A commit of it, or into it, was interrupted.
    pub is_merging: bool,
    /// Bytes of the disk that it answers for.
    pub answered: u64,
    /// Memory for the map of a layer while it is open, in bytes.
    pub map_memory: u64,
    /// How it has changed since the layer above was made; `None` if it has not.
    pub change: Option<BaseChange>,
}

/// A layer, or what is below one, as its header has it: without a look at its map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LevelHead {
    /// Its file or device.
    pub path: PathBuf,
    /// The identity of a layer; `None` for a raw base.
    pub uuid: Option<Uuid>,
    /// Size of its disk in bytes.
    pub size: u64,
    /// It is never written: a base of others.
    pub is_frozen: bool,
    /// A commit of it, or into it, was interrupted.
    pub is_merging: bool,
    /// It was frozen by a snapshot that was interrupted, which an open of it as a disk completes.
    pub is_half_frozen: bool,
    /// How it has changed since the layer above was made; `None` if it has not.
    pub change: Option<BaseChange>,
}

/// The layer at `path` and everything below it, from the top down, with their maps.
///
/// # Errors
///
/// As [`layer_chain`], or a map cannot be read.
pub fn layer_info(path: &Path) -> Result<Vec<LevelInfo>, OpenError> {
    let levels = chain(path)?.into_iter().map(|(head, layer)| {
        let LevelHead { path, uuid, size, is_frozen, is_merging, change, .. } = head;
        let (answered, map_memory) = match layer {
            Some((file, header)) => {
                let map = read_map(&file, &path, &header)?;
                (map.count() * BLOCK, map.memory())
            }
            None => (size, 0),
        };
        Ok(LevelInfo { path, uuid, size, is_frozen, is_merging, answered, map_memory, change })
    });
    levels.collect()
}

/// The layer at `path` and everything below it, from the top down. Reads their headers and the
/// sample of the raw base, whatever the size of the maps.
///
/// # Errors
///
/// A file is missing, cannot be read, or is no layer where the one above says that it is one.
pub fn layer_chain(path: &Path) -> Result<Vec<LevelHead>, OpenError> {
    Ok(chain(path)?.into_iter().map(|(head, _)| head).collect())
}

/// The levels of a chain, and the file and the header of each that is a layer.
type WalkedChain = Vec<(LevelHead, Option<(File, Header)>)>;

fn chain(path: &Path) -> Result<WalkedChain, OpenError> {
    let file = open(path)?;
    let header = read_header(&file, path)?;
    let mut above = Some((path.to_owned(), header.clone()));
    let mut levels = vec![layer(file, path, header, None)?];
    while let Some((layer_path, header)) = above.take() {
        if levels.len() == LEVELS_MAX {
            return Err(too_long(path));
        }
        let base = base_path(&layer_path, &header);
        if !base.exists() {
            return Err(missing(&layer_path, &base));
        }
        let file = open(&base)?;
        if header.base.kind == BaseKind::Layer {
            let found = read_header(&file, &base)?;
            let change = header.base_change(&found.identity(), Some(&found), &base);
            levels.push(layer(file, &base, found.clone(), change)?);
            above = Some((base, found));
        } else {
            let found = BaseIdentity::of_raw(&file).map_err(host_error(&base, "read it"))?;
            let change = header.base_change(&found, None, &base);
            let head = LevelHead {
                path: base,
                uuid: None,
                size: found.size,
                is_frozen: true,
                is_merging: false,
                is_half_frozen: false,
                change,
            };
            levels.push((head, None));
        }
    }
    Ok(levels)
}

/// Opens a file to look at it.
pub(super) fn open(path: &Path) -> Result<File, OpenError> {
    let (found, _) = find(path)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    reopen(found, flags).map_err(host_error(path, "open it"))
}

/// The header of the layer at `path`.
///
/// # Errors
///
/// It is no layer, or cannot be read.
pub(super) fn header_at(path: &Path) -> Result<Header, OpenError> {
    read_header(&open(path)?, path)
}

fn layer(
    file: File,
    path: &Path,
    header: Header,
    change: Option<BaseChange>,
) -> Result<(LevelHead, Option<(File, Header)>), OpenError> {
    require_length(&file, path, &header)?;
    let head = LevelHead {
        path: path.to_owned(),
        uuid: Some(header.uuid),
        size: header.size,
        is_frozen: header.frozen.is_some(),
        is_merging: header.merge.is_some() || header.is_receiving,
        is_half_frozen: header
            .pending_name
            .as_deref()
            .is_some_and(|name| Some(name) != path.file_name()),
        change,
    };
    Ok((head, Some((file, header))))
}

/// Size in bytes of the disk of the layer at `path`.
///
/// # Errors
///
/// It is no layer, or cannot be read.
pub fn layer_size(path: &Path) -> Result<u64, OpenError> {
    Ok(header_at(path)?.size)
}

/// Size in bytes of a new layer over `base`, which has to be a raw image, a device, or a layer that
/// can be used. Reads may block.
///
/// # Errors
///
/// A layer cannot be made over the base, or the layer could not be opened.
pub fn probe_base(base: &Path) -> Result<u64, OpenError> {
    Ok(probe(base)?.size)
}

/// The identity of a base as it is at this moment, and the size of a new layer over it.
///
/// # Errors
///
/// As [`probe_base`].
pub(super) fn base_identity(base: &Path) -> Result<(BaseIdentity, u64), OpenError> {
    let ProbedBase { file, is_layer, size } = probe(base)?;
    let identity = match is_layer {
        true => read_header(&file, base)?.identity(),
        false => BaseIdentity::of_raw(&file).map_err(host_error(base, "read it"))?,
    };
    Ok((identity, size))
}

/// A file that a layer can be made over.
struct ProbedBase {
    file: File,
    is_layer: bool,
    /// Of the new layer, in bytes.
    size: u64,
}

fn probe(base: &Path) -> Result<ProbedBase, OpenError> {
    let file = open(base)?;
    let probed = ProbedFormat::of(&file).map_err(host_error(base, "read it"))?;
    match probed.verdict(base, &DiskOptions::new(CacheMode::WriteBack)) {
        FormatVerdict::Foreign { format: ImageFormat::Layer, .. } => {
            Ok(ProbedBase { file, is_layer: true, size: size_over_layer(base)? })
        }
        FormatVerdict::Foreign { format, remedy } => {
            Err(OpenError::Foreign { path: base.into(), format, remedy })
        }
        FormatVerdict::Raw | FormatVerdict::Suspect { .. } => {
            let size = rustix::fs::seek(&file, SeekFrom::End(0));
            let size = size.map_err(|errno| host_error(base, "query its size")(errno.into()))?;
            if size == 0 || !size.is_multiple_of(512) {
                let why = format!("{size} bytes is no size of a disk: it has sectors of 512 bytes");
                return Err(OpenError::Unsuitable { path: base.into(), why });
            }
            Ok(ProbedBase { file, is_layer: false, size: size.next_multiple_of(BLOCK) })
        }
    }
}

/// Size of a new layer over a layer.
fn size_over_layer(base: &Path) -> Result<u64, OpenError> {
    require_whole(&read_header(&open(base)?, base)?, base)?;
    let levels = layer_chain(base)?;
    if levels.len() >= LEVELS_MAX {
        return Err(too_long(base));
    }
    if let Some((level, change)) =
        levels.iter().find_map(|level| Some((level, level.change.as_ref()?)))
    {
        let (path, BaseChange { what, remedy }) = (level.path.display(), change);
        let why = format!("{path} has changed below it: {what}; {remedy}");
        return Err(OpenError::Unsuitable { path: base.into(), why });
    }
    levels.first().map(|top| top.size).ok_or_else(|| too_long(base))
}

/// The files of the disk at `path`, from the top down: `path` itself, and what is below it as far
/// as that can be read.
#[must_use]
pub fn level_paths(path: &Path) -> Vec<PathBuf> {
    let mut paths = vec![path.to_owned()];
    while paths.len() < LEVELS_MAX
        && let Some((base, kind)) = paths.last().and_then(|path| base_of(path))
    {
        paths.push(base);
        if kind != BaseKind::Layer {
            break;
        }
    }
    paths
}

/// The base of the layer at `path`, if it is one.
fn base_of(path: &Path) -> Option<(PathBuf, BaseKind)> {
    let header = read_header(&open(path).ok()?, path).ok()?;
    Some((base_path(path, &header), header.base.kind))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::create_layer;

    /// A map may have 2 GiB: only a query of what a layer has reads it.
    #[test]
    fn the_size_of_a_layer_is_known_without_its_map() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        File::create(path("base")).unwrap().set_len(1 << 20).unwrap();
        create_layer(&path("a"), &path("base"), None).unwrap();
        let file = File::options().write(true).open(path("a")).unwrap();
        // A bit beyond the end of the disk.
        file.write_all_at(&[1], Header::map_at() + (1 << 20) / BLOCK / 8).unwrap();
        let damaged = layer_info(&path("a")).unwrap_err().to_string();
        assert!(damaged.contains("its map is damaged"), "{damaged}");
        assert_eq!(layer_size(&path("a")).unwrap(), 1 << 20);
        assert_eq!(probe_base(&path("a")).unwrap(), 1 << 20);
        let levels = layer_chain(&path("a")).unwrap();
        let levels = levels.iter().map(|level| (level.path.clone(), level.is_frozen));
        assert_eq!(levels.collect::<Vec<_>>(), [(path("a"), false), (path("base"), true)]);
        assert_eq!(level_paths(&path("a")), [path("a"), path("base")]);
        assert_eq!(level_paths(&path("base")), [path("base")]);
        file.set_len(1 << 20).unwrap();
        let truncated = layer_chain(&path("a")).unwrap_err().to_string();
        assert!(truncated.contains("it was truncated"), "{truncated}");
    }
}
