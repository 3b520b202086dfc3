//! Real power cuts: a disk server with a volatile cache under the lab's host, which loses, keeps or
//! tears what was not flushed (docs/power-cuts.md).

mod check;
mod cut;
mod matrix;
mod prepare;
mod protocol;
mod rows;
mod server;
mod store;

pub use cut::{CutDisk, Fates};
pub use matrix::{Outcome, Plan, Tally, run_group};
pub use rows::{Backing, Bus, Monitor, ROWS, Row, Workload};
pub use server::{EXPORT, Server};
pub use store::{Lie, Requests, SECTOR, Store};
