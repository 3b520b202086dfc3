//! A disk of a schedule: its host, its oracle, and what its driver knows.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use block::simulation::Clock;
use devices::virtio::Address;

use crate::content::{Bytes, SECTOR};
use crate::counts::Counts;
use crate::disk::SimDisk;
use crate::host::{Host, SharedHost};
use crate::oracle::{OpId, Oracle, Time};
use crate::plan::Plan;
use crate::resources::Resources;
use crate::scsi_state::UnitState;
use crate::trace::Trace;
use fixtures::Random;

/// The content of a sector that no file of a disk has.
const ZEROES: Bytes = [0; SECTOR];
/// Limit of the time in which the thread of a disk's queries ends, in milliseconds.
const TRIES: usize = 5_000;

/// See the module's documentation.
pub(super) struct Unit {
    pub(super) plan: Plan,
    pub(super) address: Address,
    pub(super) host: SharedHost,
    /// The disk, as the process has opened it.
    pub(super) disk: Option<Arc<SimDisk>>,
    pub(super) oracle: Oracle,
    /// The time of the oracle.
    pub(super) now: Time,
    /// Start of the current period with the write cache disabled, in which completed writes are
    /// durable.
    pub(super) cache_off_since: Option<Time>,
    pub(super) scsi: UnitState,
    /// The controller has it.
    pub(super) is_attached: bool,
    /// It is detached, and no queue uses it any longer.
    pub(super) is_released: bool,
    /// When it was last detached, on the clock of the oracle and on that of the host.
    pub(super) detached: Option<Time>,
    pub(super) detached_ns: Option<u64>,
    /// Changes in flight when their process died. They may take effect until a successor has
    /// opened the disk.
    pub(super) orphans: Vec<OpId>,
    /// Rings of the host that are known to be of a worker.
    pub(super) rings: usize,
    pub(super) counts: Counts,
}

impl Unit {
    pub(super) fn new(plan: &Plan, one_target: bool, random: Random, trace: Trace) -> Self {
        let number = u16::try_from(plan.unit).unwrap();
        let oracle = Oracle::new(plan.sectors, plan.short_within_sector, plan.first_number());
        let oracle = match &plan.chain {
            Some(chain) => oracle.with_zeroes_from(chain.base_sectors()),
            None => oracle,
        };
        let (target, lun) = if one_target { (0, number) } else { (number as u8, 0) };
        Self {
            address: Address { target, lun },
            host: SharedHost::new(Host::new(plan, random, trace)),
            disk: None,
            oracle,
            now: 1,
            cache_off_since: None,
            scsi: UnitState::opened(0),
            is_attached: false,
            is_released: false,
            detached: None,
            detached_ns: None,
            orphans: Vec::new(),
            rings: 0,
            counts: Counts::default(),
            plan: plan.clone(),
        }
    }

    /// Opens the disk; `false` while the lock on its image is held.
    pub(super) fn open(&mut self, clock: &Clock, resources: &Resources) -> Result<bool, String> {
        let image = &resources.images[self.plan.unit];
        let disk = SimDisk::open(&self.plan, clock.clone(), self.host.clone(), image)?;
        self.disk = disk.map(Arc::new);
        Ok(self.disk.is_some())
    }

    /// Whether nothing but this refers to the open disk. Waits for that: a query of a disk may
    /// still run on a thread.
    pub(super) fn is_unused(&self) -> bool {
        let Some(disk) = &self.disk else { return true };
        (0..TRIES).any(|_| {
            let is_only = Arc::strong_count(disk) == 1;
            if !is_only {
                thread::sleep(Duration::from_millis(1));
            }
            is_only
        })
    }

    /// A process has opened the disk, whose unit may have `attentions` conditions.
    pub(super) fn opened(&mut self, attentions: usize) {
        self.scsi = UnitState::opened(attentions);
        (self.is_attached, self.is_released) = (true, false);
        // No command of before is left. Those of now may have the same time.
        self.detached_ns = None;
        self.cache_off_since = (!self.plan.mode.has_write_cache()).then_some(self.now);
    }

    /// Checks the visible content of the disk when all requests have completed.
    pub(super) fn check_visible(&mut self) -> Result<(), String> {
        let host = self.host.lock();
        let place = |sector| match &self.disk {
            Some(disk) => disk.place(sector),
            None => Some(sector),
        };
        let visible = |sector| place(sector).map_or(&ZEROES, |at| host.medium.visible(at));
        self.oracle.check_visible(visible, host.lost_data(), self.now)
    }

    /// Checks each sector after a power cut.
    pub(super) fn check_after_cut(&self) -> Result<(), String> {
        let host = self.host.lock();
        let visible = |at| host.medium.visible(at);
        for sector in 0..self.plan.sectors {
            let place = match &self.plan.chain {
                Some(chain) => chain.place_on(sector, visible),
                None => Some(sector),
            };
            let bytes = place.map_or(&ZEROES, visible);
            self.oracle.check_after_cut(sector, bytes)?;
        }
        host.violation.clone().map_or(Ok(()), Err)
    }

    /// A successor has opened the disk and reads all of it, as a guest that recovers its file
    /// system.
    pub(super) fn check_by_successor(&mut self) -> Result<(), String> {
        self.now += 1;
        for op in std::mem::take(&mut self.orphans) {
            self.oracle.complete(op, false, false, self.now);
        }
        self.now += 1;
        let host = self.host.lock();
        host.log(|| "a successor opens the disk".into());
        let lost_data = host.lost_data();
        let visible = |sector| host.medium.visible(sector);
        self.oracle.reopen(visible, lost_data, self.now)?;
        drop(host);
        self.now += 1;
        Ok(())
    }
}
