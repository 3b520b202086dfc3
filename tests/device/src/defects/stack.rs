//! The whole stack over files and devices of this host: driver, virtio-blk, worker, engine.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use block::{Backend, CacheMode, DiskOptions, EngineKind, RawFile};
use devices::virtio::Block;
use driver::{Device, Disk, Machine, Outcome, Request, kind};
use fixtures::scratch;

use fixtures::host::{Loop, Mount, sh};

/// Both engines.
pub(crate) const ENGINES: [EngineKind; 2] = [EngineKind::IoUring, EngineKind::Threads];
pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const OK: u8 = 0;
pub(crate) const IO_ERROR: u8 = 1;
pub(crate) const UNSUPPORTED: u8 = 2;

/// A disk with its driver and its backend.
pub(crate) struct Stack {
    pub(crate) disk: Disk,
    pub(crate) backend: Arc<RawFile>,
}

impl Stack {
    pub(crate) fn new(path: &Path, mode: CacheMode, engine: EngineKind) -> Self {
        Self::with(path, &DiskOptions { engine, ..DiskOptions::new(mode) })
    }

    pub(crate) fn with(path: &Path, options: &DiskOptions) -> Self {
        let backend = Arc::new(RawFile::open(path, options).unwrap());
        let block = Block::new("defects", "serial", 1, Arc::clone(&backend) as Arc<dyn Backend>);
        let machine = Machine::new(vec![Box::new(block)]);
        Self { disk: Disk::start(Device::find(&machine, 1), u64::MAX, 256), backend }
    }

    /// Runs one request and returns its status.
    pub(crate) fn status(&mut self, request: &Request) -> u8 {
        self.disk.run(request).status
    }

    pub(crate) fn flush(&mut self) -> u8 {
        self.status(&Request::bare(kind::FLUSH))
    }

    /// Writes `len` bytes of `byte` at `sector` in requests of 1 MiB and returns their statuses.
    pub(crate) fn fill(&mut self, sector: u64, len: u64, byte: u8) -> Vec<u8> {
        let pieces = (0..len).step_by(1 << 20).map(|at| (at, (len - at).min(MIB)));
        let requests = pieces.map(|(at, len)| {
            Request::write(sector + at / 512, &vec![byte; usize::try_from(len).unwrap()])
        });
        requests.map(|request| self.status(&request)).collect()
    }

    /// Reads `len` bytes at `sector`.
    pub(crate) fn read(&mut self, sector: u64, len: u64) -> Vec<u8> {
        self.disk.read(sector, u32::try_from(len).unwrap())
    }

    /// Runs a DISCARD or WRITE_ZEROES; `flags` is UNMAP or 0.
    pub(crate) fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> Outcome {
        self.disk.run(&Request::ranges(kind, &[(sector, sectors, flags)]))
    }
}

/// An ext4 of 64 MiB on a loop device, which can be frozen.
pub(crate) struct Ext4 {
    mount: PathBuf,
    _folder: tempfile::TempDir,
    frozen: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Ext4 {
    pub(crate) fn new(block_bytes: u32) -> Self {
        let folder = tempfile::TempDir::new_in(scratch()).unwrap();
        let (image, mount) = (folder.path().join("ext4"), folder.path().join("mount"));
        std::fs::create_dir(&mount).unwrap();
        std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        let [image, at] = [&image, &mount].map(|path| path.to_str().unwrap());
        sh("mkfs.ext4", &["-q", "-F", "-m", "0", "-b", &block_bytes.to_string(), image]);
        sh("mount", &["-o", "loop,noatime", image, at]);
        Self { mount, _folder: folder, frozen: None }
    }

    /// Makes a synced file filled with `byte`.
    pub(crate) fn file(&self, len: u64, byte: u8) -> PathBuf {
        let path = self.mount.join("disk");
        std::fs::write(&path, vec![byte; usize::try_from(len).unwrap()]).unwrap();
        std::fs::File::open(&path).unwrap().sync_all().unwrap();
        path
    }

    /// Freezes the file system: changes block uninterruptibly. It thaws after 60 s if the test
    /// hangs.
    pub(crate) fn freeze(&mut self) {
        let mount = self.mount.to_str().unwrap().to_owned();
        sh("fsfreeze", &["--freeze", &mount]);
        let (thawed, watch) = channel();
        let guard = thread::spawn(move || {
            if watch.recv_timeout(Duration::from_secs(60)) == Err(RecvTimeoutError::Timeout) {
                sh("fsfreeze", &["--unfreeze", &mount]);
            }
        });
        self.frozen = Some((thawed, guard));
    }

    pub(crate) fn thaw(&mut self) {
        let Some((thawed, guard)) = self.frozen.take() else { return };
        sh("fsfreeze", &["--unfreeze", self.mount.to_str().unwrap()]);
        drop(thawed);
        guard.join().unwrap();
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        self.thaw();
        sh("umount", &["--lazy", self.mount.to_str().unwrap()]);
    }
}

/// A block device of 8 MiB on a host with 1 MiB of space: the page cache accepts writes whose
/// write-back fails.
pub(crate) fn overcommitted() -> (Mount, Loop) {
    let mount = Mount::new("tmpfs", "size=1M");
    let device = Loop::new(&mount.file(8 * MIB));
    (mount, device)
}
