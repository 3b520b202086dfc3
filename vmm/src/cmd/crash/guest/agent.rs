//! The agent of a checker guest, at the other end of its serial console.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

/// The line of an agent that has started.
const READY: &str = "bulkhead-checker ready";
/// Bytes of the marks in one line.
const MARKS_STEP: usize = 1024;
/// Most bytes of output that are kept; an answer has fewer.
const OUTPUT_MAX: usize = 128 << 10;
/// The longest time until a stop is noticed.
const PERIOD: Duration = Duration::from_millis(100);
/// For a guest to read a request.
const ASK_LIMIT: Duration = Duration::from_secs(30);
/// For the guest to find the disk, besides the time of the check itself.
const DISK_LIMIT: Duration = Duration::from_secs(15);

/// The answer to a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CheckAnswer {
    /// The exit status of its command; `None` if it was not run.
    pub(super) status: Option<u8>,
    /// The last part of its output, or the reason.
    pub(super) output: String,
}

/// Why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// The time was over.
    Late,
    /// The guest has ended.
    Ended,
    /// The exploration was stopped.
    Stopped,
}

/// A connection to an agent.
pub(super) struct Agent {
    console: UnixStream,
    /// The console's output after the last line that was read.
    output: Vec<u8>,
}

impl Agent {
    /// An agent behind a console, which may still be starting.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(super) fn new(console: UnixStream) -> io::Result<Self> {
        console.set_read_timeout(Some(PERIOD))?;
        console.set_write_timeout(Some(PERIOD))?;
        Ok(Self { console, output: Vec::new() })
    }

    /// Waits for its start.
    ///
    /// # Errors
    ///
    /// See [`NoAnswer`].
    pub(super) fn wait_ready(
        &mut self,
        limit: Duration,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<(), NoAnswer> {
        let is_ready = |line: &str| line.ends_with(READY).then_some(());
        self.wait_line(limit, is_stopped, is_ready)
    }

    /// Asks for a check.
    ///
    /// # Errors
    ///
    /// See [`NoAnswer`]: the guest may not read its console.
    pub(super) fn ask(
        &mut self,
        id: &str,
        command: &str,
        marks: &str,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<(), NoAnswer> {
        let deadline = Instant::now() + ASK_LIMIT;
        for part in marks.as_bytes().chunks(MARKS_STEP) {
            self.send(&format!("marks {id} {}\n", BASE64.encode(part)), deadline, is_stopped)?;
        }
        self.send(&format!("check {id} {}\n", BASE64.encode(command)), deadline, is_stopped)
    }

    fn send(
        &mut self,
        line: &str,
        deadline: Instant,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<(), NoAnswer> {
        let mut rest = line.as_bytes();
        while !rest.is_empty() {
            if is_stopped() {
                return Err(NoAnswer::Stopped);
            }
            if Instant::now() >= deadline {
                return Err(NoAnswer::Late);
            }
            match self.console.write(rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if is_temporary(&error) => {}
                Err(_) => return Err(NoAnswer::Ended),
            }
        }
        Ok(())
    }

    /// Waits for the answer to a check.
    ///
    /// # Errors
    ///
    /// See [`NoAnswer`].
    pub(super) fn answer(
        &mut self,
        id: &str,
        limit: Duration,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<CheckAnswer, NoAnswer> {
        self.wait_line(limit + DISK_LIMIT, is_stopped, |line| parse(line, id))
    }

    /// The output of a guest that gave no answer.
    pub(super) fn last_output(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }

    fn wait_line<T>(
        &mut self,
        limit: Duration,
        is_stopped: &dyn Fn() -> bool,
        accept: impl Fn(&str) -> Option<T>,
    ) -> Result<T, NoAnswer> {
        let deadline = Instant::now() + limit;
        let mut scanned = 0;
        let mut buffer = [0; 4096];
        loop {
            while let Some(end) = position(&self.output, scanned) {
                let line =
                    String::from_utf8_lossy(self.output.get(scanned..end).unwrap_or_default());
                let accepted = accept(line.trim_end_matches('\r'));
                scanned = end + 1;
                if let Some(value) = accepted {
                    self.output.drain(..scanned);
                    return Ok(value);
                }
            }
            if self.output.len() > OUTPUT_MAX {
                let surplus = self.output.len() - OUTPUT_MAX / 2;
                self.output.drain(..surplus);
                scanned = scanned.saturating_sub(surplus);
            }
            if is_stopped() {
                return Err(NoAnswer::Stopped);
            }
            if Instant::now() >= deadline {
                return Err(NoAnswer::Late);
            }
            match self.console.read(&mut buffer) {
                // A signal to the command may have reached the guest first.
                Ok(0) if is_stopped() => return Err(NoAnswer::Stopped),
                Ok(0) => return Err(NoAnswer::Ended),
                Ok(count) => self.output.extend_from_slice(buffer.get(..count).unwrap_or_default()),
                Err(error) if is_temporary(&error) => {}
                Err(_) => return Err(NoAnswer::Ended),
            }
        }
    }
}

/// The end of the line that begins at `from`, if it has one.
fn position(output: &[u8], from: usize) -> Option<usize> {
    let rest = output.get(from..)?;
    rest.iter().position(|byte| *byte == b'\n').map(|at| from + at)
}

/// Whether the console can be tried again.
fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// The answer to the check of a disk, in a line of the agent. The kernel's messages may precede it;
/// one within it makes it no answer, as it does not end with a dot then, or not in base64.
fn parse(line: &str, id: &str) -> Option<CheckAnswer> {
    let was_run = line.contains("result ");
    let (_, answer) = line.split_once(if was_run { "result " } else { "norun " })?;
    let mut words = answer.split(' ');
    if words.next()? != id {
        return None;
    }
    let status = if was_run { Some(words.next()?.parse().ok()?) } else { None };
    let output = BASE64.decode(words.next()?).ok()?;
    let is_whole = words.next() == Some(".") && words.next().is_none();
    let output = String::from_utf8_lossy(&output).into_owned();
    is_whole.then_some(CheckAnswer { status, output })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader};
    use std::thread;

    const LIMIT: Duration = Duration::from_secs(5);

    fn runs() -> bool {
        false
    }

    #[test]
    fn an_answer_is_found_among_other_output() {
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let mut agent = Agent::new(ours).unwrap();
        let thread = thread::spawn(move || {
            guest.write_all(b"booting\r\n\nbulkhead-checker ready\n").unwrap();
            let mut asked = String::new();
            let mut lines = BufReader::new(guest.try_clone().unwrap());
            for _ in 0..2 {
                lines.read_line(&mut asked).unwrap();
            }
            guest.write_all(b"[ 1.0] sda: attached\nresult state6 0  .\n").unwrap();
            guest.write_all(b"result state7 4 aGVs[ 2.0] sda: detached\nbG8K .\n").unwrap();
            guest.write_all(b"[ 2.0] resu").unwrap();
            guest.write_all(b"result state7 4 aGVsbG8K .\nnorun state8 bm8= .\n").unwrap();
            asked
        });
        agent.wait_ready(LIMIT, &runs).unwrap();
        agent.ask("state7", "true", "one\n", &runs).unwrap();
        let answer = agent.answer("state7", LIMIT, &runs);
        let expected = CheckAnswer { status: Some(4), output: "hello\n".into() };
        assert_eq!(answer, Ok(expected));
        let asked = thread.join().unwrap();
        assert_eq!(asked, "marks state7 b25lCg==\ncheck state7 dHJ1ZQ==\n");
        let answer = agent.answer("state8", LIMIT, &runs);
        assert_eq!(answer, Ok(CheckAnswer { status: None, output: "no".into() }));
        assert_eq!(agent.answer("state9", LIMIT, &|| true), Err(NoAnswer::Stopped));
        assert_eq!(agent.answer("state9", LIMIT, &runs), Err(NoAnswer::Ended));
    }

    #[test]
    fn output_without_an_end_is_bounded() {
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let mut agent = Agent::new(ours).unwrap();
        let thread = thread::spawn(move || {
            for _ in 0..64 {
                guest.write_all(&[b'x'; 8192]).unwrap();
            }
            guest.write_all(b"\nresult state1 0  .\n").unwrap();
            guest
        });
        let answer = agent.answer("state1", LIMIT, &runs);
        assert_eq!(answer, Ok(CheckAnswer { status: Some(0), output: String::new() }));
        assert!(agent.output.len() <= OUTPUT_MAX);
        drop(thread.join().unwrap());
    }

    #[test]
    fn a_guest_that_does_not_read_cannot_hang_the_command() {
        let (ours, _guest) = UnixStream::pair().unwrap();
        let mut agent = Agent::new(ours).unwrap();
        let marks = "mark\n".repeat(1 << 20);
        let asked = Instant::now();
        let is_stopped = || asked.elapsed() > Duration::from_millis(300);
        assert_eq!(agent.ask("state1", "true", &marks, &is_stopped), Err(NoAnswer::Stopped));
    }
}
