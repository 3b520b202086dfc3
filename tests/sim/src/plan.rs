//! What one schedule is made of: drawn from its seed alone, with most faults left out of most
//! schedules, so that each kind also meets the others' absence (swarm testing).

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use block::{CacheMode, Named};

use super::random::Random;

/// What the disk and the driver agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// One cache mode, with the write cache as the mode sets it.
    Mode(CacheMode),
    /// A mode with a write cache which the driver switches off and on (CONFIG_WCE).
    Toggle,
    /// A mode with a write cache and a driver that did not negotiate FLUSH.
    NoFlush,
    /// Any mode on a host whose blocks are larger than the guest's: writes of parts of them are
    /// made of reads and writes.
    Blocks,
    /// Any mode on a host that has no space at times, which holds writes until it has or they have
    /// waited too long.
    Hold,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Mode(CacheMode::None),
        Self::Mode(CacheMode::DirectSync),
        Self::Mode(CacheMode::WriteThrough),
        Self::Mode(CacheMode::WriteBack),
        Self::Mode(CacheMode::Unsafe),
        Self::Toggle,
        Self::NoFlush,
        Self::Blocks,
        Self::Hold,
    ];

    fn mode(self, random: &mut Random) -> CacheMode {
        let with_cache = [CacheMode::None, CacheMode::WriteBack, CacheMode::Unsafe];
        match self {
            Self::Mode(mode) => mode,
            Self::Toggle | Self::NoFlush => with_cache[random.below(with_cache.len())],
            Self::Blocks => {
                // Past the page cache most of the time: there they are ours to put together.
                [CacheMode::None, CacheMode::DirectSync, CacheMode::None, CacheMode::WriteBack]
                    [random.below(4)]
            }
            Self::Hold => CacheMode::ALL[random.below(CacheMode::ALL.len())],
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mode(mode) => mode.fmt(f),
            Self::Toggle => f.write_str("toggle"),
            Self::NoFlush => f.write_str("noflush"),
            Self::Blocks => f.write_str("blocks"),
            Self::Hold => f.write_str("hold"),
        }
    }
}

/// The text names no scenario.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "{0:?} is none of none, directsync, writethrough, writeback, unsafe, toggle, noflush, blocks, hold"
)]
pub struct UnknownScenario(String);

impl FromStr for Scenario {
    type Err = UnknownScenario;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|scenario| scenario.to_string() == text)
            .ok_or_else(|| UnknownScenario(text.to_owned()))
    }
}

/// Chances in a thousand that the host does this to a call, or where noted at each of its steps.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Odds {
    /// Interrupts a call (`EINTR`).
    pub(super) interrupted: u16,
    /// Refuses a call that it may not block for (`EAGAIN`).
    pub(super) would_block: u16,
    /// Moves fewer bytes than asked, whole sectors.
    pub(super) short: u16,
    /// Fails a transfer or a range call (`EIO`), with any part of it done.
    pub(super) io_error: u16,
    /// Fails a write for want of space (`ENOSPC`), with any part of it done.
    pub(super) no_space: u16,
    /// Fails an `fdatasync` or the durable half of a write (`EIO`); dirty data is lost.
    pub(super) sync_error: u16,
    /// At each step: loses dirty data in the background (page cache only).
    pub(super) lost_write: u16,
    /// Takes only some of the entries submitted.
    pub(super) partial_submit: u16,
    /// Refuses to be entered (`EBUSY`, `EINTR`).
    pub(super) busy: u16,
    /// Ends the poll of the kick, which has to be armed again.
    pub(super) poll_ends: u16,
}

/// How likely each kind of step is, against the others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weights {
    pub(super) submit: u32,
    pub(super) look: u32,
    pub(super) worker: u32,
    pub(super) host: u32,
    pub(super) write_back: u32,
    pub(super) toggle: u32,
    pub(super) reset: u32,
    /// The host runs out of space, or has some again.
    pub(super) space: u32,
}

/// How a schedule ends. A power cut follows in any case, and the disk is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Power is cut in the middle.
    Cut,
    /// Everything outstanding completes.
    Quiet,
    /// The same, and the device is closed.
    Close,
}

/// One schedule.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) mode: CacheMode,
    pub(super) flush: bool,
    pub(super) queues: u16,
    pub(super) queue_size: u16,
    pub(super) sectors: usize,
    /// Sectors of a logical block.
    pub(super) block: usize,
    /// Sectors of the host's own block, which is at least as large.
    pub(super) host_block: usize,
    /// How long a write may wait for space, if it is held at all.
    pub(super) hold: Option<Duration>,
    pub(super) operations: usize,
    /// The step before which power is cut, if the ending says so.
    pub(super) cut_at: usize,
    pub(super) event_idx: bool,
    pub(super) indirect: bool,
    pub(super) block_device: bool,
    /// What the host can do.
    pub(super) punches: bool,
    pub(super) zeroes: bool,
    pub(super) discards: bool,
    /// Completions are posted only when the ring is entered.
    pub(super) deferred: bool,
    /// Short counts may end within a sector.
    pub(super) ragged: bool,
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
            look: weight(1, 12),
            worker: weight(2, 20),
            host: weight(2, 40),
            write_back: weight(0, 8),
            toggle: if scenario == Scenario::Toggle { weight(1, 4) } else { 0 },
            reset: 0,
            space: 0,
        };
        let operations = random.within(1, 60);
        let block = if random.chance(150) { 8 } else { 1 };
        let plan = Self {
            mode,
            flush: mode.has_write_cache() && scenario != Scenario::NoFlush,
            queues: u16::try_from(random.within(1, 3)).unwrap(),
            queue_size: [4, 8, 16][random.below(3)],
            sectors: if block == 8 { random.within(2, 8) * 8 } else { random.within(4, 64) },
            block,
            host_block: block,
            hold: None,
            operations,
            cut_at: random.within(1, operations * 30),
            event_idx: random.coin(),
            indirect: random.coin(),
            block_device: random.coin(),
            punches: random.chance(800),
            zeroes: random.chance(700),
            discards: random.chance(700),
            deferred: random.coin(),
            ragged: !mode.is_direct() && random.chance(200),
            odds: Odds::draw(random),
            weights: Weights { reset: u32::from(random.chance(250)), ..weights },
            ending: match random.below(8) {
                0..4 => Ending::Cut,
                4..7 => Ending::Quiet,
                _ => Ending::Close,
            },
        };
        match scenario {
            Scenario::Blocks => plan.on_large_blocks(random),
            Scenario::Hold => {
                let large = random.chance(300);
                let plan = if large { plan.on_large_blocks(random) } else { plan };
                plan.holding(random)
            }
            Scenario::Mode(_) | Scenario::Toggle | Scenario::NoFlush => plan,
        }
    }

    /// The same with blocks of the guest's that are parts of the host's. Few, so that requests
    /// meet.
    fn on_large_blocks(self, random: &mut Random) -> Self {
        let host_block = [2, 4, 8][random.below(3)];
        let sectors = random.within(1, 4) * host_block;
        let plan = Self { block: 1, host_block, sectors, ..self };
        if random.chance(400) { plan.holding(random) } else { plan }
    }

    /// The same on a host that has no space at times.
    fn holding(self, random: &mut Random) -> Self {
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

    /// The sectors that the host frees at a time: more than many a discard asks for, so that pieces
    /// are gathered.
    pub(super) fn granule(&self) -> usize {
        4 * self.block
    }

    /// Whether it is a ZFS volume: what is discarded reads zero, in whole granules. One has blocks
    /// of 512 bytes and punches no holes.
    pub(super) fn is_volume(&self) -> bool {
        let Self { block_device, discards, punches, host_block, block, .. } = *self;
        block_device && discards && !punches && host_block == block
    }

    /// What a discard makes of the sectors it names, on this host.
    pub(super) fn discard_effect(&self, first: usize, count: usize) -> Discarded {
        let is_whole = (first | count).is_multiple_of(self.granule());
        match (self.block_device, self.discards, self.punches) {
            (true, true, _) => Discarded::Anything,
            // Parts of the device's blocks stay as they are.
            (true, _, true) if self.host_block > self.block => Discarded::Anything,
            // Of a granule that is named in part nothing may be freed, or with its neighbours all.
            (_, _, true) if !is_whole => Discarded::Anything,
            (_, _, true) => Discarded::Zero,
            (_, _, false) => Discarded::Untouched,
        }
    }
}

/// See [`Plan::discard_effect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Discarded {
    /// The device may zero them or not.
    Anything,
    /// They become a hole.
    Zero,
    /// The host cannot, and the guest does not learn of it.
    Untouched,
}

impl Odds {
    fn draw(random: &mut Random) -> Self {
        let mut odds = |present: u16, most: usize| {
            let much = u16::try_from(random.within(1, most)).unwrap();
            if random.chance(present) { much } else { 0 }
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
