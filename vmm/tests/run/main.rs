//! `bulkhead run` from start to end on this host's KVM, with guests of a few instructions.

mod console;
mod ends;
mod guest;
mod terminal;
