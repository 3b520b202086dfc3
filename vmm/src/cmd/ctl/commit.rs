//! `ctl commit`: starts a commit, follows it to its end, and stops it when it is interrupted.

use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::commands::{CtlError, RemoteMachine, milliseconds};
use crate::cmd::progress::ProgressLine;
use crate::config::human_size;
use crate::control::Signals;
use crate::control::api::model::{CommitRequest, CommitStatus, LayerCommit};
use crate::sanitize::sanitize;

const PATH: &str = "/v1/commit";
/// The interval of the queries.
const INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

impl RemoteMachine<'_> {
    /// Merges the frozen layers below the disks.
    pub(super) fn commit(&self, disks: &[String], force: bool) -> Result<String, CtlError> {
        let signals = Signals::block().map_err(CtlError::Signals)?;
        let disks = (!disks.is_empty()).then(|| disks.to_vec());
        let body = serde_json::to_string(&CommitRequest { disks, force }).unwrap_or_default();
        let (answer, status) = self.follow(&self.request("POST", PATH, &body)?, &signals)?;
        let failed: Vec<_> = status.disks.iter().filter_map(failure).collect();
        if self.json {
            return if failed.is_empty() { Ok(answer) } else { Err(not_merged(&failed)) };
        }
        let merged: String = status.disks.iter().filter_map(merged_text).collect();
        if failed.is_empty() {
            return Ok(merged);
        }
        anstream::print!("{merged}");
        Err(not_merged(&failed))
    }

    /// Stops the commit that runs.
    pub(super) fn stop_commit(&self) -> Result<String, CtlError> {
        let answer = self.request("DELETE", PATH, "")?;
        if self.json {
            return Ok(answer);
        }
        let status = parse(&answer)?;
        let is_over = status.disks.iter().all(is_over);
        Ok(if is_over { "no commit is running\n" } else { "the commit is being stopped\n" }
            .to_owned())
    }

    /// Waits for the end of a commit that has this state. A signal stops it.
    fn follow(&self, started: &str, signals: &Signals) -> Result<(String, CommitStatus), CtlError> {
        let mut answer = started.to_owned();
        let mut status = parse(&answer)?;
        let sum = |of: fn(&LayerCommit) -> u64, status: &CommitStatus| -> u64 {
            status.disks.iter().map(of).sum()
        };
        let total = sum(|disk| disk.total_bytes, &status);
        let (mut line, mut done) = (ProgressLine::new("merging", total), 0);
        while !status.disks.iter().all(is_over) {
            // An error is that of the next one.
            let _ = poll(&mut [PollFd::new(signals, PollFlags::IN)], Some(&INTERVAL));
            if signals.next().map_err(CtlError::Signals)?.is_some() {
                self.request("DELETE", PATH, "")?;
            }
            answer = self.request("GET", PATH, "")?;
            status = parse(&answer)?;
            let now = sum(|disk| disk.done_bytes, &status);
            line.advance(now.saturating_sub(done));
            done = now;
        }
        Ok((answer, status))
    }
}

fn parse(answer: &str) -> Result<CommitStatus, CtlError> {
    serde_json::from_str(answer).map_err(CtlError::Answer)
}

fn is_over(disk: &LayerCommit) -> bool {
    !matches!(disk.state.as_str(), "waiting" | "running")
}

fn not_merged(failed: &[String]) -> CtlError {
    CtlError::NotMerged(failed.join("\n"))
}

/// The text of a disk whose layer was not merged.
fn failure(disk: &LayerCommit) -> Option<String> {
    let id = sanitize(&disk.id);
    match (disk.state.as_str(), &disk.error) {
        ("stopped", _) => Some(format!(
            "{id}: stopped; the disk reads as before, and the same command merges the layer"
        )),
        (_, Some(error)) => Some(format!("{id}: {}", sanitize(error))),
        _ => None,
    }
}

/// The text of a disk whose layer was merged.
fn merged_text(disk: &LayerCommit) -> Option<String> {
    let LayerCommit { id, layer, base, total_bytes, elapsed_ms, held_us, flush_us, .. } = disk;
    let (held, flush) = (milliseconds((*held_us)?), milliseconds((*flush_us)?));
    let name = |path: &str| {
        let name = Path::new(path).file_name().map(|name| name.to_string_lossy().into_owned());
        sanitize(&name.unwrap_or_default()).to_string()
    };
    let (layer, base) = (name(layer), name(base));
    let tenths = elapsed_ms.div_ceil(100);
    let mut text = format!(
        "{}: {} of {layer} merged into {base} in {}.{} s; requests were held for {held}, and for a \
         flush of {flush}\n",
        sanitize(id),
        human_size(*total_bytes),
        tenths / 10,
        tenths % 10
    );
    if let Some(reason) = &disk.kept {
        text += &format!("  {layer} is kept: {}\n", sanitize(reason));
    }
    Some(text)
}
