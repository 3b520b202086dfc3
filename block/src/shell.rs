//! Words of the shell commands that messages advise. Pure.

use std::path::Path;

/// `word` as one word of a POSIX shell.
#[must_use]
pub fn shell_word(word: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "/_.:@+-".contains(letter);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// `path` as one word of a POSIX shell that no command takes for an option.
#[must_use]
pub fn shell_path(path: &Path) -> String {
    let text = path.display().to_string();
    if text.starts_with('-') { shell_word(&format!("./{text}")) } else { shell_word(&text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_commands_are_quoted() {
        assert_eq!(shell_word("tank/a_b-1.2:x@y"), "tank/a_b-1.2:x@y");
        assert_eq!(shell_word("/m; rm -r /"), "'/m; rm -r /'");
        assert_eq!(shell_word("a'b"), "'a'\\''b'");
        assert_eq!(shell_word("~/a"), "'~/a'");
        assert_eq!(shell_word(""), "''");
    }

    #[test]
    fn a_path_is_no_option() {
        assert_eq!(shell_path(Path::new("/vm/a b")), "'/vm/a b'");
        assert_eq!(shell_path(Path::new("-f")), "./-f");
    }
}
