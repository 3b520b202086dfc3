//! `layer diff`.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use block::{CompareStep, LayerChain, OpenError};

use super::ranges::{RangesSender, RangesTitle, print_ranges};
use super::shown::shown;
use crate::config::human_size;

/// Examples of the command.
pub(super) const DIFF_HELP: &str = "\
A range is changed if the layer answers for it, whatever its content. With
--content it is read, and blocks of 4 KiB that are equal are left out.

Examples:
  bulkhead layer diff vm2.layer
  bulkhead layer diff --from debian.img --content vm2.layer";

/// Prints what a layer has changed.
pub(super) fn diff(
    path: &Path,
    from: Option<&Path>,
    content: bool,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let (asked, from) = (path.to_owned(), from.map(Path::to_owned));
    print_ranges(path, json, move |ranges| find(&asked, from.as_deref(), content, ranges))?;
    Ok(ExitCode::SUCCESS)
}

fn find(
    path: &Path,
    from: Option<&Path>,
    content: bool,
    ranges: &mut RangesSender<'_>,
) -> Result<(), OpenError> {
    let host_error =
        |what| move |source: io::Error| OpenError::Host { path: path.to_owned(), what, source };
    let chain = LayerChain::open(path)?;
    let below = from.map_or(Ok(1), |from| chain.level_of(from))?;
    let kind = if content { "differences from" } else { "changes over" };
    let what = format!("{kind} {}, of {}", shown(chain.path(below)), human_size(chain.size()));
    ranges.title(RangesTitle {
        path: path.to_owned(),
        what,
        size: chain.size(),
        levels: chain.paths().take(below).map(Path::to_owned).collect(),
        to_read: if content { chain.changed_bytes(below) } else { 0 },
    });
    if content {
        let compared = chain.compare(below, |step| match step {
            CompareStep::Compared(bytes) => ranges.read(bytes),
            CompareStep::Differs(piece) => ranges.piece(piece),
        });
        return compared.map_err(host_error("compare it with what is below it"));
    }
    for piece in chain.changes(below) {
        ranges.piece(piece.map_err(host_error("find its data"))?);
    }
    Ok(())
}
