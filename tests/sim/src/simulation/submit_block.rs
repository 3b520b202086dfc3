//! Draws virtio-blk requests, and what requests of either device are made of.

use driver::kind;

use super::unit::Unit;
use crate::block_request::{self, Expectation, Request};
use crate::content::{SECTOR, Value};
use crate::oracle::Effect;
use crate::plan::DiscardEffect;
use crate::queue_driver::MAX_SECTORS;
use fixtures::Random;

impl Unit {
    /// Draws a range of sectors, whole blocks, of at most `limit` sectors.
    pub(super) fn draw_range(&self, limit: usize, random: &mut Random) -> (usize, usize) {
        let block = self.plan.block;
        let blocks = self.plan.sectors / block;
        let first = random.below(blocks);
        let limit = (blocks - first).min(limit / block);
        (first * block, random.within(1, limit) * block)
    }

    /// Draws a request and its expectation.
    pub(super) fn draw_request(&mut self, random: &mut Random) -> (Request, Expectation) {
        let (first, count) = self.draw_range(MAX_SECTORS, random);
        let flush = if self.plan.flush { 25 } else { 0 };
        let (discard, zero) = if self.plan.range_requests { (7, 10) } else { (0, 0) };
        match random.weighted(&[45, 30, flush, discard, zero, 1]) {
            Some(0) => {
                let effect = self.draw_write(first, count, random);
                let out =
                    (first..first + count).flat_map(|sector| effect.value(sector).bytes(sector));
                let request = block_request::write(first, out.collect());
                (request, self.change(effect, first, count))
            }
            Some(1) => {
                let read = self.oracle.offer_read(first, count, self.now);
                (
                    block_request::bare(kind::IN, first, count * SECTOR),
                    Expectation::Read { first, read },
                )
            }
            Some(2) => {
                (block_request::bare(kind::FLUSH, 0, 0), Expectation::Flush { offered: self.now })
            }
            Some(3) => {
                let expectation = match self.plan.discard_effect(first, count) {
                    DiscardEffect::Anything => self.change(Effect::Anything, first, count),
                    DiscardEffect::Zero => self.change(Effect::Put(Value::Zero), first, count),
                    DiscardEffect::Untouched => self.change(Effect::Anything, first, 0),
                };
                (block_request::range(kind::DISCARD, first, count, 0), expectation)
            }
            Some(4) => {
                let expectation = self.change(Effect::Put(Value::Zero), first, count);
                let unmap = u32::from(random.coin());
                (block_request::range(kind::WRITE_ZEROES, first, count, unmap), expectation)
            }
            _ => (block_request::bare(kind::GET_ID, 0, 20), Expectation::Id),
        }
    }

    /// Draws the values of a write: its number, zeroes, or zeroes at one end.
    pub(super) fn draw_write(&mut self, first: usize, count: usize, random: &mut Random) -> Effect {
        let value = Value::Written(self.oracle.next_number());
        if !random.chance(self.plan.zero_writes) {
            return Effect::Put(value);
        }
        if count == 1 || random.coin() {
            self.counts.zero_writes += 1;
            return Effect::Put(Value::Zero);
        }
        let at = first + random.within(1, count - 1);
        let (before, after) =
            if random.coin() { (value, Value::Zero) } else { (Value::Zero, value) };
        Effect::Split { at, before, after }
    }

    /// Registers a change of sectors with the oracle.
    fn change(&mut self, effect: Effect, first: usize, count: usize) -> Expectation {
        let op = self.oracle.offer(effect, first, count, self.now);
        Expectation::Change { op, offered: self.now }
    }
}

/// A line of the trace.
pub(super) fn describe(at: usize, request: &Request, expectation: &Expectation) -> String {
    let verb = match request.kind {
        kind::IN => "reads",
        kind::OUT => "writes",
        kind::FLUSH => "flushes",
        kind::DISCARD => "discards",
        kind::WRITE_ZEROES => "zeroes",
        _ => "reads the serial number at",
    };
    let Request { sector, sectors, .. } = request;
    format!("driver {at} {verb} sector {sector} +{sectors}: {expectation}")
}
