//! Resources that the schedules of a simulator reuse: guest memory and the image.

use std::fs::{self, File};
use std::sync::atomic::{AtomicU64, Ordering};

use devices::GuestMemory;
use vm_memory::GuestAddress;

use crate::plan::MAX_UNITS;
use crate::queue_driver::MEMORY_BYTES;

/// See the module's documentation. No state is kept from one schedule to the next.
pub(super) struct Resources {
    pub(super) memory: GuestMemory,
    /// The images of the disks, which are opened and locked only. They have no names and stay
    /// empty.
    pub(super) images: [File; MAX_UNITS],
}

impl Resources {
    pub(super) fn new() -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
        Self { memory, images: [(); MAX_UNITS].map(|()| unnamed_file()) }
    }
}

/// A file for each simulator, as tests run several at a time. It is on the file system of the
/// build: that of `/tmp` may not support direct I/O.
fn unnamed_file() -> File {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let program = std::env::current_exe().unwrap();
    let path = program.with_file_name(format!(".sim-{}-{number}", std::process::id()));
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    file
}
