//! The requests for commits of frozen layers.

use block::{MergeError, OpenError};

use super::collect::View;
use super::http::{Problem, Response};
use super::model::{CommitRequest, CommitStatus, LayerCommit};
use crate::disks::{CommitFailure, CommitState, DiskCommit};

/// Starts a commit. Blocks until the host has opened the files.
pub(super) fn start(view: &View, body: &[u8]) -> Result<Response, Problem> {
    let request = if body.is_empty() { b"{}" } else { body };
    let CommitRequest { disks, force } = serde_json::from_slice(request).map_err(|error| {
        let remedy = "send {\"disks\": [ID]}, or no body for all disks";
        Problem::new(400, format!("the body is not a commit: {error}"), remedy)
    })?;
    let disks = disks.unwrap_or_default();
    let started = view.commits.start(&view.disks, &view.events, &disks, force);
    started.map_err(|failure| problem(view, &failure))?;
    Ok(Response::json(202, &status(view)))
}

/// The commit that runs, or the last one.
pub(super) fn show(view: &View) -> Response {
    Response::json(200, &status(view))
}

/// Stops the commit that runs. The answer comes before its end.
pub(super) fn stop(view: &View) -> Response {
    view.commits.stop();
    Response::json(202, &status(view))
}

fn status(view: &View) -> CommitStatus {
    CommitStatus { disks: view.commits.all().iter().map(|commit| model(commit)).collect() }
}

fn model(commit: &DiskCommit) -> LayerCommit {
    let micros = |time: std::time::Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let (merged, error) = match commit.state() {
        CommitState::Merged(merged) => (Some(merged), None),
        CommitState::Failed(error) => (None, Some(error.to_string())),
        _ => (None, None),
    };
    let state = match commit.state() {
        CommitState::Waiting => "waiting",
        CommitState::Running => "running",
        CommitState::Merged(_) => "merged",
        CommitState::Stopped => "stopped",
        CommitState::Failed(_) => "failed",
    };
    LayerCommit {
        id: commit.id.clone(),
        layer: commit.layer.display().to_string(),
        base: commit.base.display().to_string(),
        state: state.to_owned(),
        done_bytes: commit.done(),
        total_bytes: commit.bytes,
        elapsed_ms: u64::try_from(commit.elapsed().as_millis()).unwrap_or(u64::MAX),
        held_us: merged.map(|merged| micros(merged.held)),
        flush_us: merged.map(|merged| micros(merged.flush)),
        kept: merged.and_then(|merged| merged.kept.clone()),
        error,
    }
}

fn problem(view: &View, failure: &CommitFailure) -> Problem {
    let (status, remedy) = match failure {
        CommitFailure::Running => (409, "wait for its end, or stop it".to_owned()),
        CommitFailure::Unknown(_) => {
            let all = view.disks.all();
            let ids: Vec<_> = all.iter().map(|disk| disk.config.id()).collect();
            (404, format!("the disks are: {}", ids.join(", ")))
        }
        CommitFailure::NoLayer(_) => (409, "name the disks that are layers".to_owned()),
        CommitFailure::NoDisks => (409, "make a snapshot first".to_owned()),
        CommitFailure::Detaching(_) => (409, "wait for the event `disk_detached`".to_owned()),
        CommitFailure::Disk(MergeError::Open(OpenError::Host { .. })) => {
            (500, "no layer has changed; see the log of the machine".to_owned())
        }
        CommitFailure::Disk(_) => (409, "no layer has changed".to_owned()),
        CommitFailure::Thread(_) | CommitFailure::Lost => {
            (500, "see the log of the machine".to_owned())
        }
    };
    Problem::new(status, failure.to_string(), remedy)
}
