//! Standard error: the log, and messages that appear at any log level. Any thread.
//!
//! No other module writes to standard error. While a machine runs, [`queue`] does it on a thread of
//! its own, so that neither a closed nor a stuck reader delays or ends the guest. Before that, a
//! message is written at once, as a command's user expects.

mod queue;

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::time::Duration;

use tracing::level_filters::LevelFilter;

use crate::stream::write_all;
use queue::LogQueue;

/// Longest time for the rest of the messages at the end of the program.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The queue, once [`start_queue`] was called.
static QUEUE: OnceLock<LogQueue> = OnceLock::new();

/// Sends log lines up to `level` to standard error.
pub(crate) fn init(level: LevelFilter) {
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(|| Stderr)
        .with_ansi(io::stderr().is_terminal() && no_color_unset())
        .init();
}

/// The NO_COLOR convention: set and not empty means no colour.
fn no_color_unset() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Lets no later message wait for the reader of standard error. Messages that it does not read in
/// time are dropped and counted.
///
/// # Errors
///
/// The host is out of descriptors or threads.
pub(crate) fn start_queue() -> io::Result<()> {
    let sink = rustix::stdio::stderr().try_clone_to_owned()?;
    // Set at most once: a program runs one machine.
    let _ = QUEUE.set(LogQueue::start(sink)?);
    Ok(())
}

/// Waits for the reader of standard error, at most for a second.
pub(crate) fn drain() {
    if let Some(queue) = QUEUE.get() {
        queue.drain(DRAIN_TIMEOUT);
    }
}

/// Messages that were dropped because standard error was not read in time or not writable.
pub(crate) fn dropped() -> u64 {
    QUEUE.get().map_or(0, LogQueue::dropped)
}

/// Prints a message for the user, at any log level.
pub(crate) fn print(message: impl Display) {
    emit(format!("{message}\n").into_bytes());
}

/// Prints text with ANSI styles, which appear only on a terminal with colour.
pub(crate) fn print_styled(text: &str) {
    let mut adapted = Vec::new();
    let choice = anstream::AutoStream::choice(&io::stderr());
    let mut stream = anstream::AutoStream::new(&mut adapted, choice);
    // Writing to memory cannot fail.
    let _ = stream.write_all(text.as_bytes());
    emit(adapted);
}

/// Writes a message at once, or queues it. One that cannot be written is dropped: standard error
/// may be closed, and no message is worth stopping a guest.
fn emit(message: Vec<u8>) {
    match QUEUE.get() {
        Some(queue) => queue.push(message),
        None => {
            let _ = write_all(rustix::stdio::stderr(), &message);
        }
    }
}

/// The writer of log lines: each `write` is one line. Never fails, because tracing-subscriber
/// panics if standard error takes neither a line nor the report of its loss.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        emit(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Columns of the terminal, if standard error is one.
pub(crate) fn terminal_columns() -> Option<u16> {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stderr()).ok()?;
    Some(size.ws_col)
}

/// A line that is rewritten in place, on a terminal only. Dropping it clears the line.
#[derive(Debug, Default)]
pub(crate) struct StatusLine {
    is_shown: bool,
}

/// Returns to the start of the line and clears it.
const CLEAR_LINE: &str = "\r\x1b[K";

impl StatusLine {
    /// Replaces the text of the line.
    pub(crate) fn show(&mut self, text: impl Display) {
        if io::stderr().is_terminal() {
            self.is_shown = true;
            let text = text.to_string();
            emit(format!("{CLEAR_LINE}{}", cut(&text, terminal_columns())).into_bytes());
        }
    }
}

/// The part of a text that does not wrap on a terminal: the rest of a wrapped line would stay.
fn cut(text: &str, columns: Option<u16>) -> &str {
    let Some(most) = columns.filter(|columns| *columns > 0) else { return text };
    let end = text.char_indices().nth(usize::from(most) - 1);
    end.and_then(|(end, _)| text.get(..end)).unwrap_or(text)
}

impl Drop for StatusLine {
    fn drop(&mut self) {
        if self.is_shown {
            emit(CLEAR_LINE.as_bytes().to_vec());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_line_leaves_the_last_column_free() {
        for (text, columns, shown) in [
            ("up to 2 writes", Some(80), "up to 2 writes"),
            ("up to 2 writes", Some(15), "up to 2 writes"),
            ("up to 2 writes", Some(14), "up to 2 write"),
            ("größer", Some(5), "größ"),
            ("any", Some(1), ""),
            ("without a width", Some(0), "without a width"),
            ("no terminal", None, "no terminal"),
        ] {
            assert_eq!(cut(text, columns), shown);
        }
    }
}
