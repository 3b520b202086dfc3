//! Cargo manifests: members, targets, dependencies.

use anyhow::{Context as _, Result};
use toml::{Table, Value};

use crate::modules::{Target, TargetKind};

/// The `members` of a workspace manifest.
pub fn members(manifest: &str) -> Result<Vec<String>> {
    let manifest: Table = manifest.parse()?;
    let workspace = manifest.get("workspace").context("a manifest without [workspace]")?;
    let members = workspace.get("members").and_then(Value::as_array).context("no members")?;
    Ok(members.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

/// The number of packages in a lock file.
pub fn locked(lock: &str) -> Result<usize> {
    let lock: Table = lock.parse()?;
    Ok(lock.get("package").and_then(Value::as_array).map_or(0, Vec::len))
}

/// The manifest of a package.
#[derive(Clone, Debug, Default)]
pub struct Manifest {
    /// The package's name.
    pub name: String,
    /// Names in `[dependencies]`.
    pub dependencies: Vec<String>,
    /// Names in `[dev-dependencies]`.
    pub dev_dependencies: Vec<String>,
    /// Targets with an explicit path, relative to the package.
    targets: Vec<Target>,
}

impl Manifest {
    /// Parses a `Cargo.toml`.
    pub fn parse(text: &str) -> Result<Self> {
        let table: Table = text.parse()?;
        let name = table.get("package").and_then(|package| package.get("name"));
        let name = name.and_then(Value::as_str).context("a package without a name")?;
        let names = |key: &str| match table.get(key) {
            Some(Value::Table(table)) => table.keys().cloned().collect(),
            _ => Vec::new(),
        };
        let kinds = [
            ("lib", TargetKind::Library),
            ("bin", TargetKind::Program),
            ("test", TargetKind::Test),
            ("bench", TargetKind::Test),
            ("example", TargetKind::Test),
        ];
        let mut targets = Vec::new();
        for (key, kind) in kinds {
            let roots = match table.get(key) {
                Some(Value::Array(roots)) => roots.clone(),
                Some(root) => vec![root.clone()],
                None => Vec::new(),
            };
            let paths = roots.iter().filter_map(|root| root.get("path").and_then(Value::as_str));
            targets.extend(paths.map(|path| Target { kind, root: path.to_owned() }));
        }
        Ok(Self {
            name: name.to_owned(),
            dependencies: names("dependencies"),
            dev_dependencies: names("dev-dependencies"),
            targets,
        })
    }

    /// The crate name of the package's library.
    pub fn library(&self) -> String {
        self.name.replace('-', "_")
    }

    /// The package's targets: those of the manifest, and those that Cargo discovers among `paths`.
    /// Paths are relative to the package.
    pub fn targets(&self, paths: &[&str]) -> Vec<Target> {
        let mut targets = self.targets.clone();
        for path in paths {
            if let Some(kind) = kind_by_place(path)
                && !targets.iter().any(|target| target.root == *path)
            {
                targets.push(Target { kind, root: (*path).to_owned() });
            }
        }
        targets
    }
}

/// The kind of target that Cargo discovers at a path.
fn kind_by_place(path: &str) -> Option<TargetKind> {
    let is_root = |rest: &str| match rest.split_once('/') {
        None => true,
        Some((_, file)) => file == "main.rs",
    };
    match path {
        "src/lib.rs" => return Some(TargetKind::Library),
        "src/main.rs" | "build.rs" => return Some(TargetKind::Program),
        _ => {}
    }
    let places = [
        ("src/bin/", TargetKind::Program),
        ("tests/", TargetKind::Test),
        ("benches/", TargetKind::Test),
        ("examples/", TargetKind::Test),
    ];
    let kind = |(folder, kind): (&str, TargetKind)| {
        path.strip_prefix(folder).is_some_and(is_root).then_some(kind)
    };
    places.into_iter().find_map(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_come_from_manifest_and_places() {
        let text = "[package]\nname = \"a-b\"\n[dependencies]\nc = \"1\"\n[dev-dependencies]\nd = \"1\"\n\
                    [[bin]]\nname = \"e\"\npath = \"src/main.rs\"\n";
        let manifest = Manifest::parse(text).unwrap();
        assert_eq!((manifest.name.as_str(), manifest.library().as_str()), ("a-b", "a_b"));
        assert_eq!((manifest.dependencies.len(), manifest.dev_dependencies.len()), (1, 1));
        let paths = [
            "src/main.rs",
            "src/f.rs",
            "src/bin/g.rs",
            "tests/h.rs",
            "tests/i/main.rs",
            "tests/i/j.rs",
        ];
        let targets = manifest.targets(&paths);
        let roots: Vec<_> = targets.iter().map(|target| target.root.as_str()).collect();
        assert_eq!(roots, ["src/main.rs", "src/bin/g.rs", "tests/h.rs", "tests/i/main.rs"]);
    }

    #[test]
    fn members_are_listed() {
        let members = members("[workspace]\nmembers = [\"block\", \"tests/style\"]").unwrap();
        assert_eq!(members, ["block", "tests/style"]);
    }
}
