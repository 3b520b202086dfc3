//! The request for a snapshot.

use block::SnapshotError;

use super::collect::View;
use super::http::{Problem, Response};
use super::model::{FrozenDisk, Snapshot, SnapshotRequest};
use crate::disks::{DiskSnapshots, SnapshotFailure, snapshot};

/// Makes a snapshot. Blocks until the host has flushed the disks.
pub(super) fn make(view: &View, body: &[u8]) -> Result<Response, Problem> {
    let SnapshotRequest { name, disks } = serde_json::from_slice(body).map_err(|error| {
        let remedy = "send {\"name\": NAME}, or {\"name\": NAME, \"disks\": [ID]}";
        Problem::new(400, format!("the body is not a snapshot: {error}"), remedy)
    })?;
    let made = snapshot(&view.disks, &view.events, &name, &disks.unwrap_or_default());
    let DiskSnapshots { disks, held, flush } = made.map_err(|failure| problem(view, &failure))?;
    let frozen = disks.iter().map(|(disk, path)| FrozenDisk {
        id: disk.config.id().to_owned(),
        path: path.display().to_string(),
    });
    let microseconds = |time: std::time::Duration| u64::try_from(time.as_micros());
    let snapshot = Snapshot {
        name,
        disks: frozen.collect(),
        held_us: microseconds(held).unwrap_or(u64::MAX),
        flush_us: microseconds(flush).unwrap_or(u64::MAX),
    };
    Ok(Response::json(201, &snapshot))
}

fn problem(view: &View, failure: &SnapshotFailure) -> Problem {
    let (status, remedy) = match failure {
        SnapshotFailure::Name(_) => (400, "choose another name, such as monday".to_owned()),
        SnapshotFailure::Unknown(_) => {
            let all = view.disks.all();
            let ids: Vec<_> = all.iter().map(|disk| disk.config.id()).collect();
            (404, format!("the disks are: {}", ids.join(", ")))
        }
        SnapshotFailure::NoLayer(_) => {
            let remedy = "name the disks of the snapshot, or make a layer over this one before the \
                          machine starts";
            (409, remedy.to_owned())
        }
        SnapshotFailure::NoDisks => {
            let remedy =
                "make a layer over its image before it starts, with `bulkhead layer create`";
            (409, remedy.to_owned())
        }
        SnapshotFailure::Ephemeral(_) => {
            (409, "name the other disks, or no disk for all that are kept".to_owned())
        }
        SnapshotFailure::Detaching(_) => (409, "wait for the event `disk_detached`".to_owned()),
        SnapshotFailure::Disk(SnapshotError::Refused { .. }) => {
            (409, "no disk has changed".to_owned())
        }
        SnapshotFailure::Disk(SnapshotError::Open(_)) => {
            (500, "no disk has changed; see the log of the machine".to_owned())
        }
    };
    Problem::new(status, failure.to_string(), remedy)
}
