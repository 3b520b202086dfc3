//! The commands of the program: a file or folder for each.

pub(crate) mod check;
pub(crate) mod crash;
pub(crate) mod ctl;
pub(crate) mod disk;
mod explain;
pub(crate) mod layer;
mod progress;
pub(crate) mod run;
pub(crate) mod serve;
mod table;

use std::io::{self, Write};

use anyhow::Context as _;

/// Prints a result. A reader that has closed its end has read enough.
fn print(text: &str) -> anyhow::Result<()> {
    print_part(text).map(drop)
}

/// Prints a part of a result. Returns whether the reader may want more.
fn print_part(text: &str) -> anyhow::Result<bool> {
    let mut stdout = anstream::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        outcome => outcome.map(|()| true).context("cannot write the result"),
    }
}
