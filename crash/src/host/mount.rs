//! The mount of exposed states.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::{BackgroundSession, Config, INodeNo, MountOption, Notifier, Session, SessionACL};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};

use super::states::{DISK, MARKS, StateFs, States};
use super::sys::unshare_mounts;
use super::work_folder::WorkFolder;
use crate::CheckedDisk;

/// A mount under which states can be exposed. Dropping it removes it.
pub struct StateMount {
    states: Arc<States>,
    notifier: Notifier,
    session: Option<BackgroundSession>,
    path: PathBuf,
    /// The folder of the mount point, which is removed after it.
    folder: WorkFolder,
}

impl StateMount {
    /// Mounts in the folder for temporary files, served by `threads` threads.
    ///
    /// # Errors
    ///
    /// The host has no FUSE or does not let the user mount, or is out of resources.
    pub fn new(threads: usize) -> io::Result<Self> {
        let folder = WorkFolder::new_in(&std::env::temp_dir())?;
        let path = folder.path().join("states");
        std::fs::create_dir(&path)?;
        let states: Arc<States> = Arc::default();
        let mut config = Config::default();
        let (name, kind) = ("bulkhead".to_owned(), "bulkhead".to_owned());
        config.mount_options =
            vec![MountOption::FSName(name), MountOption::Subtype(kind), MountOption::NoExec];
        config.acl = SessionACL::Owner;
        config.n_threads = Some(threads.max(2));
        let session = Session::new(StateFs::new(Arc::clone(&states)), &path, &config)?.spawn()?;
        let notifier = session.notifier();
        states.cache.serve(notifier.clone());
        Ok(Self { states, notifier, session: Some(session), path, folder })
    }

    /// A folder for what belongs to the mount.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Exposes a disk until the answer is dropped.
    #[must_use]
    pub fn expose(&self, disk: Arc<dyn CheckedDisk>) -> ExposedState {
        let number = self.states.add(disk);
        ExposedState {
            number,
            folder: self.path.join(number.to_string()),
            states: Arc::clone(&self.states),
            notifier: self.notifier.clone(),
        }
    }
}

impl Drop for StateMount {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        if session.umount_and_join().is_err() {
            // Someone has a file open, or works in a folder: the mount goes when they have left.
            let _ = unmount(&self.path, UnmountFlags::DETACH);
        }
    }
}

/// A disk that is exposed as a file. Dropping it ends that: those who have it open get errors.
pub struct ExposedState {
    number: u64,
    folder: PathBuf,
    states: Arc<States>,
    notifier: Notifier,
}

impl ExposedState {
    /// The file that is the disk.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.folder.join(DISK)
    }

    /// The file that has the marks that were made before the power cut.
    #[must_use]
    pub fn marks(&self) -> PathBuf {
        self.folder.join(MARKS)
    }
}

impl Drop for ExposedState {
    fn drop(&mut self) {
        self.states.remove(self.number);
        // The kernel forgets the names, which would else take memory until the mount ends.
        let name = self.number.to_string();
        let _ = self.notifier.inval_entry(INodeNo::ROOT, OsStr::new(&name));
    }
}

/// Gives the calling thread, and those that it starts, mounts that no other sees and that end with
/// them, however they end.
///
/// # Errors
///
/// The host refuses, as to users other than root.
pub fn separate_mounts() -> io::Result<()> {
    unshare_mounts()?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(mount_change(Path::new("/"), private)?)
}
