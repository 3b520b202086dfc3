//! Static measurements and style rules of this workspace.
//!
//! [`Workspace`] parses every file once. The program `measure` prints the measurements; the tests
//! in `tests/rules` fail on violations of the rules in CONTRIBUTING.md. This crate runs no code of
//! the crates it measures.

mod attributes;
pub mod circles;
pub mod document;
pub mod facts;
pub mod guards;
mod lines;
pub mod manifest;
pub mod measures;
pub mod modules;
pub mod package;
pub mod phrases;
pub mod prose;
pub mod rules;
pub mod source;
pub mod tokens;
mod workspace;

pub use workspace::Workspace;
