//! In-process tests of the devices under the driver of tests/driver: conformance, hostile drivers,
//! and the defects that other monitors have shipped.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests fail by panicking")]

mod defects;
mod hostile;
mod resize;
mod scsi;
mod virtio;
