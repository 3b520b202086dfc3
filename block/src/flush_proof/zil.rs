//! Counters of the ZFS intent log: `/proc/spl/kstat/zfs`, whose lines are a name, a type and a
//! value.

use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = "/proc/spl/kstat/zfs";
const COMMITS: &str = "zil_commit_count";

/// The file with the counters of a dataset: its own since OpenZFS 2.2, before that one of the
/// module for all datasets. `None` if there is none of both.
pub(super) fn find(dataset: &str) -> Option<PathBuf> {
    find_below(Path::new(ROOT), dataset)
}

fn find_below(root: &Path, dataset: &str) -> Option<PathBuf> {
    let pool = dataset.split('/').next()?;
    let entries = fs::read_dir(root.join(pool)).into_iter().flatten().filter_map(Result::ok);
    let mut files = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("objset-"))
        .map(|entry| entry.path());
    let own = files.find(|file| {
        fs::read_to_string(file).is_ok_and(|text| value(&text, "dataset_name") == Some(dataset))
    });
    own.into_iter().chain([root.join("zil")]).find(|file| commits(file).is_some())
}

/// The number of commits.
pub(super) fn commits(file: &Path) -> Option<u64> {
    value(&fs::read_to_string(file).ok()?, COMMITS)?.parse().ok()
}

fn value<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.lines().find_map(|line| {
        let rest = line.strip_prefix(name)?.strip_prefix(' ')?;
        // The type is a number; a value may contain spaces.
        Some(rest.trim_start().split_once(' ')?.1.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "30 1 0x01 10 2720 4 5\nname                            type data\n";

    fn counters(dataset: &str, lines: &str) -> String {
        format!("{HEADER}dataset_name                    7    {dataset}\n{lines}")
    }

    #[test]
    fn the_counters_of_the_dataset_are_found() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("tank/objset-0x36", &counters("tank", "zil_commit_count    4    1\n"));
        let lines = "zil_commit_count_x    4    9\nzil_commit_count     4    12\n";
        write("tank/objset-0x40", &counters("tank/a b", lines));
        write("tank/io", "x");
        let found = find_below(root.path(), "tank/a b").unwrap();
        assert_eq!(found, root.path().join("tank/objset-0x40"));
        assert_eq!(commits(&found), Some(12));
        assert_eq!(find_below(root.path(), "tank/other"), None);
        // Versions without counters for each dataset.
        write("tank/objset-0x40", &counters("tank/a b", "writes    4    1\n"));
        assert_eq!(find_below(root.path(), "tank/a b"), None);
        write("zil", &format!("{HEADER}zil_commit_count    4    7\n"));
        assert_eq!(commits(&find_below(root.path(), "tank/a b").unwrap()), Some(7));
    }
}
