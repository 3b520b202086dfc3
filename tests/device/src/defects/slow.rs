//! Defect 5: discard, zeroing and flush run on the queue's thread, so that one large discard stalls
//! all reads.
//!
//! The host's file system is frozen: changes block until it is thawed. Reads submitted after them
//! on the same queue must complete meanwhile. The tests check the order of completions, not times.

use std::time::Duration;

use block::{Backend, CacheMode, EngineKind};
use driver::{Data, Framing, PendingRequest, Request, kind};
use fixtures::{Ext4, wait_for};

use super::stack::{ENGINES, MIB, OK, Stack};
use fixtures::host::Loop;
use fixtures::needs;

const READS: u64 = 32;
const NO_STATUS: u8 = 0xff;

/// Submits `slow` requests, which block on the frozen host, then reads, which must complete; thaws
/// the host, after which all complete.
fn check_reads_pass(host: &mut Ext4, stack: &mut Stack, slow: &[Request], case: &str) {
    let mut offer = |request: &Request| stack.disk.offer(0, request, &Framing::usual(request));
    let slow: Vec<PendingRequest> = slow.iter().map(&mut offer).collect();
    host.freeze();
    stack.disk.kick(0);
    let status = |stack: &Stack, pending: &PendingRequest| {
        stack.disk.device.machine().read(pending.writable + u64::from(pending.writable_len) - 1, 1)
            [0]
    };
    let mut completed = 0;
    for at in 0..READS {
        let pending = stack.disk.submit(&Request::read(at * 8, 4096));
        let ring = &mut stack.disk.rings[0];
        if wait_for(|| ring.take_used()).is_none() {
            break;
        }
        completed += u64::from(status(stack, &pending) == OK);
    }
    let blocked = slow.iter().filter(|pending| status(stack, pending) == NO_STATUS).count();
    // Thaw before any assertion: dropping the disk would wait for a frozen host.
    host.thaw();
    assert_eq!(completed, READS, "{case}: the reads complete");
    assert_eq!(blocked, slow.len(), "{case}: before the blocked requests");
    for _ in &slow {
        let _ = stack.disk.rings[0].wait_used();
    }
    assert!(slow.iter().all(|pending| status(stack, pending) == OK), "{case}");
}

fn ranges(kind: u32, flags: u32, count: u64) -> Vec<Request> {
    // Beyond the range of the reads.
    (1..=count).map(|at| Request::ranges(kind, &[(at * 2048, 2048, flags)])).collect()
}

fn check_each_kind(mode: CacheMode, engine: EngineKind) {
    let cases = [
        ("discards", ranges(kind::DISCARD, 0, 12)),
        ("zeroings with UNMAP", ranges(kind::WRITE_ZEROES, 1, 12)),
        ("zeroings", ranges(kind::WRITE_ZEROES, 0, 12)),
    ];
    for (name, slow) in cases {
        let mut host = Ext4::new(4096);
        let mut stack = Stack::new(&host.file(16 * MIB, 7), mode, engine);
        let case = format!("{engine}, {mode}: {name}");
        assert_eq!(stack.read(0, READS * 4096).len() as u64, READS * 4096);
        check_reads_pass(&mut host, &mut stack, &slow, &case);
    }
}

#[test]
fn d05_discards_and_zeroings_do_not_block_reads() {
    if !needs::root() {
        return;
    }
    for engine in ENGINES {
        check_each_kind(CacheMode::WriteBack, engine);
        check_each_kind(CacheMode::None, engine);
    }
}

/// A file system to freeze, a loop device over a file on it, and a disk on that through the page
/// cache.
fn over_a_loop_device(engine: EngineKind) -> (Ext4, Loop, Stack) {
    let host = Ext4::new(4096);
    let device = Loop::new(&host.file(16 * MIB, 7));
    let stack = Stack::new(&device.0, CacheMode::WriteBack, engine);
    (host, device, stack)
}

/// The disk is a loop device over the frozen file system, with dirty pages for the flush to write.
#[test]
fn d05_flushes_do_not_block_reads() {
    if !needs::root() {
        return;
    }
    for engine in ENGINES {
        let (mut host, _device, mut stack) = over_a_loop_device(engine);
        assert_eq!(stack.read(0, READS * 4096).len() as u64, READS * 4096);
        assert_eq!(stack.fill(8192, MIB, 1), [OK]);
        let flushes = vec![Request::bare(kind::FLUSH); 12];
        check_reads_pass(&mut host, &mut stack, &flushes, &format!("{engine}: flushes"));
        assert!(stack.backend.status().lost_writes.is_none());
    }
}

/// Linux blocks buffered reads and writes of a block device while a range of it is zeroed. They
/// must not block the queue's thread: here a GET_ID completes meanwhile.
#[test]
fn d05_transfers_blocked_by_zeroing_do_not_block_queue() {
    if !needs::root() {
        return;
    }
    for engine in ENGINES {
        let (mut host, _device, mut stack) = over_a_loop_device(engine);
        assert_eq!(stack.fill(8192, MIB, 1), [OK]);
        host.freeze();
        // The zeroing waits for the flush's write-back to the frozen host.
        let zeroing = Request::ranges(kind::WRITE_ZEROES, &[(2048, 2048, 0)]);
        let transfers = [Request::read(0, 4096), Request::write(8, &[1; 4096])];
        let slow = [Request::bare(kind::FLUSH), zeroing].into_iter().chain(transfers);
        for slow in slow {
            stack.disk.submit(&slow);
            // The call reaches the host before the next request.
            std::thread::sleep(Duration::from_millis(50));
        }
        let name = Request { kind: kind::GET_ID, sector: 0, data: Data::In(20) };
        let get_id = stack.disk.submit(&name);
        let ring = &mut stack.disk.rings[0];
        let first = wait_for(|| ring.take_used());
        host.thaw();
        let first = first.expect("the queue is served");
        assert_eq!(stack.disk.outcome(&get_id, first).status, OK, "{engine}");
        for _ in 0..4 {
            let _ = stack.disk.rings[0].wait_used();
        }
    }
}
