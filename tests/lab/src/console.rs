//! A line-based protocol with the agent in a machine: send a command, read its output and status.
//!
//! The thread `console NAME` reads the stream into a buffer and a log file at all times: a full
//! pipe would block the machine. It ends with the stream, at the latest when its console is
//! dropped, so that each stream has one reader.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use rustix::event::{PollFd, PollFlags, poll};

use super::logs::tail;

/// Interval between two checks that the machine behind a console is there.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Output and status of a command.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit status, as `$?`.
    pub status: i32,
    /// Standard output and standard error, interleaved.
    pub text: String,
}

impl Output {
    /// The output of a command with status 0; else an error that contains it.
    pub(super) fn into_success(self, command: &str) -> Result<String> {
        let Self { status, text } = self;
        ensure!(status == 0, "status {status} from: {}\n{text}", abridged(command));
        Ok(text)
    }
}

#[derive(Default)]
struct Received {
    text: Vec<u8>,
    closed: bool,
}

/// The near end of a machine's console.
pub struct Console {
    name: String,
    stream: UnixStream,
    commands: AtomicU32,
    received: Arc<(Mutex<Received>, Condvar)>,
    log: PathBuf,
    /// The reader ends when this socket closes.
    reader: Option<(UnixStream, JoinHandle<()>)>,
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.reader.take() {
            drop(stop);
            thread.join().ok();
        }
    }
}

impl Console {
    /// Starts reading `stream`. All input also goes to `log`.
    pub(super) fn new(name: &str, stream: UnixStream, log: &Path) -> Result<Self> {
        stream.set_nonblocking(false)?;
        let received = Arc::new((Mutex::new(Received::default()), Condvar::new()));
        let file = File::options().create(true).append(true).open(log)?;
        let (source, sink) = (stream.try_clone()?, Arc::clone(&received));
        let (stop, stopped) = UnixStream::pair()?;
        let thread = thread::Builder::new()
            .name(format!("console {name}"))
            .spawn(move || read_stream(source, &stopped, file, &sink))?;
        Ok(Self {
            name: name.to_owned(),
            stream,
            commands: AtomicU32::new(1),
            received,
            log: log.to_owned(),
            reader: Some((stop, thread)),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Received> {
        self.received.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a line that starts with `start`; takes it, and the text before it, from the
    /// buffer. `None` on timeout.
    pub(super) fn poll_line(
        &self,
        start: &str,
        timeout: Duration,
    ) -> Result<Option<(String, String)>> {
        let deadline = Instant::now() + timeout;
        let mut received = self.lock();
        loop {
            if let Some(found) = take_line(&mut received.text, start) {
                return Ok(Some(found));
            }
            if received.closed {
                bail!("{}: closed before a line \"{start}...\"{}", self.name, self.last_lines());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            received = self
                .received
                .1
                .wait_timeout(received, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// As `poll_line`, but a timeout is an error.
    pub fn wait_line(&self, start: &str, timeout: Duration) -> Result<(String, String)> {
        self.poll_line(start, timeout)?.ok_or_else(|| self.no_line(start, timeout))
    }

    /// Sends `text` unchanged.
    pub fn send(&self, text: &str) -> Result<()> {
        (&self.stream)
            .write_all(text.as_bytes())
            .with_context(|| format!("sending to {}", self.name))
    }

    /// Runs a shell command of one or more lines and returns its output and status.
    pub fn run(&self, command: &str, timeout: Duration) -> Result<Output> {
        self.run_while(command, timeout, || Ok(()))
    }

    /// As `run`; an error of `check_alive`, which is asked every few seconds, ends the wait.
    pub(super) fn run_while(
        &self,
        command: &str,
        timeout: Duration,
        check_alive: impl Fn() -> Result<()>,
    ) -> Result<Output> {
        let tag = self.commands.fetch_add(1, Ordering::Relaxed);
        self.lock().text.clear();
        let command = command.trim();
        if command.contains('\n') {
            let escaped = command.replace('\\', "\\\\").replace('\'', "\\047").replace('\n', "\\n");
            self.send(&format!("#{tag} eval \"$(printf '%b' '{escaped}')\"\n"))?;
        } else {
            self.send(&format!("#{tag} {command}\n"))?;
        }
        let reply = format!("##RC#{tag} ");
        let (line, before) = self
            .wait_reply(&reply, timeout, check_alive)
            .with_context(|| format!("running: {}", abridged(command)))?;
        let status = line.trim_start_matches(&reply).trim().parse();
        let text = before.strip_suffix('\n').unwrap_or(&before).to_owned();
        Ok(Output {
            status: status
                .with_context(|| format!("{}: no status in the reply {line:?}", self.name))?,
            text,
        })
    }

    fn wait_reply(
        &self,
        start: &str,
        timeout: Duration,
        check_alive: impl Fn() -> Result<()>,
    ) -> Result<(String, String)> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(found) = self.poll_line(start, left.min(CHECK_INTERVAL))? {
                return Ok(found);
            }
            if left.is_zero() {
                return Err(self.no_line(start, timeout));
            }
            if let Err(error) = check_alive() {
                // The reply may have come before the end.
                let found = self.poll_line(start, Duration::ZERO)?;
                return found.ok_or_else(|| error.context(self.last_lines()));
            }
        }
    }

    fn no_line(&self, start: &str, timeout: Duration) -> Error {
        anyhow!(
            "{}: no line \"{start}...\" within {} s{}",
            self.name,
            timeout.as_secs(),
            self.last_lines()
        )
    }

    /// The last lines of the log, to be appended to an error message.
    pub(super) fn last_lines(&self) -> String {
        format!("; the last lines of {}:\n{}\n", self.log.display(), tail(&self.log, 25))
    }
}

/// The first line of a command, at most 100 characters, for error messages.
pub(super) fn abridged(command: &str) -> String {
    let line = command.trim().lines().next().unwrap_or_default();
    let short: String = line.chars().take(100).collect();
    if short.len() < command.trim().len() { format!("{short} ...") } else { short }
}

fn read_stream(
    mut stream: UnixStream,
    stopped: &UnixStream,
    mut log: File,
    sink: &(Mutex<Received>, Condvar),
) {
    let mut chunk = [0; 8192];
    while wait_input(&stream, stopped) {
        let count = stream.read(&mut chunk).unwrap_or(0);
        let mut received = sink.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = chunk.get(..count).unwrap_or_default();
        received.text.extend_from_slice(bytes);
        received.closed = count == 0;
        // A failed write of the log does not fail the scenario.
        log.write_all(bytes).ok();
        drop(received);
        sink.1.notify_all();
        if count == 0 {
            return;
        }
    }
}

/// Waits until `stream` is readable or closed; false if the reader is to stop.
fn wait_input(stream: &UnixStream, stopped: &UnixStream) -> bool {
    let mut ready = [PollFd::new(stopped, PollFlags::IN), PollFd::new(stream, PollFlags::IN)];
    while poll(&mut ready, None) == Err(rustix::io::Errno::INTR) {}
    let [stopped, _] = ready;
    stopped.revents().is_empty()
}

/// Removes the first complete line that starts with `start`, and the text before it, from `text`.
fn take_line(text: &mut Vec<u8>, start: &str) -> Option<(String, String)> {
    let mut at = 0;
    loop {
        let rest = text.get(at..)?;
        let length = rest.iter().position(|byte| *byte == b'\n')?;
        if rest.starts_with(start.as_bytes()) {
            let clean = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace('\r', "");
            let found = (clean(rest.get(..length)?), clean(text.get(..at)?));
            text.drain(..at + length + 1);
            return Some(found);
        }
        at += length + 1;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::{Console, take_line};

    #[test]
    fn dropped_console_takes_no_input_of_its_successor() {
        let (mut machine, stream) = UnixStream::pair().unwrap();
        let log = tempfile::NamedTempFile::new().unwrap();
        for round in 0..20 {
            let console = Console::new("test", stream.try_clone().unwrap(), log.path()).unwrap();
            for line in 0..5 {
                writeln!(machine, "{round}.{line}").unwrap();
                console.wait_line(&format!("{round}.{line}"), Duration::from_secs(2)).unwrap();
            }
        }
    }

    #[test]
    fn line_is_taken_complete_with_the_text_before_it() {
        let mut text = b"one\r\n\n##RC 1".to_vec();
        assert_eq!(take_line(&mut text, "##RC"), None);
        text.extend_from_slice(b"2\nrest");
        assert_eq!(take_line(&mut text, "##RC"), Some(("##RC 12".into(), "one\n\n".into())));
        assert_eq!(text, b"rest");
    }
}
