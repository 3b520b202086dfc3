//! A temporary folder with a name of its own.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Number of the next folder of this process.
static NEXT: AtomicU64 = AtomicU64::new(0);
/// Names that are tried: those of programs that were killed may be left.
const TRIES: u32 = 10_000;

/// A folder that only its user may enter. Dropping it removes it with all that is in it.
pub(super) struct WorkFolder {
    path: PathBuf,
}

impl WorkFolder {
    /// Makes a folder in `parent`.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(super) fn new_in(parent: &Path) -> io::Result<Self> {
        for _ in 0..TRIES {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = parent.join(format!("bulkhead-crash-{}-{number}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        let own = fs::symlink_metadata(&self.path).map(|found| found.dev());
        // A rest that cannot be removed stays in the folder for temporary files.
        let _ = own.and_then(|device| remove(&self.path, device));
    }
}

/// Removes a folder, and leaves what is on another file system: a check may have left a mount.
fn remove(folder: &Path, device: u64) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let found = fs::symlink_metadata(&path)?;
        if found.dev() != device {
            return Err(io::ErrorKind::CrossesDevices.into());
        }
        if found.is_dir() { remove(&path, device)? } else { fs::remove_file(&path)? }
    }
    fs::remove_dir(folder)
}
