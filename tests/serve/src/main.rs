//! `bulkhead serve` under a vhost-user front-end in process: requests, reconnection, hostile
//! front-ends.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests fail by panicking")]

mod failing_store;
mod frozen_store;
mod hostile;
mod image_format;
mod kill_in_flight;
mod layers;
mod libblkio;
mod program;
mod qemu_locks;
mod reconnect;
mod record;
mod requests;
mod thin_store;
