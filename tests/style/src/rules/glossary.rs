//! The glossary, docs/glossary.md: its form, and the names it retires.
//!
//! The glossary is a Markdown table with the columns word, meaning, clause and instead of. The last
//! column lists retired names in backticks: `Name` is a type, `name()` a function, `name.rs` a
//! file, `name/` a folder, `name` any of the last three. `package::name` limits a name to one
//! package.

use std::collections::BTreeSet;

use super::Violation;
use super::words::DOCUMENTS;
use crate::Workspace;
use crate::package::Package;

/// Path of the glossary, relative to the workspace.
pub const GLOSSARY: &str = "docs/glossary.md";

/// An entry of the glossary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its line in the file.
    pub line: usize,
    /// The word.
    pub word: String,
    /// Retired names.
    pub retired: Vec<String>,
}

/// The entries of a glossary, or the line and reason of the first malformed row.
pub fn entries(text: &str) -> Result<Vec<Entry>, (usize, &'static str)> {
    let mut found = Vec::new();
    let rows = text.lines().enumerate().filter(|(_, line)| line.starts_with('|'));
    // The first two rows are the table's header.
    for (at, row) in rows.skip(2) {
        let cells: Vec<&str> = row.trim().trim_matches('|').split('|').map(str::trim).collect();
        let [word, meaning, _, replaced] = cells[..] else {
            return Err((at + 1, "a row has four cells: word, meaning, clause, instead of"));
        };
        if word.is_empty() || meaning.is_empty() {
            return Err((at + 1, "an entry has a word and a meaning"));
        }
        let retired = replaced.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        found.push(Entry { line: at + 1, word: word.replace('`', ""), retired });
    }
    Ok(found)
}

/// A missing glossary, malformed rows, unsorted or duplicate words.
pub fn disorder(workspace: &Workspace) -> Vec<Violation> {
    let violation = |line, text: String| Violation::new(DOCUMENTS, GLOSSARY, line, text);
    let Some(document) = workspace.documents.iter().find(|document| document.path == GLOSSARY)
    else {
        return vec![violation(0, "the glossary is missing".to_owned())];
    };
    let entries = match entries(&document.text) {
        Ok(entries) if entries.is_empty() => return vec![violation(0, "no entries".to_owned())],
        Ok(entries) => entries,
        Err((line, text)) => return vec![violation(line, text.to_owned())],
    };
    let mut found = Vec::new();
    for pair in entries.windows(2) {
        if let [before, after] = pair
            && before.word.to_lowercase() >= after.word.to_lowercase()
        {
            let text = format!("`{}` belongs before `{}`, once", after.word, before.word);
            found.push(violation(after.line, text));
        }
    }
    found
}

/// Types, functions, files and folders of production code that have a retired name.
pub fn retired_names(workspace: &Workspace) -> Vec<Violation> {
    let document = workspace.documents.iter().find(|document| document.path == GLOSSARY);
    let entries = document.and_then(|document| entries(&document.text).ok()).unwrap_or_default();
    let mut found = Vec::new();
    for entry in &entries {
        for old in &entry.retired {
            for (owner, path, line) in named(workspace, old) {
                let text = format!("`{old}` is retired: {GLOSSARY} says {}", entry.word);
                found.push(Violation::new(&owner, &path, line, text));
            }
        }
    }
    found.sort();
    found
}

/// Package, file and line of each item, file or folder with a name.
fn named(workspace: &Workspace, name: &str) -> Vec<(String, String, usize)> {
    let (scope, name) = match name.split_once("::") {
        Some((package, name)) => (Some(package), name),
        None => (None, name),
    };
    let is_type = name.starts_with(char::is_uppercase);
    let function = name.strip_suffix("()").or(Some(name).filter(|name| !name.contains(['.', '/'])));
    let mut found = Vec::new();
    let in_scope = |package: &&Package| scope.is_none_or(|scope| scope == package.name());
    for package in workspace.production().filter(in_scope) {
        let mut add = |path: &str, line| {
            found.push((package.name().to_owned(), path.to_owned(), line));
        };
        for source in package.sources.iter().filter(|source| !source.is_test) {
            let types = source.facts.types.iter().filter(|one| !one.is_test && one.name == name);
            let functions = source.facts.functions.iter().filter(|one| !one.is_test);
            let functions = functions.filter(|one| Some(one.name.as_str()) == function);
            types.for_each(|one| add(&source.path, one.line));
            functions.for_each(|one| add(&source.path, one.line));
        }
        if !is_type {
            paths(package, name).iter().for_each(|path| add(path, 0));
        }
    }
    found
}

/// Files and folders of a package that match `name.rs`, `name/` or `name`.
fn paths(package: &Package, name: &str) -> BTreeSet<String> {
    let (file, folder) = match name {
        name if name.ends_with("()") => return BTreeSet::new(),
        name if name.ends_with('/') => (None, Some(name.to_owned())),
        name if name.contains('.') => (Some(name.to_owned()), None),
        name => (Some(format!("{name}.rs")), Some(format!("{name}/"))),
    };
    let mut found = BTreeSet::new();
    for source in package.sources.iter().filter(|source| !source.is_test) {
        let path = &source.path;
        if path.rsplit('/').next() == file.as_deref() {
            found.insert(path.clone());
        }
        if let Some(folder) = &folder
            && let Some(at) = path.find(&format!("/{folder}"))
        {
            found.insert(path.get(..=at + folder.len()).unwrap_or(path).to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "# Glossary\n\n| word | meaning | clause | instead of |\n|---|---|---|---|\n";

    #[test]
    fn entries_are_rows_of_the_table() {
        let text = format!(
            "{HEAD}| chain | Descriptors | §2.7.5 | `links.rs`, `Links` |\n| kick | A | | |\n"
        );
        let entries = entries(&text).unwrap();
        let words: Vec<_> = entries.iter().map(|entry| (entry.line, entry.word.as_str())).collect();
        assert_eq!(words, [(5, "chain"), (6, "kick")]);
        assert_eq!(entries[0].retired, ["links.rs", "Links"]);
    }

    #[test]
    fn a_row_of_three_cells_is_refused() {
        assert!(entries(&format!("{HEAD}| chain | Descriptors | |\n")).is_err());
    }
}
