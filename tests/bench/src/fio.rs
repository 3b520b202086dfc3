//! fio as a contestant: io_uring straight on the file, with nothing between.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::figures::Figures;
use super::host::call;
use super::load::Run;
use super::workload::{Direction, Workload};

/// How fio is set up.
#[derive(Clone, Copy, Debug)]
pub(super) enum Settings {
    /// As it comes: `--ioengine=io_uring` and the workload.
    Plain,
    /// The best it can do the way we do it: the file registered, whole batches in and out, no clock
    /// read and no bookkeeping per request.
    Best,
    /// The same with its memory registered too.
    Fixed,
}

impl Settings {
    fn arguments(self, depth: u16) -> Vec<String> {
        let mut arguments = Vec::new();
        if !matches!(self, Self::Plain) {
            let common = ["--registerfiles=1", "--gtod_reduce=1", "--norandommap"];
            arguments.extend(common.map(String::from));
            arguments.push(format!("--iodepth_batch_submit={depth}"));
            arguments.push(format!("--iodepth_batch_complete_max={depth}"));
        }
        if matches!(self, Self::Fixed) {
            arguments.push("--fixedbufs=1".into());
        }
        arguments
    }
}

/// Runs a workload on the file in `path`.
///
/// # Errors
///
/// When fio fails or says nothing sensible.
pub(super) fn run(
    path: &Path,
    workload: &Workload,
    settings: Settings,
    duration: Duration,
) -> Result<Figures> {
    let mut command = Command::new("fio");
    command
        .args(["--name=bench", "--ioengine=io_uring", "--invalidate=0", "--time_based"])
        // A process of its own would be in a session of its own, without our precedence.
        .args(["--output-format=json", "--randrepeat=0", "--thread"])
        // As a guest's buffers are. By default its own are 16 bytes off a page, which the copy
        // likes better.
        .arg("--iomem_align=4096")
        .arg(format!("--filename={}", path.display()))
        .arg(format!("--rw={}", workload.fio_name()))
        .arg(format!("--bs={}", workload.block_bytes))
        .arg(format!("--iodepth={}", workload.depth))
        .arg(format!("--runtime={}ms", duration.as_millis()))
        .args(settings.arguments(workload.depth));
    let report: Value = serde_json::from_str(&call(&mut command)?)?;
    figures(&report, workload.direction).with_context(|| format!("in fio's report: {report}"))
}

fn figures(report: &Value, direction: Direction) -> Option<Figures> {
    let job = report.get("jobs")?.get(0)?;
    let way = job.get(match direction {
        Direction::Read => "read",
        Direction::Write => "write",
    })?;
    let requests = way.get("total_ios")?.as_u64()?;
    let elapsed = Duration::from_millis(way.get("runtime")?.as_u64()?);
    // Per cent of the job's whole time.
    let share = (job.get("usr_cpu")?.as_f64()? + job.get("sys_cpu")?.as_f64()?) / 100.0;
    let whole = Duration::from_millis(job.get("job_runtime")?.as_u64()?);
    Some(Figures::of(Run { requests, elapsed }, whole.mul_f64(share)))
}
