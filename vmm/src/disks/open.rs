//! Opens the disks of the configuration.

use std::sync::Arc;

use block::{Backend, RawFile};
use devices::virtio::Block;

use super::error::DiskError;
use crate::config::DiskConfig;
use crate::store_warning::{StoreWarning, store_warnings};

/// Opens a disk, which locks its image.
///
/// # Errors
///
/// The image or device cannot be opened.
pub(crate) fn open_backend(config: &DiskConfig) -> Result<RawFile, DiskError> {
    let file = RawFile::open(&config.path, &config.options)
        .map_err(|error| DiskError::Open(config.id().to_owned(), error))?;
    for StoreWarning { problem, remedy } in
        store_warnings(&file.status().store, config.options.cache)
    {
        tracing::warn!(disk = config.id(), remedy, "{problem}");
    }
    Ok(file)
}

/// Opens a disk as a virtio-blk device.
///
/// # Errors
///
/// The image or device cannot be opened.
pub(crate) fn open_virtio_blk(config: &DiskConfig) -> Result<Block, DiskError> {
    let backend = Arc::new(open_backend(config)?);
    Ok(Block::new(config.id(), &config.serial, config.queues, backend))
}
