//! An initiator of compare-and-writes: it uses an engine of the disk directly, as virtio-blk has no
//! such request.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use block::{
    Backend, ByteOffset, Completion, Durability, EngineSetup, IoEngine, Operation, Request,
    Segment, Segments,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::oracle::PendingCompare;
use fixtures::Random;

/// Compare-and-writes in flight per initiator.
const DEPTH: u16 = 4;
/// Alignment of the memory from which data is laid out, at least that of direct I/O.
const ALIGNMENT: usize = 4096;

/// See the module's documentation.
pub(super) struct Initiator {
    // Dropped first: it uses the memory of the requests.
    engine: Box<dyn IoEngine>,
    pub(super) kick: EventFd,
    pub(super) ring: usize,
    /// It sleeps in its engine until the ring is readable.
    pub(super) is_asleep: bool,
    pending: BTreeMap<u16, InFlight>,
}

struct InFlight {
    compare: PendingCompare,
    since_ns: u64,
    durability: Durability,
    /// The expected data and the new data, behind a gap.
    _memory: Vec<u8>,
}

/// The end of a compare-and-write.
pub(super) struct Compared {
    pub(super) compare: PendingCompare,
    pub(super) since_ns: u64,
    pub(super) durability: Durability,
    pub(super) result: io::Result<()>,
}

impl Initiator {
    /// Makes an engine of `disk`. `ring` returns the simulated ring that this opens.
    pub(super) fn new(disk: &dyn Backend, ring: impl Fn() -> usize) -> Result<Self, String> {
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        // SAFETY: the eventfd is open during the call; the engine duplicates it.
        let fd = unsafe { BorrowedFd::borrow_raw(kick.as_raw_fd()) };
        let engine = disk.engine(&EngineSetup { depth: DEPTH, memory: &[], kick: fd });
        let engine = engine.map_err(|error| format!("no engine: {error}"))?;
        let pending = BTreeMap::new();
        Ok(Self { engine, kick, ring: ring(), is_asleep: false, pending })
    }

    pub(super) fn outstanding(&self) -> usize {
        self.pending.len()
    }

    pub(super) fn has_room(&self) -> bool {
        self.pending.len() < usize::from(DEPTH)
    }

    /// Pushes a compare-and-write of `data`, the expected data and the new data of equal length.
    pub(super) fn push(
        &mut self,
        at: u64,
        data: &[u8],
        compare: PendingCompare,
        now_ns: u64,
        random: &mut Random,
    ) {
        let durability = if random.coin() { Durability::Durable } else { Durability::Volatile };
        let lead = if random.coin() { 0 } else { random.below(256) };
        let mut memory = vec![0; ALIGNMENT + lead + data.len()];
        let start = memory.as_ptr().align_offset(ALIGNMENT) + lead;
        memory[start..start + data.len()].copy_from_slice(data);
        let base = memory[start..].as_mut_ptr();
        let unit = if lead == 0 { 512 } else { 1 };
        let cut = random.below(data.len() / unit) * unit;
        let piece = |from: usize, to: usize| {
            // SAFETY: within `memory`, which is kept and not referred to until the completion.
            unsafe { Segment::new(base.wrapping_add(from), to - from) }
        };
        let mut segments: Segments = vec![piece(cut, data.len())];
        if cut > 0 {
            segments.insert(0, piece(0, cut));
        }
        let tag = (0..DEPTH).find(|tag| !self.pending.contains_key(tag)).expect("has_room()");
        let in_flight = InFlight { compare, since_ns: now_ns, durability, _memory: memory };
        self.pending.insert(tag, in_flight);
        let op = Operation::CompareAndWrite { at: ByteOffset(at), durability };
        (*self.engine).push(Request { tag, op, segments: &mut segments });
        self.is_asleep = false;
    }

    /// Takes the completions.
    pub(super) fn reap(&mut self) -> Vec<Compared> {
        let mut completions = Vec::new();
        (*self.engine).reap(&mut completions);
        let compared = |Completion { tag, result }| {
            let InFlight { compare, since_ns, durability, .. } =
                self.pending.remove(&tag).expect("each completes once");
            Compared { compare, since_ns, durability, result }
        };
        completions.into_iter().map(compared).collect()
    }

    /// Submits, and sleeps in the engine; `ETIME` if it would sleep.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        (*self.engine).wait().map(drop)
    }
}
