//! `layer check`.

use std::path::Path;
use std::process::ExitCode;

use block::{CheckFinding, CheckReport, check_layer};
use clap::builder::styling::{AnsiColor, Style};
use serde_json::{Value, json};

use super::ranges::READ_LIMIT;
use super::shown::shown;
use crate::cmd::print;
use crate::exit::Exit;
use crate::host_query::HostQuery;
use crate::sanitize::sanitize;

const BOLD: Style = Style::new().bold();
const PROBLEM: Style = AnsiColor::Red.on_default().bold();
const REMARK: Style = AnsiColor::Cyan.on_default().bold();

/// Examples of the command.
pub(super) const CHECK_HELP: &str = "\
Neither locks nor changes a file. Exits with 0 if it finds only remarks, such as
harmless leftovers, and with 1 if it finds a problem.

Example:
  bulkhead layer check vm2.layer";

/// Examines a layer and everything below it, and prints what it finds.
pub(super) fn check(path: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let report = query(path)?;
    print(&if json { to_json(&report) } else { text(path, &report) })?;
    Ok(if report.problems() > 0 { Exit::Failed.into() } else { ExitCode::SUCCESS })
}

/// The report, or that a part of it took too long.
fn query(path: &Path) -> anyhow::Result<CheckReport> {
    let asked = path.to_owned();
    let mut answers = HostQuery::bounded(READ_LIMIT, 1, move |answers| {
        let report = check_layer(&asked, || _ = answers.try_send(None));
        let _ = answers.send(Some(report));
    });
    let unknown = |error| anyhow::anyhow!("{}: could not be learned: {error}", shown(path));
    while let Some(answer) = answers.next().map_err(unknown)? {
        if let Some(report) = answer {
            return Ok(report);
        }
    }
    anyhow::bail!("{}: the query ended without an answer", shown(path))
}

fn text(path: &Path, report: &CheckReport) -> String {
    let mut text = String::new();
    for CheckFinding { path, what, is_problem } in &report.findings {
        let (style, kind) = if *is_problem { (PROBLEM, "problem") } else { (REMARK, "remark") };
        text += &format!("{style}{kind}{style:#}: {}: {}\n", shown(path), sanitize(what));
    }
    let verdict = match report.problems() {
        0 => format!("sound, {}", count(report.levels.len(), "level")),
        problems => count(problems, "problem"),
    };
    text + &format!("{BOLD}{}{BOLD:#}: {verdict}\n", shown(path))
}

fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

fn to_json(report: &CheckReport) -> String {
    let finding = |finding: &CheckFinding| {
        json!({
            "path": finding.path.display().to_string(),
            "what": finding.what,
            "problem": finding.is_problem,
        })
    };
    let levels = report.levels.iter().map(|path| json!(path.display().to_string()));
    let answer = json!({
        "sound": report.problems() == 0,
        "levels": levels.collect::<Vec<Value>>(),
        "findings": report.findings.iter().map(finding).collect::<Vec<Value>>(),
    });
    format!("{answer:#}\n")
}
