//! Name resolution: from a path in one file to the file that defines the item.

use std::collections::BTreeMap;

use super::scopes::{Meaning, Scope, Scopes};
use crate::modules::{ModuleTree, Node};

/// A scope of one node of the module tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    node: usize,
    scope: usize,
}

#[derive(Clone, Copy, Debug)]
enum Definition<'a> {
    Module(Place),
    Item { file: usize, name: &'a str, meaning: &'a Meaning },
}

/// The use of an item in a file that does not define it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    /// The file that uses it.
    pub from: usize,
    /// The file that defines it.
    pub to: usize,
    /// The item.
    pub item: String,
    /// Line of the first use.
    pub line: usize,
}

/// All uses between the files of a package, except in `#[cfg(test)]` code. `library` is the crate
/// name under which the package's other targets import its library.
pub fn uses(files: &[&Scopes], tree: &ModuleTree, library: &str) -> Vec<Use> {
    let resolver = Resolver::new(files, tree, library);
    let mut found = BTreeMap::new();
    for (index, node) in tree.nodes.iter().enumerate().filter(|(_, node)| !node.is_cfg_test) {
        for (to, item, line) in resolver.uses_of(index) {
            if to != node.file {
                let first = found.entry((node.file, to, item)).or_insert(line);
                *first = line.min(*first);
            }
        }
    }
    found.into_iter().map(|((from, to, item), line)| Use { from, to, item, line }).collect()
}

/// Lookups in progress: a repeated one is a cyclic re-export and yields nothing.
type Pending = Vec<(Place, String)>;

struct Resolver<'a> {
    files: &'a [&'a Scopes],
    tree: &'a ModuleTree,
    children: BTreeMap<(usize, &'a [String]), usize>,
    library: &'a str,
}

impl<'a> Resolver<'a> {
    fn new(files: &'a [&'a Scopes], tree: &'a ModuleTree, library: &'a str) -> Self {
        let nodes = tree.nodes.iter().enumerate();
        let children = nodes
            .filter_map(|(index, node)| Some(((node.parent?, node.place.as_slice()), index)))
            .collect();
        Self { files, tree, children, library }
    }

    fn node(&self, node: usize) -> &'a Node {
        self.tree.nodes.get(node).expect("a node of the tree")
    }

    fn scopes(&self, node: usize) -> &'a Scopes {
        self.files.get(self.node(node).file).expect("a file of the package")
    }

    fn scope(&self, place: Place) -> &'a Scope {
        self.scopes(place.node).scopes.get(place.scope).expect("a scope of the file")
    }

    /// Defining file, item and line of each use in one file.
    fn uses_of(&self, node: usize) -> Vec<(usize, String, usize)> {
        let mut found = Vec::new();
        let scopes = self.scopes(node);
        for (scope, imports) in scopes.scopes.iter().map(|scope| &scope.imports).enumerate() {
            for import in imports.iter().filter(|import| !import.is_reexport) {
                let items = self.items(Place { node, scope }, &import.path);
                found.extend(items.map(|(file, item)| (file, item, import.line)));
            }
        }
        for (used, line) in &scopes.uses {
            let items = self.items(Place { node, scope: used.scope }, &used.path);
            found.extend(items.map(|(file, item)| (file, item, *line)));
        }
        found
    }

    fn items(&self, at: Place, path: &[String]) -> impl Iterator<Item = (usize, String)> {
        let found = self.resolve(at, path, &mut Vec::new());
        let textual = if let ([name], true) = (path, found.is_empty()) {
            self.textual_macro(at, name)
        } else {
            None
        };
        let items = found.into_iter().filter_map(|definition| match definition {
            Definition::Item { file, name, .. } => Some((file, name.to_owned())),
            Definition::Module(_) => None,
        });
        items.chain(textual)
    }

    /// The definition of a macro in textual scope, anywhere in the same target.
    fn textual_macro(&self, at: Place, name: &str) -> Option<(usize, String)> {
        let root = self.node(at.node).root;
        let nodes = self.tree.nodes.iter().filter(|node| node.root == root);
        let mut files = nodes.map(|node| node.file);
        let defines = |file: &usize| self.files.get(*file).is_some_and(|f| f.macros.contains(name));
        files.find(defines).map(|file| (file, name.to_owned()))
    }

    fn resolve(&self, at: Place, path: &[String], pending: &mut Pending) -> Vec<Definition<'a>> {
        let Some((first, rest)) = path.split_first() else { return Vec::new() };
        let mut found = match first.as_str() {
            "crate" => vec![Definition::Module(Place { node: self.node(at.node).root, scope: 0 })],
            "self" => vec![Definition::Module(self.module_around(at))],
            "super" => self.parent(at).map(Definition::Module).into_iter().collect(),
            name => self.visible(at, name, pending),
        };
        for name in rest {
            let steps = found.into_iter().flat_map(|from| self.step(from, name, pending));
            found = steps.collect();
        }
        found
    }

    /// Resolves one path segment relative to the resolved prefix.
    fn step(&self, from: Definition<'a>, name: &str, pending: &mut Pending) -> Vec<Definition<'a>> {
        match from {
            Definition::Module(place) if name == "super" => {
                self.parent(place).map(Definition::Module).into_iter().collect()
            }
            Definition::Module(place) => self.member(place, name, pending),
            Definition::Item { meaning: Meaning::Value, .. } => Vec::new(),
            // Variants and associated items are defined with their type.
            Definition::Item { .. } => vec![from],
        }
    }

    /// Resolves the first segment of a path: block scopes, the module, the library's name.
    fn visible(&self, mut at: Place, name: &str, pending: &mut Pending) -> Vec<Definition<'a>> {
        loop {
            let found = self.member(at, name, pending);
            let scope = self.scope(at);
            match scope.parent {
                _ if !found.is_empty() => return found,
                Some(parent) if scope.is_block => at.scope = parent,
                _ => break,
            }
        }
        let library = self.tree.library().filter(|root| *root != self.node(at.node).root);
        let root = library.filter(|_| name == self.library);
        root.map(|node| Definition::Module(Place { node, scope: 0 })).into_iter().collect()
    }

    /// Resolves a name in one scope: its items and imports, which shadow its globs.
    fn member(&self, at: Place, name: &str, pending: &mut Pending) -> Vec<Definition<'a>> {
        if pending.iter().any(|(place, pending)| *place == at && pending == name) {
            return Vec::new();
        }
        pending.push((at, name.to_owned()));
        let scope = self.scope(at);
        let mut found = self.own(at, name);
        for import in scope.imports.iter().filter(|import| import.name.as_deref() == Some(name)) {
            found.extend(self.resolve(at, &import.path, pending));
        }
        if found.is_empty() {
            for glob in scope.imports.iter().filter(|import| import.name.is_none()) {
                let sources = self.resolve(at, &glob.path, pending);
                found
                    .extend(sources.into_iter().flat_map(|from| self.globbed(from, name, pending)));
            }
        }
        pending.pop();
        found
    }

    fn own(&self, at: Place, name: &str) -> Vec<Definition<'a>> {
        let scope = self.scope(at);
        let Some((name, meanings)) = scope.names.get_key_value(name) else { return Vec::new() };
        let file = self.node(at.node).file;
        let place: Vec<_> = scope.place.iter().chain([name]).cloned().collect();
        let define = |meaning: &'a Meaning| match meaning {
            Meaning::Inline(scope) => Some(Definition::Module(Place { scope: *scope, ..at })),
            Meaning::File => {
                let node = *self.children.get(&(at.node, place.as_slice()))?;
                Some(Definition::Module(Place { node, scope: 0 }))
            }
            meaning => Some(Definition::Item { file, name, meaning }),
        };
        meanings.iter().filter_map(define).collect()
    }

    /// Resolves a name through a glob import of a module or an enum.
    fn globbed(
        &self,
        from: Definition<'a>,
        name: &str,
        pending: &mut Pending,
    ) -> Vec<Definition<'a>> {
        match from {
            Definition::Module(place) => self.member(place, name, pending),
            Definition::Item { meaning: Meaning::Enum(variants), .. }
                if variants.iter().any(|variant| variant == name) =>
            {
                vec![from]
            }
            Definition::Item { .. } => Vec::new(),
        }
    }

    /// The innermost module around a scope.
    fn module_around(&self, mut at: Place) -> Place {
        while let (true, Some(parent)) = (self.scope(at).is_block, self.scope(at).parent) {
            at.scope = parent;
        }
        at
    }

    fn parent(&self, at: Place) -> Option<Place> {
        let module = self.module_around(at);
        if let Some(scope) = self.scope(module).parent {
            return Some(self.module_around(Place { scope, ..module }));
        }
        let node = self.node(module.node);
        let parent = node.parent?;
        let (_, around) = node.place.split_last()?;
        let declares = |scope: &Scope| !scope.is_block && scope.place == around;
        let scope = self.scopes(parent).scopes.iter().position(declares)?;
        Some(Place { node: parent, scope })
    }
}
