//! Opens a layer and everything below it. Control thread only.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::file::{base_path, host_error, read_header};
use super::header::Header;
use super::identity::{BaseChange, BaseIdentity, BaseKind};
use super::levels::{Level, LevelMap, Top, discard_limits};
use super::map::LayerMap;
use super::map_file::read_map;
use super::merge::require_whole;
use super::unflushed::UnflushedMap;
use crate::host_file::is_read_only_device;
use crate::shell::shell_path;
use crate::{
    Backend, DetectZeroes, DiskFormat, DiskOptions, FileIdentity, FlushAction, Geometry, OnEnospc,
    OpenError, RawFile,
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
    require_whole(&header, path)?;
    if header.frozen.is_some() && !options.read_only {
        let why = "it is frozen, as other layers may stand on it; make a new layer over it";
        return Err(OpenError::Unsuitable { path: path.into(), why: why.into() });
    }
    // The map may be in the page cache only, if its last write-back was killed: a durable write
    // relies on the bits that it finds.
    sync(file.file(), path)?;
    let map = read_map(file.file(), path, &header)?;
    let mut top = top(&file, &header, map, options);
    top.unflushed = UnflushedMap::of(&file, path, &header, options)?;
    let (files, below) = bases(path, &header, &file, options)?;
    require_below(path, &header, base, &files)?;
    Ok(Chain { header, top, below, top_file: file, files })
}

/// Opens everything below the layer at `path`, whose file was opened with these options.
///
/// # Errors
///
/// See [`super::LayeredDisk::open`].
pub(super) fn bases(
    path: &Path,
    header: &Header,
    file: &RawFile,
    options: &DiskOptions,
) -> Result<(Vec<RawFile>, Vec<Level>), OpenError> {
    let options = options_below(&file.geometry(), options);
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
    Ok((files, below))
}

/// The top in a file that was opened with these options.
pub(super) fn top(file: &RawFile, header: &Header, map: LayerMap, options: &DiskOptions) -> Top {
    let (geometry, data_at) = (file.geometry(), header.data_at());
    Top {
        data_at,
        map,
        logical_block: geometry.logical_block,
        is_read_only: options.read_only,
        ignores_flushes: options.cache.flush_action() == FlushAction::Ignore,
        discard: geometry.discard.map(|limits| discard_limits(limits, data_at)),
        budget: None,
        unflushed: None,
    }
}

/// The options of what is below a layer with these options.
pub(super) fn options_below(top: &Geometry, options: &DiskOptions) -> DiskOptions {
    DiskOptions {
        read_only: true,
        block_size: Some(top.logical_block),
        // A base is raw if the header says so: a guest may have written any bytes to it.
        format: DiskFormat::Raw,
        on_enospc: OnEnospc::Report,
        soft_limit: None,
        discard: false,
        detect_zeroes: DetectZeroes::Off,
        survives_kill: false,
        ..options.clone()
    }
}

/// The base of a layer.
pub(super) struct Base {
    pub(super) file: RawFile,
    pub(super) level: Level,
    /// The path and the header of one that is a layer.
    pub(super) next: Option<(PathBuf, Header)>,
}

/// Opens the base of a layer.
///
/// # Errors
///
/// It is missing, in use by a writer, or has changed; or the host's error.
pub(super) fn open_base(
    layer: &Path,
    header: &Header,
    options: &DiskOptions,
) -> Result<Base, OpenError> {
    let path = base_path(layer, header);
    if !path.exists() {
        return Err(missing(layer, &path));
    }
    if header.base.kind == BaseKind::Layer {
        let file = RawFile::open_base(&path, options)?;
        sync(file.file(), &path)?;
        let found = read_header(file.file(), &path)?;
        require_unchanged(layer, header, &path, &found.identity(), Some(&found))?;
        let map = LevelMap::Layer(read_map(file.file(), &path, &found)?);
        let level = Level { data_at: found.data_at(), size: found.size, map };
        return Ok(Base { file, level, next: Some((path, found)) });
    }
    let file = RawFile::open_base(&path, options)?;
    sync(file.file(), &path)?;
    let found = BaseIdentity::of_raw(file.file()).map_err(host_error(&path, "read it"))?;
    require_unchanged(layer, header, &path, &found, None)?;
    let level = Level { data_at: 0, size: found.size, map: LevelMap::Raw };
    Ok(Base { file, level, next: None })
}

pub(super) fn require_unchanged(
    layer: &Path,
    header: &Header,
    base: &Path,
    found: &BaseIdentity,
    found_layer: Option<&Header>,
) -> Result<(), OpenError> {
    let change = header.base_change(found, found_layer, base);
    change.map_or(Ok(()), |BaseChange { what, remedy }| {
        let base = base.display();
        let why = format!("its base {base} has changed since the layer was made: {what}; {remedy}");
        Err(OpenError::Unsuitable { path: layer.into(), why })
    })
}

/// The error of a chain that is too long.
pub(super) fn too_long(path: &Path) -> OpenError {
    let why = format!(
        "a disk has at most {LEVELS_MAX} files, its layers and the raw base; take some out with \
         `bulkhead layer rebase --base LOWER_LEVEL LAYER`"
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
        Err(Errno::IO) if is_read_only_device(file) => Ok(()),
        Err(errno) => Err(host_error(path, "make it durable")(errno.into())),
    }
}

/// Refuses a base that is not below the layer. A snapshot puts layers between.
fn require_below(
    layer: &Path,
    header: &Header,
    named: &Path,
    below: &[RawFile],
) -> Result<(), OpenError> {
    let found = FileIdentity::at(named).map_err(host_error(named, "find it"))?;
    let is_found = |file: &RawFile| {
        file.file().metadata().is_ok_and(|metadata| FileIdentity::of(&metadata) == found)
    };
    if below.iter().any(is_found) {
        return Ok(());
    }
    let why = format!(
        "its base is {}, not {}; to put it on that one, run `bulkhead layer rebase --base {} {}`",
        base_path(layer, header).display(),
        named.display(),
        shell_path(named),
        shell_path(layer)
    );
    Err(OpenError::Unsuitable { path: layer.into(), why })
}

/// The error of a base that is not where the layer has it.
pub(super) fn missing(layer: &Path, base: &Path) -> OpenError {
    let why = format!(
        "its base {} is missing; if it was moved, run `bulkhead layer rebase --base NEW_PATH {}`",
        base.display(),
        shell_path(layer)
    );
    OpenError::Unsuitable { path: layer.into(), why }
}
