//! A layer that is about to be changed: locked, and found by its own name. May block.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::file::{host_error, read_header, write_header};
use super::super::header::Header;
use super::super::map_file;
use super::super::new_file::NewFile;
use super::super::open::sync;
use super::super::succession::complete;
use super::super::uuid::Uuid;
use super::chain::write_options;
use crate::{OpenError, RawFile};

/// See the module's documentation.
#[derive(Debug)]
pub(in super::super) struct ChangedTop {
    /// Its own name, where the user named a link.
    pub(in super::super) path: PathBuf,
    pub(in super::super) file: Arc<RawFile>,
    pub(in super::super) header: Header,
}

impl ChangedTop {
    /// Locks the layer at `path`. What a killed program left in the page cache is made durable.
    ///
    /// # Errors
    ///
    /// It is in use, or no layer that can be used.
    pub(in super::super) fn open(path: &Path) -> Result<Self, OpenError> {
        let path = own_name(path)?;
        complete(&path, &write_options())?;
        let file = Arc::new(RawFile::open_container(&path, &write_options())?);
        sync(file.file(), &path)?;
        let header = read_header(file.file(), &path)?;
        map_file::settle(file.file(), &path, &header)?;
        Ok(Self { path, file, header })
    }

    /// Refuses a layer that others may stand on.
    ///
    /// # Errors
    ///
    /// It is frozen.
    pub(super) fn require_writable(&self) -> Result<(), OpenError> {
        if self.header.frozen.is_some() {
            return Err(self.unsuitable(
                "it is frozen, as other layers may stand on it, and their content would change; \
                 rebase these to its base first, and commit one of them, or make a new layer over it"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    /// Writes a header as the next one and makes it durable.
    ///
    /// # Errors
    ///
    /// The host's error, or the path of the base is too long.
    pub(in super::super) fn write(&mut self, header: Header) -> Result<(), OpenError> {
        let header = header.next();
        let written = write_header(self.file.file(), &header);
        written.map_err(host_error(&self.path, "write its header"))?;
        self.header = header;
        Ok(())
    }

    /// Puts a layer without a block in its place, which has `header` apart from its identity.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(super) fn replace_with_empty(&self, header: Header) -> Result<Uuid, OpenError> {
        let uuid = Uuid::random().map_err(host_error(&self.path, "make its identity"))?;
        let (generation, has_unflushed_map) = (1, true);
        let header = Header { generation, uuid, merge: None, has_unflushed_map, ..header };
        let metadata = self.file.file().metadata();
        let metadata = metadata.map_err(host_error(&self.path, "query it"))?;
        NewFile::write(&self.path, &header)?.replace(&self.path, &metadata)?;
        Ok(uuid)
    }

    pub(in super::super) fn unsuitable(&self, why: String) -> OpenError {
        OpenError::Unsuitable { path: self.path.clone(), why }
    }
}

/// The path without a link at its end. One that is no link stays as the user wrote it.
fn own_name(path: &Path) -> Result<PathBuf, OpenError> {
    let metadata = path.symlink_metadata().map_err(host_error(path, "find it"))?;
    if !metadata.is_symlink() {
        return Ok(path.to_owned());
    }
    path.canonicalize().map_err(host_error(path, "find it"))
}
