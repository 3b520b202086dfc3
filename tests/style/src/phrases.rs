//! The list of banned phrases and their replacements, and its matcher.

use anyhow::{Context as _, Result};
use toml::{Table, Value};

use crate::prose::{Passage, Word};

/// A banned phrase.
#[derive(Clone, Debug)]
pub struct Phrase {
    /// The phrase as listed.
    pub text: String,
    /// Its replacement.
    pub instead: String,
    /// Whether `measure` counts it.
    pub is_measured: bool,
    words: Vec<String>,
    /// Whether it is banned only at the start of a comment.
    opens: bool,
}

impl Phrase {
    fn new(text: &str, instead: &str, is_measured: bool) -> Self {
        let opens = text.starts_with('^');
        let words = text.trim_start_matches('^').split_whitespace().map(str::to_owned).collect();
        Self { text: text.to_owned(), instead: instead.to_owned(), is_measured, words, opens }
    }

    /// Whether `words` start with this phrase.
    fn matches(&self, words: &[Word]) -> bool {
        let Some(words) = words.get(..self.words.len()) else { return false };
        words.iter().zip(&self.words).enumerate().all(|(index, (word, wanted))| {
            (index == 0 || word.follows) && (wanted == "_" || *wanted == word.text)
        })
    }
}

/// The list of banned words.
#[derive(Clone, Debug)]
pub struct Phrases {
    /// Banned phrases.
    pub phrases: Vec<Phrase>,
    /// Marks of unfinished work, case-sensitive.
    pub promises: Vec<String>,
}

impl Phrases {
    /// The list in `tests/style/phrases.toml`.
    pub fn listed() -> Result<Self> {
        Self::parse(include_str!("../phrases.toml"))
    }

    /// Parses a list: tables `measured` and `others` from phrase to replacement, and an array
    /// `promises`.
    pub fn parse(text: &str) -> Result<Self> {
        let lists: Table = text.parse()?;
        let mut phrases = Vec::new();
        for (name, is_measured) in [("measured", true), ("others", false)] {
            let list = lists.get(name).and_then(Value::as_table).context("a list is missing")?;
            for (phrase, instead) in list {
                let instead = instead.as_str().context("a replacement is a string")?;
                phrases.push(Phrase::new(phrase, instead, is_measured));
            }
        }
        let promises = lists.get("promises").and_then(Value::as_array).context("no promises")?;
        let promises = promises.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        Ok(Self { phrases, promises })
    }

    /// Each banned phrase in a passage, with the line of its first word.
    pub fn find<'a>(&'a self, passage: &'a Passage) -> impl Iterator<Item = (usize, &'a Phrase)> {
        let places = passage.words.iter().enumerate();
        places.flat_map(move |(at, word)| {
            let rest = passage.words.get(at..).unwrap_or_default();
            let can_be = move |phrase: &&Phrase| !phrase.opens || (at == 0 && passage.is_comment);
            let found = self.phrases.iter().filter(can_be).filter(|phrase| phrase.matches(rest));
            found.map(|phrase| (word.line, phrase))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"
promises = []
[measured]
"so blue" = "blue"
[others]
"no _ green" = "not green any more"
"^which" = "the noun"
"#;

    fn found(lines: &[&str]) -> Vec<(usize, String)> {
        let phrases = Phrases::parse(LIST).unwrap();
        let passage = Passage::new(lines.iter().enumerate().map(|(at, line)| (at + 1, *line)));
        phrases.find(&passage).map(|(line, phrase)| (line, phrase.text.clone())).collect()
    }

    #[test]
    fn a_phrase_is_found_whatever_its_case_and_over_line_breaks() {
        assert_eq!(found(&["It is So", "blue."]), [(1, "so blue".to_owned())]);
    }

    #[test]
    fn a_phrase_ends_with_its_words() {
        assert_eq!(found(&["so blueish", "also blue", "so, blue"]), []);
    }

    #[test]
    fn a_gap_takes_any_one_word() {
        assert_eq!(found(&["no `x` green"]), [(1, "no _ green".to_owned())]);
        assert_eq!(found(&["no green", "no very light green"]), []);
    }

    #[test]
    fn a_phrase_may_be_one_only_where_a_comment_begins() {
        let phrases = Phrases::parse(LIST).unwrap();
        let mut passage = Passage::new([(1, "Which is"), (2, "which")]);
        assert_eq!(phrases.find(&passage).count(), 0);
        passage.is_comment = true;
        let lines: Vec<_> = phrases.find(&passage).map(|(line, _)| line).collect();
        assert_eq!(lines, [1]);
    }

    #[test]
    fn the_list_of_this_repository_can_be_read() {
        let phrases = Phrases::listed().unwrap().phrases;
        assert_eq!(phrases.iter().filter(|phrase| phrase.is_measured).count(), 12);
    }
}
