//! Checks that are commands of the host.

use std::ffi::OsString;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::builtin;
use super::command::{CheckCommand, CheckEnd};
use super::leftovers::{adopt_orphans, end_leftovers};
use super::loop_device::LoopDevice;
use super::mount::{StateMount, separate_mounts};
use super::work_folder::WorkFolder;
use crate::{CheckError, CheckedDisk, Checker, Failure, Verdict};

/// The command of checks, and their limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckOptions {
    /// Its command, for `/bin/sh`.
    pub command: OsString,
    /// After this time it is killed, and has failed.
    pub limit: Duration,
    /// It sees its disk as a loop device, instead of as a file.
    pub uses_loop: bool,
    /// Threads that serve the disks: as many as checks run at a time.
    pub threads: usize,
}

/// Why there can be no checks on this host.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The mount.
    #[error(
        "cannot mount the states, which takes /dev/fuse, and either root or the program \
         fusermount3: {0}"
    )]
    Mount(#[source] io::Error),
    /// Loop devices.
    #[error(
        "cannot have loop devices, which takes root and /dev/loop-control; without them a check \
         sees its disk as a file: {0}"
    )]
    Loop(#[source] io::Error),
    /// The host's error.
    #[error("cannot {0}: {1}")]
    Host(&'static str, #[source] io::Error),
}

/// The commands of the host, without a `PATH` in the environment.
const DEFAULT_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// Exit statuses by which a shell says that it cannot run a command, or found none.
const NO_COMMAND: [i32; 2] = [126, 127];

/// Checkers of this process. The last one ends all orphans, also those of an unknown check.
static CHECKERS: AtomicUsize = AtomicUsize::new(0);

/// Makes checks by a command of the host.
pub struct HostChecker {
    options: CheckOptions,
    mount: StateMount,
    /// The checks have mounts of their own.
    separates_mounts: bool,
    /// Where checks find commands: first those of the program.
    path: OsString,
    stop: AtomicBool,
    /// A command was found, as one check at least ended otherwise.
    has_run: AtomicBool,
}

impl HostChecker {
    /// Prepares checks. As root the calling thread, and those that it starts, get mounts of their
    /// own: only they can make checks. Until the end of the process its orphans become children of
    /// its main thread, which must start no other processes while there are checks.
    ///
    /// # Errors
    ///
    /// See [`HostError`].
    pub fn new(options: CheckOptions) -> Result<Self, HostError> {
        if options.uses_loop {
            LoopDevice::probe().map_err(HostError::Loop)?;
        }
        adopt_orphans().map_err(|error| HostError::Host("adopt processes", error))?;
        // Other users have the mounts of all, and can mount nothing in a check.
        let separates_mounts = separate_mounts().is_ok();
        let mount = StateMount::new(options.threads).map_err(HostError::Mount)?;
        let mut path = builtin::install(mount.folder())
            .map_err(|error| HostError::Host("write the checks of this program", error))?
            .into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into()));
        let (stop, has_run) = (AtomicBool::new(false), AtomicBool::new(false));
        CHECKERS.fetch_add(1, Ordering::Relaxed);
        Ok(Self { options, mount, separates_mounts, path, stop, has_run })
    }

    /// Ends running checks, and refuses others.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Makes one check, whose output goes where that of this program does.
    ///
    /// # Errors
    ///
    /// As [`Checker::check`].
    pub fn check_aloud(&self, disk: Arc<dyn CheckedDisk>) -> Result<Verdict, CheckError> {
        let (end, output) = self.run(disk, false)?;
        verdict(end, output)
    }

    fn run(
        &self,
        disk: Arc<dyn CheckedDisk>,
        captures: bool,
    ) -> Result<(CheckEnd, String), CheckError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(CheckError::Stopped);
        }
        let state = self.mount.expose(disk);
        let folder =
            WorkFolder::new_in(self.mount.folder()).map_err(cannot("make a folder for a check"))?;
        let device = if self.options.uses_loop {
            Some(LoopDevice::attach(&state.disk()).map_err(cannot("attach a loop device"))?)
        } else {
            None
        };
        let file = state.disk();
        let disk = device.as_ref().map_or(file.as_path(), LoopDevice::path);
        let marks = state.marks();
        let command = CheckCommand {
            command: &self.options.command,
            path: &self.path,
            disk,
            marks: &marks,
            folder: folder.path(),
            separates_mounts: self.separates_mounts,
            limit: self.options.limit,
            captures,
        };
        // A thread, as mounts belong to one.
        let run = || command.run(&self.stop).map_err(cannot("run the check"));
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("check".to_owned()).spawn_scoped(scope, run);
            let thread = thread.map_err(cannot("start the thread of a check"))?;
            thread.join().unwrap_or_else(|_| {
                Err(cannot("run the check")(io::Error::other("its thread panicked")))
            })
        })
    }
}

impl Checker for HostChecker {
    fn check(&self, disk: Arc<dyn CheckedDisk>) -> Result<Verdict, CheckError> {
        let (end, output) = self.run(disk, true)?;
        if let CheckEnd::Exited(status) = end
            && NO_COMMAND.contains(&status)
            && !self.has_run.load(Ordering::Relaxed)
        {
            let last = output.trim_end().lines().next_back().unwrap_or("it printed nothing");
            let source = format!("a command was not found ({end}): {last}");
            let source = io::Error::new(io::ErrorKind::NotFound, source);
            return Err(CheckError::Host { what: "run the check", source });
        }
        self.has_run.store(true, Ordering::Relaxed);
        verdict(end, output)
    }
}

impl Drop for HostChecker {
    fn drop(&mut self) {
        if CHECKERS.fetch_sub(1, Ordering::Relaxed) == 1 {
            end_leftovers(None);
        }
    }
}

fn verdict(end: CheckEnd, output: String) -> Result<Verdict, CheckError> {
    match end {
        CheckEnd::Exited(0) => Ok(Verdict::Passed),
        CheckEnd::Stopped => Err(CheckError::Stopped),
        end => Ok(Verdict::Failed(Failure { end: end.to_string(), output })),
    }
}

fn cannot(what: &'static str) -> impl FnOnce(io::Error) -> CheckError {
    move |source| CheckError::Host { what, source }
}
