//! The files of exposed states: a folder for each, with the disk and its marks. Threads of the FUSE
//! session.
//!
//! A number is never used for two states, so that nothing that the kernel caches of one can be read
//! in another.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use fuser::{Errno, FileAttr, FileType, INodeNo};

use super::ahead::{KernelCache, Reads};
use crate::CheckedDisk;

/// Name of the file that is the disk.
pub(super) const DISK: &str = "disk";
/// Name of the file that has the marks.
pub(super) const MARKS: &str = "marks";

/// Numbers of inodes for each state.
const INODES: u64 = 4;

/// A state as it is exposed.
pub(super) struct StateFiles {
    disk: Arc<dyn CheckedDisk>,
    marks: Vec<u8>,
    pub(super) reads: Reads,
}

/// The states that are exposed, by their numbers.
#[derive(Default)]
pub(super) struct States {
    known: RwLock<HashMap<u64, Arc<StateFiles>>>,
    /// The number of the state before the next.
    last: AtomicU64,
    pub(super) cache: KernelCache,
}

impl States {
    /// Exposes a disk under a new number.
    pub(super) fn add(&self, disk: Arc<dyn CheckedDisk>) -> u64 {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let marks = disk.marks().into_bytes();
        let files = StateFiles { marks, disk, reads: Reads::default() };
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::new(files));
        number
    }

    /// Ends it: later accesses fail with `ENXIO`.
    pub(super) fn remove(&self, number: u64) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).remove(&number);
    }

    fn find(&self, number: u64) -> Option<Arc<StateFiles>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }
}

/// The object that an inode number stands for.
pub(super) enum StateNode {
    Root,
    Folder(u64),
    Disk(u64, Arc<StateFiles>),
    Marks(u64, Arc<StateFiles>),
}

impl StateNode {
    fn inode(&self) -> u64 {
        match self {
            Self::Root => INodeNo::ROOT.0,
            Self::Folder(number) => number * INODES,
            Self::Disk(number, _) => number * INODES + 1,
            Self::Marks(number, _) => number * INODES + 2,
        }
    }
}

/// The file system of a mount.
pub(super) struct StateFs {
    states: Arc<States>,
    /// Owner of all files.
    user: u32,
    group: u32,
    mounted: SystemTime,
}

impl StateFs {
    pub(super) fn new(states: Arc<States>) -> Self {
        let user = rustix::process::getuid().as_raw();
        let group = rustix::process::getgid().as_raw();
        Self { states, user, group, mounted: SystemTime::now() }
    }

    pub(super) fn node(&self, inode: INodeNo) -> Result<StateNode, Errno> {
        if inode == INodeNo::ROOT {
            return Ok(StateNode::Root);
        }
        let number = inode.0 / INODES;
        let files = self.states.find(number).ok_or(Errno::ENXIO)?;
        match inode.0 % INODES {
            0 => Ok(StateNode::Folder(number)),
            1 => Ok(StateNode::Disk(number, files)),
            2 => Ok(StateNode::Marks(number, files)),
            _ => Err(Errno::ENXIO),
        }
    }

    fn disk(&self, inode: INodeNo) -> Result<Arc<StateFiles>, Errno> {
        match self.node(inode)? {
            StateNode::Disk(_, files) => Ok(files),
            StateNode::Marks(..) => Err(Errno::EACCES),
            StateNode::Root | StateNode::Folder(_) => Err(Errno::EISDIR),
        }
    }

    pub(super) fn child(&self, parent: INodeNo, name: &OsStr) -> Result<StateNode, Errno> {
        let name = name.to_str().ok_or(Errno::ENOENT)?;
        match self.node(parent)? {
            StateNode::Root => {
                let number = name.parse::<u64>().ok().filter(|number| number.to_string() == name);
                let number = number.filter(|number| self.states.find(*number).is_some());
                number.map(StateNode::Folder).ok_or(Errno::ENOENT)
            }
            StateNode::Folder(number) => {
                let files = self.states.find(number).ok_or(Errno::ENXIO)?;
                match name {
                    DISK => Ok(StateNode::Disk(number, files)),
                    MARKS => Ok(StateNode::Marks(number, files)),
                    _ => Err(Errno::ENOENT),
                }
            }
            StateNode::Disk(..) | StateNode::Marks(..) => Err(Errno::ENOTDIR),
        }
    }

    /// The files in a folder.
    pub(super) fn files(&self, folder: INodeNo) -> Result<Vec<(INodeNo, &'static str)>, Errno> {
        match self.node(folder)? {
            // States are not listed: a check knows its own.
            StateNode::Root => Ok(vec![]),
            StateNode::Folder(number) => {
                let inode = |offset| INodeNo(number * INODES + offset);
                Ok(vec![(inode(1), DISK), (inode(2), MARKS)])
            }
            StateNode::Disk(..) | StateNode::Marks(..) => Err(Errno::ENOTDIR),
        }
    }

    pub(super) fn attributes(&self, node: &StateNode) -> FileAttr {
        let (kind, perm, size) = match node {
            StateNode::Root | StateNode::Folder(_) => (FileType::Directory, 0o500, 0),
            StateNode::Disk(_, files) => (FileType::RegularFile, 0o600, files.disk.size()),
            StateNode::Marks(_, files) => (FileType::RegularFile, 0o400, files.marks.len() as u64),
        };
        FileAttr {
            ino: INodeNo(node.inode()),
            size,
            blocks: size.div_ceil(512),
            atime: self.mounted,
            mtime: self.mounted,
            ctime: self.mounted,
            crtime: self.mounted,
            kind,
            perm,
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid: self.user,
            gid: self.group,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    pub(super) fn read_node(&self, inode: INodeNo, at: u64, len: u32) -> Result<Vec<u8>, Errno> {
        let len = u64::from(len);
        match self.node(inode)? {
            StateNode::Root | StateNode::Folder(_) => Err(Errno::EISDIR),
            StateNode::Disk(_, files) => {
                let len = within(files.disk.size(), at, len);
                let mut buffer = vec![0; usize::try_from(len).map_err(|_| Errno::EINVAL)?];
                if !buffer.is_empty() {
                    files.disk.read(at, &mut buffer).map_err(Errno::from)?;
                }
                Ok(buffer)
            }
            StateNode::Marks(_, files) => {
                let start = usize::try_from(at).unwrap_or(usize::MAX).min(files.marks.len());
                let rest = files.marks.get(start..).unwrap_or_default();
                let len = usize::try_from(len).unwrap_or(usize::MAX).min(rest.len());
                Ok(rest.get(..len).unwrap_or_default().to_vec())
            }
        }
    }

    /// After a read of `len` bytes from byte `at`.
    pub(super) fn give_ahead(&self, inode: INodeNo, at: u64, len: u64) {
        if let Ok(StateNode::Disk(_, files)) = self.node(inode) {
            self.states.cache.read(&*files.disk, &files.reads, inode, at, at + len);
        }
    }

    pub(super) fn write_disk(&self, inode: INodeNo, at: u64, data: &[u8]) -> Result<u32, Errno> {
        let files = self.disk(inode)?;
        let len = within(files.disk.size(), at, data.len() as u64);
        let len = u32::try_from(len).map_err(|_| Errno::EINVAL)?;
        if len == 0 && !data.is_empty() {
            return Err(Errno::ENOSPC);
        }
        files.disk.write(at, data.get(..len as usize).unwrap_or_default()).map_err(Errno::from)?;
        Ok(len)
    }

    pub(super) fn allocate(
        &self,
        inode: INodeNo,
        at: u64,
        len: u64,
        mode: i32,
    ) -> Result<(), Errno> {
        let files = self.disk(inode)?;
        let inside = within(files.disk.size(), at, len);
        let keeps_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        if inside < len && !keeps_size {
            return Err(Errno::ENOSPC);
        }
        match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => Ok(()),
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE if inside == 0 => Ok(()),
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE => {
                files.disk.zero(at, inside).map_err(Errno::from)
            }
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    pub(super) fn resize(&self, inode: INodeNo, size: Option<u64>) -> Result<FileAttr, Errno> {
        let node = self.node(inode)?;
        let attributes = self.attributes(&node);
        // A disk keeps its size. Times and modes are those of the mount, whatever is set.
        if size.is_some_and(|size| size != attributes.size) {
            return Err(Errno::EPERM);
        }
        Ok(attributes)
    }
}

/// How much of a range is within a disk.
fn within(size: u64, at: u64, len: u64) -> u64 {
    len.min(size.saturating_sub(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct NoDisk;

    impl CheckedDisk for NoDisk {
        fn size(&self) -> u64 {
            0
        }

        fn read(&self, _: u64, _: &mut [u8]) -> std::io::Result<()> {
            Ok(())
        }

        fn write(&self, _: u64, _: &[u8]) -> std::io::Result<()> {
            Ok(())
        }

        fn zero(&self, _: u64, _: u64) -> std::io::Result<()> {
            Ok(())
        }

        fn marks(&self) -> String {
            String::new()
        }
    }

    #[test]
    fn no_number_is_used_twice() {
        let states = States::default();
        let mut last = 0;
        for _ in 0..3 {
            let number = states.add(Arc::new(NoDisk));
            assert!(number > last && states.find(number).is_some());
            states.remove(number);
            assert!(states.find(number).is_none());
            last = number;
        }
    }
}
