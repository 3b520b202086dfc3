//! Opens a layer and everything below it. Control thread only.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::file::{base_path, host_error, read_header, read_map};
use super::header::Header;
use super::identity::{BaseChange, BaseIdentity, BaseKind};
use super::levels::{Level, LevelMap, Top, discard_limits};
use crate::{
    Backend, DetectZeroes, DiskFormat, DiskOptions, FlushAction, Geometry, OnEnospc, OpenError,
    RawFile,
};

/// Most files of a disk: layers and the raw base. Each costs an engine for each queue.
pub(super) const LEVELS_MAX: usize = 16;

/// A layer with everything below it.
pub(super) struct Chain {
    /// Of the layer.
    pub(super) header: Header,
    pub(super) top: Top,
    /// From below the layer to the raw base.
    pub(super) below: Vec<Level>,
    /// The file of the layer.
    pub(super) top_file: RawFile,
    /// The files of `below`.
    pub(super) files: Vec<RawFile>,
}

/// Opens the layer at `path` with everything below it. `base` is what the user says that the layer
/// stands on.
///
/// # Errors
///
/// See [`super::LayeredDisk::open`].
pub(super) fn chain(path: &Path, base: &Path, options: &DiskOptions) -> Result<Chain, OpenError> {
    let file = RawFile::open_container(path, options)?;
    let header = read_header(file.file(), path)?;
    if header.frozen.is_some() && !options.read_only {
        let why = "it is frozen, as other layers may stand on it; make a new layer over it";
        return Err(OpenError::Unsuitable { path: path.into(), why: why.into() });
    }
    require_same(path, &base_path(path, &header), base)?;
    // The map may be in the page cache only, if its last write-back was killed: a durable write
    // relies on the bits that it finds.
    sync(file.file(), path)?;
    let map = read_map(file.file(), path, &header)?;
    let (geometry, data_at) = (file.geometry(), header.data_at());
    let top = Top {
        data_at,
        map,
        logical_block: geometry.logical_block,
        is_read_only: options.read_only,
        ignores_flushes: options.cache.flush_action() == FlushAction::Ignore,
        discard: geometry.discard.map(|limits| discard_limits(limits, data_at)),
    };
    let options = options_below(&geometry, options);
    let (mut files, mut below) = (Vec::new(), Vec::new());
    let mut next = Some((path.to_owned(), header.clone()));
    while let Some((layer, header)) = next {
        if files.len() + 1 == LEVELS_MAX {
            return Err(too_long(path));
        }
        let base = open_base(&layer, &header, &options)?;
        files.push(base.file);
        below.push(base.level);
        next = base.next;
    }
    Ok(Chain { header, top, below, top_file: file, files })
}

/// The options of what is below a layer with these options.
fn options_below(top: &Geometry, options: &DiskOptions) -> DiskOptions {
    DiskOptions {
        read_only: true,
        block_size: Some(top.logical_block),
        // A base is raw if the header says so: a guest may have written any bytes to it.
        format: DiskFormat::Raw,
        on_enospc: OnEnospc::Report,
        soft_limit: None,
        discard: false,
        detect_zeroes: DetectZeroes::Off,
        ..options.clone()
    }
}

/// The base of a layer.
struct Base {
    file: RawFile,
    level: Level,
    /// The path and the header of one that is a layer.
    next: Option<(PathBuf, Header)>,
}

/// Opens the base of a layer.
fn open_base(layer: &Path, header: &Header, options: &DiskOptions) -> Result<Base, OpenError> {
    let path = base_path(layer, header);
    if header.base.kind == BaseKind::Layer {
        let file = RawFile::open_container(&path, options)?;
        sync(file.file(), &path)?;
        let found = read_header(file.file(), &path)?;
        require_unchanged(layer, &path, &header.base, &found.identity())?;
        let map = LevelMap::Layer(read_map(file.file(), &path, &found)?);
        let level = Level { data_at: found.data_at(), size: found.size, map };
        return Ok(Base { file, level, next: Some((path, found)) });
    }
    let file = RawFile::open(&path, options)?;
    sync(file.file(), &path)?;
    let found = BaseIdentity::of_raw(file.file()).map_err(host_error(&path, "read it"))?;
    require_unchanged(layer, &path, &header.base, &found)?;
    let level = Level { data_at: 0, size: found.size, map: LevelMap::Raw };
    Ok(Base { file, level, next: None })
}

fn require_unchanged(
    layer: &Path,
    base: &Path,
    recorded: &BaseIdentity,
    found: &BaseIdentity,
) -> Result<(), OpenError> {
    recorded.change(found, base).map_or(Ok(()), |BaseChange { what, remedy }| {
        let base = base.display();
        let why = format!("its base {base} has changed since the layer was made: {what}; {remedy}");
        Err(OpenError::Unsuitable { path: layer.into(), why })
    })
}

/// The error of a chain that is too long.
pub(super) fn too_long(path: &Path) -> OpenError {
    let why = format!(
        "a disk has at most {LEVELS_MAX} files, its layers and the raw base; copy it to a raw image"
    );
    OpenError::Unsuitable { path: path.into(), why }
}

/// Makes the file durable. A flush of the disk covers its top only, and a base may have been copied
/// a moment ago.
///
/// # Errors
///
/// The host's error.
pub(super) fn sync(file: &File, path: &Path) -> Result<(), OpenError> {
    match rustix::fs::fdatasync(file) {
        // A file system that is never written.
        Ok(()) | Err(Errno::ROFS | Errno::INVAL) => Ok(()),
        Err(errno) => Err(host_error(path, "make it durable")(errno.into())),
    }
}

/// Refuses a base other than that of the layer.
fn require_same(layer: &Path, recorded: &Path, named: &Path) -> Result<(), OpenError> {
    let identity = |path: &Path| {
        let metadata = std::fs::metadata(path).map_err(host_error(path, "find it"))?;
        Ok((metadata.dev(), metadata.ino()))
    };
    if identity(recorded)? == identity(named)? {
        return Ok(());
    }
    let why = format!("its base is {}, not {}", recorded.display(), named.display());
    Err(OpenError::Unsuitable { path: layer.into(), why })
}
