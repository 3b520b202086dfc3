//! `layer map`.

use std::path::Path;
use std::process::ExitCode;

use block::{LayerChain, OpenError};

use super::ranges::{RangesSender, RangesTitle, print_ranges};
use crate::config::human_size;

/// Prints which level answers for each range of a disk.
pub(super) fn map(path: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let asked = path.to_owned();
    print_ranges(path, json, move |ranges| find(&asked, ranges))?;
    Ok(ExitCode::SUCCESS)
}

fn find(path: &Path, ranges: &mut RangesSender<'_>) -> Result<(), OpenError> {
    let chain = LayerChain::open(path)?;
    ranges.title(RangesTitle {
        path: path.to_owned(),
        what: human_size(chain.size()),
        size: chain.size(),
        levels: chain.paths().map(Path::to_owned).collect(),
        to_read: 0,
    });
    for piece in chain.pieces() {
        let what = "find its data";
        let path = path.to_owned();
        ranges.piece(piece.map_err(|source| OpenError::Host { path, what, source })?);
    }
    Ok(())
}
