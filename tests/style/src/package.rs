//! A package of the workspace and the role of each of its files.

use anyhow::Result;

use crate::circles::{self, Circle};
use crate::manifest::Manifest;
use crate::modules::{ModuleTree, Target, TargetKind};
use crate::source::Source;

/// A package of the workspace.
#[derive(Clone, Debug)]
pub struct Package {
    /// Its folder, relative to the workspace.
    pub folder: String,
    /// Its manifest.
    pub manifest: Manifest,
    /// Its Rust files.
    pub sources: Vec<Source>,
    /// The module trees of its targets.
    pub tree: ModuleTree,
}

impl Package {
    /// Builds the module trees and assigns each file its role. Paths are relative to the workspace.
    pub fn new(folder: &str, manifest: &str, mut sources: Vec<Source>) -> Result<Self> {
        let manifest = Manifest::parse(manifest)?;
        let local = |source: &Source| {
            source.path.strip_prefix(folder)?.strip_prefix('/').map(str::to_owned)
        };
        let paths: Vec<String> = sources.iter().filter_map(local).collect();
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        let prefixed =
            |target: Target| Target { root: format!("{folder}/{}", target.root), ..target };
        let targets: Vec<_> = manifest.targets(&paths).into_iter().map(prefixed).collect();
        let files: Vec<_> = sources
            .iter()
            .map(|source| (source.path.as_str(), source.declarations.as_slice()))
            .collect();
        let tree = ModuleTree::new(&files, &targets);
        let is_test_package = is_for_tests(folder);
        for (index, source) in sources.iter_mut().enumerate() {
            let mut nodes = tree.nodes.iter().filter(|node| node.file == index).peekable();
            source.is_reached = nodes.peek().is_some();
            let is_production =
                nodes.any(|node| node.kind != TargetKind::Test && !node.is_cfg_test);
            source.is_test = is_test_package || !is_production;
        }
        Ok(Self { folder: folder.to_owned(), manifest, sources, tree })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.manifest.name
    }

    /// Whether it is a test package: everything below `tests/`.
    pub fn is_for_tests(&self) -> bool {
        is_for_tests(&self.folder)
    }

    /// The circles of imports between its files and folders.
    pub fn circles(&self) -> Vec<Circle> {
        let scopes: Vec<_> = self.sources.iter().map(|source| &source.scopes).collect();
        let paths: Vec<_> = self.sources.iter().map(|source| source.path.as_str()).collect();
        let uses = circles::uses(&scopes, &self.tree, &self.manifest.library());
        circles::circles(&paths, &uses)
    }
}

fn is_for_tests(folder: &str) -> bool {
    folder == "tests" || folder.starts_with("tests/")
}
