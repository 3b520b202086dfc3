//! Draws SCSI commands, with what the oracle expects of them.

use super::unit::Unit;
use crate::content::Value;
use crate::oracle::Effect;
use crate::plan::DiscardEffect;
use crate::queue_driver::{Framed, MAX_SECTORS};
use crate::scsi_command::{Blocks, Command, CommandKind, Request};
use fixtures::Random;

/// Odds per mille of FUA.
const FUA_ODDS: u16 = 300;
/// Limit of the ranges of an UNMAP.
const MAX_RANGES: usize = 3;
/// Limit of the blocks of a COMPARE AND WRITE.
const MAX_COMPARED: usize = 4;

impl Unit {
    /// Draws a command.
    pub(super) fn draw_command(&mut self, random: &mut Random, id: u64) -> (Framed, Command) {
        // The retry of a held write may follow a compare-and-write that has found its data.
        let compare = if self.plan.hold.is_none() { 10 } else { 0 };
        let unmap = if self.plan.range_requests { 8 } else { 0 };
        let (select, sense) = if self.plan.mode.has_write_cache() { (6, 6) } else { (0, 1) };
        let weights = [32, 24, 14, unmap, 8, compare, 6, 3, select, sense, 1];
        match random.weighted(&weights) {
            Some(0) => self.write(random, id),
            Some(1) => {
                let (range, fua) = (self.draw_range(MAX_SECTORS, random), random.chance(FUA_ODDS));
                self.read(range, fua, random, id)
            }
            Some(2) => {
                let request = Request::synchronize(random);
                self.command(id, request, CommandKind::Synchronize)
            }
            Some(3) => self.unmap(random, id),
            Some(4) => self.write_same(random, id),
            Some(5) => self.compare_and_write(random, id),
            Some(6) => self.verify(random, id),
            Some(7) => self.write_and_verify(random, id),
            Some(8) => self.select_cache(random, id),
            Some(9) => self.command(id, Request::sense_cache(), CommandKind::SenseCache),
            _ => self.command(id, Request::test_ready(), CommandKind::TestReady),
        }
    }

    fn command(&self, id: u64, request: Request, kind: CommandKind) -> (Framed, Command) {
        let (unit, offered) = (self.plan.unit, self.now);
        (request.framed(self.address, id), Command { id, unit, offered, kind })
    }

    fn blocks(&self, first: usize, count: usize) -> Blocks {
        Blocks { first, count, block: self.plan.block }
    }

    /// READ of a range.
    pub(super) fn read(
        &mut self,
        (first, count): (usize, usize),
        fua: bool,
        random: &mut Random,
        id: u64,
    ) -> (Framed, Command) {
        let request = Request::read(self.blocks(first, count), fua, random);
        let read = self.oracle.offer_read(first, count, self.now);
        self.command(id, request, CommandKind::Read { first, read, fua })
    }

    fn write(&mut self, random: &mut Random, id: u64) -> (Framed, Command) {
        let ((first, count), fua) = (self.draw_range(MAX_SECTORS, random), random.chance(FUA_ODDS));
        let effect = self.draw_write(first, count, random);
        let blocks = self.blocks(first, count);
        let data = blocks.sectors().flat_map(|sector| effect.value(sector).bytes(sector));
        let request = Request::write(blocks, data.collect(), fua, random);
        let ops = vec![self.oracle.offer(effect, first, count, self.now)];
        self.command(id, request, CommandKind::Change { ops, fua })
    }

    /// An UNMAP of some ranges. A range that others complete to whole granules may be freed.
    fn unmap(&mut self, random: &mut Random, id: u64) -> (Framed, Command) {
        let ranges: Vec<(usize, usize)> = (0..random.within(1, MAX_RANGES))
            .map(|_| self.draw_range(self.plan.sectors, random))
            .collect();
        let blocks: Vec<Blocks> =
            ranges.iter().map(|(first, count)| self.blocks(*first, *count)).collect();
        let ops = ranges.into_iter().map(|(first, count)| {
            let (effect, count) = match self.plan.discard_effect(first, count) {
                DiscardEffect::Anything => (Effect::Anything, count),
                DiscardEffect::Zero => (Effect::Put(Value::Zero), count),
                DiscardEffect::Untouched => (Effect::Anything, 0),
            };
            self.oracle.offer(effect, first, count, self.now)
        });
        let ops = ops.collect();
        self.command(id, Request::unmap(&blocks), CommandKind::Change { ops, fua: false })
    }

    /// A WRITE SAME of data or of zeroes, with and without UNMAP and a data-out buffer.
    fn write_same(&mut self, random: &mut Random, id: u64) -> (Framed, Command) {
        let (first, count) = self.draw_range(self.plan.sectors, random);
        let unmap = self.plan.range_requests && random.coin();
        let value =
            if random.coin() { Value::Same(self.oracle.next_number()) } else { Value::Zero };
        let (blocks, block) = (self.blocks(first, count), self.plan.block);
        let has_data = value != Value::Zero || random.coin();
        let data = (0..if has_data { block } else { 0 }).flat_map(|sector| value.bytes(sector));
        let request = Request::write_same(blocks, data.collect(), unmap, random);
        let ops = vec![self.oracle.offer(Effect::Put(value), first, count, self.now)];
        self.command(id, request, CommandKind::Change { ops, fua: false })
    }

    fn compare_and_write(&mut self, random: &mut Random, id: u64) -> (Framed, Command) {
        let limit = (MAX_COMPARED * self.plan.block).min(MAX_SECTORS / 2);
        let ((first, count), fua) = (self.draw_range(limit, random), random.chance(FUA_ODDS));
        let (blocks, expected) =
            (self.blocks(first, count), self.draw_expected_range(first, count, random));
        let value = Value::Written(self.oracle.next_number());
        let mut data = data_of(first, &expected);
        blocks.sectors().for_each(|sector| data.extend(value.bytes(sector)));
        let compare = self.oracle.offer_compare(value, first, expected, self.now);
        let request = Request::compare_and_write(blocks, data, fua);
        self.command(id, request, CommandKind::Compare { compare, fua })
    }

    fn draw_expected_range(&self, first: usize, count: usize, random: &mut Random) -> Vec<Value> {
        (first..first + count).map(|sector| self.draw_expected(sector, random)).collect()
    }

    fn verify(&mut self, random: &mut Random, id: u64) -> (Framed, Command) {
        let (first, count) = self.draw_range(MAX_SECTORS, random);
        let compares = random.chance(800);
        let expected = self.draw_expected_range(first, if compares { count } else { 0 }, random);
        let data = data_of(first, &expected);
        let request = Request::verify(self.blocks(first, count), data, random);
        let read = self.oracle.offer_read(first, count, self.now);
        self.command(id, request, CommandKind::Verify { first, read, expected })
    }

    fn write_and_verify(&mut self, random: &mut Random, id: u64) -> (Framed, Command) {
        let (first, count) = self.draw_range(MAX_SECTORS, random);
        let (blocks, value) =
            (self.blocks(first, count), Value::Written(self.oracle.next_number()));
        let data = blocks.sectors().flat_map(|sector| value.bytes(sector)).collect();
        let op = self.oracle.offer(Effect::Put(value), first, count, self.now);
        let request = Request::write_and_verify(blocks, data, random);
        self.command(id, request, CommandKind::WriteAndVerify { op })
    }

    /// A MODE SELECT with either value of WCE. With WCE=1 writes may be volatile at once.
    fn select_cache(&mut self, random: &mut Random, id: u64) -> (Framed, Command) {
        let on = random.coin();
        if on {
            self.cache_off_since = None;
            self.scsi.cache_ons += 1;
        }
        self.scsi.has_cache_off |= !on;
        let request = Request::select_cache(on, random);
        self.command(id, request, CommandKind::SelectCache(on))
    }
}

/// The data of values from a sector on.
fn data_of(first: usize, values: &[Value]) -> Vec<u8> {
    (first..).zip(values).flat_map(|(sector, value)| value.bytes(sector)).collect()
}
