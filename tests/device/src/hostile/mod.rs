//! Hostile virtio-blk drivers: whatever a driver writes to rings, requests and registers, the
//! device completes the request with a status or sets DEVICE_NEEDS_RESET, keeps its workers, and
//! works after a reset.

mod chains;
pub(crate) mod dut;
mod in_flight;
mod random;
mod reference;
mod registers;
mod requests;
mod ring;
