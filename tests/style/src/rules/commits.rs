//! Runs the hook `resources/hooks/commit-msg` over the commits that follow its introduction.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::Violation;
use super::words::DOCUMENTS;

/// Path of the hook, relative to the workspace.
pub const HOOK: &str = "resources/hooks/commit-msg";

/// Result of checking the history.
#[derive(Debug, PartialEq, Eq)]
pub enum History {
    /// The number of commits checked, and the violations.
    Read(usize, Vec<Violation>),
    /// The check is impossible without this.
    Missing(&'static str),
}

/// Checks the messages of all descendants of the commit that added the hook, except merges.
pub fn history(root: &Path) -> Result<History> {
    if git(root, &["rev-parse", "--git-dir"]).is_err() {
        return Ok(History::Missing("a git repository"));
    }
    if git(root, &["rev-parse", "--is-shallow-repository"])?.trim() == "true" {
        return Ok(History::Missing("a git repository that is not shallow"));
    }
    let added = git(root, &["log", "--diff-filter=A", "--format=%H", "--", HOOK])?;
    let Some(first) = added.lines().last() else {
        return Ok(History::Missing("the commit that adds the hook"));
    };
    let range = format!("{first}..HEAD");
    let commits = git(root, &["rev-list", "--no-merges", "--ancestry-path", &range])?;
    let mut violations = Vec::new();
    for commit in commits.lines() {
        let message = git(root, &["show", "--no-patch", "--format=%B", commit])?;
        if let Err(complaint) = check(root, &message)? {
            let subject = message.lines().next().unwrap_or_default();
            let text = format!("{subject}\n    {}", complaint.trim().replace('\n', "\n    "));
            let short = commit.get(..12).unwrap_or(commit);
            violations.push(Violation::new(DOCUMENTS, &format!("commit {short}"), 0, text));
        }
    }
    Ok(History::Read(commits.lines().count(), violations))
}

/// Runs the hook on a message; `Err` is its output on rejection.
pub fn check(root: &Path, message: &str) -> Result<Result<(), String>> {
    let mut hook = Command::new(root.join(HOOK))
        .arg("/dev/stdin")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context(HOOK)?;
    // The temporary closes the pipe at the end of this statement, so that the hook sees EOF.
    hook.stdin.take().context("no pipe to the hook")?.write_all(message.as_bytes())?;
    let output = hook.wait_with_output()?;
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok(if output.status.success() { Ok(()) } else { Err(complaint) })
}

fn git(root: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("git").arg("-C").arg(root).args(arguments).output()?;
    ensure!(
        output.status.success(),
        "git {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}
