//! Console output.
//!
//! A vCPU must never wait for the reader of the console. It appends to a bounded buffer, which the
//! thread `console` writes to the sink. While the sink is slow or missing, the buffer keeps the
//! newest [`CAPACITY`] bytes.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::sink::Sink;
use block::LogLimit;
use devices::platform::SerialOutput;

/// Bytes that wait for a slow sink.
const CAPACITY: usize = 256 << 10;
/// Bytes of one write.
const CHUNK: usize = 4096;

/// The reading end of the buffer.
#[derive(Clone)]
pub(super) struct ConsoleOutput {
    shared: Arc<SharedBuffer>,
}

/// The writing end of the buffer, for the serial port. Never blocks.
#[derive(Clone)]
pub(crate) struct OutputWriter {
    shared: Arc<SharedBuffer>,
}

#[derive(Default)]
struct SharedBuffer {
    buffer: Mutex<OutputBuffer>,
    changed: Condvar,
}

#[derive(Default)]
struct OutputBuffer {
    bytes: VecDeque<u8>,
    sink: Option<Sink>,
    is_writing: bool,
    is_closing: bool,
    sent_bytes: u64,
    lost_bytes: u64,
    loss_log: LogLimit,
}

impl ConsoleOutput {
    /// Starts the thread that writes to `sink`.
    ///
    /// # Errors
    ///
    /// The host is out of threads.
    pub(super) fn start(sink: Option<Sink>) -> io::Result<Self> {
        let output = Self { shared: Arc::default() };
        output.set_sink(sink);
        let thread = output.clone();
        thread::Builder::new().name("console".to_owned()).spawn(move || thread.run())?;
        Ok(output)
    }

    /// The end for the serial port.
    pub(super) fn writer(&self) -> OutputWriter {
        OutputWriter { shared: Arc::clone(&self.shared) }
    }

    /// Replaces the sink.
    pub(super) fn set_sink(&self, sink: Option<Sink>) {
        self.shared.lock().sink = sink;
        self.shared.changed.notify_all();
    }

    /// Waits until all output is written, at most for `timeout`. A thread that is still blocked in
    /// a write stays behind.
    pub(super) fn drain(&self, timeout: Duration) {
        let mut buffer = self.shared.lock();
        buffer.is_closing = true;
        self.shared.changed.notify_all();
        let waited = self.shared.changed.wait_timeout_while(buffer, timeout, |buffer| {
            buffer.is_writing || (buffer.sink.is_some() && !buffer.bytes.is_empty())
        });
        let (mut buffer, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let unwritten_bytes = buffer.bytes.len();
        let lost_bytes = if buffer.sink.is_some() { buffer.take_lost() } else { 0 };
        drop(buffer);
        log_loss(lost_bytes);
        if unwritten_bytes > 0 {
            tracing::info!(unwritten_bytes, "the end of the console output was not written");
        }
    }

    fn run(&self) {
        while let Some(Chunk { sink, bytes, lost_bytes }) = self.next() {
            log_loss(lost_bytes);
            let written = sink.write(&bytes);
            if let Err(error) = &written {
                tracing::info!(%error, "the reader of the console output is gone");
            }
            let mut buffer = self.shared.lock();
            buffer.is_writing = false;
            if written.is_err() {
                buffer.sink.take_if(|current| Arc::ptr_eq(current, &sink));
            }
            drop(buffer);
            self.shared.changed.notify_all();
        }
    }

    /// Waits for output to write; `None` when the console closes.
    fn next(&self) -> Option<Chunk> {
        let mut buffer = self.shared.lock();
        loop {
            match &buffer.sink {
                Some(sink) if !buffer.bytes.is_empty() => {
                    let sink = Arc::clone(sink);
                    return Some(buffer.take_chunk(sink));
                }
                _ if buffer.is_closing => return None,
                _ => {}
            }
            buffer = self.shared.changed.wait(buffer).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Output to write.
struct Chunk {
    sink: Sink,
    bytes: Vec<u8>,
    /// Bytes lost before it, if their loss may be logged now.
    lost_bytes: u64,
}

fn log_loss(lost_bytes: u64) {
    if lost_bytes > 0 {
        tracing::warn!(bytes = lost_bytes, "console output dropped: its reader is too slow");
    }
}

impl SharedBuffer {
    /// The buffer is consistent after each statement, so a poisoned lock is usable.
    fn lock(&self) -> MutexGuard<'_, OutputBuffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OutputBuffer {
    /// Appends `bytes`, and drops the oldest ones beyond the capacity.
    fn append(&mut self, bytes: &[u8]) {
        let excess = (self.bytes.len() + bytes.len()).saturating_sub(CAPACITY);
        let dropped = excess.min(self.bytes.len());
        self.bytes.drain(..dropped);
        self.lost_bytes += dropped as u64;
        self.sent_bytes += bytes.len() as u64;
        self.bytes.extend(bytes);
    }

    fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost_bytes)
    }

    fn take_chunk(&mut self, sink: Sink) -> Chunk {
        self.is_writing = true;
        let may_log = self.lost_bytes > 0 && self.loss_log.check().is_some();
        let lost_bytes = if may_log { self.take_lost() } else { 0 };
        let length = self.bytes.len().min(CHUNK);
        Chunk { sink, bytes: self.bytes.drain(..length).collect(), lost_bytes }
    }
}

impl OutputWriter {
    /// Bytes that the guest has sent since the start.
    pub(crate) fn sent_bytes(&self) -> u64 {
        self.shared.lock().sent_bytes
    }
}

impl SerialOutput for OutputWriter {
    fn send(&mut self, bytes: &[u8]) {
        self.shared.lock().append(bytes);
        self.shared.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;

    #[test]
    fn drain_waits_for_the_sink() {
        let (sink, mut reader) = UnixStream::pair().unwrap();
        let output = ConsoleOutput::start(Some(Arc::new(OwnedFd::from(sink)))).unwrap();
        output.writer().send(b"hello");
        output.drain(Duration::from_secs(5));
        let mut seen = [0; 5];
        reader.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"hello");
    }

    #[test]
    fn a_stuck_reader_blocks_neither_writer_nor_drain() {
        let (sink, _reader) = UnixStream::pair().unwrap();
        let output = ConsoleOutput::start(Some(Arc::new(OwnedFd::from(sink)))).unwrap();
        let mut writer = output.writer();
        let start = Instant::now();
        for _ in 0..1024 {
            writer.send(&[b'x'; 1024]);
        }
        output.drain(Duration::from_millis(50));
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn the_newest_output_is_kept_without_a_sink() {
        let output = ConsoleOutput::start(None).unwrap();
        let mut writer = output.writer();
        writer.send(&vec![b'o'; CAPACITY]);
        writer.send(b"new");
        let (sink, mut reader) = UnixStream::pair().unwrap();
        output.set_sink(Some(Arc::new(OwnedFd::from(sink))));
        let mut seen = vec![0; CAPACITY];
        reader.read_exact(&mut seen).unwrap();
        assert!(seen.ends_with(b"onew"));
        output.drain(Duration::from_secs(5));
    }
}
