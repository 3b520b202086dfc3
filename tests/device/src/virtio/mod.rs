//! Conformance to Virtio 1.2: a test for each device requirement (MUST), named after its clause.

mod blk;
mod cache;
mod idle;
mod net;
mod pending_memory;
mod raw_file;
mod ring;
mod rng;
mod task_abort;
mod transport;
mod vhost_user_write_cache;
mod write_cache_resets;

use std::sync::Arc;

use block::Backend;
use devices::virtio::Block;
use driver::{Device, Disk, Machine, Shape, TestDisk};

/// A virtio-blk device with `queues` queues over `backend`, not initialized.
fn plug(queues: u16, backend: Arc<dyn Backend>) -> Device {
    let block = Block::new("disk", "0123456789abcdefghijK", queues, backend);
    Device::find(&Machine::new(vec![Box::new(block)]), 1)
}

/// An initialized virtio-blk device over a [`TestDisk`], with those of `features` it offers.
fn start(features: u64) -> (Disk, TestDisk) {
    let backend = TestDisk::new(Shape::default());
    let disk = Disk::start(plug(1, Arc::new(backend.clone())), features, 16);
    (disk, backend)
}
