//! The rules of CONTRIBUTING.md that a program can check. A failing test prints each violation with
//! its location and the remedy.

mod advised_commands;
mod code;
mod commits;
mod glossary;
mod layout;
mod remedies;
mod unsafe_modules;
mod words;

use std::sync::LazyLock;

use style::Workspace;
use style::phrases::Phrases;
use style::rules::Violation;

/// The workspace, parsed once for all tests.
static WORKSPACE: LazyLock<Workspace> =
    LazyLock::new(|| Workspace::here().expect("the workspace can be read"));

/// The list of banned phrases.
static PHRASES: LazyLock<Phrases> =
    LazyLock::new(|| Phrases::listed().expect("the list of phrases can be read"));

/// Fails on violations. `remedy` tells the developer how to fix them.
#[track_caller]
fn assert_none(rule: &str, violations: &[Violation], remedy: &str) {
    let lines: String = violations.iter().map(|violation| format!("\n  {violation}")).collect();
    assert!(
        violations.is_empty(),
        "{} violations of `{rule}`: {remedy}{lines}\n",
        violations.len()
    );
}
