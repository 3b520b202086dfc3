//! Virtio 1.2, clause by clause: what a device MUST, each with a test that names the clause.

mod blk;
mod cache;
mod idle;
mod net;
mod raw_file;
mod review;
mod ring;
mod rng;
mod transport;

use std::sync::Arc;

use block::Backend;
use devices::virtio::Block;
use driver::{Device, Disk, Machine, Shape, TestDisk};

/// A block device with `queues` queues over `backend`, not yet set up.
fn plug(queues: u16, backend: Arc<dyn Backend>) -> Device {
    let block = Block::new("disk", "0123456789abcdefghijK", queues, backend);
    Device::find(&Machine::new(vec![Box::new(block)]), 1)
}

/// A running block device over memory with those of `features` it offers.
fn start(features: u64) -> (Disk, TestDisk) {
    let backend = TestDisk::new(Shape::default());
    let disk = Disk::start(plug(1, Arc::new(backend.clone())), features, 16);
    (disk, backend)
}
