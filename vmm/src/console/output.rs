//! Serial output on its way out.
//!
//! A vCPU must never wait for whoever reads the console. So it only adds to a bounded buffer, and a
//! thread of its own writes the buffer to the sink. When the sink is too slow, or there is none, the
//! buffer keeps the newest [`CAPACITY`] bytes.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use block::LogLimit;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// How much output waits for a slow sink.
const CAPACITY: usize = 256 << 10;
/// How much is written at once.
const CHUNK: usize = 4096;

/// Where the output goes.
pub(super) type Sink = Arc<OwnedFd>;

/// The end of the buffer that the thread empties.
#[derive(Clone)]
pub(super) struct Output {
    shared: Arc<Shared>,
}

/// The end of the buffer that the serial port fills. Takes all bytes at once.
pub(crate) struct OutputWriter {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    buffer: VecDeque<u8>,
    sink: Option<Sink>,
    writing: bool,
    closing: bool,
    lost_bytes: u64,
    /// Said when some were.
    loss: LogLimit,
}

impl Output {
    /// A buffer, and the thread that empties it.
    ///
    /// # Errors
    ///
    /// When the host gives no thread.
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

    /// From now on output goes there.
    pub(super) fn set_sink(&self, sink: Option<Sink>) {
        self.shared.lock().sink = sink;
        self.shared.changed.notify_all();
    }

    /// Waits until all output is written, at most for `patience`. A thread that still hangs in a
    /// write then is left behind.
    pub(super) fn finish(&self, patience: Duration) {
        let mut state = self.shared.lock();
        state.closing = true;
        self.shared.changed.notify_all();
        let waited = self.shared.changed.wait_timeout_while(state, patience, |state| {
            state.writing || (state.sink.is_some() && !state.buffer.is_empty())
        });
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.sink.is_some() && state.lost_bytes > 0 {
            state.tell_loss();
        }
        let unwritten = state.buffer.len();
        if unwritten > 0 {
            tracing::info!(unwritten, "the end of the console output was not written");
        }
    }

    fn run(&self) {
        while let Some((sink, chunk)) = self.next() {
            let written = write_all(&sink, &chunk);
            let mut state = self.shared.lock();
            state.writing = false;
            if let Err(error) = written {
                tracing::info!(%error, "console output has no reader any more");
                state.sink.take_if(|current| Arc::ptr_eq(current, &sink));
            }
            self.shared.changed.notify_all();
        }
    }

    /// Waits for something to write; `None` when there will be nothing more.
    fn next(&self) -> Option<(Sink, Vec<u8>)> {
        let mut state = self.shared.lock();
        loop {
            match &state.sink {
                Some(sink) if !state.buffer.is_empty() => {
                    let sink = Arc::clone(sink);
                    return Some((sink, state.take_chunk()));
                }
                _ if state.closing => return None,
                _ => {}
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Shared {
    /// The state is whole after each statement, so also after a panic elsewhere.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn add(&mut self, bytes: &[u8]) {
        let excess = (self.buffer.len() + bytes.len()).saturating_sub(CAPACITY);
        let dropped = excess.min(self.buffer.len());
        self.buffer.drain(..dropped);
        self.lost_bytes += dropped as u64;
        self.buffer.extend(bytes);
    }

    fn tell_loss(&mut self) {
        tracing::warn!(bytes = self.lost_bytes, "console output lost: its reader is too slow");
        self.lost_bytes = 0;
    }

    fn take_chunk(&mut self) -> Vec<u8> {
        self.writing = true;
        if self.lost_bytes > 0 && self.loss.check().is_some() {
            self.tell_loss();
        }
        let length = self.buffer.len().min(CHUNK);
        self.buffer.drain(..length).collect()
    }
}

impl Write for OutputWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.shared.lock().add(bytes);
        self.shared.changed.notify_one();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes all of `bytes`, waiting for the reader as long as it takes.
fn write_all(sink: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(sink, bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            // Someone else made the descriptor non-blocking.
            Err(Errno::AGAIN) => {
                poll(&mut [PollFd::new(sink, PollFlags::OUT)], None)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;

    #[test]
    fn output_reaches_the_sink_before_the_end() {
        let (sink, mut reader) = UnixStream::pair().unwrap();
        let output = Output::start(Some(Arc::new(sink.into()))).unwrap();
        output.writer().write_all(b"hello").unwrap();
        output.finish(Duration::from_secs(5));
        let mut seen = [0; 5];
        reader.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"hello");
    }

    #[test]
    fn a_reader_that_does_not_read_blocks_neither_writer_nor_end() {
        let (sink, _reader) = UnixStream::pair().unwrap();
        let output = Output::start(Some(Arc::new(sink.into()))).unwrap();
        let mut writer = output.writer();
        let start = Instant::now();
        for _ in 0..1024 {
            writer.write_all(&[b'x'; 1024]).unwrap();
        }
        output.finish(Duration::from_millis(50));
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn the_newest_output_waits_for_a_sink() {
        let output = Output::start(None).unwrap();
        let mut writer = output.writer();
        writer.write_all(&vec![b'o'; CAPACITY]).unwrap();
        writer.write_all(b"new").unwrap();
        let (sink, mut reader) = UnixStream::pair().unwrap();
        output.set_sink(Some(Arc::new(sink.into())));
        let mut seen = vec![0; CAPACITY];
        reader.read_exact(&mut seen).unwrap();
        assert!(seen.ends_with(b"onew"));
        output.finish(Duration::from_secs(5));
    }
}
