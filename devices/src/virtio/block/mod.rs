//! The virtio block device (Virtio 1.2 §5.2).

mod config;
mod device;
mod protocol;
mod request;
mod state;

pub(super) use config::WRITEBACK_OFFSET;
pub use device::Block;
pub(super) use device::feature;
pub use request::Status;
