//! One run of a check's command, on a thread of its own.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::leftovers::{CheckMarks, FOLDER, end_leftovers, namespace};
use super::output::CheckOutput;
use super::sys::unshare_mounts;

/// The longest time until a run notices that it is stopped.
const PERIOD: Duration = Duration::from_millis(100);

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CheckEnd {
    /// With an exit status.
    Exited(i32),
    /// By a signal.
    Signalled(i32),
    /// It was killed after this time.
    TimedOut(Duration),
    /// It was killed as the exploration was stopped.
    Stopped,
}

impl fmt::Display for CheckEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "exit status {status}"),
            Self::Signalled(signal) => write!(f, "signal {signal}"),
            Self::TimedOut(limit) => write!(f, "no end within {} s", limit.as_secs_f64()),
            Self::Stopped => write!(f, "stopped"),
        }
    }
}

/// A command and what it is given.
pub(super) struct CheckCommand<'c> {
    /// The text of the command, for the shell.
    pub(super) command: &'c OsStr,
    /// Where the shell finds commands.
    pub(super) path: &'c OsStr,
    /// The disk, as a file or a block device.
    pub(super) disk: &'c Path,
    /// The file of the marks.
    pub(super) marks: &'c Path,
    /// Its folder.
    pub(super) folder: &'c Path,
    /// It gets mounts of its own.
    pub(super) separates_mounts: bool,
    /// Its time limit.
    pub(super) limit: Duration,
    /// Whether its output is kept, or goes where that of this program does.
    pub(super) captures: bool,
}

impl CheckCommand<'_> {
    /// Runs the command to its end, and ends what is left of it. Returns the last part of its
    /// output as well.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(super) fn run(&self, stop: &AtomicBool) -> io::Result<(CheckEnd, String)> {
        let (mut output, other_end) = CheckOutput::new()?;
        let mut command = self.shell();
        if self.captures {
            command.stdout(other_end.try_clone()?).stderr(other_end);
        } else {
            drop(other_end);
        }
        let (mut child, marks) = self.start(&mut command)?;
        // The ends of the pipe that it holds would keep the pipe open.
        drop(command);
        let shell = Pid::from_child(&child);
        let end = self.wait(shell, &mut output, stop);
        let status = kill(&mut child);
        end_leftovers(Some(&marks));
        let status = status?;
        let end = end?.unwrap_or_else(|| match (status.code(), status.signal()) {
            (Some(code), _) => CheckEnd::Exited(code),
            (None, signal) => CheckEnd::Signalled(signal.unwrap_or_default()),
        });
        Ok((end, output.finish()?))
    }

    /// Starts the shell, with mounts of its own.
    ///
    /// The thread leaves these mounts at once. If it had them at the end of a program that is
    /// killed, it would unmount a file system whose device the program no longer serves, and wait
    /// for ever.
    fn start(&self, command: &mut Command) -> io::Result<(Child, CheckMarks)> {
        let folder = self.folder.to_owned();
        if !self.separates_mounts {
            return Ok((command.spawn()?, CheckMarks { mounts: None, folder }));
        }
        let home = File::open("/proc/thread-self/ns/mnt")?;
        unshare_mounts()?;
        let mounts = namespace(Path::new("/proc/thread-self"));
        let started = command.spawn();
        let left = move_into_link_name_space(home.as_fd(), Some(LinkNameSpaceType::Mount));
        let mut child = started?;
        if let Err(error) = left {
            kill(&mut child)?;
            return Err(error.into());
        }
        Ok((child, CheckMarks { mounts, folder }))
    }

    fn shell(&self) -> Command {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(self.command).process_group(0).stdin(Stdio::null());
        command
            .env("PATH", self.path)
            .env("BULKHEAD_DISK", self.disk)
            .env("BULKHEAD_MARKS", self.marks);
        command.env(FOLDER, self.folder).env("TMPDIR", self.folder);
        command
    }

    /// Waits for the end of the shell. Returns the reason if it has to be killed.
    fn wait(
        &self,
        shell: Pid,
        output: &mut CheckOutput,
        stop: &AtomicBool,
    ) -> io::Result<Option<CheckEnd>> {
        let shell = pidfd_open(shell, PidfdFlags::empty())?;
        let start = Instant::now();
        loop {
            if stop.load(Ordering::Relaxed) {
                return Ok(Some(CheckEnd::Stopped));
            }
            let rest = self.limit.saturating_sub(start.elapsed());
            if rest.is_zero() {
                return Ok(Some(CheckEnd::TimedOut(self.limit)));
            }
            let patience = Timespec::try_from(rest.min(PERIOD)).map_err(io::Error::other)?;
            let mut watched = vec![PollFd::new(&shell, PollFlags::IN)];
            watched.extend(output.pipe().map(|pipe| PollFd::from_borrowed_fd(pipe, PollFlags::IN)));
            match poll(&mut watched, Some(&patience)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let [ended, readable] =
                [0, 1].map(|at| watched.get(at).is_some_and(|fd| !fd.revents().is_empty()));
            drop(watched);
            if readable {
                output.read_some()?;
            }
            if ended {
                return Ok(None);
            }
        }
    }
}

/// Kills a shell and its process group, and awaits the shell.
fn kill(shell: &mut Child) -> io::Result<ExitStatus> {
    // It was not awaited yet, so that its group is its own.
    let _ = kill_process_group(Pid::from_child(shell), Signal::KILL);
    shell.wait()
}
