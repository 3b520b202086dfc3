//! Type names: unique within a package.

use std::collections::BTreeMap;

use super::Violation;
use crate::Workspace;

/// Types of production code that share a name within their package.
pub fn duplicates(workspace: &Workspace) -> Vec<Violation> {
    let mut found = Vec::new();
    for package in workspace.production() {
        let mut types: BTreeMap<&str, Vec<(&str, usize, &str)>> = BTreeMap::new();
        for source in package.sources.iter().filter(|source| !source.is_test) {
            for one in source.facts.types.iter().filter(|one| !one.is_test) {
                let place = (source.path.as_str(), one.line, one.kind);
                types.entry(&one.name).or_default().push(place);
            }
        }
        for (name, places) in types.into_iter().filter(|(_, places)| places.len() > 1) {
            let count = places.len();
            found.extend(places.into_iter().map(|(path, line, kind)| {
                let text = format!("{kind} {name} is one of {count} types of that name");
                Violation::new(package.name(), path, line, text)
            }));
        }
    }
    found
}
