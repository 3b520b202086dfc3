//! Removal of products of old recipes from the cache.
//!
//! The modification time of a product's folder is that of its last use. Only products are removed.
//! No lock protects a product in use: a scenario touches its products when it starts.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

/// Retention of other recipes' products after their last use: a checkout may return to one.
pub(super) const RETENTION: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// Records the use of products. Fails silently on those of another user.
pub(super) fn touch<'a>(products: impl IntoIterator<Item = &'a PathBuf>) {
    for product in products {
        let _ = File::open(product).and_then(|folder| folder.set_modified(SystemTime::now()));
    }
}

/// Removes the products in `cache` that are not in `ours` and were last used `unused_for` ago or
/// earlier. Reports them on stderr.
pub(super) fn prune(cache: &Path, ours: &[PathBuf], unused_for: Duration) -> Result<()> {
    touch(ours);
    for entry in fs::read_dir(cache)? {
        let path = entry?.path();
        if ours.contains(&path) || !is_product(&path) {
            continue;
        }
        let used = fs::symlink_metadata(&path)?.modified()?;
        let unused = SystemTime::now().duration_since(used).unwrap_or_default();
        if unused >= unused_for {
            let (mib, days) = (allocated(&path)? >> 20, unused.as_secs() / (24 * 60 * 60));
            fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
            eprintln!("lab: {} removed: {mib} MiB, unused for {days} days", path.display());
        }
    }
    Ok(())
}

/// Whether a path is a folder made by a recipe's step, complete or unfinished.
fn is_product(path: &Path) -> bool {
    let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    let key = name.rsplit_once('-').map_or("", |(_, key)| key);
    let is_hex = |digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
    let extensions = [None, Some("unfinished")];
    key.len() == 16
        && key.bytes().all(is_hex)
        && extensions.contains(&path.extension().map(|end| end.to_str().unwrap_or("?")))
        && fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

/// Bytes allocated to a path and everything below it.
fn allocated(path: &Path) -> Result<u64> {
    let metadata = fs::symlink_metadata(path)?;
    let mut bytes = metadata.blocks() * 512;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            bytes += allocated(&entry?.path())?;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    /// A cache of folders by name and days since their last use.
    fn cache(folders: &[(&str, u32)]) -> tempfile::TempDir {
        let cache = tempfile::tempdir().unwrap();
        for (name, days) in folders {
            let folder = cache.path().join(name);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("image"), [1; 8192]).unwrap();
            let used = SystemTime::now() - *days * DAY;
            File::open(&folder).unwrap().set_modified(used).unwrap();
        }
        cache
    }

    fn left(cache: &Path) -> Vec<String> {
        let entries = fs::read_dir(cache).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    const KIT: &str = "kit-0123456789abcdef";
    const OLD: &str = "kit-fedcba9876543210";

    #[test]
    fn products_unused_for_two_weeks_are_removed() {
        let unfinished = "debian-root-00112233445566aa.unfinished";
        let cache = cache(&[(KIT, 15), (OLD, 14), ("root-00112233445566aa", 13), (unfinished, 15)]);
        let ours = cache.path().join(KIT);
        prune(cache.path(), std::slice::from_ref(&ours), RETENTION).unwrap();
        assert_eq!(left(cache.path()), [KIT, "root-00112233445566aa"]);
        prune(cache.path(), &[], RETENTION).unwrap();
        assert_eq!(left(cache.path()), [KIT, "root-00112233445566aa"], "the first call touched it");
    }

    #[test]
    fn products_in_use_and_foreign_files_stay() {
        let foreign =
            ["logs", "kit", "kit-0123456789abcdeg", "fedcba9876543210", "kit-fedcba9876543210.img"];
        let aged: Vec<_> = foreign.iter().map(|name| (*name, 100)).collect();
        let cache = cache(&[&aged[..], &[(KIT, 0), (OLD, 0)]].concat());
        let file = cache.path().join("image-fedcba9876543210");
        fs::write(&file, "not a folder").unwrap();
        std::os::unix::fs::symlink("logs", cache.path().join("root-fedcba9876543210")).unwrap();
        prune(cache.path(), &[cache.path().join(KIT)], Duration::ZERO).unwrap();
        let mut expected =
            [&foreign[..], &[KIT, "image-fedcba9876543210", "root-fedcba9876543210"]].concat();
        expected.sort_unstable();
        assert_eq!(left(cache.path()), expected);
    }

    #[test]
    fn allocated_size_includes_all_files() {
        let cache = cache(&[(KIT, 0), (OLD, 0)]);
        let bytes = allocated(cache.path()).unwrap();
        assert!((16 << 10..64 << 10).contains(&bytes), "{bytes}");
    }
}
