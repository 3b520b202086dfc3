//! The module tree of a package: the file of each `mod` declaration in each target.

use std::collections::BTreeMap;

use syn::Item;

use crate::attributes;

/// The kind of a Cargo target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetKind {
    /// The library.
    Library,
    /// A binary or the build script.
    Program,
    /// An integration test, benchmark or example.
    Test,
}

/// A Cargo target.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its kind.
    pub kind: TargetKind,
    /// Path of its root file.
    pub root: String,
}

/// A declaration `mod name;`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declaration {
    /// Names of the enclosing inline modules, outermost first.
    pub inline: Vec<String>,
    /// The module's name.
    pub name: String,
    /// The value of its `#[path]` attribute.
    pub path: Option<String>,
    /// Whether it or an enclosing module is `#[cfg(test)]`.
    pub is_cfg_test: bool,
}

/// All declarations `mod name;` of a file.
pub fn declarations(file: &syn::File) -> Vec<Declaration> {
    let mut found = Vec::new();
    collect(&file.items, &[], attributes::are_cfg_test(&file.attrs), &mut found);
    found
}

fn collect(items: &[Item], inline: &[String], is_cfg_test: bool, found: &mut Vec<Declaration>) {
    for item in items {
        let Item::Mod(module) = item else { continue };
        let is_cfg_test = is_cfg_test || attributes::are_cfg_test(&module.attrs);
        let name = module.ident.to_string();
        if let Some((_, items)) = &module.content {
            let inline: Vec<_> = inline.iter().cloned().chain([name]).collect();
            collect(items, &inline, is_cfg_test, found);
        } else {
            let path = attributes::path_override(&module.attrs);
            found.push(Declaration { inline: inline.to_vec(), name, path, is_cfg_test });
        }
    }
}

/// A module file in the tree of one target. A file shared by targets has a node in each.
#[derive(Clone, Debug)]
pub struct Node {
    /// The file's index in the package.
    pub file: usize,
    /// The declaring node; `None` for the root file of a target.
    pub parent: Option<usize>,
    /// Module path from the parent's file: enclosing inline modules, then its own name.
    pub place: Vec<String>,
    /// The root node of its target.
    pub root: usize,
    /// The kind of its target.
    pub kind: TargetKind,
    /// Whether it is declared below `#[cfg(test)]`.
    pub is_cfg_test: bool,
}

/// The module trees of all targets of a package.
#[derive(Clone, Debug, Default)]
pub struct ModuleTree {
    /// All nodes, parents before children.
    pub nodes: Vec<Node>,
    /// Declarations without a file in the package: the declaring file and the module's name.
    pub missing: Vec<(String, String)>,
}

impl ModuleTree {
    /// Builds the trees from the paths and declarations of all files of a package.
    pub fn new(files: &[(&str, &[Declaration])], targets: &[Target]) -> Self {
        let paths = files.iter().enumerate().map(|(index, (path, _))| (*path, index)).collect();
        let mut tree = Self::default();
        for target in targets {
            tree.add_target(target, files, &paths);
        }
        tree
    }

    /// The root node of the library.
    pub fn library(&self) -> Option<usize> {
        let is_root = |node: &Node| node.parent.is_none() && node.kind == TargetKind::Library;
        self.nodes.iter().position(is_root)
    }

    fn add_target(
        &mut self,
        target: &Target,
        files: &[(&str, &[Declaration])],
        paths: &BTreeMap<&str, usize>,
    ) {
        let Some(&file) = paths.get(target.root.as_str()) else { return };
        let root = self.nodes.len();
        let kind = target.kind;
        let place = Vec::new();
        self.nodes.push(Node { file, parent: None, place, root, kind, is_cfg_test: false });
        let mut next = root;
        while let Some(node) = self.nodes.get(next).cloned() {
            let Some((path, declarations)) = files.get(node.file) else { break };
            for declaration in *declarations {
                let candidates = candidates(path, node.parent.is_none(), declaration);
                let found = candidates.iter().find_map(|candidate| paths.get(candidate.as_str()));
                let Some(&file) = found else {
                    self.missing.push(((*path).to_owned(), declaration.name.clone()));
                    continue;
                };
                let mut place = declaration.inline.clone();
                place.push(declaration.name.clone());
                let is_cfg_test = node.is_cfg_test || declaration.is_cfg_test;
                self.nodes.push(Node { file, parent: Some(next), place, root, kind, is_cfg_test });
            }
            next += 1;
        }
    }
}

/// Paths where the compiler looks for the file of a declaration in file `path`.
fn candidates(path: &str, is_root: bool, declaration: &Declaration) -> Vec<String> {
    let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
    let stem = file.trim_end_matches(".rs");
    let owns_folder = is_root || stem == "mod";
    let mut below: Vec<&str> = Vec::new();
    if !(owns_folder || declaration.path.is_some() && declaration.inline.is_empty()) {
        below.push(stem);
    }
    below.extend(declaration.inline.iter().map(String::as_str));
    let join = |tail: &str| normal(&[&[folder], below.as_slice(), &[tail]].concat().join("/"));
    match &declaration.path {
        Some(path) => vec![join(path)],
        None => {
            vec![
                join(&format!("{}.rs", declaration.name)),
                join(&format!("{}/mod.rs", declaration.name)),
            ]
        }
    }
}

/// Removes `.` and `..` from a path.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)], roots: &[&str]) -> Vec<(String, bool)> {
        let parsed: Vec<_> = files
            .iter()
            .map(|(path, text)| (*path, declarations(&syn::parse_file(text).unwrap())))
            .collect();
        let files: Vec<_> =
            parsed.iter().map(|(path, declarations)| (*path, declarations.as_slice())).collect();
        let target = |root: &&str| Target { kind: TargetKind::Library, root: (*root).to_owned() };
        let tree = ModuleTree::new(&files, &roots.iter().map(target).collect::<Vec<_>>());
        assert_eq!(tree.missing, []);
        tree.nodes.iter().map(|node| (files[node.file].0.to_owned(), node.is_cfg_test)).collect()
    }

    #[test]
    fn modules_are_found_beside_and_below_their_parent() {
        let files = [
            ("src/lib.rs", "mod a; mod b;"),
            ("src/a.rs", "mod c; mod d { mod e; }"),
            ("src/a/c.rs", ""),
            ("src/a/d/e.rs", ""),
            ("src/b/mod.rs", "mod f; #[path = \"other.rs\"] mod g;"),
            ("src/b/f.rs", ""),
            ("src/b/other.rs", ""),
        ];
        let found: Vec<_> =
            tree(&files, &["src/lib.rs"]).into_iter().map(|(path, _)| path).collect();
        let mut expected = files.map(|(path, _)| path);
        let mut found: Vec<_> = found.iter().map(String::as_str).collect();
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expected);
    }

    #[test]
    fn files_below_a_test_module_are_for_tests() {
        let files = [
            ("src/lib.rs", "mod a; #[cfg(test)] mod tests;"),
            ("src/a.rs", ""),
            ("src/tests.rs", "mod model;"),
            ("src/tests/model.rs", ""),
        ];
        let found = tree(&files, &["src/lib.rs"]);
        let expected = [false, false, true, true];
        assert_eq!(found.iter().map(|(_, is_test)| *is_test).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_path_may_climb() {
        let files = [
            ("tests/a/main.rs", "#[path = \"../common/host.rs\"] mod host;"),
            ("tests/common/host.rs", ""),
        ];
        assert_eq!(tree(&files, &["tests/a/main.rs"]).len(), 2);
    }

    #[test]
    fn a_module_without_a_file_is_reported() {
        let text = declarations(&syn::parse_file("mod gone;").unwrap());
        let target = Target { kind: TargetKind::Library, root: "src/lib.rs".to_owned() };
        let tree = ModuleTree::new(&[("src/lib.rs", &text)], &[target]);
        assert_eq!(tree.missing, [("src/lib.rs".to_owned(), "gone".to_owned())]);
    }
}
