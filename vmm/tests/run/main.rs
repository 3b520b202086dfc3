//! `bulkhead run` on this host's KVM, with guests of a few instructions.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a failed helper fails its test

mod console;
mod control;
mod crash_test;
mod ends;
mod guest;
mod limits;
mod log;
mod terminal;
