//! Text of others on a terminal.

/// The text without control characters: what a path or a name holds must not reach the terminal as such.
pub(crate) fn sanitize(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal_unseen() {
        assert_eq!(sanitize("a\x1b[31m\n"), "a\u{fffd}[31m\u{fffd}");
    }
}
