//! The host I/O of one request, call by call.
//!
//! A [`StateMachine`] names its next [`HostCall`]; an engine makes a ring entry or a system call of
//! it and hands the result back. Pure: no I/O happens here, no state of the disk changes, and what
//! a result means for the disk is returned as an [`Effect`]. So both engines treat every result
//! alike.

mod bounce;
mod compare;
mod cursor;
mod fast;
mod host_call;
mod range_split;
mod range_work;
mod state_machine;
mod transfer;
mod zeroes;

pub(crate) use self::fast::{FastFilter, FastTransfer, single_call};
pub(crate) use self::host_call::{HostCall, HostOp, IoBuffer};
pub(crate) use self::state_machine::{Effect, Outcome, Progress, StateMachine};
