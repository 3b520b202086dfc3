//! A FUSE file system with one file, which is a disk.

use std::ffi::OsStr;
use std::io;
use std::time::{Duration, SystemTime};

use block::{ByteOffset, ByteRange, Durability, Operation};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, INodeNo, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite,
    Request, WriteFlags,
};

use super::engine_thread::{EngineThread, Job};

/// The name of the file.
pub(crate) const NAME: &str = "disk";
const ROOT: INodeNo = INodeNo::ROOT;
const DISK: INodeNo = INodeNo(2);
const TTL: Duration = Duration::from_secs(3600);

/// The file system.
pub(crate) struct DiskFile {
    pub(crate) engine: EngineThread,
    /// Size of the disk in bytes.
    pub(crate) size: u64,
}

impl DiskFile {
    fn attributes(&self, ino: INodeNo) -> FileAttr {
        let is_disk = ino == DISK;
        FileAttr {
            ino,
            size: if is_disk { self.size } else { 0 },
            blocks: if is_disk { self.size / 512 } else { 0 },
            atime: SystemTime::UNIX_EPOCH,
            mtime: SystemTime::UNIX_EPOCH,
            ctime: SystemTime::UNIX_EPOCH,
            crtime: SystemTime::UNIX_EPOCH,
            kind: if is_disk { FileType::RegularFile } else { FileType::Directory },
            perm: if is_disk { 0o600 } else { 0o700 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    fn submit(&self, op: Operation, reply: ReplyEmpty) {
        let done = move |result: io::Result<Vec<u8>>| match result {
            Ok(_) => reply.ok(),
            Err(error) => reply.error(error.into()),
        };
        self.engine.submit(Job { op, data: Vec::new(), done: Box::new(done) });
    }
}

impl Filesystem for DiskFile {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let _ = config.set_max_write(1 << 20);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == ROOT && name == NAME {
            reply.entry(&TTL, &self.attributes(DISK), fuser::Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(ino));
    }

    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // Each request of the loop device is one of the disk, as it was made.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let len = u64::from(size).min(self.size.saturating_sub(offset));
        let done = move |result: io::Result<Vec<u8>>| match result {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(error.into()),
        };
        let data = vec![0; usize::try_from(len).unwrap_or(0)];
        let op = Operation::Read { at: ByteOffset(offset) };
        self.engine.submit(Job { op, data, done: Box::new(done) });
    }

    fn write(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let done = move |result: io::Result<Vec<u8>>| match result {
            Ok(_) => reply.written(size),
            Err(error) => reply.error(error.into()),
        };
        let op = Operation::Write { at: ByteOffset(offset), durability: Durability::Volatile };
        self.engine.submit(Job { op, data: data.to_vec(), done: Box::new(done) });
    }

    fn flush(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.submit(Operation::Flush, reply);
    }

    fn fallocate(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        /// `FALLOC_FL_PUNCH_HOLE` and `FALLOC_FL_ZERO_RANGE`.
        const PUNCH_HOLE: i32 = 2;
        const ZERO_RANGE: i32 = 16;
        let range = ByteRange { start: ByteOffset(offset), len: length };
        let durability = Durability::Volatile;
        if mode & PUNCH_HOLE != 0 {
            self.submit(Operation::Discard { range, durability, more_follows: false }, reply);
        } else if mode & ZERO_RANGE != 0 {
            self.submit(Operation::WriteZeroes { range, unmap: false, durability }, reply);
        } else {
            reply.error(Errno::EOPNOTSUPP);
        }
    }
}
