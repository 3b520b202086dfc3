//! Untrusted text on a terminal.

/// The text with each control character replaced: a path or a name must not control the terminal.
pub(crate) fn sanitize(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_replaced() {
        assert_eq!(sanitize("a\x1b[31m\n"), "a\u{fffd}[31m\u{fffd}");
    }
}
