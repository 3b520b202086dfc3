//! The commands of the program: a file or folder for each.

pub(crate) mod ctl;
pub(crate) mod disk;
pub(crate) mod run;
pub(crate) mod serve;
