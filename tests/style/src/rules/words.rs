//! Rules on comments, messages and documents.

use super::Violation;
use crate::Workspace;
use crate::document::Language;
use crate::phrases::{Phrase, Phrases};
use crate::prose::Passage;

/// Widest comment line in columns.
pub const WIDEST_COMMENT: usize = 100;

/// Widest Markdown line in columns.
pub const WIDEST_PROSE: usize = 120;

/// Owner of violations outside of all packages.
pub const DOCUMENTS: &str = "documents";

/// Banned phrases in comments, string literals and documents.
pub fn phrases(workspace: &Workspace, phrases: &Phrases) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut search = |owner: &str, path: &str, passage: &Passage| {
        let describe = |(line, phrase): (usize, &Phrase)| {
            let text = format!("`{}`: use {}", phrase.text, phrase.instead);
            Violation::new(owner, path, line, text)
        };
        found.extend(phrases.find(passage).map(describe));
    };
    for package in &workspace.packages {
        for source in &package.sources {
            for passage in source.comment_passages().into_iter().chain(source.string_passages()) {
                search(package.name(), &source.path, &passage);
            }
        }
    }
    for document in &workspace.documents {
        for passage in document.passages() {
            search(DOCUMENTS, &document.path, &passage);
        }
    }
    found
}

/// Comment lines of more than [`WIDEST_COMMENT`] columns, except those with a URL.
pub fn wide_comments(workspace: &Workspace) -> Vec<Violation> {
    let mut found = Vec::new();
    for package in &workspace.packages {
        for source in &package.sources {
            let lines: Vec<_> = source.text.lines().collect();
            for comment in &source.comments {
                let line = comment.line.checked_sub(1).and_then(|at| lines.get(at));
                let width = line.map_or(0, |line| line.chars().count());
                if width > WIDEST_COMMENT && !comment.text.contains("://") {
                    let text = format!("a comment of {width} columns, {WIDEST_COMMENT} at most");
                    found.push(Violation::new(package.name(), &source.path, comment.line, text));
                }
            }
        }
    }
    found
}

/// Markdown lines of more than [`WIDEST_PROSE`] columns, except tables, code and URLs.
pub fn wide_prose(workspace: &Workspace) -> Vec<Violation> {
    let is_markdown =
        |document: &&crate::document::Document| document.language == Language::Markdown;
    let mut found = Vec::new();
    for document in workspace.documents.iter().filter(is_markdown) {
        let mut is_fenced = false;
        for (at, line) in document.text.lines().enumerate() {
            is_fenced ^= line.trim_start().starts_with("```");
            let is_code = is_fenced || line.starts_with("    ");
            let width = line.chars().count();
            let is_table = line.trim_start().starts_with('|');
            if width > WIDEST_PROSE && !is_code && !is_table && !line.contains("://") {
                let text = format!("{width} columns, {WIDEST_PROSE} at most");
                found.push(Violation::new(DOCUMENTS, &document.path, at + 1, text));
            }
        }
    }
    found
}

/// Marks of unfinished work in code and scripts, by the list in `phrases.toml`.
pub fn promises(workspace: &Workspace, phrases: &Phrases) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut search = |owner: &str, path: &str, text: &str| {
        for (at, line) in text.lines().enumerate() {
            let mut words = line.split(|c: char| !c.is_alphanumeric());
            if let Some(word) = words.find(|word| phrases.promises.iter().any(|p| p == word)) {
                let text = format!("{word}: finish the work or open an issue");
                found.push(Violation::new(owner, path, at + 1, text));
            }
        }
    };
    for package in &workspace.packages {
        for source in &package.sources {
            search(package.name(), &source.path, &source.text);
        }
    }
    for document in &workspace.documents {
        if document.language != Language::Markdown {
            search(DOCUMENTS, &document.path, &document.text);
        }
    }
    found
}
