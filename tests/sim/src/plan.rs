//! The plan of a schedule, drawn from its seed alone. Most schedules have most kinds of faults
//! disabled (swarm testing), so that each kind also occurs without the others.

use std::time::Duration;

use block::{CacheMode, DetectZeroes};

use crate::chain::{self, Chain};
use crate::scenario::Scenario;

use fixtures::Random;

/// Disks of a schedule.
pub(super) const MAX_UNITS: usize = 3;

/// Odds per mille of each fault, for each call unless stated otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Odds {
    /// Interrupts a call (`EINTR`).
    pub(super) interrupted: u16,
    /// Fails a call that must not block (`EAGAIN`).
    pub(super) would_block: u16,
    /// Transfers fewer bytes than requested.
    pub(super) short: u16,
    /// Fails a transfer or range operation (`EIO`) after any part of it.
    pub(super) io_error: u16,
    /// Fails a write (`ENOSPC`) after any part of it.
    pub(super) no_space: u16,
    /// Fails an `fdatasync` or the sync of a durable write (`EIO`) and loses dirty data.
    pub(super) sync_error: u16,
    /// For each step: loses dirty data in the background (page cache only).
    pub(super) lost_write: u16,
    /// Accepts only some of the submitted entries.
    pub(super) partial_submit: u16,
    /// Fails io_uring_enter (`EBUSY`, `EINTR`).
    pub(super) busy: u16,
    /// Ends the multishot poll of the kick, which must be armed again.
    pub(super) poll_ends: u16,
}

/// Relative weights of the kinds of steps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weights {
    pub(super) submit: u32,
    pub(super) reap: u32,
    pub(super) worker: u32,
    pub(super) host: u32,
    pub(super) write_back: u32,
    pub(super) toggle: u32,
    pub(super) reset: u32,
    /// Toggles between a full and a usable file system.
    pub(super) space: u32,
    /// Kills the process.
    pub(super) kill: u32,
    /// Submits a compare-and-write.
    pub(super) compare: u32,
    /// Submits a task management function.
    pub(super) function: u32,
    /// Stops or starts the host of a disk.
    pub(super) freeze: u32,
    /// Detaches or attaches a disk.
    pub(super) hotplug: u32,
}

/// Ending of a schedule. A power cut and a check of the disk follow in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Power cut with requests in flight.
    Cut,
    /// All requests complete.
    Quiet,
    /// All requests complete and the device is closed.
    Close,
}

/// Parameters of one schedule.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Number of the disk among those of the schedule. The parameters of the schedule are those of
    /// disk 0.
    pub(super) unit: usize,
    /// The files of a layered disk.
    pub(super) chain: Option<Chain>,
    /// Plans of the other disks.
    pub(super) others: Vec<Self>,
    /// The schedule has other disks.
    pub(super) has_neighbours: bool,
    /// The disks are units of one target, rather than each of a target of its own.
    pub(super) one_target: bool,
    pub(super) mode: CacheMode,
    pub(super) flush: bool,
    pub(super) queues: u16,
    pub(super) queue_size: u16,
    pub(super) sectors: usize,
    /// Sectors per logical block.
    pub(super) block: usize,
    /// Sectors per block of the host, at least those of a logical block.
    pub(super) host_block: usize,
    /// Deadline of writes held for space, if they are held.
    pub(super) hold: Option<Duration>,
    pub(super) detect_zeroes: DetectZeroes,
    /// Odds per mille that a write has sectors of zeroes; half of these writes have no others.
    pub(super) zero_writes: u16,
    /// The driver sends DISCARD and WRITE ZEROES.
    pub(super) range_requests: bool,
    /// The engines are thread pools.
    pub(super) uses_threads: bool,
    /// The device is a SCSI controller.
    pub(super) uses_scsi: bool,
    /// Engines that execute compare-and-writes.
    pub(super) initiators: usize,
    pub(super) operations: usize,
    /// Step of the power cut of [`Ending::Cut`].
    pub(super) cut_at: usize,
    pub(super) event_idx: bool,
    pub(super) indirect: bool,
    pub(super) block_device: bool,
    /// Operations that the host supports.
    pub(super) punches_holes: bool,
    pub(super) zeroes_ranges: bool,
    pub(super) discards: bool,
    /// Completions are posted only when the ring is entered.
    pub(super) defers_completions: bool,
    /// Short transfers may end within a sector.
    pub(super) short_within_sector: bool,
    pub(super) odds: Odds,
    pub(super) weights: Weights,
    pub(super) ending: Ending,
}

impl Plan {
    pub(super) fn draw(scenario: Scenario, random: &mut Random) -> Self {
        let mode = scenario.mode(random);
        let mut weight = |low, high| u32::try_from(random.within(low, high)).unwrap();
        let weights = Weights {
            submit: weight(1, 12),
            reap: weight(1, 12),
            worker: weight(2, 20),
            host: weight(2, 40),
            write_back: weight(0, 8),
            toggle: if scenario == Scenario::Toggle { weight(1, 4) } else { 0 },
            reset: 0,
            space: 0,
            kill: 0,
            compare: 0,
            function: 0,
            freeze: 0,
            hotplug: 0,
        };
        let operations = random.within(1, 60);
        let block = if random.chance(150) { 8 } else { 1 };
        let plan = Self {
            unit: 0,
            chain: None,
            others: Vec::new(),
            has_neighbours: false,
            one_target: true,
            mode,
            flush: mode.has_write_cache() && scenario != Scenario::NoFlush,
            queues: u16::try_from(random.within(1, 3)).unwrap(),
            queue_size: [4, 8, 16][random.below(3)],
            sectors: if block == 8 { random.within(2, 8) * 8 } else { random.within(4, 64) },
            block,
            host_block: block,
            hold: None,
            detect_zeroes: DetectZeroes::Off,
            zero_writes: 0,
            range_requests: true,
            uses_threads: false,
            uses_scsi: false,
            initiators: 0,
            operations,
            cut_at: random.within(1, operations * 30),
            event_idx: random.coin(),
            indirect: random.coin(),
            block_device: random.coin(),
            punches_holes: random.chance(800),
            zeroes_ranges: random.chance(700),
            discards: random.chance(700),
            defers_completions: random.coin(),
            short_within_sector: !mode.is_direct() && random.chance(200),
            odds: Odds::draw(random),
            weights: Weights { reset: u32::from(random.chance(250)), ..weights },
            ending: match random.below(8) {
                0..4 => Ending::Cut,
                4..7 => Ending::Quiet,
                _ => Ending::Close,
            },
        };
        plan.with_events_of(scenario, random)
    }

    /// With the events that the scenario exists for.
    fn with_events_of(self, scenario: Scenario, random: &mut Random) -> Self {
        match scenario {
            Scenario::Mode(_) | Scenario::Toggle | Scenario::NoFlush => self,
            Scenario::Blocks => self.with_large_blocks(random),
            Scenario::Hold => self.with_large_blocks_at_times(300, random).with_hold(random),
            Scenario::Zeroes => {
                self.with_large_blocks_at_times(200, random).with_zero_detection(random)
            }
            Scenario::Kill => {
                let plan = self.with_large_blocks_at_times(200, random);
                let kill = u32::try_from(random.within(1, 3)).unwrap();
                Self { weights: Weights { kill, ..plan.weights }, ..plan }
            }
            Scenario::Compare => {
                self.with_large_blocks_at_times(300, random).with_compare_and_writes(random)
            }
            Scenario::Threads => self.with_threads(random),
            Scenario::Scsi => self.with_scsi(random),
            Scenario::Units => self.with_units(random),
            Scenario::Layers(_) => self.with_layers(random),
        }
    }

    /// With guest blocks smaller than the host's, with odds per mille.
    fn with_large_blocks_at_times(self, odds: u16, random: &mut Random) -> Self {
        if random.chance(odds) { self.with_large_blocks(random) } else { self }
    }

    /// With writes of zeroes, most of which the disk detects.
    fn with_zero_detection(self, random: &mut Random) -> Self {
        use DetectZeroes::{Off, On, Unmap};
        Self {
            detect_zeroes: [Off, On, On, Unmap, Unmap][random.below(5)],
            zero_writes: u16::try_from(random.within(100, 800)).unwrap(),
            range_requests: random.coin(),
            ..self
        }
    }

    /// With the thread-pool engine, and the events of another scenario.
    fn with_threads(self, random: &mut Random) -> Self {
        use Scenario::{Blocks, Compare, Hold, Kill, NoFlush, Zeroes};
        let others = [NoFlush, Blocks, Hold, Zeroes, Kill, Compare];
        let plan = self.with_events_of(others[random.below(others.len())], random);
        Self { uses_threads: true, ..plan }
    }

    /// With SCSI commands, task management in half of the schedules, and at times the events of
    /// another scenario.
    fn with_scsi(self, random: &mut Random) -> Self {
        use Scenario::{Blocks, Hold, Kill, Zeroes};
        let others = [Blocks, Hold, Kill, Zeroes];
        let plan = if random.chance(500) {
            self.with_events_of(others[random.below(others.len())], random)
        } else {
            Self { range_requests: random.chance(750), ..self }
        };
        let function = u32::from(random.coin());
        Self {
            uses_scsi: true,
            uses_threads: random.chance(100),
            weights: Weights { function, ..plan.weights },
            ..plan
        }
    }

    /// With layers over a base, and at times with SCSI commands or the events of another scenario.
    /// A killed process keeps no blocks that it wrote first, which the oracle does not know.
    fn with_layers(self, random: &mut Random) -> Self {
        use Scenario::{Blocks, Hold, Zeroes};
        let plan = match random.below(8) {
            at @ 0..3 => self.with_events_of([Blocks, Hold, Zeroes][at], random),
            3..6 if self.mode != CacheMode::Unsafe => self.with_scsi(random),
            _ => self,
        };
        let sectors = random.within(1, 10) * chain::BLOCK;
        let plan = Self {
            sectors,
            block_device: false,
            punches_holes: true,
            weights: Weights { kill: 0, reset: u32::from(random.coin()), ..plan.weights },
            ..plan
        };
        Self { chain: Some(Chain::draw(sectors, plan.host_block, random)), ..plan }
    }

    /// With one or two disks more, and at times a disk that is detached and attached again, or a
    /// process that is killed. Most of the queues' disks have different engines.
    fn with_units(self, random: &mut Random) -> Self {
        let mut plan = Self { uses_threads: random.coin(), ..self.with_scsi(random) };
        let others = (1..=random.within(1, MAX_UNITS - 1)).map(|unit| {
            let other = Self::draw(Scenario::Scsi, random);
            Self { unit, has_neighbours: true, uses_threads: random.coin(), ..other }
        });
        plan.others = others.collect();
        plan.one_target = random.coin();
        let space = plan.others.iter().map(|other| other.weights.space).max().unwrap_or(0);
        let weights = Weights {
            freeze: u32::from(random.chance(700)),
            hotplug: u32::from(random.chance(300)),
            kill: u32::from(random.chance(150)),
            space: space.max(plan.weights.space),
            ..plan.weights
        };
        let queues = if random.chance(700) { 1 } else { plan.queues };
        Self { queues, has_neighbours: true, operations: plan.operations * 2, weights, ..plan }
    }

    /// The number that the first value of the disk has.
    pub(super) fn first_number(&self) -> u32 {
        u32::try_from(self.unit).unwrap() << 24
    }

    /// With compare-and-writes on a small disk, so that other changes conflict. None is held for
    /// space: the retry of a held write may follow a compare-and-write that has found its data.
    fn with_compare_and_writes(self, random: &mut Random) -> Self {
        let blocks = random.within(1, 6);
        let compare = u32::try_from(random.within(1, 12)).unwrap();
        Self {
            sectors: self.sectors.min(blocks * self.host_block),
            initiators: random.within(1, 2),
            hold: None,
            weights: Weights { compare, space: 0, ..self.weights },
            ..self
        }
    }

    /// Whether each call of the host that discards or zeroes a range stems from a write of zeroes.
    pub(super) fn zeroes_by_detection_only(&self) -> bool {
        !self.range_requests && self.detect_zeroes != DetectZeroes::Off && !self.uses_scsi
    }

    /// With guest blocks smaller than the host's, on a small disk so that requests overlap.
    fn with_large_blocks(self, random: &mut Random) -> Self {
        let host_block = [2, 4, 8][random.below(3)];
        let sectors = random.within(1, 4) * host_block;
        let plan = Self { block: 1, host_block, sectors, ..self };
        if random.chance(400) { plan.with_hold(random) } else { plan }
    }

    /// With writes held for space, on a host that is full at times.
    fn with_hold(self, random: &mut Random) -> Self {
        let milliseconds = [20, 300, 3_000, 20_000][random.below(4)];
        let space = u32::try_from(random.below(3)).unwrap();
        let no_space = if space == 0 || random.coin() { 300 } else { 0 };
        Self {
            hold: Some(Duration::from_millis(milliseconds)),
            odds: Odds { no_space, ..self.odds },
            weights: Weights { space, ..self.weights },
            ..self
        }
    }

    /// Whether no request permits the host to deallocate blocks.
    pub(super) fn keeps_blocks(&self) -> bool {
        !self.range_requests && self.detect_zeroes != DetectZeroes::Unmap
    }

    /// Discard granularity in sectors: larger than many discards, so that they are merged.
    pub(super) fn granule(&self) -> usize {
        let least = if self.chain.is_some() { chain::BLOCK } else { 0 };
        least.max(4 * self.block)
    }

    /// Whether the disk is a ZFS volume: discarded granules read zero. It has blocks of 512 bytes
    /// and does not punch holes.
    pub(super) fn is_volume(&self) -> bool {
        let Self { block_device, discards, punches_holes, host_block, block, .. } = *self;
        block_device && discards && !punches_holes && host_block == block
    }

    /// Effect of a discard on its sectors on this host.
    pub(super) fn discard_effect(&self, first: usize, count: usize) -> DiscardEffect {
        let is_whole = (first | count).is_multiple_of(self.granule());
        match (self.block_device, self.discards, self.punches_holes) {
            (true, true, _) => DiscardEffect::Anything,
            // Partial blocks of the device are unchanged.
            (true, _, true) if self.host_block > self.block => DiscardEffect::Anything,
            // A partial granule is freed only if a merge completes it.
            (_, _, true) if !is_whole => DiscardEffect::Anything,
            (_, _, true) => DiscardEffect::Zero,
            (_, _, false) => DiscardEffect::Untouched,
        }
    }
}

/// Effect of a discard, see [`Plan::discard_effect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiscardEffect {
    /// The device may zero the sectors.
    Anything,
    /// The sectors become a hole.
    Zero,
    /// The host does not support it; the discard succeeds without effect.
    Untouched,
}

impl Odds {
    fn draw(random: &mut Random) -> Self {
        let mut odds = |present: u16, limit: usize| {
            let chance = u16::try_from(random.within(1, limit)).unwrap();
            if random.chance(present) { chance } else { 0 }
        };
        Self {
            interrupted: odds(250, 400),
            would_block: odds(250, 1000),
            short: odds(400, 600),
            io_error: odds(200, 150),
            no_space: odds(150, 200),
            sync_error: odds(250, 400),
            lost_write: odds(120, 30),
            partial_submit: odds(200, 700),
            busy: odds(150, 400),
            poll_ends: odds(250, 500),
        }
    }
}
