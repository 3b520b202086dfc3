//! The contract of engines and backends. The test of each engine includes it, and that of the
//! pass-through wrapper.

mod compare;
mod discards;
mod enospc;
mod lost_writes;
mod requests;

use std::path::Path;

use block::{Backend, CacheMode, DiskOptions, OpenError, RawFile};

/// The disk under test.
type Disk = Box<dyn Backend>;

/// The engine under test, and the defaults.
fn options(mode: CacheMode) -> DiskOptions {
    DiskOptions { engine: crate::ENGINE, ..DiskOptions::new(mode) }
}

fn open(path: &Path, mode: CacheMode) -> Disk {
    open_with(path, &options(mode)).unwrap()
}

fn open_with(path: &Path, options: &DiskOptions) -> Result<Disk, OpenError> {
    RawFile::open(path, options).map(crate::disk_under_test)
}
