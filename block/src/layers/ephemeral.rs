//! The top of an ephemeral disk: a file that never has a name, so that it is gone at the end of the
//! program, whatever ends it. Control thread only.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::MemfdFlags;
use rustix::io::Errno;

use super::block_budget::BlockBudget;
use super::file::host_error;
use super::header::Header;
use super::info::base_identity;
use super::map::LayerMap;
use super::open::{self, Chain};
use super::uuid::Uuid;
use crate::{CacheMode, DiscardLimits, DiskOptions, OnEnospc, OpenError, RawFile};

/// Where the changes of an ephemeral disk are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EphemeralPlace {
    /// In the memory of the host.
    Memory,
    /// In a folder, in a file without a name.
    Folder(PathBuf),
}

/// Makes a top over `base`, and opens everything below it. A base that is a layer is not frozen:
/// the new top does not outlive the lock that keeps writers off it.
///
/// # Errors
///
/// See [`super::LayeredDisk::open_ephemeral`].
pub(super) fn chain(
    base: &Path,
    place: &EphemeralPlace,
    limit: Option<u64>,
    options: &DiskOptions,
) -> Result<Chain, OpenError> {
    let base = std::path::absolute(base).map_err(host_error(base, "find it"))?;
    let (identity, size) = base_identity(&base)?;
    let uuid = Uuid::random().map_err(host_error(&base, "make an identity over it"))?;
    let header = Header::new(uuid, size, identity, &base);
    if size > header.size_max() {
        let most = header.size_max();
        let why = format!("{size} bytes is more than a layer can have, {most}");
        return Err(OpenError::Unsuitable { path: base, why });
    }
    let name = match place {
        EphemeralPlace::Memory => Path::new("memory of the host"),
        EphemeralPlace::Folder(folder) => folder,
    };
    let file = new_file(place, &options.id).map_err(host_error(name, "make a file there"))?;
    let length = header.data_at() + header.size;
    file.set_len(length).map_err(host_error(name, "extend a file there"))?;
    let options = &options_of_top(options);
    let top_file = RawFile::open_unnamed(&file, name, options)?;
    let mut top = open::top(&top_file, &header, LayerMap::new(header.map_pages()), options);
    top.budget = Some(BlockBudget::new(options.id.clone(), limit));
    // A discard leaves the blocks of the base as they are.
    top.discard = top.discard.map(|limits| DiscardLimits { reads_zero: false, ..limits });
    let (files, below) = open::bases(name, &header, &top_file, options)?;
    Ok(Chain { header, top, below, top_file, files })
}

/// The options of an ephemeral top. Nothing is to survive, so that flushes do nothing. A file in
/// memory takes no direct I/O, and through the page cache all machines share what they have read of
/// one base.
pub(super) fn options_of_top(options: &DiskOptions) -> DiskOptions {
    DiskOptions {
        cache: CacheMode::Unsafe,
        read_only: false,
        on_enospc: OnEnospc::Report,
        soft_limit: None,
        ..options.clone()
    }
}

fn new_file(place: &EphemeralPlace, id: &str) -> std::io::Result<File> {
    match place {
        EphemeralPlace::Folder(folder) => File::options()
            .read(true)
            .write(true)
            // O_EXCL: it can never be given a name.
            .custom_flags(libc::O_TMPFILE | libc::O_EXCL)
            .mode(0o600)
            .open(folder),
        EphemeralPlace::Memory => {
            let create = |flags| rustix::fs::memfd_create(id, flags | MemfdFlags::CLOEXEC);
            // Linux 6.3 wants to know that it is no program; one before does not know the flag.
            let file = match create(MemfdFlags::NOEXEC_SEAL) {
                Err(Errno::INVAL) => create(MemfdFlags::empty()),
                created => created,
            };
            Ok(File::from(file?))
        }
    }
}
