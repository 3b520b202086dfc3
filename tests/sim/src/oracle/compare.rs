//! Compare-and-write: the comparison and the write are one step to all other operations.
//!
//! A value is written once, and its number is that of its operation. So a successful
//! compare-and-write names, for each sector, the operation that precedes it immediately: any other
//! one that follows the latter follows the compare-and-write as well, and no second
//! compare-and-write succeeds with the same value. Both hold unless the host loses data.

use super::{Effect, OpId, Oracle, PendingRead, Time};
use crate::content::{SECTOR, Value};

/// A compare-and-write in flight.
pub(crate) struct PendingCompare {
    pub(crate) op: OpId,
    /// The values that the comparison may find.
    read: PendingRead,
}

impl Oracle {
    /// The values that a sector may hold now.
    pub(crate) fn visible_values(&self, sector: usize, now: Time) -> Vec<Value> {
        self.values(&self.visible(sector, now), sector)
    }

    /// Records the submission of a compare-and-write, one expected value for each sector.
    pub(crate) fn offer_compare(
        &mut self,
        value: Value,
        first: usize,
        expected: Vec<Value>,
        now: Time,
    ) -> PendingCompare {
        let mut read = self.offer_read(first, expected.len(), now);
        let op = self.offer(Effect::Put(value), first, expected.len(), now);
        read.next_op = op + 1;
        self.ops[op].expected = expected;
        PendingCompare { op, read }
    }

    /// Records that a compare-and-write has succeeded.
    pub(crate) fn compare_succeeded(
        &mut self,
        pending: &PendingCompare,
        durable: bool,
        lost_data: bool,
        now: Time,
    ) -> Result<(), String> {
        let op = &self.ops[pending.op];
        for (sector, expected) in (op.first..).zip(&op.expected).filter(|_| !lost_data) {
            self.check_expected(pending, sector, *expected)?;
            let has_replaced = |id: &OpId| self.ops[*id].replaced(sector) == Some(*expected);
            if let Some(other) = (0..self.ops.len()).find(has_replaced) {
                let id = pending.op;
                return Err(format!(
                    "compare-and-writes {other} and {id} have both replaced {expected:?} in \
                     sector {sector}"
                ));
            }
        }
        self.complete(pending.op, true, durable, now);
        Ok(())
    }

    /// Records that a compare-and-write has found a difference at byte `offset` of its range.
    pub(crate) fn compare_failed(
        &mut self,
        pending: &PendingCompare,
        offset: usize,
        lost_data: bool,
        now: Time,
    ) -> Result<(), String> {
        if !lost_data && !self.short_within_sector {
            self.check_difference(pending, offset)?;
        }
        self.complete(pending.op, false, false, now);
        self.ops[pending.op].is_void = true;
        for candidates in &mut self.candidates {
            candidates.retain(|id| *id != pending.op);
        }
        Ok(())
    }

    fn check_expected(
        &self,
        pending: &PendingCompare,
        sector: usize,
        expected: Value,
    ) -> Result<(), String> {
        self.check(sector, &expected.bytes(sector), &self.legal(&pending.read, sector, false))
            .map_err(|error| format!("to the comparison of {}, {error}", pending.op))
    }

    /// Checks that a legal value differs at `offset` first, and that none before has to differ.
    fn check_difference(&self, pending: &PendingCompare, offset: usize) -> Result<(), String> {
        let op = &self.ops[pending.op];
        let differing = op.first + offset / SECTOR;
        for (sector, expected) in (op.first..differing).zip(&op.expected) {
            self.check_expected(pending, sector, *expected)?;
        }
        let expected = op.expected.get(offset / SECTOR).ok_or("a miscompare beyond the range")?;
        let wanted = expected.bytes(differing);
        let differs = |value: &Value| {
            let found = value.bytes(differing);
            let first = found.iter().zip(&wanted).position(|(found, wanted)| found != wanted);
            first == Some(offset % SECTOR)
        };
        let legal = self.values(&self.legal(&pending.read, differing, false), differing);
        if legal.iter().any(differs) {
            return Ok(());
        }
        Err(format!(
            "compare-and-write {} finds a difference at byte {offset}; sector {differing} may hold \
             {legal:?}, expected was {expected:?}",
            pending.op
        ))
    }

    /// Whether a comparison proves that `id` took effect before `other`: that of `other` has found
    /// its value, or that of `id` the value of an operation that precedes `other`.
    pub(super) fn is_compared_before(&self, id: OpId, other: OpId, sector: usize) -> bool {
        let is_found = |value| matches!(value, Value::Written(number) if number as OpId == id);
        if self.ops[other].replaced(sector).is_some_and(is_found) {
            return true;
        }
        let Some(Value::Written(number)) = self.ops[id].replaced(sector) else { return false };
        let found = number as OpId;
        found != other && id != other && self.ops[found].precedes(&self.ops[other])
    }
}

impl super::Op {
    /// The value in a sector that a successful compare-and-write has replaced, if it is written
    /// once: zeroes are not.
    fn replaced(&self, sector: usize) -> Option<Value> {
        let expected = self.expected.get(sector.checked_sub(self.first)?)?;
        (self.succeeded && *expected != Value::Zero).then_some(*expected)
    }
}
