//! The target without a transport, over a disk in memory.

mod answers;
mod medium;
mod random_commands;
mod refusals;
mod reservations;

use std::io;
use std::sync::{Arc, Mutex};

use ::block::{
    Backend, BackingSpace, ByteOffset, CacheMode, Crossing, DiscardLimits, DiscardStats,
    DiskStatus, EngineChoice, EngineSetup, Extent, Geometry, IoEngine, Miscompare, OpenError,
    Operation, ResizeError, SoftLimitState,
};

use vmm_sys_util::eventfd::EventFd;

use super::*;

const MIB: u64 = 1 << 20;

/// A disk in memory that records its operations and can fail them.
struct Disk {
    geometry: Geometry,
    mode: CacheMode,
    read_only: bool,
    content: Mutex<Vec<u8>>,
    operations: Mutex<Vec<Operation>>,
    /// The error of all operations.
    errno: Mutex<Option<i32>>,
    extents: Mutex<Vec<Extent>>,
    space: Mutex<BackingSpace>,
    /// In percent.
    soft_limit: Mutex<Option<u8>>,
}

impl Backend for Disk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn cache_mode(&self) -> CacheMode {
        self.mode
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn engine(&self, _: &EngineSetup<'_>) -> Result<Box<dyn IoEngine>, OpenError> {
        unreachable!("the target makes no engines")
    }

    fn sync(&self) -> io::Result<()> {
        unreachable!("the target flushes through its unit's engine")
    }

    fn status(&self) -> DiskStatus {
        let soft_limit = *self.soft_limit.lock().unwrap();
        DiskStatus {
            engine: EngineChoice { name: "none", reason: "the target makes no engines".into() },
            lost_writes: None,
            host_errors: None,
            enospc_hold: None,
            discards: DiscardStats::default(),
            store: block::StoreFacts::default(),
            soft_limit: soft_limit.map(|percent| SoftLimitState { percent, reached: false }),
            ephemeral: None,
        }
    }

    fn stop_holding(&self) {
        unreachable!("the target holds no requests")
    }

    fn allocation(&self, from: ByteOffset, limit: usize) -> io::Result<Vec<Extent>> {
        let extents = self.extents.lock().unwrap();
        let within = |extent: &&Extent| extent.range.start.0 >= from.0;
        Ok(extents.iter().filter(within).take(limit).copied().collect())
    }

    fn backing_space(&self) -> io::Result<Option<BackingSpace>> {
        Ok(Some(*self.space.lock().unwrap()))
    }

    fn check_soft_limit(&self) -> io::Result<Option<Crossing>> {
        unreachable!("the space watch checks the limit")
    }

    fn resize(&self, _: Option<u64>) -> Result<u64, ResizeError> {
        unreachable!("the target has no resize command")
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

impl Disk {
    /// Performs an operation on the initiator's or the job's memory.
    fn perform(&self, op: Operation, data: &mut [u8]) -> io::Result<()> {
        self.operations.lock().unwrap().push(op);
        if let Some(errno) = *self.errno.lock().unwrap() {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let mut content = self.content.lock().unwrap();
        let at = |start: u64, len: u64| {
            let start = usize::try_from(start).unwrap();
            start..start + usize::try_from(len).unwrap()
        };
        match op {
            Operation::Read { at: from } => {
                data.copy_from_slice(&content[at(from.0, data.len() as u64)]);
            }
            Operation::Write { at: to, .. } => {
                content[at(to.0, data.len() as u64)].copy_from_slice(data);
            }
            Operation::CompareAndWrite { at: to, .. } => {
                let (expected, new) = data.split_at(data.len() / 2);
                let found = &mut content[at(to.0, new.len() as u64)];
                if let Some(offset) = found.iter().zip(expected).position(|(a, b)| a != b) {
                    return Err(io::Error::other(Miscompare { offset: offset as u64 }));
                }
                found.copy_from_slice(new);
            }
            Operation::Flush => {}
            Operation::Discard { range, .. } | Operation::WriteZeroes { range, .. } => {
                content[at(range.start.0, range.len)].fill(0);
            }
        }
        Ok(())
    }
}

/// Properties of the disk.
#[derive(Clone, Copy)]
struct DiskSetup {
    capacity: u64,
    block: u32,
    mode: CacheMode,
    read_only: bool,
    discard: bool,
}

impl Default for DiskSetup {
    fn default() -> Self {
        let mode = CacheMode::WriteBack;
        Self { capacity: MIB, block: 512, mode, read_only: false, discard: true }
    }
}

/// A target with one unit, number 0.
struct Rig {
    target: Target,
    unit: Arc<LogicalUnit>,
    disk: Arc<Disk>,
}

impl Rig {
    fn new() -> Self {
        Self::with(DiskSetup::default())
    }

    /// A unit whose power-on condition has been reported.
    fn with(setup: DiskSetup) -> Self {
        let rig = Self::fresh(setup);
        rig.unit.take_attention();
        rig
    }

    /// A unit with a pending power-on condition.
    fn fresh(setup: DiskSetup) -> Self {
        let limits = DiscardLimits { granularity: 4096, alignment: 0, reads_zero: true };
        let content = usize::try_from(setup.capacity.min(64 * MIB)).unwrap();
        let disk = Arc::new(Disk {
            geometry: Geometry {
                capacity: setup.capacity,
                logical_block: setup.block,
                physical_block: 4096,
                optimal_io: 64 << 10,
                discard: (setup.discard && !setup.read_only).then_some(limits),
            },
            mode: setup.mode,
            read_only: setup.read_only,
            content: Mutex::new(vec![0; content]),
            operations: Mutex::default(),
            errno: Mutex::default(),
            extents: Mutex::default(),
            space: Mutex::new(BackingSpace { used: 3 * MIB + 1, available: 7 * MIB + 5 }),
            soft_limit: Mutex::default(),
        });
        let identity = Identity::new("serial", "/disk");
        let unit = Arc::new(LogicalUnit::new("disk", identity, disk.clone()));
        let mut target = Target::default();
        assert!(target.add(0, Arc::clone(&unit)));
        Self { target, unit, disk }
    }

    /// Executes a command for unit 0 without the medium.
    fn execute(&self, cdb: &[u8], out: &[u8]) -> Outcome {
        self.unit.measure_space();
        self.target.execute(Some(0), &Cdb::new(cdb), &out)
    }

    /// The data-in of a command that does not access the medium.
    #[track_caller]
    fn query(&self, cdb: &[u8]) -> Vec<u8> {
        match self.execute(cdb, &[]) {
            Ok(Answer::Good { data, .. }) => data,
            Ok(Answer::Query(query)) => self.answer(query).unwrap(),
            other => panic!("{cdb:02x?}: {other:?}"),
        }
    }

    /// Executes a command to its end: its data-in, or its sense data.
    #[track_caller]
    fn run(&self, cdb: &[u8], out: &[u8]) -> Result<Vec<u8>, Sense> {
        let mut job = match self.execute(cdb, out) {
            Ok(Answer::Good { data, taken }) => {
                assert!(taken <= out.len() as u64);
                return Ok(data);
            }
            Err(Failure::Check(sense)) => return Err(sense),
            Err(other) => panic!("{cdb:02x?}: {other:?}"),
            Ok(Answer::Work(job)) => job,
            Ok(Answer::Query(query)) => return self.answer(query),
        };
        let mut data = vec![0; usize::try_from(job.given()).unwrap()];
        let mut step = job.step();
        loop {
            let result = self.perform(step, &mut data, out);
            match job.next(&self.unit, result, &out) {
                Next::Step(next) => step = next,
                Next::Done(result) => return result.map(|()| data),
            }
        }
    }

    /// The answer of a command that queries the host.
    fn answer(&self, query: LbaStatusQuery) -> Result<Vec<u8>, Sense> {
        let kick = Arc::new(EventFd::new(0).unwrap());
        let host = Arc::new(query.allocation_query(Arc::clone(&kick)));
        self.unit.start_query(Arc::clone(&host));
        kick.read().unwrap();
        query.answer(&self.unit, host.take_result().unwrap())
    }

    fn perform(&self, step: Step, data_in: &mut [u8], out: &[u8]) -> io::Result<()> {
        match step.data {
            Data::None => self.disk.perform(step.op, &mut []),
            Data::Initiator(len) => {
                let len = usize::try_from(len).unwrap();
                if matches!(step.op, Operation::Read { .. }) {
                    self.disk.perform(step.op, &mut data_in[..len])
                } else {
                    self.disk.perform(step.op, &mut out[..len].to_vec())
                }
            }
            Data::Own(segment) => {
                // SAFETY: the job's buffer, which the job does not access during the step.
                let own = unsafe { std::slice::from_raw_parts_mut(segment.base(), segment.len()) };
                self.disk.perform(step.op, own)
            }
        }
    }

    /// The operations since the last call.
    fn operations(&self) -> Vec<Operation> {
        std::mem::take(&mut *self.disk.operations.lock().unwrap())
    }

    /// The sense data of a command that fails without the medium.
    #[track_caller]
    fn refusal(&self, cdb: &[u8], out: &[u8]) -> Sense {
        match self.execute(cdb, out) {
            Err(Failure::Check(sense)) => sense,
            other => panic!("{cdb:02x?}: {other:?}"),
        }
    }
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let digit = |byte: u8| u8::try_from(char::from(byte).to_digit(16).unwrap()).unwrap();
    digits.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}
