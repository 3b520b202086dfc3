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
        if !lost_data {
            self.check_equal(&pending.read, &op.expected)
                .map_err(|error| format!("to the comparison of {}, {error}", pending.op))?;
        }
        for (sector, expected) in (op.first..).zip(&op.expected).filter(|_| !lost_data) {
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
        let (expected, id) = (&self.ops[pending.op].expected, pending.op);
        self.check_difference(&pending.read, expected, offset, lost_data)
            .map_err(|error| format!("to the comparison of {id}, {error}"))?;
        self.cancel(pending.op, now);
        Ok(())
    }

    /// Checks that the values that a read was compared with are legal.
    pub(crate) fn check_equal(&self, read: &PendingRead, expected: &[Value]) -> Result<(), String> {
        (read.first..).zip(expected).try_for_each(|(sector, expected)| {
            let legal = self.legal(read, sector, false);
            self.check(sector, &expected.bytes(sector), &legal)
        })
    }

    /// Checks that a legal value of a read differs from the expected ones at `offset` first, and
    /// that none before has to differ.
    pub(crate) fn check_difference(
        &self,
        read: &PendingRead,
        expected: &[Value],
        offset: usize,
        lost_data: bool,
    ) -> Result<(), String> {
        if lost_data || self.short_within_sector {
            return Ok(());
        }
        let differing = read.first + offset / SECTOR;
        let before = expected.get(..offset / SECTOR).ok_or("a miscompare beyond the range")?;
        self.check_equal(read, before)?;
        let expected = expected.get(offset / SECTOR).ok_or("a miscompare beyond the range")?;
        let wanted = expected.bytes(differing);
        let differs = |value: &Value| {
            let found = value.bytes(differing);
            let first = found.iter().zip(&wanted).position(|(found, wanted)| found != wanted);
            first == Some(offset % SECTOR)
        };
        let legal = self.values(&self.legal(read, differing, false), differing);
        if legal.iter().any(differs) {
            return Ok(());
        }
        Err(format!(
            "a difference was found at byte {offset}; sector {differing} may hold {legal:?}, \
             expected was {expected:?}"
        ))
    }

    /// Whether a comparison proves that `id` took effect before `other`: that of `other` has found
    /// its value, or that of `id` the value of an operation that precedes `other`.
    pub(super) fn is_compared_before(&self, id: OpId, other: OpId, sector: usize) -> bool {
        let found = |id: OpId| self.ops[id].replaced(sector).and_then(|value| self.writer(value));
        if found(other) == Some(id) {
            return true;
        }
        let Some(found) = found(id) else { return false };
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
