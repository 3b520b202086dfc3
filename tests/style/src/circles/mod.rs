//! Circles of imports between the files of a package and between its folders.
//!
//! An edge A → B means that file A names an item defined in file B, by `use`, by a path or by a
//! macro. Re-exports are resolved to the definition; `mod` and re-export lines are no edges. In the
//! folder graph, the nodes are the children of one folder (a file, or a subfolder with all files
//! below it), with an edge where any file of one uses any file of the other.
//!
//! Method calls are not resolved, which would take type inference. `#[cfg(test)]` code is ignored.

mod folders;
mod graph;
mod resolve;
mod scopes;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;

pub use resolve::{Use, uses};
pub use scopes::Scopes;

/// A strongly connected component of the file graph or of one folder's graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Circle {
    /// The folder whose children form it; `None` for a circle of files.
    pub folder: Option<String>,
    /// Its files, or the children of the folder.
    pub members: Vec<String>,
    /// Its edges: each use of one member by another.
    pub uses: Vec<String>,
}

impl fmt::Display for Circle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.members.len();
        let kind = match &self.folder {
            None => "files".to_owned(),
            Some(folder) => format!("children of {folder}"),
        };
        writeln!(f, "{count} {kind} use each other in a circle:")?;
        writeln!(f, "  {}", self.members.join("  "))?;
        self.uses.iter().try_for_each(|one| writeln!(f, "    {one}"))
    }
}

/// The circles of the file graph and of each folder's graph.
pub fn circles(paths: &[&str], uses: &[Use]) -> Vec<Circle> {
    let everything = (0..paths.len()).collect();
    let names: Vec<_> = paths.iter().map(|path| (*path).to_owned()).collect();
    let mut found = among(None, &names, &everything, paths, uses, Some);
    for folder in folders::all(paths) {
        let children = folders::children(&folder, paths);
        let child_of = |file| children.iter().position(|child| child.files.contains(&file));
        let names: Vec<_> = children.iter().map(|child| child.name.clone()).collect();
        let has_folder = |circle: &Circle| circle.members.iter().any(|name| name.ends_with('/'));
        let files = children.iter().flat_map(|child| child.files.clone()).collect();
        let circles = among(Some(&folder), &names, &files, paths, uses, child_of);
        // A circle without a subfolder repeats one of the file graph.
        found.extend(circles.into_iter().filter(has_folder));
    }
    found
}

/// The circles of a graph with the nodes `names`; `node_of` maps a file to its node.
fn among(
    folder: Option<&str>,
    names: &[String],
    files: &BTreeSet<usize>,
    paths: &[&str],
    uses: &[Use],
    node_of: impl Fn(usize) -> Option<usize>,
) -> Vec<Circle> {
    let mut edges = vec![BTreeSet::new(); names.len()];
    let ends = |one: &Use| Some((node_of(one.from)?, node_of(one.to)?)).filter(|(a, b)| a != b);
    let inside = |one: &&Use| files.contains(&one.from) && files.contains(&one.to);
    for (from, to) in uses.iter().filter(inside).filter_map(ends) {
        if let Some(edges) = edges.get_mut(from) {
            edges.insert(to);
        }
    }
    let edges: Vec<Vec<usize>> = edges.into_iter().map(|to| to.into_iter().collect()).collect();
    let path = |file: usize| paths.get(file).copied().unwrap_or_default();
    let describe = |one: &Use| {
        format!("{}:{} uses {} of {}", path(one.from), one.line, one.item, path(one.to))
    };
    let circle = |members: Vec<usize>| {
        let is_part = |one: &&Use| {
            ends(one).is_some_and(|(a, b)| members.contains(&a) && members.contains(&b))
        };
        Circle {
            folder: folder.map(str::to_owned),
            members: members.iter().filter_map(|node| names.get(*node).cloned()).collect(),
            uses: uses.iter().filter(inside).filter(is_part).map(describe).collect(),
        }
    };
    graph::components(&edges).into_iter().map(circle).collect()
}
