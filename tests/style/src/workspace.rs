//! The workspace: its packages, from the root manifest, and its documents.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::document::Document;
use crate::manifest;
use crate::package::Package;
use crate::source::Source;

/// The parsed workspace.
#[derive(Clone, Debug)]
pub struct Workspace {
    /// Its folder.
    pub root: PathBuf,
    /// The packages listed in `members`.
    pub packages: Vec<Package>,
    /// Markdown, scripts and configuration.
    pub documents: Vec<Document>,
    /// The number of packages in `Cargo.lock`.
    pub locked: usize,
}

impl Workspace {
    /// Reads and parses all files.
    pub fn load(root: &Path) -> Result<Self> {
        let members = manifest::members(&read(&root.join("Cargo.toml"))?)?;
        let packages = members.iter().map(|member| package(root, member, &members));
        Ok(Self {
            packages: packages.collect::<Result<_>>()?,
            documents: documents(root)?,
            locked: manifest::locked(&read(&root.join("Cargo.lock"))?)?,
            root: root.to_owned(),
        })
    }

    /// Loads the workspace of this crate.
    pub fn here() -> Result<Self> {
        Self::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?)
    }

    /// All Rust files.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        self.packages.iter().flat_map(|package| &package.sources)
    }

    /// The packages outside of `tests/`.
    pub fn production(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| !package.is_for_tests())
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

fn package(root: &Path, member: &str, members: &[String]) -> Result<Package> {
    // Members below this one are packages of their own.
    let others: Vec<_> = members
        .iter()
        .filter(|other| other.starts_with(&format!("{member}/")))
        .map(|other| root.join(other))
        .collect();
    let files = files(root, &root.join(member), &others)?;
    let sources = files
        .iter()
        .filter(|path| has_extension(path, "rs"))
        .map(|path| Source::parse(path, read(&root.join(path))?));
    let manifest = read(&root.join(member).join("Cargo.toml"))?;
    Package::new(member, &manifest, sources.collect::<Result<_>>()?)
}

/// Files other than Rust whose prose is checked.
fn documents(root: &Path) -> Result<Vec<Document>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if has_extension(&name, "md") || name == "Makefile" || has_extension(&name, "toml") {
            found.push(name);
        }
    }
    for folder in ["docs", "resources", ".ci"] {
        found.extend(files(root, &root.join(folder), &[])?);
    }
    found.sort();
    let documents = found.into_iter().filter_map(|path| {
        // Files that are not UTF-8 contain no prose.
        let text = fs::read_to_string(root.join(&path)).ok()?;
        Document::new(path, text)
    });
    Ok(documents.collect())
}

fn has_extension(path: &str, extension: &str) -> bool {
    Path::new(path).extension().is_some_and(|found| found == extension)
}

/// All files below a folder, relative to `root` and sorted, except those below `except`.
fn files(root: &Path, folder: &Path, except: &[PathBuf]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                if !except.contains(&path) {
                    folders.push(path);
                }
            } else if let Ok(path) = path.strip_prefix(root) {
                found.push(path.to_str().context("a path that is not UTF-8")?.to_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}
