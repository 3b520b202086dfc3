//! What old recipes have left in the cache goes, once nobody has used it for a while.
//!
//! A product's folder was last modified when it was last used. Nothing but products is removed, and whether they are in
//! use at this moment is not looked at: a scenario uses what it has just touched.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

/// How long the products of other recipes are kept after their last use: somebody may go back to one.
pub(super) const KEPT_FOR: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// Notes that products are used now. Those of another user cannot be touched, but that user has.
pub(super) fn touch<'a>(products: impl IntoIterator<Item = &'a PathBuf>) {
    for product in products {
        let _ = File::open(product).and_then(|folder| folder.set_modified(SystemTime::now()));
    }
}

/// Removes the products in `cache` that are none of `ours` and have not been used for so long. Says which on stderr.
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

/// Whether a path is a folder that a step of some recipe has made, or not finished.
fn is_product(path: &Path) -> bool {
    let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    let key = name.rsplit_once('-').map_or("", |(_, key)| key);
    let is_hex = |digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
    let ends = [None, Some("unfinished")];
    key.len() == 16
        && key.bytes().all(is_hex)
        && ends.contains(&path.extension().map(|end| end.to_str().unwrap_or("?")))
        && fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

/// Bytes that everything below a path takes.
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

    /// A cache with a folder of each name, last used so many days ago.
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
    fn what_nobody_used_for_two_weeks_goes() {
        let unfinished = "debian-root-00112233445566aa.unfinished";
        let cache = cache(&[(KIT, 15), (OLD, 14), ("root-00112233445566aa", 13), (unfinished, 15)]);
        let ours = cache.path().join(KIT);
        prune(cache.path(), std::slice::from_ref(&ours), KEPT_FOR).unwrap();
        assert_eq!(left(cache.path()), [KIT, "root-00112233445566aa"]);
        prune(cache.path(), &[], KEPT_FOR).unwrap();
        assert_eq!(left(cache.path()), [KIT, "root-00112233445566aa"], "ours was used just now");
    }

    #[test]
    fn what_is_used_now_stays_and_what_the_lab_did_not_make() {
        let others =
            ["logs", "kit", "kit-0123456789abcdeg", "fedcba9876543210", "kit-fedcba9876543210.img"];
        let aged: Vec<_> = others.iter().map(|name| (*name, 100)).collect();
        let cache = cache(&[&aged[..], &[(KIT, 0), (OLD, 0)]].concat());
        let file = cache.path().join("image-fedcba9876543210");
        fs::write(&file, "not a folder").unwrap();
        std::os::unix::fs::symlink("logs", cache.path().join("root-fedcba9876543210")).unwrap();
        prune(cache.path(), &[cache.path().join(KIT)], Duration::ZERO).unwrap();
        let mut expected =
            [&others[..], &[KIT, "image-fedcba9876543210", "root-fedcba9876543210"]].concat();
        expected.sort_unstable();
        assert_eq!(left(cache.path()), expected);
    }

    #[test]
    fn a_size_is_that_of_all_files() {
        let cache = cache(&[(KIT, 0), (OLD, 0)]);
        let bytes = allocated(cache.path()).unwrap();
        assert!((16 << 10..64 << 10).contains(&bytes), "{bytes}");
    }
}
