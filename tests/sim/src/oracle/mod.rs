//! The oracle: legal contents of each sector, for reads and after a power cut. It knows the
//! driver's operations, their times and results, and of the host only whether it lost data.
//!
//! Operation `a` precedes `b` if the driver had seen `a` complete when it submitted `b`; else the
//! two are concurrent and either may take effect last. The candidates of a sector are the
//! operations on it that do not precede a durable one. After a power cut each sector holds,
//! independently, the value of a candidate. A read returns the value of a candidate that does not
//! precede another one completed before the read.

mod compare;
#[cfg(test)]
mod tests;

use super::content::{SECTOR, Value};

pub(super) use self::compare::PendingCompare;

/// Logical time: increases with each action and observation of the driver.
pub(super) type Time = u64;

/// Effect of an operation on its sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// They hold this value.
    Put(Value),
    /// Those before a sector hold one value, the others another.
    Split { at: usize, before: Value, after: Value },
    /// They hold zero or their previous value, as after a discard.
    Anything,
}

impl Effect {
    /// The value in `sector` if the operation took effect there.
    pub(super) fn value(self, sector: usize) -> Value {
        match self {
            Self::Put(value) => value,
            Self::Split { at, before, .. } if sector < at => before,
            Self::Split { after, .. } => after,
            Self::Anything => Value::Zero,
        }
    }
}

/// Number of an operation.
pub(super) type OpId = usize;

#[derive(Clone, Debug)]
struct Op {
    effect: Effect,
    first: usize,
    count: usize,
    offered: Time,
    completed: Option<Time>,
    succeeded: bool,
    durable: bool,
    /// Of a compare-and-write: the values that it compares with, one for each sector.
    expected: Vec<Value>,
    /// It has changed nothing: the comparison has failed.
    is_void: bool,
}

impl Op {
    fn touches(&self, sector: usize) -> bool {
        (self.first..self.first + self.count).contains(&sector)
    }

    fn precedes(&self, other: &Self) -> bool {
        self.completed.is_some_and(|completed| completed < other.offered)
    }
}

/// A read in flight with the operations whose values are legal. Those of later operations are, too.
pub(super) struct PendingRead {
    first: usize,
    all: Vec<Vec<OpId>>,
    legal: Vec<Vec<OpId>>,
    next_op: OpId,
}

/// The history of operations and the candidates of each sector.
#[derive(Debug)]
pub(super) struct Oracle {
    ops: Vec<Op>,
    candidates: Vec<Vec<OpId>>,
    /// Short transfers may end within a sector: incomplete or unflushed writes may then mix with
    /// older values.
    short_within_sector: bool,
    /// Time of the first failed flush.
    flush_failed: Option<Time>,
    /// The number of its first value, the initial content. Disks of a schedule share no value.
    first_number: u32,
    /// Values that the latest successor has read of each sector, and when.
    reopened: Option<(Time, Vec<Option<Value>>)>,
}

impl Oracle {
    /// A history that starts with operation 0, the initial content.
    pub(super) fn new(sectors: usize, short_within_sector: bool, first_number: u32) -> Self {
        let first = Op {
            effect: Effect::Put(Value::Written(first_number)),
            first: 0,
            count: sectors,
            offered: 0,
            completed: Some(0),
            succeeded: true,
            durable: true,
            expected: Vec::new(),
            is_void: false,
        };
        Self {
            ops: vec![first],
            candidates: vec![vec![0]; sectors],
            short_within_sector,
            flush_failed: None,
            first_number,
            reopened: None,
        }
    }

    /// With zeroes from this sector on as the initial content.
    pub(super) fn with_zeroes_from(mut self, at: usize) -> Self {
        let before = Value::Written(self.first_number);
        self.ops[0].effect = Effect::Split { at, before, after: Value::Zero };
        self
    }

    /// The number of the next operation, as the value that it writes.
    pub(super) fn next_number(&self) -> u32 {
        self.first_number + u32::try_from(self.ops.len()).unwrap()
    }

    /// The operation that has written a value.
    fn writer(&self, value: Value) -> Option<OpId> {
        Some(value.number()?.checked_sub(self.first_number)? as OpId)
    }

    /// Records the submission of an operation.
    pub(super) fn offer(&mut self, effect: Effect, first: usize, count: usize, now: Time) -> OpId {
        let id = self.ops.len();
        self.ops.push(Op {
            effect,
            first,
            count,
            offered: now,
            completed: None,
            succeeded: false,
            durable: false,
            expected: Vec::new(),
            is_void: false,
        });
        for candidates in &mut self.candidates[first..first + count] {
            candidates.push(id);
        }
        id
    }

    /// Records the completion of an operation. One that failed, or was dropped by a reset, may have
    /// taken effect in any part.
    pub(super) fn complete(&mut self, id: OpId, succeeded: bool, durable: bool, now: Time) {
        let op = &mut self.ops[id];
        (op.completed, op.succeeded) = (Some(now), succeeded);
        if succeeded && durable {
            self.make_durable(id);
        }
    }

    /// Records that an operation has ended without any effect.
    pub(super) fn cancel(&mut self, id: OpId, now: Time) {
        self.complete(id, false, false, now);
        self.ops[id].is_void = true;
        for candidates in &mut self.candidates {
            candidates.retain(|candidate| *candidate != id);
        }
    }

    /// Records the success of a flush submitted at `offered`.
    pub(super) fn flush_succeeded(&mut self, offered: Time) -> Result<(), String> {
        self.check_flush(offered)?;
        self.mark_durable_before(offered);
        Ok(())
    }

    /// Checks that none has failed before a flush that was submitted at `offered` and succeeded.
    pub(super) fn check_flush(&self, offered: Time) -> Result<(), String> {
        if self.flush_failed.is_some_and(|failed| failed < offered) {
            return Err("a flush succeeds after a failed one".into());
        }
        Ok(())
    }

    /// Records that the medium held the `value` that a read has found in `sector`. If only one
    /// operation can have written it, and has completed before `limit` if there is one, no earlier
    /// operation takes effect there any more.
    pub(super) fn medium_held(
        &mut self,
        read: &PendingRead,
        sector: usize,
        value: Value,
        limit: Option<Time>,
        lost_data: bool,
    ) {
        // A successor does not know what its predecessor has lost.
        if lost_data && self.reopened.is_some() {
            return;
        }
        let mut writers = self.legal(read, sector, true);
        writers.retain(|id| self.ops[*id].effect.value(sector) == value);
        let [id] = writers[..] else { return };
        let op = &self.ops[id];
        let is_late = |limit| op.completed.is_none_or(|completed| completed >= limit);
        if op.effect == Effect::Anything || limit.is_some_and(is_late) {
            return;
        }
        self.candidates[sector].retain(|other| !self.ops[*other].precedes(op));
    }

    /// Records a failed flush.
    pub(super) fn flush_failed(&mut self, now: Time) {
        self.flush_failed.get_or_insert(now);
    }

    /// Whether another operation on the same sectors is concurrent.
    pub(super) fn has_concurrent(&self, id: OpId) -> bool {
        let op = &self.ops[id];
        let overlaps =
            |other: &Op| (op.first..op.first + op.count).any(|sector| other.touches(sector));
        let others = (1..self.ops.len()).filter(|other| *other != id);
        others.map(|other| &self.ops[other]).any(|other| {
            overlaps(other) && !other.is_void && !other.precedes(op) && !op.precedes(other)
        })
    }

    /// Marks all operations completed before `time` as durable.
    pub(super) fn mark_durable_before(&mut self, time: Time) {
        for id in 1..self.ops.len() {
            let op = &self.ops[id];
            let covered = op.completed.is_some_and(|completed| completed < time);
            if covered && op.succeeded && !op.durable {
                self.make_durable(id);
            }
        }
    }

    /// Records that a successor has opened the disk and read all of it. From then on no operation
    /// of its predecessor takes effect. Its flushes know no failure of before, and if the host
    /// had `lost_data`, they do not make durable what is gone.
    pub(super) fn reopen<'a>(
        &mut self,
        visible: impl Fn(usize) -> &'a [u8; SECTOR],
        lost_data: bool,
        now: Time,
    ) -> Result<(), String> {
        self.check_visible(&visible, lost_data, now)?;
        let values = (0..self.candidates.len()).map(|sector| Value::of(visible(sector), sector));
        self.reopened = Some((now, values.collect()));
        self.flush_failed = None;
        for op in self.ops.iter_mut().filter(|op| lost_data && !op.durable) {
            op.succeeded = false;
        }
        Ok(())
    }

    /// Checks the visible content of the whole disk.
    pub(super) fn check_visible<'a>(
        &self,
        visible: impl Fn(usize) -> &'a [u8; SECTOR],
        lost_data: bool,
        now: Time,
    ) -> Result<(), String> {
        let sectors = self.candidates.len();
        let read = self.offer_read(0, sectors, now);
        (0..sectors)
            .try_for_each(|sector| self.check_read(&read, sector, visible(sector), lost_data))
    }

    fn make_durable(&mut self, id: OpId) {
        self.ops[id].durable = true;
        let op = self.ops[id].clone();
        if op.effect == Effect::Anything {
            return;
        }
        for candidates in &mut self.candidates[op.first..op.first + op.count] {
            candidates.retain(|other| !self.ops[*other].precedes(&op));
        }
    }

    /// Checks the content of a sector after a power cut.
    pub(super) fn check_after_cut(&self, sector: usize, bytes: &[u8]) -> Result<(), String> {
        self.check(sector, bytes, &self.candidates[sector])
            .map_err(|error| format!("after the power cut, {error}"))
    }

    /// Records the submission of a read.
    pub(super) fn offer_read(&self, first: usize, count: usize, now: Time) -> PendingRead {
        let all = self.candidates[first..first + count].to_vec();
        let legal = (first..first + count).map(|sector| self.visible(sector, now)).collect();
        PendingRead { first, all, legal, next_op: self.ops.len() }
    }

    /// The candidates of a sector whose values may be visible at `now`: those that no other one
    /// completed before `now` has replaced.
    fn visible(&self, sector: usize, now: Time) -> Vec<OpId> {
        let candidates = &self.candidates[sector];
        let is_replaced_by = |id: OpId, other: OpId| {
            let op = &self.ops[other];
            op.succeeded
                && op.effect != Effect::Anything
                && op.completed.is_some_and(|completed| completed < now)
                && (self.ops[id].precedes(op) || self.is_compared_before(id, other, sector))
        };
        let is_visible = |id: &OpId| {
            !candidates.iter().any(|other| is_replaced_by(*id, *other))
                && self.is_visible_since_reopening(*id, sector)
        };
        candidates.iter().copied().filter(is_visible).collect()
    }

    /// Whether an operation is a successor's, or left the value that the successor has read. A
    /// mix of values is not followed up.
    fn is_visible_since_reopening(&self, id: OpId, sector: usize) -> bool {
        let Some((time, values)) = &self.reopened else { return true };
        let op = &self.ops[id];
        op.offered > *time || values[sector].is_none_or(|read| op.effect.value(sector) == read)
    }

    /// Checks one sector of a read's data. After lost writes, older values are legal, too.
    pub(super) fn check_read(
        &self,
        read: &PendingRead,
        sector: usize,
        bytes: &[u8],
        lost_data: bool,
    ) -> Result<(), String> {
        self.check(sector, bytes, &self.legal(read, sector, lost_data))
            .map_err(|error| format!("in a read, {error}"))
    }

    /// The operations whose values are legal in a sector of a read that completes now.
    fn legal(&self, read: &PendingRead, sector: usize, lost_data: bool) -> Vec<OpId> {
        let before = if lost_data { &read.all } else { &read.legal };
        let later = read.next_op..self.ops.len();
        let mut legal = before[sector - read.first].clone();
        legal.extend(later.filter(|id| self.ops[*id].touches(sector)));
        legal.retain(|id| !self.ops[*id].is_void);
        legal
    }

    fn values(&self, ops: &[OpId], sector: usize) -> Vec<Value> {
        ops.iter().map(|id| self.ops[*id].effect.value(sector)).collect()
    }

    fn check(&self, sector: usize, bytes: &[u8], candidates: &[OpId]) -> Result<(), String> {
        let found = Value::of(bytes, sector);
        let legal = self.values(candidates, sector);
        let is_legal = found.is_some_and(|found| legal.contains(&found));
        if is_legal || self.is_mix(sector, bytes, &legal) {
            return Ok(());
        }
        let found = found.map_or_else(|| "no value".into(), |found| format!("{found:?}"));
        Err(format!("sector {sector} holds {found}; legal values are {legal:?}"))
    }

    fn is_mix(&self, sector: usize, bytes: &[u8], legal: &[Value]) -> bool {
        if !self.short_within_sector || legal.len() < 2 {
            return false;
        }
        let whole: Vec<_> = legal.iter().map(|value| value.bytes(sector)).collect();
        (0..SECTOR).all(|at| whole.iter().any(|value| value[at] == bytes[at]))
    }
}
