//! Marks in the logs of recorded disks. Threads of the control socket.

use std::sync::Arc;

use block::MarkError;
use thiserror::Error;

use super::registry::{DiskRegistry, ManagedDisk};

/// Why a mark is not in all logs that were asked for.
#[derive(Debug, Error)]
pub(crate) enum MarkFailure {
    /// No disk has the name.
    #[error("there is no disk {0:?}")]
    Unknown(String),
    /// The disk has no log.
    #[error("the disk {0:?} is not recorded")]
    NotRecorded(String),
    /// No disk has a log.
    #[error("no disk is recorded")]
    NoDisks,
    /// The log of a disk did not take it.
    #[error("disk {0:?}: {1}")]
    Disk(String, #[source] MarkError),
}

/// Makes a mark in the log of each disk of `ids`, or of all that are recorded. Returns those disks.
/// Blocks until the logs have it. Without `ids` a recording that has ended is passed over.
///
/// # Errors
///
/// See [`MarkFailure`]. The logs of disks before the one that failed have the mark.
pub(crate) fn mark(
    disks: &DiskRegistry,
    text: &str,
    ids: &[String],
) -> Result<Vec<Arc<ManagedDisk>>, MarkFailure> {
    let mut marked = disks.named(ids).map_err(MarkFailure::Unknown)?;
    if ids.is_empty() {
        marked = disks.all();
        marked.retain(|disk| disk.recording().is_some());
        if marked.is_empty() {
            return Err(MarkFailure::NoDisks);
        }
    }
    let mut ended = None;
    marked = marked
        .into_iter()
        .map(|disk| {
            let id = || disk.config.id().to_owned();
            let recording = disk.recording().ok_or_else(|| MarkFailure::NotRecorded(id()))?;
            match recording.mark(text) {
                Ok(()) => Ok(Some(disk)),
                Err(error @ MarkError::Ended(_)) if ids.is_empty() => {
                    ended = Some(MarkFailure::Disk(id(), error));
                    Ok(None)
                }
                Err(error) => Err(MarkFailure::Disk(id(), error)),
            }
        })
        .filter_map(Result::transpose)
        .collect::<Result<_, _>>()?;
    match ended {
        Some(failure) if marked.is_empty() => Err(failure),
        _ => Ok(marked),
    }
}
