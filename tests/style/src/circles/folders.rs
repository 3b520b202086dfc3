//! Folders of a package and their children, the nodes of the folder graph.

use std::collections::{BTreeMap, BTreeSet};

/// A child of a folder: a file, or a subfolder with all files below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Child {
    /// Its name; a subfolder's ends in a slash.
    pub(crate) name: String,
    /// Indices of its files.
    pub(crate) files: BTreeSet<usize>,
}

/// All folders with a file at any depth.
pub(crate) fn all(paths: &[&str]) -> BTreeSet<String> {
    let mut folders = BTreeSet::new();
    for path in paths {
        let mut rest = *path;
        while let Some((folder, _)) = rest.rsplit_once('/') {
            folders.insert(folder.to_owned());
            rest = folder;
        }
    }
    folders
}

/// The children of a folder. A file `name.rs` beside a folder `name/` belongs to that folder, as
/// `name/mod.rs` would.
pub(crate) fn children(folder: &str, paths: &[&str]) -> Vec<Child> {
    let mut children: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
    for (index, path) in paths.iter().enumerate() {
        let Some(below) = path.strip_prefix(folder) else { continue };
        let name = match below.strip_prefix('/').map(|below| below.split_once('/').ok_or(below)) {
            Some(Ok((child, _))) => format!("{child}/"),
            Some(Err(file)) => file.to_owned(),
            None if below == ".rs" => path.rsplit('/').next().unwrap_or(path).to_owned(),
            None => continue,
        };
        children.entry(name).or_default().insert(index);
    }
    let names: Vec<String> = children.keys().cloned().collect();
    for file in names.iter().filter_map(|name| name.strip_suffix(".rs")) {
        if names.contains(&format!("{file}/"))
            && let Some(root) = children.remove(&format!("{file}.rs"))
        {
            children.entry(format!("{file}/")).or_default().extend(root);
        }
    }
    children.into_iter().map(|(name, files)| Child { name, files }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATHS: [&str; 5] = ["src/lib.rs", "src/a/mod.rs", "src/a/b.rs", "src/c.rs", "src/c/d.rs"];

    #[test]
    fn a_folder_stands_for_everything_below_it() {
        let found = children("src", &PATHS);
        let found: Vec<_> =
            found.iter().map(|child| (child.name.as_str(), child.files.len())).collect();
        assert_eq!(found, [("a/", 2), ("c/", 2), ("lib.rs", 1)]);
        assert_eq!(children("src/a", &PATHS).len(), 2);
        let names: Vec<_> = children("src/c", &PATHS).into_iter().map(|child| child.name).collect();
        assert_eq!(names, ["c.rs", "d.rs"]);
    }

    #[test]
    fn folders_are_found_at_each_level() {
        let found: Vec<_> = all(&PATHS).into_iter().collect();
        assert_eq!(found, ["src", "src/a", "src/c"]);
    }
}
