//! One Rust file of the workspace, parsed once.

use std::ops::RangeInclusive;

use anyhow::{Context as _, Result};
use proc_macro2::TokenStream;

use crate::circles::Scopes;
use crate::facts::Facts;
use crate::modules::{self, Declaration};
use crate::prose::Passage;
use crate::tokens::{self, Comment, Literal};

/// A parsed file.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its path, relative to the workspace.
    pub path: String,
    /// Its text.
    pub text: String,
    /// Its comments, one entry a line.
    pub comments: Vec<Comment>,
    /// Its string literals.
    pub literals: Vec<Literal>,
    /// Its declarations.
    pub facts: Facts,
    /// Its names and imports.
    pub scopes: Scopes,
    /// Its `mod name;` declarations.
    pub declarations: Vec<Declaration>,
    /// Whether the whole file is test code. Assigned by the package from the module tree.
    pub is_test: bool,
    /// Whether a target's module tree contains it. Assigned by the package.
    pub is_reached: bool,
}

impl Source {
    /// Parses a file's text.
    pub fn parse(path: &str, text: String) -> Result<Self> {
        let stream: TokenStream = syn::parse_str(&text).with_context(|| path.to_owned())?;
        let (comments, literals) = tokens::scan(&text, &stream);
        let file: syn::File = syn::parse2(stream).with_context(|| path.to_owned())?;
        Ok(Self {
            path: path.to_owned(),
            comments,
            literals,
            facts: Facts::of(&file),
            scopes: Scopes::of(&file),
            declarations: modules::declarations(&file),
            is_test: false,
            is_reached: false,
            text,
        })
    }

    /// The number of lines.
    pub fn lines(&self) -> usize {
        self.text.lines().count()
    }

    /// The number of non-blank lines of test code, or of production code.
    pub fn filled_lines(&self, is_test: bool) -> usize {
        let lines = self.text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        lines.filter(|(at, _)| self.is_test_line(at + 1) == is_test).count()
    }

    /// Whether a line is test code.
    pub fn is_test_line(&self, line: usize) -> bool {
        let mut ranges = self.facts.test_lines.iter().map(|&(first, last)| first..=last);
        self.is_test || ranges.any(|range: RangeInclusive<usize>| range.contains(&line))
    }

    /// Its comment blocks.
    pub fn comment_passages(&self) -> Vec<Passage> {
        let mut passages = Vec::new();
        let mut previous: Option<&Comment> = None;
        for comment in &self.comments {
            let goes_on = previous.is_some_and(|previous| previous.is_continued_by(comment));
            if !goes_on {
                passages.push(Passage::comment());
            }
            if let Some(passage) = passages.last_mut() {
                passage.add_line(comment.line, &comment.text);
            }
            previous = Some(comment);
        }
        passages
    }

    /// Its string literals, without the names in `format!` placeholders.
    pub fn string_passages(&self) -> Vec<Passage> {
        let passage = |literal: &Literal| {
            let text = literal.text.replace("\\n", " ");
            let lines = text.lines().map(|line| without_placeholders(line.trim_end_matches('\\')));
            let mut passage = Passage::default();
            for (at, line) in lines.enumerate() {
                passage.add_line(literal.line + at, &line);
            }
            passage
        };
        self.literals.iter().map(passage).collect()
    }

    /// Lines that hold only a comment.
    pub fn comment_lines(&self) -> impl Iterator<Item = &Comment> {
        self.comments.iter().filter(|comment| comment.leads)
    }
}

fn without_placeholders(line: &str) -> String {
    let mut text = String::new();
    let mut rest = line;
    while let Some((before, inside)) = rest.split_once('{') {
        text.push_str(before);
        text.push_str("{}");
        rest = inside.split_once('}').map_or("", |(_, after)| after);
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_of_one_block_are_one_passage() {
        let text = "//! a\n//! b\n\n/// c\n// d\nfn f() {} // e\n// f\n";
        let source = Source::parse("a.rs", text.to_owned()).unwrap();
        let words = |passage: Passage| {
            passage.words.into_iter().map(|word| word.text).collect::<Vec<_>>().join(" ")
        };
        let passages: Vec<_> = source.comment_passages().into_iter().map(words).collect();
        assert_eq!(passages, ["a b", "c", "d", "e", "f"]);
    }

    #[test]
    fn a_string_over_two_lines_knows_both() {
        let text = "const A: &str = \"one\\ntwo \\\n    three\";\n";
        let source = Source::parse("a.rs", text.to_owned()).unwrap();
        let passage = source.string_passages().remove(0);
        let words: Vec<_> =
            passage.words.iter().map(|word| (word.text.as_str(), word.line)).collect();
        assert_eq!(words, [("one", 1), ("two", 1), ("three", 2)]);
    }

    #[test]
    fn names_that_format_replaces_are_no_words() {
        assert_eq!(without_placeholders("{what}: a {x:?} b"), "{}: a {} b");
    }
}
