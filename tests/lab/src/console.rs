//! A line-based conversation with an agent in a machine: send a command, read its output and status.
//!
//! A thread of its own reads all the machine says, whether or not anybody waits for it, into a buffer and a log file;
//! otherwise a full pipe would stop the machine. It ends when the stream does, and before its console is gone: the next
//! console on the same stream must be the only one that reads.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, poll};

use super::recipe::tail;

/// What a command said and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit status as the shell gives it.
    pub status: i32,
    /// Standard output and standard error, as they came.
    pub text: String,
}

impl Output {
    /// What a command said that succeeded; else an error that shows it.
    pub(super) fn of_success(self, command: &str) -> Result<String> {
        let Self { status, text } = self;
        ensure!(status == 0, "status {status} from: {}\n{text}", abridged(command));
        Ok(text)
    }
}

#[derive(Default)]
struct Heard {
    text: Vec<u8>,
    closed: bool,
}

/// One end of a conversation.
pub struct Console {
    name: String,
    stream: UnixStream,
    commands: AtomicU32,
    heard: Arc<(Mutex<Heard>, Condvar)>,
    log: PathBuf,
    /// The listener ends when the first is closed.
    listener: Option<(UnixStream, JoinHandle<()>)>,
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.listener.take() {
            drop(stop);
            thread.join().ok();
        }
    }
}

impl Console {
    /// Starts listening on `stream`; everything heard also goes to `log`.
    pub(super) fn new(name: &str, stream: UnixStream, log: &Path) -> Result<Self> {
        stream.set_nonblocking(false)?;
        let heard = Arc::new((Mutex::new(Heard::default()), Condvar::new()));
        let file = File::options().create(true).append(true).open(log)?;
        let (reader, sink) = (stream.try_clone()?, Arc::clone(&heard));
        let (stop, stopped) = UnixStream::pair()?;
        let thread = thread::Builder::new()
            .name(format!("console {name}"))
            .spawn(move || listen(reader, &stopped, file, &sink))?;
        Ok(Self {
            name: name.to_owned(),
            stream,
            commands: AtomicU32::new(1),
            heard,
            log: log.to_owned(),
            listener: Some((stop, thread)),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.heard.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a line starts with `start`; takes that line and all before it from what was heard.
    /// Gives nothing when time is up.
    pub(super) fn poll_line(
        &self,
        start: &str,
        timeout: Duration,
    ) -> Result<Option<(String, String)>> {
        let deadline = Instant::now() + timeout;
        let mut heard = self.lock();
        loop {
            if let Some(found) = take_line(&mut heard.text, start) {
                return Ok(Some(found));
            }
            if heard.closed {
                bail!("{} closed while \"{start}\" was awaited{}", self.name, self.last_lines());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            heard =
                self.heard.1.wait_timeout(heard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Like `poll_line`, but time being up is an error that says what was awaited.
    pub fn wait_line(&self, start: &str, timeout: Duration) -> Result<(String, String)> {
        self.poll_line(start, timeout)?.with_context(|| {
            format!(
                "{}: no line \"{start}...\" within {} s{}",
                self.name,
                timeout.as_secs(),
                self.last_lines()
            )
        })
    }

    /// Sends text as it is.
    pub fn send(&self, text: &str) -> Result<()> {
        (&self.stream)
            .write_all(text.as_bytes())
            .with_context(|| format!("sending to {}", self.name))
    }

    /// Runs one shell command (of one or more lines) and gives back its output and status, whatever that is.
    pub fn run(&self, command: &str, timeout: Duration) -> Result<Output> {
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
            .wait_line(&reply, timeout)
            .with_context(|| format!("running: {}", abridged(command)))?;
        let status = line.trim_start_matches(&reply).trim().parse();
        let text = before.strip_suffix('\n').unwrap_or(&before).to_owned();
        Ok(Output {
            status: status.with_context(|| format!("{}: odd reply {line:?}", self.name))?,
            text,
        })
    }

    /// The end of the log, ready to be put behind an error message.
    pub(super) fn last_lines(&self) -> String {
        format!("; the last lines of {}:\n{}\n", self.log.display(), tail(&self.log, 25))
    }
}

/// The first line of a command and no more than what fits in a message.
pub(super) fn abridged(command: &str) -> String {
    let line = command.trim().lines().next().unwrap_or_default();
    let short: String = line.chars().take(100).collect();
    if short.len() < command.trim().len() { format!("{short} ...") } else { short }
}

fn listen(
    mut stream: UnixStream,
    stopped: &UnixStream,
    mut log: File,
    sink: &(Mutex<Heard>, Condvar),
) {
    let mut chunk = [0; 8192];
    while wait_input(&stream, stopped) {
        let count = stream.read(&mut chunk).unwrap_or(0);
        let mut heard = sink.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = chunk.get(..count).unwrap_or_default();
        heard.text.extend_from_slice(bytes);
        heard.closed = count == 0;
        // A log that cannot be written is no reason to fail the scenario.
        log.write_all(bytes).ok();
        drop(heard);
        sink.1.notify_all();
        if count == 0 {
            return;
        }
    }
}

/// Waits until `stream` has something to read (or has ended); false when the listener is to stop.
fn wait_input(stream: &UnixStream, stopped: &UnixStream) -> bool {
    let mut ready = [PollFd::new(stopped, PollFlags::IN), PollFd::new(stream, PollFlags::IN)];
    while poll(&mut ready, None) == Err(rustix::io::Errno::INTR) {}
    let [stopped, _] = ready;
    stopped.revents().is_empty()
}

/// Cuts the first complete line that starts with `start`, and everything before it, off the front of `text`.
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
    fn a_console_that_is_gone_takes_nothing_from_the_next() {
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
    fn a_line_is_taken_with_all_before_it_and_only_when_complete() {
        let mut text = b"one\r\n\n##RC 1".to_vec();
        assert_eq!(take_line(&mut text, "##RC"), None);
        text.extend_from_slice(b"2\nrest");
        assert_eq!(take_line(&mut text, "##RC"), Some(("##RC 12".into(), "one\n\n".into())));
        assert_eq!(text, b"rest");
    }
}
