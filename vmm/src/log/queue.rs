//! Messages on their way to standard error: a bounded queue, and the thread `log` that writes them.
//!
//! No caller waits for the reader of standard error: a full queue drops its oldest messages. They
//! are counted, and the reader learns their number with the next message that it receives.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::stream::write_all;

/// Bytes of messages that wait for a slow reader.
const CAPACITY: usize = 256 << 10;

/// The queue. Clones share it.
#[derive(Clone, Default)]
pub(super) struct LogQueue(Arc<Shared>);

#[derive(Default)]
struct Shared {
    messages: Mutex<Messages>,
    changed: Condvar,
}

#[derive(Default)]
struct Messages {
    waiting: VecDeque<Vec<u8>>,
    bytes: usize,
    is_writing: bool,
    /// Messages dropped since the start.
    dropped: u64,
    /// Messages dropped that the reader does not know of.
    unreported: u64,
}

impl LogQueue {
    /// Starts the thread that writes to `sink`. It ends with the program.
    ///
    /// # Errors
    ///
    /// The host is out of threads.
    pub(super) fn start(sink: OwnedFd) -> io::Result<Self> {
        let queue = Self::default();
        let writer = queue.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || writer.run(&sink))?;
        Ok(queue)
    }

    /// Appends a message. Never blocks.
    pub(super) fn push(&self, message: Vec<u8>) {
        self.lock().push(message);
        self.0.changed.notify_all();
    }

    /// Waits until all messages are written or dropped, at most for `timeout`.
    pub(super) fn drain(&self, timeout: Duration) {
        let is_busy = |messages: &mut Messages| messages.is_writing || messages.bytes > 0;
        let messages = self.lock();
        // Poisoned or not, the wait is over.
        drop(self.0.changed.wait_timeout_while(messages, timeout, is_busy));
    }

    /// Messages dropped since the start.
    pub(super) fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    fn run(&self, sink: &OwnedFd) {
        loop {
            let (message, unreported) = self.next();
            let report = report(unreported);
            // Either is lost if standard error is closed or its file system is full.
            let is_reported = unreported > 0 && write_all(sink, report.as_bytes()).is_ok();
            let is_written = write_all(sink, &message).is_ok();
            let mut messages = self.lock();
            messages.is_writing = false;
            if is_reported {
                messages.unreported -= unreported;
            }
            if !is_written {
                messages.count_dropped();
            }
            drop(messages);
            self.0.changed.notify_all();
        }
    }

    /// Waits for a message. Returns it with the number of dropped messages to report.
    fn next(&self) -> (Vec<u8>, u64) {
        let mut messages = self.lock();
        loop {
            if let Some(message) = messages.pop() {
                messages.is_writing = true;
                return (message, messages.unreported);
            }
            messages = self.0.changed.wait(messages).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The messages are consistent after each statement, so a poisoned lock is usable.
    fn lock(&self) -> MutexGuard<'_, Messages> {
        self.0.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Messages {
    /// Appends a message, and drops the oldest ones beyond the capacity.
    fn push(&mut self, message: Vec<u8>) {
        while self.bytes + message.len() > CAPACITY && self.pop().is_some() {
            self.count_dropped();
        }
        self.bytes += message.len();
        self.waiting.push_back(message);
    }

    fn pop(&mut self) -> Option<Vec<u8>> {
        let message = self.waiting.pop_front()?;
        self.bytes -= message.len();
        Some(message)
    }

    fn count_dropped(&mut self) {
        self.dropped += 1;
        self.unreported += 1;
    }
}

fn report(dropped: u64) -> String {
    let messages = if dropped == 1 { "message was" } else { "messages were" };
    format!("{dropped} log {messages} dropped: standard error was not read, or not writable\n")
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};
    use std::time::Instant;

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn pipe() -> (std::fs::File, OwnedFd) {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        (reader.into(), writer)
    }

    #[test]
    fn drain_waits_for_the_reader() {
        let (mut reader, writer) = pipe();
        let queue = LogQueue::start(writer).unwrap();
        queue.push(b"one\n".to_vec());
        queue.drain(30 * SECOND);
        let mut seen = [0; 4];
        reader.read_exact(&mut seen).unwrap();
        assert_eq!((&seen, queue.dropped()), (b"one\n", 0));
    }

    #[test]
    fn a_reader_that_stands_still_loses_the_oldest_and_is_told_how_many() {
        let (reader, writer) = pipe();
        let queue = LogQueue::start(writer).unwrap();
        let started = Instant::now();
        let line = |number: usize| format!("{number:0>1023}");
        for number in 0..1000 {
            queue.push(format!("{}\n", line(number)).into_bytes());
        }
        queue.drain(SECOND / 100);
        assert!(started.elapsed() < 10 * SECOND, "push or drain waited for the reader");
        let dropped = queue.dropped();
        assert!((600..=744).contains(&dropped), "{dropped} of 1000 KiB, 256 KiB are kept");
        let (mut kept, mut reported) = (0, 0);
        for seen in BufReader::new(reader).lines().map(Result::unwrap) {
            if let Some((number, _)) = seen.split_once(" log message") {
                reported += number.parse::<u64>().unwrap();
                continue;
            }
            kept += 1;
            // The newest message is kept.
            if seen == line(999) {
                break;
            }
        }
        assert_eq!((kept, reported), (1000 - dropped, dropped));
    }

    #[test]
    fn a_closed_reader_costs_messages_and_nothing_else() {
        let (reader, writer) = pipe();
        drop(reader);
        let queue = LogQueue::start(writer).unwrap();
        queue.push(b"lost\n".to_vec());
        queue.push(b"lost\n".to_vec());
        queue.drain(30 * SECOND);
        assert_eq!(queue.dropped(), 2);
    }
}
