//! The state of a layer and of the files below it, read without a lock and without a write. May
//! block.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, SeekFrom};

use super::file::{base_path, host_error, read_header, read_map};
use super::header::Header;
use super::identity::{BaseChange, BaseIdentity, BaseKind};
use super::open::{LEVELS_MAX, too_long};
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
    /// Bytes of the disk that it answers for.
    pub answered: u64,
    /// Memory for the map of a layer while it is open, in bytes.
    pub map_memory: u64,
    /// How it has changed since the layer above was made; `None` if it has not.
    pub change: Option<BaseChange>,
}

/// The layer at `path` and everything below it, from the top down.
///
/// # Errors
///
/// A file is missing, cannot be read, or is no layer where the one above says that it is one.
pub fn layer_info(path: &Path) -> Result<Vec<LevelInfo>, OpenError> {
    let file = open(path)?;
    let header = read_header(&file, path)?;
    let mut levels = vec![layer(&file, path, &header, None)?];
    let mut above = Some((path.to_owned(), header));
    while let Some((layer_path, header)) = above.take() {
        if levels.len() == LEVELS_MAX {
            return Err(too_long(path));
        }
        let base = base_path(&layer_path, &header);
        let file = open(&base)?;
        if header.base.kind == BaseKind::Layer {
            let found = read_header(&file, &base)?;
            let change = header.base.change(&found.identity(), &base);
            levels.push(layer(&file, &base, &found, change)?);
            above = Some((base, found));
        } else {
            let found = BaseIdentity::of_raw(&file).map_err(host_error(&base, "read it"))?;
            levels.push(LevelInfo {
                change: header.base.change(&found, &base),
                path: base,
                uuid: None,
                size: found.size,
                is_frozen: true,
                answered: found.size,
                map_memory: 0,
            });
        }
    }
    Ok(levels)
}

fn open(path: &Path) -> Result<File, OpenError> {
    let (found, _) = find(path)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    reopen(found, flags).map_err(host_error(path, "open it"))
}

fn layer(
    file: &File,
    path: &Path,
    header: &Header,
    change: Option<BaseChange>,
) -> Result<LevelInfo, OpenError> {
    let map = read_map(file, path, header)?;
    Ok(LevelInfo {
        path: path.to_owned(),
        uuid: Some(header.uuid),
        size: header.size,
        is_frozen: header.frozen.is_some(),
        answered: map.count() * BLOCK,
        map_memory: map.memory(),
        change,
    })
}

/// Size in bytes of a new layer over `base`, which has to be a raw image, a device, or a layer that
/// can be used. Reads may block.
///
/// # Errors
///
/// A layer cannot be made over the base, or the layer could not be opened.
pub fn probe_base(base: &Path) -> Result<u64, OpenError> {
    let file = open(base)?;
    let probed = ProbedFormat::of(&file).map_err(host_error(base, "read it"))?;
    match probed.verdict(base, &DiskOptions::new(CacheMode::WriteBack)) {
        FormatVerdict::Foreign { format: ImageFormat::Layer, .. } => {}
        FormatVerdict::Foreign { format, remedy } => {
            return Err(OpenError::Foreign { path: base.into(), format, remedy });
        }
        FormatVerdict::Raw | FormatVerdict::Suspect { .. } => {
            let size = rustix::fs::seek(&file, SeekFrom::End(0));
            let size = size.map_err(|errno| host_error(base, "query its size")(errno.into()))?;
            if size == 0 || !size.is_multiple_of(512) {
                let why = format!("{size} bytes is no size of a disk: it has sectors of 512 bytes");
                return Err(OpenError::Unsuitable { path: base.into(), why });
            }
            return Ok(size.next_multiple_of(BLOCK));
        }
    }
    let levels = layer_info(base)?;
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

/// Number of files of the disk at `path`: 1 if it is no layer, or cannot be read.
#[must_use]
pub fn level_count(path: &Path) -> usize {
    let mut levels = 1;
    let mut next = Some(path.to_owned());
    while let Some(path) = next.take().filter(|_| levels < LEVELS_MAX) {
        let header = open(&path).and_then(|file| read_header(&file, &path));
        let Ok(header) = header else { break };
        levels += 1;
        next = (header.base.kind == BaseKind::Layer).then(|| base_path(&path, &header));
    }
    levels
}
