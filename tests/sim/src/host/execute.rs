//! Execution of calls: transfers sector by sector, completion, write-back and lost writes.

use block::simulation::RingResult;

use super::Host;
use crate::call::{Call, Outcome, errno};
use crate::chain::Chain;
use crate::entry::Opcode;

impl Host {
    /// Advances one call, and may lose dirty data. False if no call is in flight.
    pub(crate) fn step(&mut self) -> bool {
        if !self.plan.mode.is_direct() && self.random.chance(self.plan.odds.lost_write) {
            self.lose_dirty_data();
        }
        if self.calls.is_empty() {
            return false;
        }
        let at = self.random.below(self.calls.len());
        self.execute(at);
        true
    }

    /// Transfers some sectors of a call, or completes it.
    fn execute(&mut self, at: usize) {
        let budget = self.random.within(1, 6);
        for _ in 0..budget {
            let Some(chunk) = self.calls[at].next_chunk() else {
                return self.complete(at);
            };
            let call = &self.calls[at];
            let span = chunk.offset..chunk.offset + chunk.len;
            let mut bytes = [0; 512];
            match call.entry.opcode {
                Opcode::Read => {
                    call.entry.copy_to(chunk.at, &self.medium.visible(chunk.sector)[span]);
                }
                Opcode::Write(_) => {
                    call.entry.copy_from(chunk.at, &mut bytes[..chunk.len]);
                    self.medium.write(chunk.sector, chunk.offset, &bytes[..chunk.len]);
                }
                Opcode::PunchHole | Opcode::ZeroRange => {
                    self.medium.write(chunk.sector, chunk.offset, &bytes[..chunk.len]);
                }
                Opcode::Discard if self.plan.is_volume() => {
                    let granule = chunk.sector / self.plan.granule() * self.plan.granule();
                    let first = 512 * granule as u64;
                    let last = first + 512 * self.plan.granule() as u64;
                    let entry = &self.calls[at].entry;
                    if entry.at <= first && last <= entry.at + entry.total() {
                        self.medium.free(chunk.sector);
                    }
                }
                Opcode::Discard => {
                    if self.random.coin() {
                        self.medium.write(chunk.sector, chunk.offset, &bytes[..chunk.len]);
                    }
                }
                Opcode::Sync | Opcode::Poll => {}
            }
        }
    }

    /// Completes a call with its drawn outcome.
    fn complete(&mut self, at: usize) {
        let call = self.calls.swap_remove(at);
        let result = match call.outcome {
            Outcome::Refuse(errno) => -errno,
            Outcome::Fail(errno, _) => {
                // A durable write of a block device through the page cache may report the error of
                // another write.
                let own =
                    !call.is_durable() || !self.plan.block_device || self.plan.mode.is_direct();
                if errno == errno::NOSPC && own && self.plan.hold.is_some() {
                    self.space_faults += 1;
                } else {
                    self.faults += 1;
                }
                -errno
            }
            Outcome::LoseAndFail => {
                self.faults += 1;
                self.lose_dirty_data();
                self.errors += 1;
                self.report_errors(call.ring);
                -errno::IO
            }
            Outcome::Complete | Outcome::Short(_) => self.complete_success(&call),
        };
        self.log(|| format!("  host completes {call} with {result}"));
        if call.orphaned {
            self.orphans_completed += 1;
            return self.close_unused_files(call.ring);
        }
        let user_data = call.entry.user_data;
        self.post(call.ring, RingResult { user_data, result, more: false });
    }

    /// Makes durable what a successful call guarantees and returns its result.
    fn complete_success(&mut self, call: &Call) -> i32 {
        let moved = i32::try_from(call.moved()).unwrap();
        match call.entry.opcode {
            Opcode::Sync => {
                self.medium.write_back_file(self.rings[call.ring].file.clone(), call.version);
                if self.report_errors(call.ring) { -errno::IO } else { 0 }
            }
            Opcode::Write(true) => {
                for sector in call.sectors_moved() {
                    self.medium.write_back(sector, u64::MAX);
                }
                let fails = !self.plan.mode.is_direct() && self.report_errors(call.ring);
                if fails { -errno::IO } else { moved }
            }
            Opcode::Write(false) | Opcode::Read => moved,
            Opcode::PunchHole | Opcode::ZeroRange | Opcode::Discard => {
                self.range_calls += 1;
                0
            }
            Opcode::Poll => 0,
        }
    }

    /// Reports write-back errors to a ring's file description; returns whether any were unreported.
    fn report_errors(&mut self, ring: usize) -> bool {
        self.reported_errors = self.errors;
        let reported = &mut self.rings[ring].reported;
        let unreported = *reported < self.errors;
        *reported = self.errors;
        if unreported {
            self.faults += 1;
        }
        unreported
    }

    /// Drops random dirty sectors; a write-back error if there are any. With direct I/O, sectors of
    /// durable writes in flight are exempt: those writes report their own failure.
    fn lose_dirty_data(&mut self) {
        let mut candidates = self.medium.dirty();
        if self.plan.mode.is_direct() {
            let owned = |sector: &usize| {
                self.calls.iter().any(|call| call.is_durable() && call.touches(*sector))
            };
            candidates.retain(|sector| !owned(sector));
        }
        candidates.retain(|_| self.random.coin());
        if candidates.is_empty() {
            return;
        }
        self.errors += 1;
        for sector in &candidates {
            self.medium.lose(*sector);
        }
        self.log(|| format!("  host loses dirty data of sectors {candidates:?}"));
    }

    /// Writes back some dirty sectors, or evicts a lost one.
    pub(crate) fn write_back(&mut self) {
        let dirty = self.medium.dirty();
        if dirty.is_empty() || self.random.chance(200) {
            let sector = self.random.below(self.medium.sectors());
            self.medium.evict(sector);
            return;
        }
        for _ in 0..self.random.within(1, 4) {
            let sector = dirty[self.random.below(dirty.len())];
            self.medium.write_back_some(sector, &mut self.random);
        }
    }

    /// `fdatasync` on the control plane's file description.
    pub(crate) fn sync_control_plane(&mut self) -> Result<(), i32> {
        if self.random.chance(self.plan.odds.sync_error) {
            self.lose_dirty_data();
            self.errors += 1;
        }
        self.medium.write_back_all(u64::MAX);
        self.reported_errors = self.errors;
        let unreported = self.reported_to_backend < self.errors;
        self.reported_to_backend = self.errors;
        self.log(|| {
            format!("  host syncs for the control plane: {}", if unreported { "EIO" } else { "ok" })
        });
        if unreported {
            self.faults += 1;
            return Err(errno::IO);
        }
        Ok(())
    }

    /// The control plane writes bytes at a sector.
    pub(crate) fn write_by_control_plane(&mut self, sector: usize, bytes: &[u8]) {
        for (sector, bytes) in (sector..).zip(bytes.chunks(512)) {
            self.medium.write(sector, 0, bytes);
        }
        self.log(|| format!("  host writes the map at sector {sector} for the control plane"));
    }

    /// Cuts the power: cancels all calls and drops volatile data.
    pub(crate) fn cut_power(&mut self) {
        self.powered_off = true;
        let calls = std::mem::take(&mut self.calls);
        for call in calls.into_iter().filter(|call| !call.orphaned) {
            let user_data = call.entry.user_data;
            self.post(call.ring, RingResult { user_data, result: -errno::CANCELED, more: false });
        }
        for sector in self.plan.chain.as_ref().map(Chain::top_map).unwrap_or_default() {
            self.medium.tear(sector, &mut self.random);
        }
        self.medium.cut_power(&mut self.random);
    }
}
