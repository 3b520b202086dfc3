//! What every engine promises. Each engine's own test includes it.

mod compare;
mod lost_writes;
mod no_space;
mod requests;
mod trims;

use std::path::Path;

use block::{CacheMode, DiskOptions, RawFile};

/// The engine under test, and the defaults.
fn options(mode: CacheMode) -> DiskOptions {
    DiskOptions { engine: crate::ENGINE, ..DiskOptions::new(mode) }
}

fn open(path: &Path, mode: CacheMode) -> RawFile {
    RawFile::open(path, &options(mode)).unwrap()
}
