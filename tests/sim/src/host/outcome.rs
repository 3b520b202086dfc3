//! The outcome of a call, drawn when the kernel accepts it.

use super::Host;
use crate::call::{Outcome, errno};
use crate::entry::{Entry, Opcode};
use crate::plan::Plan;

impl Host {
    fn supports(&self, opcode: Opcode) -> bool {
        let Plan { block_device, punches_holes, zeroes_ranges, discards, .. } = self.plan;
        match opcode {
            Opcode::PunchHole => punches_holes,
            Opcode::ZeroRange => zeroes_ranges,
            Opcode::Discard => block_device && discards,
            _ => true,
        }
    }

    /// Draws the outcome of a call from the plan's odds and the host's abilities.
    pub(super) fn draw_outcome(&mut self, ring: usize, entry: &Entry) -> Outcome {
        if let Some(refusal) = self.draw_refusal(ring, entry) {
            return refusal;
        }
        let odds = self.plan.odds;
        let direct = self.plan.mode.is_direct();
        let random = &mut self.random;
        let total = usize::try_from(entry.total()).unwrap();
        if entry.opcode == Opcode::Sync {
            let fails = random.chance(odds.sync_error);
            return if fails { Outcome::LoseAndFail } else { Outcome::Complete };
        }
        if entry.opcode == Opcode::Write(true) && random.chance(odds.sync_error) {
            // With direct I/O the failure concerns this write alone, as with FUA (ADR 13).
            let part = random.below(total / 512 + 1);
            return if direct { Outcome::Fail(errno::IO, part) } else { Outcome::LoseAndFail };
        }
        if random.chance(odds.io_error) {
            return Outcome::Fail(errno::IO, random.below(total / 512 + 1));
        }
        let takes_space =
            !matches!(entry.opcode, Opcode::Read | Opcode::Discard | Opcode::PunchHole);
        if takes_space && (self.full || random.chance(odds.no_space)) {
            return Outcome::Fail(errno::NOSPC, random.below(total / 512 + 1));
        }
        if is_transfer(entry) && total > 1 && random.chance(odds.short) {
            return self.draw_short_transfer(entry, total);
        }
        Outcome::Complete
    }

    /// Draws whether the kernel refuses a call.
    fn draw_refusal(&mut self, ring: usize, entry: &Entry) -> Option<Outcome> {
        let odds = self.plan.odds;
        let end = entry.at.checked_add(entry.total());
        let file = &self.rings[ring].file;
        let bytes = 512 * file.start as u64..=512 * file.end as u64;
        if entry.total() > 0
            && !(bytes.contains(&entry.at) && end.is_some_and(|end| bytes.contains(&end)))
        {
            self.violate(|| format!("{entry:?} exceeds the file"));
            return Some(Outcome::Refuse(errno::INVAL));
        }
        // A device zeroes and discards whole blocks, a file any range.
        let needs_alignment =
            if is_transfer(entry) { self.plan.mode.is_direct() } else { self.plan.block_device };
        if needs_alignment && !entry.is_aligned(self.alignment()) {
            return Some(Outcome::Refuse(errno::INVAL));
        }
        if self.random.chance(odds.interrupted) {
            return Some(Outcome::Refuse(errno::INTR));
        }
        if !entry.may_block && self.random.chance(odds.would_block) {
            return Some(Outcome::Refuse(errno::AGAIN));
        }
        let is_unsupported_inline =
            self.plan.is_volume() && entry.opcode == Opcode::Discard && !entry.may_block;
        (is_unsupported_inline || !self.supports(entry.opcode))
            .then_some(Outcome::Refuse(errno::OPNOTSUPP))
    }

    /// Draws the length of a short transfer. It ends at a multiple of a unit on the disk, wherever
    /// it starts.
    fn draw_short_transfer(&mut self, entry: &Entry, total: usize) -> Outcome {
        let direct = self.plan.mode.is_direct();
        let whole = if direct { self.alignment() } else { 512 * self.plan.block as u64 };
        let unit = if self.plan.short_within_sector { 1 } else { usize::try_from(whole).unwrap() };
        let lead = usize::try_from(entry.at).unwrap() % unit;
        let limit = (total - 1 + lead) / unit;
        if limit == 0 {
            return Outcome::Complete;
        }
        Outcome::Short(self.random.within(1, limit) * unit - lead)
    }

    /// Alignment of direct I/O and of a device's ranges in bytes.
    fn alignment(&self) -> u64 {
        512 * self.plan.host_block as u64
    }
}

fn is_transfer(entry: &Entry) -> bool {
    matches!(entry.opcode, Opcode::Read | Opcode::Write(_))
}
