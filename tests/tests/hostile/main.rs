//! A driver that lies: whatever it puts into rings, requests and registers, the device answers with a
//! status byte or asks for a reset, keeps its workers, and works again afterwards.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests fail by panicking")]

mod chains;
mod in_flight;
mod judge;
mod random;
mod registers;
mod requests;
mod ring;
mod victim;
