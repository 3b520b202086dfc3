//! Whether two paths lead to the same file or device.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// A file or a device, whatever the path that leads to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileIdentity {
    /// A file, by its file system and its inode.
    File(u64, u64),
    /// A block device, by its number: each of its nodes has an inode of its own.
    Device(u64),
}

impl FileIdentity {
    /// That of the file that the path leads to.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub fn at(path: &Path) -> io::Result<Self> {
        Ok(Self::of(&std::fs::metadata(path)?))
    }

    /// That of the file with this metadata.
    pub(crate) fn of(metadata: &Metadata) -> Self {
        if metadata.file_type().is_block_device() {
            Self::Device(metadata.rdev())
        } else {
            Self::File(metadata.dev(), metadata.ino())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("a"), "a").unwrap();
        std::fs::write(path("b"), "a").unwrap();
        std::fs::hard_link(path("a"), path("hard")).unwrap();
        std::os::unix::fs::symlink("a", path("soft")).unwrap();
        let identity = |name: &str| FileIdentity::at(&path(name)).unwrap();
        assert_eq!(identity("a"), identity("hard"));
        assert_eq!(identity("a"), identity("soft"));
        assert_ne!(identity("a"), identity("b"));
        assert!(FileIdentity::at(&path("missing")).is_err());
    }

    #[test]
    fn nodes_of_one_device_are_the_same() {
        if !fixtures::needs::root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let node = |name: &str, minor: &str| {
            let path = folder.path().join(name);
            let mut mknod = std::process::Command::new("mknod");
            assert!(mknod.arg(&path).args(["b", "7", minor]).status().unwrap().success());
            FileIdentity::at(&path).unwrap()
        };
        let (one, same, other) = (node("a", "200"), node("b", "200"), node("c", "201"));
        assert_eq!(one, same);
        assert_ne!(one, other);
    }
}
