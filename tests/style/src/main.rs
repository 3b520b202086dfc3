//! `make measure`: measurements of the workspace and violations of its rules, for a terminal or as
//! JSON.
//!
//! It only reads files, and exits successfully whatever it finds: failing is for `tests/rules`.

mod table;

use std::io::{self, ErrorKind, Write as _};

use anyhow::Result;
use clap::{Parser, ValueEnum};
use style::phrases::Phrases;
use style::rules::{Violation, code, layout, names, words};
use style::{Workspace, measures};

/// Measures the workspace, or lists the violations of a rule.
#[derive(Parser)]
struct Arguments {
    /// The table of measurements, or the violations to list.
    #[arg(value_enum, default_value_t)]
    show: Show,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Show {
    /// The table of measurements.
    #[default]
    Table,
    /// Circles of imports between files or folders, with each use.
    Circles,
    /// Banned phrases in comments, messages and pages.
    Phrases,
    /// Types that share a name within a package.
    Names,
    /// Files of more than 500 lines, functions of more than 60.
    Long,
    /// Comments of more than 100 columns, lines of Markdown of more than 120.
    Wide,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let workspace = Workspace::here()?;
    let phrases = Phrases::listed()?;
    let text = match (arguments.show, arguments.json) {
        (Show::Table, false) => table::text(&measures::table(&workspace, &phrases)),
        (Show::Table, true) => table::json(&measures::table(&workspace, &phrases)),
        (show, false) => list(&violations(show, &workspace, &phrases)),
        (show, true) => table::json_list(&violations(show, &workspace, &phrases)),
    };
    match io::stdout().write_all(text.as_bytes()) {
        // The reader closed the pipe, as `head` does.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

fn violations(show: Show, workspace: &Workspace, phrases: &Phrases) -> Vec<Violation> {
    match show {
        Show::Table => Vec::new(),
        Show::Circles => code::circles(workspace),
        Show::Phrases => words::phrases(workspace, phrases),
        Show::Names => names::duplicates(workspace),
        Show::Long => [layout::long_files(workspace), code::long_functions(workspace)].concat(),
        Show::Wide => [words::wide_comments(workspace), words::wide_prose(workspace)].concat(),
    }
}

fn list(violations: &[Violation]) -> String {
    let lines: String = violations.iter().map(|violation| format!("{violation}\n")).collect();
    format!("{lines}{} found\n", violations.len())
}
