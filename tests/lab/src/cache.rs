//! The lab's cache folder and the keys of its products.
//!
//! A product is a folder named after its step and a key, the hash of all inputs of the step. A
//! changed recipe gets a new folder; a scenario that is running keeps the one it started from.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

/// The folder of the recipe scripts in the source tree.
pub(super) fn recipe() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../resources/lab")
}

/// The cache folder: `BULKHEAD_LAB`, else `bulkhead/lab` in the user's cache folder.
pub fn cache() -> Result<PathBuf> {
    let from =
        |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    from("BULKHEAD_LAB")
        .or_else(|| from("XDG_CACHE_HOME").map(|dir| dir.join("bulkhead/lab")))
        .or_else(|| from("HOME").map(|dir| dir.join(".cache/bulkhead/lab")))
        .ok_or_else(|| anyhow!("the lab has no cache folder: set BULKHEAD_LAB or HOME"))
}

/// The hash (FNV-1a) of all inputs of a step.
#[derive(Clone, Copy)]
pub(super) struct Key(u64);

impl Key {
    pub(super) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        for byte in bytes.iter().chain(&[0xff]) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self
    }

    /// Adds the name and text of a recipe file, or of all files in a recipe folder.
    pub(super) fn file(self, name: &str) -> Result<Self> {
        let path = recipe().join(name);
        if path.is_dir() {
            let mut names: Vec<_> = fs::read_dir(&path)?
                .map(|entry| Ok(format!("{name}/{}", entry?.file_name().to_string_lossy())))
                .collect::<Result<_>>()?;
            names.sort();
            return names.iter().try_fold(self, |key, inner| key.file(inner));
        }
        let text = fs::read(&path)
            .with_context(|| format!("reading the recipe file {}", path.display()))?;
        Ok(self.bytes(name.as_bytes()).bytes(&text))
    }

    pub(super) fn files(self, names: &[&str]) -> Result<Self> {
        names.iter().try_fold(self, |key, name| key.file(name))
    }

    pub(super) fn key(self, other: Self) -> Self {
        self.bytes(&other.0.to_le_bytes())
    }

    /// The folder of the product of `step` with this key.
    pub(super) fn folder(self, step: &str) -> Result<PathBuf> {
        Ok(cache()?.join(format!("{step}-{:016x}", self.0)))
    }
}
