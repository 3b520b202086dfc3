//! The commands of the program: a file or folder for each.

pub(crate) mod check;
pub(crate) mod ctl;
pub(crate) mod disk;
mod explain;
pub(crate) mod layer;
pub(crate) mod run;
pub(crate) mod serve;
mod table;
