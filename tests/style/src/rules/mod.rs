//! The rules: each function returns the violations of one of them.
//!
//! The tests in `tests/rules` fail on violations; `measure` lists those of some rules.

pub mod code;
pub mod commits;
pub mod dependencies;
pub mod glossary;
pub mod layout;
pub mod names;
pub mod remedies;
#[cfg(test)]
mod tests;
pub mod words;

use std::fmt;

/// A violation of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// The package, or `documents`.
    pub owner: String,
    /// The file.
    pub path: String,
    /// The line, or zero for the file as a whole.
    pub line: usize,
    /// Description.
    pub text: String,
}

impl Violation {
    /// Creates a violation. Line zero is the file as a whole.
    pub fn new(owner: &str, path: &str, line: usize, text: impl Into<String>) -> Self {
        Self { owner: owner.to_owned(), path: path.to_owned(), line, text: text.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.text),
            line => write!(f, "{}:{line}: {}", self.path, self.text),
        }
    }
}
