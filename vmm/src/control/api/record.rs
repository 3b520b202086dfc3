//! The requests about recorded disks.

use block::{MARK_MAX, MarkError};

use super::collect::View;
use super::http::{Problem, Response};
use super::model::{Mark, MarkRequest};
use crate::disks::{ManagedDisk, MarkFailure, mark};

/// Makes a mark. Blocks until the logs have it.
pub(super) fn make_mark(view: &View, body: &[u8]) -> Result<Response, Problem> {
    let MarkRequest { text, disks } = serde_json::from_slice(body).map_err(|error| {
        let remedy = "send {\"text\": TEXT}, or {\"text\": TEXT, \"disks\": [ID]}";
        Problem::new(400, format!("the body is not a mark: {error}"), remedy)
    })?;
    let marked = mark(&view.disks, &text, &disks.unwrap_or_default());
    let marked = marked.map_err(|failure| problem(view, &failure))?;
    let disks = marked.iter().map(|disk| disk.config.id().to_owned()).collect();
    Ok(Response::json(201, &Mark { text, disks }))
}

/// Ends the recording of a disk. Blocks until its log is closed.
pub(super) fn stop(view: &View, disk: &ManagedDisk) -> Result<(), Problem> {
    let id = || disk.config.id().to_owned();
    let refused = |failure| Err(problem(view, &failure));
    let Some(recording) = disk.recording() else {
        return refused(MarkFailure::NotRecorded(id()));
    };
    if let Some(end) = recording.status().end {
        return refused(MarkFailure::Disk(id(), MarkError::Ended(end.reason)));
    }
    if !recording.stop("stopped by request") {
        return refused(MarkFailure::Disk(id(), MarkError::NoAnswer));
    }
    tracing::info!(disk = disk.config.id(), "the recording was stopped");
    Ok(())
}

fn problem(view: &View, failure: &MarkFailure) -> Problem {
    let (status, remedy) = match failure {
        MarkFailure::Unknown(_) => {
            let all = view.disks.all();
            let ids: Vec<_> = all.iter().map(|disk| disk.config.id()).collect();
            (404, format!("the disks are: {}", ids.join(", ")))
        }
        MarkFailure::NotRecorded(_) | MarkFailure::NoDisks => {
            (409, "add `record = \"disk.log\"` to its configuration, and restart it".to_owned())
        }
        MarkFailure::Disk(_, MarkError::Text) => (400, format!("write 1 to {MARK_MAX} bytes")),
        MarkFailure::Disk(_, MarkError::Ended(_)) => {
            (409, "restart the machine with a new log".to_owned())
        }
        MarkFailure::Disk(_, MarkError::NoAnswer) => {
            (503, "check the storage of the log".to_owned())
        }
    };
    Problem::new(status, failure.to_string(), remedy)
}
