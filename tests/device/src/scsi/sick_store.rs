//! Two disks on one queue, one of them on a loop device whose file system is frozen: the latency of
//! the other one's commands, compared with a thawed file system.
//!
//! The store is frozen until all commands of the healthy disk are complete, so a single one that
//! waits for it fails the test. The 99th percentiles are printed; docs/performance.md has them.

use std::time::{Duration, Instant};

use block::{CacheMode, DiskOptions, RawFile};
use driver::{Arena, Command, Initiator, LOW_BYTES, PendingCommand};
use fixtures::host::Loop;
use fixtures::{Ext4, needs};
use tempfile::NamedTempFile;

use super::{Arc, ScsiBus, attach, controller, file_disk, read_10, write_10};

const MIB: u64 = 1 << 20;
const SICK: u8 = 0;
const HEALTHY: u8 = 1;
const BLOCKS: u32 = 8192;
/// Pairs of a thawed and a frozen phase, and commands of each kind in a phase.
const PAIRS: usize = 8;
const SAMPLES: u32 = 250;
/// Buffers of the commands that hang, and of the others.
const SICK_BUFFERS: u64 = 0x10_0000;
const HEALTHY_BUFFERS: u64 = 0x40_0000;
/// Limit of each 99th percentile while the store is frozen. A command that waits for it waits for
/// the rest of the phase.
const MAX_P99: Duration = Duration::from_millis(250);

type Kind = (&'static str, fn(u32) -> Command);

const KINDS: [Kind; 6] = [
    ("READ (10)", |lba| Command::new(HEALTHY, &read_10(lba, 8)).with_data_in(4096)),
    ("WRITE (10)", |lba| Command::new(HEALTHY, &write_10(lba, 8)).with_data_out(&[1; 4096])),
    ("GET LBA STATUS", |_| {
        let cdb = [0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0];
        Command::new(HEALTHY, &cdb).with_data_in(64)
    }),
    ("LOG SENSE", |_| {
        Command::new(HEALTHY, &[0x4d, 0, 0x4c, 0, 0, 0, 0, 0, 64, 0]).with_data_in(64)
    }),
    ("MODE SENSE (6)", |_| Command::new(HEALTHY, &[0x1a, 8, 0x3f, 0, 255, 0]).with_data_in(255)),
    ("INQUIRY, VPD B2h", |_| Command::new(HEALTHY, &[0x12, 1, 0xb2, 0, 64, 0]).with_data_in(64)),
];

/// Commands of the sick disk that need its store.
fn hanging_commands() -> [Command; 6] {
    let write = |lba| Command::new(SICK, &write_10(lba, 8)).with_data_out(&[2; 4096]);
    let flush = Command::new(SICK, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let unmap = [0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 8, 0, 0, 0, 0, 0];
    let unmap = Command::new(SICK, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0]).with_data_out(&unmap);
    [write(0), write(64), write(1024), write(2048), flush, unmap]
}

/// Dropped in this order: the store thaws first, and the disks close before the loop device.
struct Rig {
    store: Ext4,
    initiator: Initiator,
    _bus: ScsiBus,
    _device: Loop,
    _healthy: NamedTempFile,
}

impl Rig {
    fn new() -> Self {
        let store = Ext4::new(4096);
        let device = Loop::new(&store.file(16 * MIB, 7));
        let sick = RawFile::open(&device.0, &DiskOptions::new(CacheMode::None)).unwrap();
        let (file, healthy) = file_disk(u64::from(BLOCKS) * 512, CacheMode::WriteBack);
        let (controller, bus) = controller(1);
        attach(&bus, 0, SICK.into(), Arc::new(sick));
        attach(&bus, 0, HEALTHY.into(), Arc::new(healthy));
        let mut initiator = Initiator::start(controller, u64::MAX);
        [SICK, HEALTHY].into_iter().for_each(|lun| initiator.clear_unit_attention(lun));
        Self { store, initiator, _bus: bus, _device: device, _healthy: file }
    }

    /// Adds the latency of `SAMPLES` commands of each kind, the kinds in turn.
    fn measure(&mut self, latencies: &mut [Vec<Duration>]) {
        self.initiator.arena = Arena::new(HEALTHY_BUFFERS, LOW_BYTES);
        for sample in 0..SAMPLES {
            for ((_, command), latencies) in KINDS.iter().zip(&mut *latencies) {
                let command = command(sample * 2657 % (BLOCKS / 8) * 8);
                let start = Instant::now();
                let pending = self.initiator.send(0, &command);
                let used = self.initiator.rings[2].wait_used();
                latencies.push(start.elapsed());
                assert_eq!(self.initiator.response(&pending, used).status, 0, "{command:x?}");
            }
        }
    }

    /// Freezes the store and submits commands that hang.
    fn hang(&mut self) -> Vec<PendingCommand> {
        self.store.freeze();
        self.initiator.arena = Arena::new(SICK_BUFFERS, HEALTHY_BUFFERS);
        hanging_commands().iter().map(|command| self.initiator.send(0, command)).collect()
    }

    /// Thaws the store; all commands that hung succeed.
    fn thaw(&mut self, mut hanging: Vec<PendingCommand>) {
        self.store.thaw();
        while !hanging.is_empty() {
            let used = self.initiator.rings[2].wait_used();
            let index = hanging.iter().position(|pending| pending.head_id() == u64::from(used.id));
            let pending = hanging.swap_remove(index.expect("a command that hung"));
            assert_eq!(self.initiator.response(&pending, used).status, 0);
        }
    }
}

fn p99(latencies: &mut [Duration]) -> Duration {
    latencies.sort_unstable();
    latencies[latencies.len() * 99 / 100]
}

#[test]
fn frozen_store_does_not_delay_other_disk_of_queue() {
    if !needs::root() {
        return;
    }
    let mut rig = Rig::new();
    let [mut thawed, mut frozen] = [vec![Vec::new(); KINDS.len()], vec![Vec::new(); KINDS.len()]];
    for _ in 0..PAIRS {
        rig.measure(&mut thawed);
        let hanging = rig.hang();
        rig.measure(&mut frozen);
        rig.thaw(hanging);
    }
    println!("{:<18}{:>12}{:>12}{:>8}", "p99 in us", "thawed", "frozen", "ratio");
    for (((name, _), thawed), frozen) in KINDS.iter().zip(&mut thawed).zip(&mut frozen) {
        let [thawed, frozen] = [thawed, frozen].map(|latencies| p99(latencies));
        let ratio = frozen.as_secs_f64() / thawed.as_secs_f64();
        println!("{name:<18}{:>12}{:>12}{ratio:>8.2}", thawed.as_micros(), frozen.as_micros());
        assert!(frozen < MAX_P99, "{name}: {frozen:?}");
    }
}
