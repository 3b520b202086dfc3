//! `bulkhead serve` under a frontend that plays a monitor and its guest: requests, reconnection,
//! hostility.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests fail by panicking")]

mod hostile;
mod libblkio;
mod program;
mod reconnect;
mod requests;
