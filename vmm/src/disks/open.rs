//! Opens the disks of the configuration.

use std::sync::Arc;

use block::{
    Backend, CreatedLayer, LayeredDisk, OpenError, RawFile, RecordedDisk, Recording, create_layer,
};
use devices::virtio::Block;

use super::error::DiskError;
use crate::config::{DiskConfig, EphemeralChanges};
use crate::store_warning::{StoreWarning, store_warnings};

/// Opens a disk, which locks its image. Makes the layer of a disk that asks for it and has none,
/// and starts the log of one that is recorded.
///
/// # Errors
///
/// The image or device cannot be opened, or the layer or the log not be made.
pub(crate) fn open_backend(config: &DiskConfig) -> Result<Arc<dyn Backend>, DiskError> {
    let backend = open(config).map_err(|error| DiskError::Open(config.id().to_owned(), error))?;
    for StoreWarning { problem, remedy } in
        store_warnings(&backend.status().store, config.options.cache)
    {
        tracing::warn!(disk = config.id(), remedy, "{problem}");
    }
    let Some(log) = &config.record else { return Ok(backend) };
    let recording = Recording::start(config.id(), &*backend, log)
        .map_err(|error| DiskError::Record(config.id().to_owned(), Box::new(error)))?;
    tracing::info!(disk = config.id(), log = %log.path.display(), "the disk is recorded");
    Ok(Arc::new(RecordedDisk::new(backend, recording)))
}

fn open(config: &DiskConfig) -> Result<Arc<dyn Backend>, OpenError> {
    let DiskConfig { path, base, create, options, .. } = config;
    if let (Some(base), Some(EphemeralChanges { place, limit })) = (base, &config.ephemeral) {
        return Ok(Arc::new(LayeredDisk::open_ephemeral(base, place, *limit, options)?));
    }
    let Some(base) = base else { return Ok(Arc::new(RawFile::open(path, options)?)) };
    if *create && !path.exists() {
        let CreatedLayer { uuid, size } = create_layer(path, base, None)?;
        let path = path.display();
        tracing::info!(disk = config.id(), %path, %uuid, size, "layer made");
    }
    Ok(Arc::new(LayeredDisk::open(path, base, options)?))
}

/// Opens a disk as a virtio-blk device.
///
/// # Errors
///
/// The image or device cannot be opened.
pub(crate) fn open_virtio_blk(config: &DiskConfig) -> Result<Block, DiskError> {
    let backend = open_backend(config)?;
    Ok(Block::new(config.id(), &config.serial, config.queues, backend))
}
