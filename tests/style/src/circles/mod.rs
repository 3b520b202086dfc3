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

use folders::Child;
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
    /// A small subset of the uses whose removal breaks the circle.
    pub cuts: Vec<String>,
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
        writeln!(f, "  to break it, remove the uses marked * ({}):", self.cuts.len())?;
        for one in &self.uses {
            let mark = if self.cuts.contains(one) { '*' } else { ' ' };
            writeln!(f, "  {mark} {one}")?;
        }
        Ok(())
    }
}

/// The circles of the file graph and of each folder's graph.
pub fn circles(paths: &[&str], uses: &[Use]) -> Vec<Circle> {
    let file = |(index, path): (usize, &&str)| Child {
        name: (*path).to_owned(),
        files: BTreeSet::from([index]),
    };
    let nodes = paths.iter().enumerate().map(file).collect();
    let mut found = Graph { folder: None, nodes, paths, uses }.circles();
    for folder in folders::all(paths) {
        let nodes = folders::children(&folder, paths);
        let circles = Graph { folder: Some(&folder), nodes, paths, uses }.circles();
        // A circle without a subfolder repeats one of the file graph.
        let has_folder = |circle: &Circle| circle.members.iter().any(|name| name.ends_with('/'));
        found.extend(circles.into_iter().filter(has_folder));
    }
    found
}

/// The file graph, or the graph of one folder's children.
struct Graph<'a> {
    folder: Option<&'a str>,
    nodes: Vec<Child>,
    paths: &'a [&'a str],
    uses: &'a [Use],
}

impl Graph<'_> {
    fn node_of(&self, file: usize) -> Option<usize> {
        self.nodes.iter().position(|node| node.files.contains(&file))
    }

    /// The uses that are edges of this graph, with the nodes that they connect.
    fn edges(&self) -> Vec<(usize, usize, &Use)> {
        let edge = |one: &'_ Use| Some((self.node_of(one.from)?, self.node_of(one.to)?));
        let edges = self.uses.iter().filter_map(|one| edge(one).map(|(from, to)| (from, to, one)));
        edges.filter(|(from, to, _)| from != to).collect()
    }

    fn circles(&self) -> Vec<Circle> {
        let edges = self.edges();
        let pairs: Vec<_> = edges.iter().map(|(from, to, _)| (*from, *to)).collect();
        let components = graph::components(self.nodes.len(), &pairs);
        components.iter().map(|members| self.circle(members, &edges)).collect()
    }

    fn circle(&self, members: &[usize], edges: &[(usize, usize, &Use)]) -> Circle {
        let is_inside =
            |(from, to, _): &&(usize, usize, &Use)| members.contains(from) && members.contains(to);
        let edges: Vec<_> = edges.iter().filter(is_inside).collect();
        let pairs: Vec<_> = edges.iter().map(|(from, to, _)| (*from, *to)).collect();
        let cuts = graph::cuts(members, &pairs);
        let is_cut = |(from, to, _): &&&(usize, usize, &Use)| cuts.contains(&(*from, *to));
        let name = |node: &usize| self.nodes.get(*node).map(|node| node.name.clone());
        Circle {
            folder: self.folder.map(str::to_owned),
            members: members.iter().filter_map(name).collect(),
            uses: edges.iter().map(|(_, _, one)| self.describe(one)).collect(),
            cuts: edges.iter().filter(is_cut).map(|(_, _, one)| self.describe(one)).collect(),
        }
    }

    fn describe(&self, one: &Use) -> String {
        let path = |file: usize| self.paths.get(file).copied().unwrap_or_default();
        format!("{}:{} uses {} of {}", path(one.from), one.line, one.item, path(one.to))
    }
}
