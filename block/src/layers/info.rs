//! The state of a layer and of the files below it, read without a lock and without a write. May
//! block.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::file::{base_path, host_error, read_header, read_map};
use super::header::Header;
use super::identity::{BaseIdentity, BaseKind};
use super::open::LEVELS_MAX;
use super::unit::BLOCK;
use super::uuid::Uuid;
use crate::OpenError;
use crate::host_file::{find, reopen};

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
    /// How it has changed since the layer above was made, as a clause; `None` if it has not.
    pub difference: Option<String>,
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
    while let Some((layer_path, header)) = above.take().filter(|_| levels.len() < LEVELS_MAX) {
        let path = base_path(&layer_path, &header);
        let file = open(&path)?;
        if header.base.kind == BaseKind::Layer {
            let found = read_header(&file, &path)?;
            let difference = header.base.difference(&found.identity());
            levels.push(layer(&file, &path, &found, difference)?);
            above = Some((path, found));
        } else {
            let found = BaseIdentity::of_raw(&file).map_err(host_error(&path, "read it"))?;
            levels.push(LevelInfo {
                difference: header.base.difference(&found),
                path,
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
    difference: Option<String>,
) -> Result<LevelInfo, OpenError> {
    let map = read_map(file, path, header)?;
    Ok(LevelInfo {
        path: path.to_owned(),
        uuid: Some(header.uuid),
        size: header.size,
        is_frozen: header.frozen.is_some(),
        answered: map.count() * BLOCK,
        map_memory: map.memory(),
        difference,
    })
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
