//! Errors of disks.

use std::io;

use block::OpenError;
use devices::virtio::AttachError;
use thiserror::Error;

/// The reason a disk is not available.
#[derive(Debug, Error)]
pub(crate) enum DiskError {
    /// The image or device cannot be opened.
    #[error("disk {0:?}")]
    Open(String, #[source] OpenError),
    /// The disk cannot be attached to its controller.
    #[error("disk {0:?}")]
    Attach(String, #[source] AttachError),
    /// The host is out of descriptors.
    #[error("cannot create the SCSI controller {0:?}")]
    Controller(String, #[source] io::Error),
}
