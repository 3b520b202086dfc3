//! The whole stack over files and devices of this host: driver, virtio-blk, worker, engine.

use std::path::Path;
use std::sync::Arc;

use block::{Backend, CacheMode, DiskOptions, EngineKind, RawFile};
use devices::virtio::Block;
use driver::{Device, Disk, Machine, Outcome, Request, kind};
use fixtures::host::{Loop, Mount};

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

/// A block device of 8 MiB on a host with 1 MiB of space: the page cache accepts writes whose
/// write-back fails.
pub(crate) fn overcommitted() -> (Mount, Loop) {
    let mount = Mount::new("tmpfs", "size=1M");
    let device = Loop::new(&mount.file(8 * MIB));
    (mount, device)
}
