//! A driver that lies: whatever it puts into rings, requests and registers, the device answers with
//! a status byte or asks for a reset, keeps its workers, and works again afterwards.

mod chains;
mod in_flight;
mod judge;
mod random;
mod registers;
mod requests;
mod ring;
pub(crate) mod victim;
