//! The commands of the program: a file or folder for each.

pub(crate) mod check;
pub(crate) mod ctl;
pub(crate) mod disk;
mod explain;
pub(crate) mod layer;
pub(crate) mod run;
pub(crate) mod serve;
mod table;

use std::io::{self, Write};

use anyhow::Context as _;

/// Prints a result. A reader that has closed its end has read enough.
fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = anstream::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.context("cannot write the result"),
    }
}
