//! Defect 5: Discard, zeroing and flush done on the queue's thread, so that one big TRIM stalls
//! every read.
//!
//! The host is made to take for ever: its file system is frozen, so that whoever changes it waits
//! until it is thawed. Reads of the same queue that come after must come back meanwhile: the
//! witness is who came back, not how long it took.

use std::time::Duration;

use block::{Backend, CacheMode, EngineKind};
use driver::{Data, Framing, PendingRequest, Request, kind};
use fixtures::wait_for;

use super::stack::{ENGINES, Ext4, MIB, OK, Stack};
use fixtures::host::{Loop, is_root};

const READS: u64 = 32;
const NO_STATUS: u8 = 0xff;

/// Offers `slow` requests, which the frozen host keeps, and then reads, which come back; thaws, and
/// all is done.
fn reads_pass(host: &mut Ext4, stack: &mut Stack, slow: &[Request], what: &str) {
    let mut offer = |request: &Request| stack.disk.offer(0, request, &Framing::usual(request));
    let slow: Vec<PendingRequest> = slow.iter().map(&mut offer).collect();
    host.freeze();
    stack.disk.kick(0);
    let status = |stack: &Stack, pending: &PendingRequest| {
        stack.disk.device.machine().read(pending.writable + u64::from(pending.writable_len) - 1, 1)
            [0]
    };
    let mut back = 0;
    for at in 0..READS {
        let pending = stack.disk.submit(&Request::read(at * 8, 4096));
        let ring = &mut stack.disk.rings[0];
        if wait_for(|| ring.take_used()).is_none() {
            break;
        }
        back += u64::from(status(stack, &pending) == OK);
    }
    let kept = slow.iter().filter(|pending| status(stack, pending) == NO_STATUS).count();
    // Nothing that fails may leave the host frozen: its end would wait for that of the disk.
    host.thaw();
    assert_eq!(back, READS, "{what}: the reads come back");
    assert_eq!(kept, slow.len(), "{what}: before any that the host keeps");
    for _ in &slow {
        let _ = stack.disk.rings[0].wait_used();
    }
    assert!(slow.iter().all(|pending| status(stack, pending) == OK), "{what}");
}

fn ranges(kind: u32, flags: u32, count: u64) -> Vec<Request> {
    // Behind what is read.
    (1..=count).map(|at| Request::ranges(kind, &[(at * 2048, 2048, flags)])).collect()
}

fn each_way(mode: CacheMode, engine: EngineKind) {
    let cases = [
        ("discards", ranges(kind::DISCARD, 0, 12)),
        ("zeroings that unmap", ranges(kind::WRITE_ZEROES, 1, 12)),
        ("zeroings", ranges(kind::WRITE_ZEROES, 0, 12)),
    ];
    for (name, slow) in cases {
        let mut host = Ext4::new(4096);
        let mut stack = Stack::new(&host.file(16 * MIB, 7), mode, engine);
        let what = format!("{engine}, {mode}: {name}");
        assert_eq!(stack.read(0, READS * 4096).len() as u64, READS * 4096);
        reads_pass(&mut host, &mut stack, &slow, &what);
    }
}

#[test]
fn d05_discards_and_zeroings_never_block_a_queues_reads() {
    if !is_root() {
        return;
    }
    for engine in ENGINES {
        each_way(CacheMode::WriteBack, engine);
        each_way(CacheMode::None, engine);
    }
}

/// A file system to freeze, a loop device over a file of it, and a disk over that through the page
/// cache.
fn over_a_loop_device(engine: EngineKind) -> (Ext4, Loop, Stack) {
    let host = Ext4::new(4096);
    let device = Loop::new(&host.file(16 * MIB, 7));
    let stack = Stack::new(&device.0, CacheMode::WriteBack, engine);
    (host, device, stack)
}

/// The disk is a loop device over the frozen file system, with data in its page cache that a flush
/// has to write.
#[test]
fn d05_flushes_never_block_a_queues_reads() {
    if !is_root() {
        return;
    }
    for engine in ENGINES {
        let (mut host, _device, mut stack) = over_a_loop_device(engine);
        assert_eq!(stack.read(0, READS * 4096).len() as u64, READS * 4096);
        assert_eq!(stack.fill(8192, MIB, 1), [OK]);
        let flushes = vec![Request::bare(kind::FLUSH); 12];
        reads_pass(&mut host, &mut stack, &flushes, &format!("{engine}: flushes"));
        assert!(!stack.backend.status().lost_writes);
    }
}

/// Linux keeps whoever reads or writes a block device through the page cache waiting while a part
/// of it is zeroed. That must not be the queue's thread, which others need: here to be told the
/// disk's name.
#[test]
fn d05_a_transfer_that_waits_for_a_zeroing_never_blocks_its_queue() {
    if !is_root() {
        return;
    }
    for engine in ENGINES {
        let (mut host, _device, mut stack) = over_a_loop_device(engine);
        assert_eq!(stack.fill(8192, MIB, 1), [OK]);
        host.freeze();
        // The zeroing waits for what the flush has the frozen host write.
        let zeroing = Request::ranges(kind::WRITE_ZEROES, &[(2048, 2048, 0)]);
        let transfers = [Request::read(0, 4096), Request::write(8, &[1; 4096])];
        let slow = [Request::bare(kind::FLUSH), zeroing].into_iter().chain(transfers);
        for slow in slow {
            stack.disk.submit(&slow);
            // The host is asked before the next one comes.
            std::thread::sleep(Duration::from_millis(50));
        }
        let name = Request { kind: kind::GET_ID, sector: 0, data: Data::In(20) };
        let asked = stack.disk.submit(&name);
        let ring = &mut stack.disk.rings[0];
        let first = wait_for(|| ring.take_used());
        host.thaw();
        let first = first.expect("the queue is served");
        assert_eq!(stack.disk.outcome(&asked, first).status, OK, "{engine}");
        for _ in 0..4 {
            let _ = stack.disk.rings[0].wait_used();
        }
    }
}
