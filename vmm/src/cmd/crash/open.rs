//! `crash open`.

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use crash::host::{CheckOptions, HostChecker, StateMount};
use crash::{CheckError, StateDisk, StateName, Verdict};
use serde_json::json;

use super::image::write_image;
use super::interrupt::{hear_signals, until_interrupted, wait_for_signal};
use super::recording::{RecordingArguments, require_temporary_folder, shown};
use crate::cmd::print;
use crate::config::human_size;
use crate::exit::Exit;
use crate::log;
use crate::sanitize::sanitize;

/// Examples of the command.
pub(super) const OPEN_HELP: &str = "\
What is written to the file is lost when the command ends: by Ctrl-C, or with
the check. Neither the log nor the base is changed.

Examples:
  bulkhead crash open disk.log --base base.img 1234-17
  bulkhead crash open disk.log --base base.img 1234-17 --run ./check.sh
  bulkhead crash open disk.log --base base.img 1234-17 --to broken.img

Exit codes:
   0  done, or the check accepts the disk
   1  the recording cannot be read, or the host failed
   2  the command line is wrong
   3  the check does not accept the disk
 130  interrupted, while a check ran or an image was written";

/// Threads that serve the file.
const THREADS: usize = 4;

/// The use of a state.
pub(super) enum OpenAction<'a> {
    /// It is a file until a signal arrives.
    Expose,
    /// A check runs on it.
    Run {
        /// The check.
        command: &'a OsStr,
        /// It gets a loop device.
        uses_loop: bool,
        /// After this time it is killed, and has failed.
        limit: Duration,
    },
    /// It is written to a new file.
    Write(&'a Path),
}

/// Shows the disk in a state.
pub(super) fn open(
    recording: &RecordingArguments,
    state: &StateName,
    action: &OpenAction<'_>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let disk = match recording.open()?.state(state) {
        Ok(disk) => disk,
        Err(error) => {
            log::print(format_args!("error: {}: {error}", shown(&recording.log)));
            return Ok(Exit::BadConfig.into());
        }
    };
    hear_signals().context("cannot receive signals")?;
    require_temporary_folder()?;
    match action {
        OpenAction::Expose => expose(disk, state, json),
        OpenAction::Run { command, uses_loop, limit } => {
            let command = (*command).to_owned();
            run(
                disk,
                CheckOptions { command, limit: *limit, uses_loop: *uses_loop, threads: THREADS },
            )
        }
        OpenAction::Write(file) => write(&disk, state, file, json),
    }
}

fn expose(disk: Arc<StateDisk>, state: &StateName, json: bool) -> anyhow::Result<ExitCode> {
    let mount = StateMount::new(THREADS).map_err(crash::host::HostError::Mount);
    let mount = mount.map_err(|error| anyhow::anyhow!("{error}"))?;
    let exposed = mount.expose(disk);
    let (path, marks) = (exposed.disk(), exposed.marks());
    print(&if json {
        let [path, marks] = [path, marks].map(|path| path.display().to_string());
        format!("{:#}\n", json!({ "state": state.to_string(), "disk": path, "marks": marks }))
    } else {
        let (disk, marks) = (shown(&path), shown(&marks));
        format!("state {state}, until Ctrl-C:\n  disk   {disk}\n  marks  {marks}\n")
    })?;
    wait_for_signal();
    Ok(ExitCode::SUCCESS)
}

fn run(disk: Arc<StateDisk>, options: CheckOptions) -> anyhow::Result<ExitCode> {
    let checker = HostChecker::new(options).map_err(|error| anyhow::anyhow!("{error}"))?;
    let checked = until_interrupted(|| checker.stop(), || checker.check_aloud(disk));
    match checked {
        Ok(Verdict::Passed) => Ok(ExitCode::SUCCESS),
        Ok(Verdict::Failed(failure)) => {
            log::print(format_args!("the check failed: {}", sanitize(&failure.end)));
            Ok(Exit::FailingState.into())
        }
        Err(CheckError::Stopped) => Ok(Exit::Interrupted.into()),
        Err(error) => Err(anyhow::anyhow!("{error}")),
    }
}

fn write(disk: &StateDisk, state: &StateName, file: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let written = write_image(disk, file).with_context(|| format!("cannot write {}", shown(file)));
    let Some(data) = written? else { return Ok(Exit::Interrupted.into()) };
    let size = crash::CheckedDisk::size(disk);
    print(&if json {
        let file = file.display().to_string();
        let state = state.to_string();
        let answer =
            json!({ "state": state, "image": file, "size_bytes": size, "data_bytes": data });
        format!("{answer:#}\n")
    } else {
        let (size, data) = (human_size(size), human_size(data));
        format!("{}: state {state}, {size}, {data} of it data\n", shown(file))
    })?;
    Ok(ExitCode::SUCCESS)
}
