//! What may be read from each sector, while the machine runs and after a power cut. Knows nothing
//! of the host but whether it lost data: only what the driver asked, when, and what it was told.
//!
//! Operation `a` comes before `b` if the driver had seen `a`'s completion when it offered `b`;
//! otherwise the two are concurrent and either may win. A sector keeps its *candidates*: all
//! operations on it but those that come before one known durable. After a cut every sector holds a
//! candidate's value, each sector on its own. A read finds a candidate's value that no operation
//! completed before the read comes after.

use super::content::{SECTOR, Value};

/// The simulated machine's time: counts what the driver does and sees.
pub(super) type Time = u64;

/// What an operation puts into its sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// This value.
    Put(Value),
    /// Zero or whatever was there: a discard.
    Anything,
}

/// An operation's number.
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
}

impl Op {
    fn comes_before(&self, other: &Self) -> bool {
        self.completed.is_some_and(|completed| completed < other.offered)
    }
}

/// A read on its way: what was legal when it was offered. What is offered later is legal as well.
pub(super) struct Reading {
    first: usize,
    all: Vec<Vec<OpId>>,
    legal: Vec<Vec<OpId>>,
    next_op: OpId,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Oracle {
    ops: Vec<Op>,
    candidates: Vec<Vec<OpId>>,
    /// Short transfers end within sectors, so that unfinished or unflushed writes may mix with what
    /// they replace.
    ragged: bool,
    /// When the driver saw a flush fail.
    flush_failed: Option<Time>,
}

impl Oracle {
    /// Operation 0 is what the disk holds at first.
    pub(super) fn new(sectors: usize, ragged: bool) -> Self {
        let first = Op {
            effect: Effect::Put(Value::Written(0)),
            first: 0,
            count: sectors,
            offered: 0,
            completed: Some(0),
            succeeded: true,
            durable: true,
        };
        Self { ops: vec![first], candidates: vec![vec![0]; sectors], ragged, flush_failed: None }
    }

    /// The number of the next operation.
    pub(super) fn next_id(&self) -> OpId {
        self.ops.len()
    }

    /// The driver offers an operation.
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
        });
        for candidates in &mut self.candidates[first..first + count] {
            candidates.push(id);
        }
        id
    }

    /// The driver sees an operation's completion. One that failed, or was given up in a reset, may
    /// have happened in any part of it.
    pub(super) fn complete(&mut self, id: OpId, succeeded: bool, durable: bool, now: Time) {
        let op = &mut self.ops[id];
        (op.completed, op.succeeded) = (Some(now), succeeded);
        if succeeded && durable {
            self.make_durable(id);
        }
    }

    /// The driver sees the success of a flush that it offered at `offered`.
    pub(super) fn flushed(&mut self, offered: Time) -> Result<(), String> {
        if self.flush_failed.is_some_and(|failed| failed < offered) {
            return Err("a flush succeeds after one that failed".into());
        }
        self.everything_is_durable(offered);
        Ok(())
    }

    /// The driver sees a flush fail.
    pub(super) fn flush_failed(&mut self, now: Time) {
        self.flush_failed.get_or_insert(now);
    }

    /// Everything that completed before `time` was promised to be durable.
    pub(super) fn everything_is_durable(&mut self, time: Time) {
        for id in 1..self.ops.len() {
            let op = &self.ops[id];
            let covered = op.completed.is_some_and(|completed| completed < time);
            if covered && op.succeeded && !op.durable {
                self.make_durable(id);
            }
        }
    }

    fn make_durable(&mut self, id: OpId) {
        self.ops[id].durable = true;
        let op = self.ops[id].clone();
        if op.effect == Effect::Anything {
            return;
        }
        for candidates in &mut self.candidates[op.first..op.first + op.count] {
            candidates.retain(|other| !self.ops[*other].comes_before(&op));
        }
    }

    /// Checks what a sector held after a power cut.
    pub(super) fn check_cut(&self, sector: usize, bytes: &[u8]) -> Result<(), String> {
        self.check(sector, bytes, &self.candidates[sector])
            .map_err(|why| format!("after the cut {why}"))
    }

    /// The driver offers a read.
    pub(super) fn offer_read(&self, first: usize, count: usize, now: Time) -> Reading {
        let all = self.candidates[first..first + count].to_vec();
        let legal = all.iter().map(|candidates| self.latest(candidates, now)).collect();
        Reading { first, all, legal, next_op: self.ops.len() }
    }

    /// The candidates without those that an operation completed before `now` replaced.
    fn latest(&self, candidates: &[OpId], now: Time) -> Vec<OpId> {
        let replaces = |other: &Op, id: OpId| {
            other.succeeded
                && other.effect != Effect::Anything
                && other.completed.is_some_and(|completed| completed < now)
                && self.ops[id].comes_before(other)
        };
        let is_replaced = |id: OpId| candidates.iter().any(|other| replaces(&self.ops[*other], id));
        candidates.iter().copied().filter(|id| !is_replaced(*id)).collect()
    }

    /// Checks what a read found in one of its sectors. If data was lost on its way to the disk,
    /// older values may be back.
    pub(super) fn check_read(
        &self,
        reading: &Reading,
        sector: usize,
        bytes: &[u8],
        lost_data: bool,
    ) -> Result<(), String> {
        let before = if lost_data { &reading.all } else { &reading.legal };
        let mut legal = before[sector - reading.first].clone();
        legal.extend((reading.next_op..self.ops.len()).filter(|id| {
            let op = &self.ops[*id];
            (op.first..op.first + op.count).contains(&sector)
        }));
        self.check(sector, bytes, &legal).map_err(|why| format!("a read finds that {why}"))
    }

    fn check(&self, sector: usize, bytes: &[u8], candidates: &[OpId]) -> Result<(), String> {
        let found = Value::of(bytes, sector);
        let legal: Vec<Value> = candidates
            .iter()
            .map(|id| match self.ops[*id].effect {
                Effect::Put(value) => value,
                Effect::Anything => Value::Zero,
            })
            .collect();
        let is_legal = found.is_some_and(|found| legal.contains(&found));
        if is_legal || self.is_mixture(sector, bytes, &legal) {
            return Ok(());
        }
        let found =
            found.map_or_else(|| "bytes of no one value".into(), |found| format!("{found:?}"));
        Err(format!("sector {sector} holds {found}; legal are {legal:?}"))
    }

    fn is_mixture(&self, sector: usize, bytes: &[u8], legal: &[Value]) -> bool {
        if !self.ragged || legal.len() < 2 {
            return false;
        }
        let whole: Vec<_> = legal.iter().map(|value| value.bytes(sector)).collect();
        (0..SECTOR).all(|at| whole.iter().any(|value| value[at] == bytes[at]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(number: u32) -> Effect {
        Effect::Put(Value::Written(number))
    }

    fn legal_after_cut(oracle: &Oracle) -> Vec<u32> {
        let legal = |number: &u32| oracle.check_cut(0, &Value::Written(*number).bytes(0)).is_ok();
        (0..5).filter(legal).collect()
    }

    #[test]
    fn a_flush_ends_what_came_before_the_writes_it_covers() {
        let mut oracle = Oracle::new(1, false);
        for number in 1..4 {
            let now = Time::from(number) * 10;
            let id = oracle.offer(put(number), 0, 1, now);
            oracle.complete(id, true, false, now + 5);
        }
        assert_eq!(legal_after_cut(&oracle), [0, 1, 2, 3]);
        oracle.flushed(30).unwrap();
        assert_eq!(
            legal_after_cut(&oracle),
            [2, 3],
            "the third completed after the flush was offered"
        );
        oracle.flushed(40).unwrap();
        assert_eq!(legal_after_cut(&oracle), [3]);
    }

    #[test]
    fn concurrent_writes_may_both_remain() {
        let mut oracle = Oracle::new(1, false);
        let (one, two) = (oracle.offer(put(1), 0, 1, 1), oracle.offer(put(2), 0, 1, 2));
        oracle.complete(two, true, true, 3);
        assert_eq!(legal_after_cut(&oracle), [1, 2]);
        oracle.complete(one, true, true, 4);
        assert_eq!(legal_after_cut(&oracle), [1, 2]);
        let reading = oracle.offer_read(0, 1, 9);
        let read =
            |number: u32| oracle.check_read(&reading, 0, &Value::Written(number).bytes(0), false);
        assert!(read(1).is_ok() && read(2).is_ok() && read(0).is_err());
    }

    #[test]
    fn a_read_finds_the_last_completed_value() {
        let mut oracle = Oracle::new(1, false);
        let one = oracle.offer(put(1), 0, 1, 1);
        let read = |oracle: &Oracle, number, lost| {
            let reading = oracle.offer_read(0, 1, 9);
            oracle.check_read(&reading, 0, &Value::Written(number).bytes(0), lost).is_ok()
        };
        assert!(read(&oracle, 0, false) && read(&oracle, 1, false));
        oracle.complete(one, true, false, 2);
        assert!(!read(&oracle, 0, false) && read(&oracle, 1, false));
        assert!(read(&oracle, 0, true), "unless it was lost");
        let discard = oracle.offer(Effect::Anything, 0, 1, 3);
        oracle.complete(discard, true, true, 4);
        assert!(read(&oracle, 1, false) && !read(&oracle, 0, false));
        let reading = oracle.offer_read(0, 1, 9);
        assert!(oracle.check_read(&reading, 0, &Value::Zero.bytes(0), false).is_ok());
    }

    /// Also when the write that came meanwhile is durable by the time the read completes.
    #[test]
    fn a_read_may_find_what_was_there_when_it_was_offered() {
        let mut oracle = Oracle::new(1, false);
        let reading = oracle.offer_read(0, 1, 1);
        let id = oracle.offer(put(1), 0, 1, 2);
        oracle.complete(id, true, true, 3);
        for number in [0, 1] {
            let bytes = Value::Written(number).bytes(0);
            assert!(oracle.check_read(&reading, 0, &bytes, false).is_ok());
        }
    }

    #[test]
    fn no_flush_succeeds_after_one_failed() {
        let mut oracle = Oracle::new(1, false);
        oracle.flush_failed(5);
        assert!(oracle.flushed(4).is_ok(), "offered before");
        assert!(oracle.flushed(6).is_err());
    }
}
