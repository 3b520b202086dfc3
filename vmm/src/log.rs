//! Standard error: the log, and messages that appear at any log level. Any thread.
//!
//! No other module writes to standard error. A message that cannot be written is dropped: standard
//! error may be closed, and no message is worth stopping a guest.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use tracing::level_filters::LevelFilter;

/// Sends log lines up to `level` to standard error.
pub(crate) fn init(level: LevelFilter) {
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && no_color_unset())
        .init();
}

/// The NO_COLOR convention: set and not empty means no colour.
fn no_color_unset() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Prints a message for the user, at any log level.
pub(crate) fn print(message: impl Display) {
    let _ = writeln!(io::stderr(), "{message}");
}

/// Prints text with ANSI styles, which appear only on a terminal with colour.
pub(crate) fn print_styled(text: &str) {
    let _ = anstream::stderr().write_all(text.as_bytes());
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
            let _ = write!(io::stderr(), "{CLEAR_LINE}{text}");
        }
    }
}

impl Drop for StatusLine {
    fn drop(&mut self) {
        if self.is_shown {
            let _ = write!(io::stderr(), "{CLEAR_LINE}");
        }
    }
}
