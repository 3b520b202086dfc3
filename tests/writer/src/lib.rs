//! Numbered records on a raw disk: what a guest writes before a power cut, and what is left of it.
//!
//! The guest runs the program `writer` of this package, which has no other dependency, so that its
//! static binary is small. The harness examines the disk with [`examine`].

mod examine;
mod record;

pub use examine::{Finding, Findings, examine};
pub use record::{Content, RECORD, Records, SECTOR};
