//! Errors of disks.

use std::io;
use std::path::PathBuf;

use block::OpenError;
use devices::virtio::{Address, AttachError};
use thiserror::Error;

use crate::config::ScsiAddress;
use crate::config::needs::ExceededLimit;

/// The reason a disk is not available.
#[derive(Debug, Error)]
pub(crate) enum DiskError {
    /// The image or device cannot be opened.
    #[error("disk {0:?}")]
    Open(String, #[source] OpenError),
    /// Its log cannot be made.
    #[error("cannot record disk {0:?}")]
    Record(String, #[source] Box<OpenError>),
    /// The disk cannot be attached to its controller.
    #[error("disk {0:?}")]
    Attach(String, #[source] AttachError),
    /// The host is out of descriptors.
    #[error("cannot create the SCSI controller {0:?}")]
    Controller(String, #[source] io::Error),
}

/// The reason a disk is not attached, or not detached.
#[derive(Debug, Error)]
pub(crate) enum HotplugError {
    /// Another disk has the id.
    #[error("there is already a disk {0:?}")]
    IdTaken(String),
    /// A disk that is being detached has the id, the image or the address.
    #[error("the disk {0:?} is still being detached")]
    Detaching(String),
    /// A disk with the id is being attached.
    #[error("the disk {0:?} is already being attached")]
    Attaching(String),
    /// Another disk of this machine has the image.
    #[error("{image} is the {role} of this machine's disk {disk:?}", image = .image.display())]
    ImageTaken { image: PathBuf, role: &'static str, disk: String },
    /// The machine lacks the controller.
    #[error("the machine has no SCSI controller {number}")]
    NoController { number: u8, existing: Vec<u8> },
    /// The number of a controller's queues is fixed when the machine starts.
    #[error("{requested} queues exceed the {available} of the controller")]
    Queues { requested: u16, available: u16 },
    /// Another disk has the address.
    #[error("{} is taken", address_text(.0))]
    AddressTaken(ScsiAddress),
    /// The disk would exceed a limit of the process.
    #[error("{0}")]
    Limit(ExceededLimit),
    /// The disk cannot be opened or attached.
    #[error("{}", cause(.0))]
    Disk(#[from] DiskError),
    /// The host is out of threads.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
    /// A layer of the disk is being merged.
    #[error("a layer of the disk {0:?} is being merged")]
    Committing(String),
    /// The disk is a PCI device.
    #[error("the disk {0:?} is on virtio-blk")]
    NotScsi(String),
}

/// The address of a SCSI disk in words.
pub(super) fn address_text(address: &ScsiAddress) -> String {
    let ScsiAddress { controller, address: Address { target, lun } } = address;
    format!("LUN {lun} of target {target} of controller {controller}")
}

/// The cause of a disk's error, which names the image.
fn cause(error: &DiskError) -> String {
    match error {
        DiskError::Open(_, source) => source.to_string(),
        DiskError::Record(_, source) => source.to_string(),
        DiskError::Attach(_, source) => source.to_string(),
        DiskError::Controller(..) => error.to_string(),
    }
}
