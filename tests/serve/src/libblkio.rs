//! `bulkhead serve` under libblkio, an independent implementation of a vhost-user-blk front-end and
//! driver.

use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags};
use lab::ServeProcess;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 64 << 10;
const IN_FLIGHT: u64 = 16;

/// A started libblkio instance and its memory, shared with the back-end.
struct Driver {
    blkio: Blkio,
    region: MemoryRegion,
    memory: File,
}

impl Driver {
    fn connect(served: &ServeProcess) -> Self {
        let mut blkio = Blkio::new("virtio-blk-vhost-user").unwrap();
        blkio.set_str("path", served.socket().to_str().unwrap()).unwrap();
        blkio.connect().unwrap();
        let bytes = usize::try_from(IN_FLIGHT * BLOCK).unwrap();
        let region = blkio.alloc_mem_region(bytes).unwrap();
        let path = format!("/proc/self/fd/{}", region.fd);
        let memory = File::options().read(true).write(true).open(path).unwrap();
        Self { blkio, region, memory }
    }

    /// Buffer of a request slot.
    fn buffer(&self, slot: u64) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(
            self.region.addr + usize::try_from(slot * BLOCK).unwrap(),
        )
    }

    /// Writes numbered blocks and reads them back, many in flight.
    fn write_and_read(&self, queue: &mut Blkioq, first: u64) {
        let len = usize::try_from(BLOCK).unwrap();
        for slot in 0..IN_FLIGHT {
            self.memory.write_all_at(&numbered(first + slot), slot * BLOCK).unwrap();
            queue.write((first + slot) * BLOCK, self.buffer(slot), len, 0, ReqFlags::empty());
        }
        complete(queue, IN_FLIGHT);
        self.memory.write_all_at(&vec![0; len * 16], 0).unwrap();
        for slot in 0..IN_FLIGHT {
            queue.read((first + slot) * BLOCK, self.buffer(slot), len, 0, ReqFlags::empty());
        }
        complete(queue, IN_FLIGHT);
        let mut read = vec![0; len];
        for slot in 0..IN_FLIGHT {
            self.memory.read_exact_at(&mut read, slot * BLOCK).unwrap();
            assert!(read == numbered(first + slot), "block {}", first + slot);
        }
    }
}

/// The content of a block.
fn numbered(block: u64) -> Vec<u8> {
    (0..BLOCK / 8).flat_map(|word| (block << 32 | word).to_le_bytes()).collect()
}

/// Waits for `count` requests, all of which must succeed.
fn complete(queue: &mut Blkioq, count: u64) {
    let mut completions: Vec<MaybeUninit<Completion>> =
        (0..count).map(|_| MaybeUninit::uninit()).collect();
    let mut patience = Duration::from_secs(20);
    let all = completions.len();
    let done = queue.do_io(&mut completions, all, Some(&mut patience), None).unwrap();
    for completion in &completions[..done] {
        // SAFETY: `do_io` initializes as many completions as it returns.
        let completion = unsafe { completion.assume_init_ref() };
        assert_eq!(completion.ret, 0);
    }
    assert_eq!(done, all);
}

#[test]
fn libblkio_reads_size_and_limits() {
    let served = ServeProcess::start(64 * MIB, "block_size = 4096\nqueues = 3");
    let driver = Driver::connect(&served);
    assert_eq!(driver.blkio.get_u64("capacity").unwrap(), 64 * MIB);
    assert_eq!(driver.blkio.get_i32("max-queues").unwrap(), 3);
    assert_eq!(driver.blkio.get_i32("request-alignment").unwrap(), 4096);
    assert_eq!(driver.blkio.get_i32("discard-alignment").unwrap(), 4096);
}

#[test]
fn libblkio_reads_its_writes_by_interrupt_and_polling() {
    let served = ServeProcess::start(64 * MIB, "cache = \"none\"\nqueues = 2");
    let mut driver = Driver::connect(&served);
    driver.blkio.set_i32("num-queues", 1).unwrap();
    driver.blkio.set_i32("num-poll-queues", 1).unwrap();
    let mut queues = driver.blkio.start().unwrap();
    driver.blkio.map_mem_region(&driver.region).unwrap();
    for round in 0..8 {
        driver.write_and_read(&mut queues.queues[0], 32 * round);
        driver.write_and_read(&mut queues.poll_queues[0], 32 * round + 16);
    }
    queues.queues[0].flush(0, ReqFlags::empty());
    complete(&mut queues.queues[0], 1);
    let image = fs::read(served.image()).unwrap();
    for (block, bytes) in (0..256).zip(image.chunks(usize::try_from(BLOCK).unwrap())) {
        assert!(bytes == numbered(block), "block {block} of the image");
    }
}

#[test]
fn libblkio_discards_and_zeroes() {
    let served = ServeProcess::start(4 * MIB, "");
    let mut driver = Driver::connect(&served);
    let mut queues = driver.blkio.start().unwrap();
    let queue = &mut queues.queues[0];
    driver.blkio.map_mem_region(&driver.region).unwrap();
    for first in [0, 16, 32, 48] {
        driver.write_and_read(queue, first);
    }
    let allocated = || {
        File::open(served.image()).unwrap().sync_all().unwrap();
        fs::metadata(served.image()).unwrap().blocks() * 512
    };
    let before = allocated();
    assert!(before >= 4 * MIB, "{before} bytes");
    queue.discard(0, MIB, 0, ReqFlags::empty());
    queue.write_zeroes(MIB, MIB, 0, ReqFlags::empty());
    queue.write_zeroes(2 * MIB, MIB, 0, ReqFlags::NO_UNMAP);
    complete(queue, 3);
    let freed = before - allocated();
    assert_eq!(freed, 2 * MIB, "the discarded range and the one zeroed with UNMAP");
    let image = fs::read(served.image()).unwrap();
    assert!(image[..3 << 20].iter().all(|byte| *byte == 0));
    assert!(
        image[3 << 20..].chunks(1 << 16).zip(48..).all(|(bytes, block)| bytes == numbered(block))
    );
}
