//! Checks that are commands of the host. Each sees its disk as a file of a FUSE mount, or as a loop
//! device over that file.
//!
//! No part of a check outlives it: its processes are killed, its mounts end with its own mount
//! namespace, and its working folder is removed.

mod ahead;
mod builtin;
mod checker;
mod command;
mod files;
mod leftovers;
mod loop_device;
mod mount;
mod output;
mod states;
mod sys;
mod work_folder;

pub use self::builtin::{BUILTIN_CHECKS, BuiltinCheck};
pub use self::checker::{CheckOptions, HostChecker, HostError};
pub use self::mount::{ExposedState, StateMount, separate_mounts};
