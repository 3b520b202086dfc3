//! Text files other than Rust: Markdown, shell scripts, configuration.

use crate::prose::Passage;

/// Syntax of a text, which determines its prose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// Prose except for fenced code and code spans.
    Markdown,
    /// Comments start with `#`; messages are part of the code.
    Shell,
    /// Comments start with `#`; the rest is no prose.
    Configuration,
}

/// A text file.
#[derive(Clone, Debug)]
pub struct Document {
    /// Its path from the root of the workspace.
    pub path: String,
    /// Its text.
    pub text: String,
    /// Its syntax.
    pub language: Language,
}

impl Document {
    /// Detects the syntax by name and first line; `None` for a file without prose.
    pub fn new(path: String, text: String) -> Option<Self> {
        let name = path.rsplit('/').next().unwrap_or(&path);
        let language = match name.rsplit_once('.') {
            Some((_, "md")) => Language::Markdown,
            Some((_, "sh")) => Language::Shell,
            Some((_, "toml" | "service")) => Language::Configuration,
            _ if name == "Makefile" => Language::Configuration,
            _ if text.starts_with("#!") => Language::Shell,
            _ => return None,
        };
        Some(Self { path, text, language })
    }

    /// Its prose.
    pub fn passages(&self) -> Vec<Passage> {
        let lines = self.text.lines().enumerate().map(|(index, line)| (index + 1, line));
        match self.language {
            Language::Markdown => vec![Passage::new(lines)],
            Language::Shell => {
                let (comments, code): (Vec<_>, Vec<_>) = lines.partition(|(_, line)| is_hash(line));
                let comments =
                    Passage::new(comments.into_iter().map(|(at, line)| (at, marked(line))));
                let code = code.into_iter().map(|line| Passage::new([line]));
                code.chain([comments]).collect()
            }
            Language::Configuration => {
                let comments = lines.filter_map(|(at, line)| Some((at, line.split_once('#')?.1)));
                vec![Passage::new(comments)]
            }
        }
    }
}

fn is_hash(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

fn marked(line: &str) -> &str {
    line.trim_start().trim_start_matches('#')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(path: &str, text: &str) -> Vec<Vec<String>> {
        let document = Document::new(path.to_owned(), text.to_owned()).unwrap();
        let words = |passage: Passage| passage.words.into_iter().map(|word| word.text).collect();
        document.passages().into_iter().map(words).collect()
    }

    #[test]
    fn comments_of_a_script_are_read_as_one() {
        let found = words("a.sh", "# one\n# two\necho \"three four\"\n");
        assert_eq!(found, [vec!["echo", "three", "four"], vec!["one", "two"]]);
    }

    #[test]
    fn configuration_is_prose_behind_its_marks_only() {
        assert_eq!(words("a.toml", "# one\nkey = 1 # two\n"), [["one", "two"]]);
    }

    #[test]
    fn other_files_are_left_alone() {
        assert!(Document::new("openapi.json".to_owned(), "{}".to_owned()).is_none());
        assert!(Document::new("agent".to_owned(), "#!/bin/sh\n".to_owned()).is_some());
    }
}
