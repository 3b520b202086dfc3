//! `bulkhead serve` as its users have it: the program in a process of its own, and a frontend with a guest's driver.
//!
//! [`Served`] is the program, which can be killed and started again; [`Monitor`] a frontend: shared memory, rings of the
//! [driver](crate::driver), and the protocol as the crate `vhost` speaks it from the other side.
//!
//! Everything here runs on the thread of its test, and fails it by panicking.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "a frontend in a test fails by panicking"
)]

mod process;

pub use driver::feature;
pub use driver::vhost_user::{Kept, Monitor, PendingRequest as Request, RingPart};
pub use process::Served;
