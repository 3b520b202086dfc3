//! A `bulkhead` process whose log is a pipe. It is killed when its owner ends.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fixtures::killed_with_parent;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::process::{Pid, Signal, kill_process};

/// Bytes of the log that are kept.
const LOG_BYTES: usize = 8 << 10;
/// Capacity of the pipe.
const PIPE_BYTES: usize = 4096;

/// The reader of the log.
#[derive(Debug, Default)]
struct Log {
    /// Whether the reader has stopped.
    stalled: AtomicBool,
    last: Mutex<VecDeque<u8>>,
}

/// A program that can be restarted.
pub(crate) struct Program {
    name: String,
    binary: PathBuf,
    arguments: Vec<String>,
    folder: PathBuf,
    child: Option<Child>,
    log: Arc<Log>,
}

impl Program {
    /// Prepares `bulkhead ARGUMENTS` in `folder`.
    pub(crate) fn new(name: &str, binary: PathBuf, arguments: &[&str], folder: PathBuf) -> Self {
        Self {
            name: name.to_owned(),
            binary,
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            folder,
            child: None,
            log: Arc::default(),
        }
    }

    /// Starts it. The calling thread must outlive the process.
    pub(crate) fn start(&mut self) -> Result<()> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        fcntl_setpipe_size(&writer, PIPE_BYTES)?;
        // A guest that spins must not take a processor from the load.
        let mut command: Command = killed_with_parent("nice");
        command.args(["-n", "5"]).arg(&self.binary).args(&self.arguments);
        command.current_dir(&self.folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer);
        self.child = Some(command.spawn().context("starting bulkhead")?);
        let log = Arc::clone(&self.log);
        thread::spawn(move || log.read(&mut File::from(reader)));
        Ok(())
    }

    /// Process id, if it has been started and its exit was not seen.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().with_context(|| format!("{} does not run", self.name))?;
        Ok(kill_process(Pid::from_child(child), signal)?)
    }

    /// Stops or resumes the reader of the log.
    pub(crate) fn stall_log(&self, stalled: bool) {
        self.log.stalled.store(stalled, Ordering::Relaxed);
    }

    /// The exit status of a process that has ended, once.
    pub(crate) fn poll_exit(&mut self) -> Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else { return Ok(None) };
        let status = child.try_wait()?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    /// An error if the process has ended.
    pub(crate) fn check_runs(&mut self) -> Result<()> {
        match self.poll_exit()? {
            Some(status) => bail!("{} ended: {}", self.name, describe(status)),
            None => Ok(()),
        }
    }

    /// The end of the log.
    pub(crate) fn log(&self) -> String {
        let last = self.log.last.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = last.iter().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.stall_log(false);
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Log {
    fn read(&self, pipe: &mut File) {
        let mut chunk = [0; 1024];
        loop {
            while self.stalled.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(5));
            }
            let Ok(length @ 1..) = pipe.read(&mut chunk) else { return };
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            last.extend(&chunk[..length]);
            let excess = last.len().saturating_sub(LOG_BYTES);
            last.drain(..excess);
        }
    }
}

/// An exit status in words.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (_, Some(signal)) => format!("signal {signal}"),
        _ => status.to_string(),
    }
}
