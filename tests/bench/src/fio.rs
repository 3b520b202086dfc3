//! fio as a contestant: io_uring on the file itself.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::figures::Figures;
use super::host::call;
use super::load::Throughput;
use super::workload::{Direction, Workload};

/// Settings of fio.
#[derive(Clone, Copy, Debug)]
pub(super) enum Settings {
    /// Its defaults with `--ioengine=io_uring`.
    Plain,
    /// The fastest settings comparable to ours: registered file, full batches, no clock reads and
    /// no bookkeeping per request.
    Best,
    /// As [`Settings::Best`], with registered buffers.
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
/// If fio fails or its report cannot be parsed.
pub(super) fn run(
    path: &Path,
    workload: &Workload,
    settings: Settings,
    duration: Duration,
) -> Result<Figures> {
    let mut command = Command::new("fio");
    command
        .args(["--name=bench", "--ioengine=io_uring", "--invalidate=0", "--time_based"])
        // A separate process would be in another session, without our priority.
        .args(["--output-format=json", "--randrepeat=0", "--thread"])
        // As guest buffers are. fio's default is 16 bytes off a page, which copies faster.
        .arg("--iomem_align=4096")
        .arg(format!("--filename={}", path.display()))
        .arg(format!("--rw={}", workload.fio_name()))
        .arg(format!("--bs={}", workload.block_bytes))
        .arg(format!("--iodepth={}", workload.depth))
        .arg(format!("--runtime={}ms", duration.as_millis()))
        .args(settings.arguments(workload.depth));
    let report: Value = serde_json::from_str(&call(&mut command)?)?;
    figures(&report, workload.direction).with_context(|| format!("parsing fio's report: {report}"))
}

fn figures(report: &Value, direction: Direction) -> Option<Figures> {
    let job = report.get("jobs")?.get(0)?;
    let totals = job.get(match direction {
        Direction::Read => "read",
        Direction::Write => "write",
    })?;
    let requests = totals.get("total_ios")?.as_u64()?;
    let elapsed = Duration::from_millis(totals.get("runtime")?.as_u64()?);
    // Percent of the job's run time.
    let share = (job.get("usr_cpu")?.as_f64()? + job.get("sys_cpu")?.as_f64()?) / 100.0;
    let whole = Duration::from_millis(job.get("job_runtime")?.as_u64()?);
    Some(Figures::of(Throughput { requests, elapsed }, whole.mul_f64(share)))
}
