//! Rules on files.

use super::Violation;
use crate::Workspace;

/// Longest file in lines.
pub const LONGEST_FILE: usize = 500;

/// Files that do not start with a module comment.
pub fn without_module_comment(workspace: &Workspace) -> Vec<Violation> {
    violations(workspace, |source| {
        (!source.text.starts_with("//! "))
            .then(|| "does not start with a module comment".to_owned())
    })
}

/// Files of more than [`LONGEST_FILE`] lines.
pub fn long_files(workspace: &Workspace) -> Vec<Violation> {
    violations(workspace, |source| {
        let lines = source.lines();
        (lines > LONGEST_FILE).then(|| format!("{lines} lines, {LONGEST_FILE} at most"))
    })
}

/// Files outside of every module tree, and `mod` declarations whose file is not in the package.
pub fn orphans(workspace: &Workspace) -> Vec<Violation> {
    let unreached = violations(workspace, |source| {
        (!source.is_reached).then(|| "is in no target's module tree".to_owned())
    });
    let missing = workspace.packages.iter().flat_map(|package| {
        let describe = |(path, name): &(String, String)| {
            let text = format!("the file of `mod {name};` is not in this package");
            Violation::new(package.name(), path, 0, text)
        };
        package.tree.missing.iter().map(describe)
    });
    unreached.into_iter().chain(missing).collect()
}

fn violations(
    workspace: &Workspace,
    check: impl Fn(&crate::source::Source) -> Option<String>,
) -> Vec<Violation> {
    let mut found = Vec::new();
    for package in &workspace.packages {
        for source in &package.sources {
            found.extend(
                check(source).map(|text| Violation::new(package.name(), &source.path, 0, text)),
            );
        }
    }
    found
}
