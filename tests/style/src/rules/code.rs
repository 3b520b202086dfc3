//! Rules on functions, unsafe code, locks and circles of imports.

use std::collections::HashSet;

use super::Violation;
use crate::Workspace;
use crate::guards;
use crate::package::Package;
use crate::source::Source;

/// Longest function in lines, signature and comments included. Only listed: clippy's
/// `too_many_lines`, which counts code lines, is the rule.
pub const LONGEST_FUNCTION: usize = 60;

/// Functions of more than [`LONGEST_FUNCTION`] lines.
pub fn long_functions(workspace: &Workspace) -> Vec<Violation> {
    let mut found = Vec::new();
    for (package, source) in with_packages(workspace) {
        for function in &source.facts.functions {
            if function.length > LONGEST_FUNCTION {
                let text = format!("fn {}: {} lines", function.name, function.length);
                found.push(Violation::new(package.name(), &source.path, function.line, text));
            }
        }
    }
    found
}

/// Unsafe code outside of the files in `allowed`, and files in `allowed` without unsafe code.
pub fn unsafe_code(workspace: &Workspace, allowed: &[&str]) -> Vec<Violation> {
    let mut found = Vec::new();
    for (package, source) in with_packages(workspace).filter(|(_, source)| !source.is_test) {
        let is_allowed = allowed.contains(&source.path.as_str());
        let mut unsafes = source.facts.unsafes.iter().filter(|one| !one.is_test).peekable();
        if is_allowed && unsafes.peek().is_none() {
            let text = "has no unsafe code: remove it from the list";
            found.push(Violation::new(package.name(), &source.path, 0, text));
        }
        if !is_allowed {
            found.extend(unsafes.map(|one| {
                let text = format!("unsafe {} outside of the named modules", one.kind);
                Violation::new(package.name(), &source.path, one.line, text)
            }));
        }
    }
    let is_gone = |path: &&&str| !workspace.sources().any(|source| source.path == **path);
    let gone = allowed.iter().filter(is_gone);
    found.extend(
        gone.map(|path| Violation::new("", path, 0, "no such file: remove it from the list")),
    );
    found
}

/// Circles of imports between the files and folders of each package.
pub fn circles(workspace: &Workspace) -> Vec<Violation> {
    let mut found = Vec::new();
    for package in &workspace.packages {
        for circle in package.circles() {
            let place = circle.folder.as_deref().unwrap_or(&package.folder);
            found.push(Violation::new(package.name(), place, 0, circle.to_string()));
        }
    }
    found
}

/// Log calls under a lock, in the production code of the given packages. A lock is held for the
/// whole of a type that any of them keeps in a `Mutex`, unless it is in `uncontended`.
pub fn logs_under_lock(
    workspace: &Workspace,
    packages: &[&str],
    uncontended: &[&str],
) -> Vec<Violation> {
    let sources = || {
        let all = with_packages(workspace).filter(|(_, source)| !source.is_test);
        let named = all.filter(|(package, _)| packages.contains(&package.name()));
        named.filter_map(|(package, source)| {
            Some((package, source, syn::parse_file(&source.text).ok()?))
        })
    };
    let all = sources().flat_map(|(_, _, file)| guards::locked_types(&file));
    let locked: HashSet<String> =
        all.filter(|name| !uncontended.contains(&name.as_str())).collect();
    let mut found = Vec::new();
    for (package, source, file) in sources() {
        for line in guards::logs_under_lock(&file, &locked) {
            found.push(Violation::new(package.name(), &source.path, line, "logs under a lock"));
        }
    }
    found
}

fn with_packages(workspace: &Workspace) -> impl Iterator<Item = (&Package, &Source)> {
    let packages = workspace.packages.iter();
    packages.flat_map(|package| package.sources.iter().map(move |source| (package, source)))
}
