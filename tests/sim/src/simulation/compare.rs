//! Compare-and-writes: their submission, their completion, and the engines that execute them.

use std::io;

use block::{Durability, Miscompare};

use super::Simulation;
use super::check::LATENCY_LIMIT;
use super::unit::Unit;
use crate::call::errno;
use crate::content::{SECTOR, Value};
use crate::initiator::{Compared, Initiator};
use crate::oracle::{Oracle, Time};
use fixtures::Random;

/// Limit of blocks of a compare-and-write.
const MAX_BLOCKS: usize = 4;

impl Simulation<'_> {
    /// Makes the engines of the initiators.
    pub(super) fn start_initiators(&mut self) -> Result<(), String> {
        let Unit { disk: Some(disk), host, .. } = &self.units[0] else { return Ok(()) };
        for _ in 0..self.plan.initiators {
            let ring = || host.lock().last_ring();
            self.initiators.push(Initiator::new(&**disk, ring)?);
        }
        Ok(())
    }

    /// Has one of the initiators submit a compare-and-write. Mostly it expects the latest values.
    pub(super) fn submit_compare(&mut self, with_room: &[usize]) {
        let at = self.random.pick(with_room);
        self.left -= 1;
        self.counts.requests += 1;
        let block = self.plan.block;
        let blocks = self.plan.sectors / block;
        let first = self.random.below(blocks);
        let count = self.random.within(1, (blocks - first).min(MAX_BLOCKS)) * block;
        let first = first * block;
        let Self { units, random, .. } = self;
        let Unit { oracle, host, now, .. } = &mut units[0];
        let expected: Vec<Value> =
            (first..first + count).map(|at| draw_expected(oracle, at, *now, random)).collect();
        let number = oracle.next_number();
        let value = Value::Written(number);
        let mut data: Vec<u8> = Vec::new();
        (first..).zip(&expected).for_each(|(sector, value)| data.extend(value.bytes(sector)));
        (first..first + count).for_each(|sector| data.extend(value.bytes(sector)));
        let now_ns = {
            let host = host.lock();
            host.log(|| {
                format!(
                    "initiator {at} compares sector {first} with {expected:?}: operation {number}"
                )
            });
            host.now_ns
        };
        let compare = oracle.offer_compare(value, first, expected, *now);
        let offset = (first * SECTOR) as u64;
        self.initiators[at].push(offset, &data, compare, now_ns, &mut self.random);
        self.tick();
    }

    /// Runs one of the initiators until it sleeps in its engine.
    pub(super) fn run_initiator(&mut self, awake: &[usize]) -> Result<(), String> {
        let at = self.random.pick(awake);
        self.tick();
        for compared in self.initiators[at].reap() {
            self.units[0].check_compared(compared)?;
        }
        self.tick();
        let initiator = &mut self.initiators[at];
        initiator.is_asleep = match initiator.wait() {
            Ok(()) => false,
            Err(error) if error.raw_os_error() == Some(errno::TIME) => true,
            Err(error) => return Err(format!("the engine failed: {error}")),
        };
        self.forward_kicks();
        Ok(())
    }
}

impl Unit {
    /// A value that a comparison of a sector expects, mostly the latest.
    pub(super) fn draw_expected(&self, sector: usize, random: &mut Random) -> Value {
        draw_expected(&self.oracle, sector, self.now, random)
    }

    fn check_compared(&mut self, compared: Compared) -> Result<(), String> {
        let Compared { compare, since_ns, durability, result } = compared;
        let (faults, lost_data, took_ns) = {
            let host = self.host.lock();
            host.log(|| format!("initiator sees {result:?} of operation {}", compare.op));
            (host.faults, host.lost_data(), host.now_ns - since_ns)
        };
        if u128::from(took_ns) > LATENCY_LIMIT.as_nanos() {
            return Err(format!("operation {} took {} ms", compare.op, took_ns / 1_000_000));
        }
        let Err(error) = result else {
            self.counts.compared += 1;
            let durable = durability == Durability::Durable;
            return self.oracle.compare_succeeded(&compare, durable, lost_data, self.now);
        };
        if let Some(offset) = miscompare(&error) {
            self.counts.miscompared += 1;
            return self.oracle.compare_failed(&compare, offset, lost_data, self.now);
        }
        self.counts.failed += 1;
        if faults == 0 {
            return Err(format!("operation {} fails although no fault was injected", compare.op));
        }
        self.oracle.complete(compare.op, false, false, self.now);
        Ok(())
    }
}

/// The offset of the first difference.
fn miscompare(error: &io::Error) -> Option<usize> {
    let miscompare = error.get_ref()?.downcast_ref::<Miscompare>()?;
    usize::try_from(miscompare.offset).ok()
}

fn draw_expected(oracle: &Oracle, sector: usize, now: Time, random: &mut Random) -> Value {
    let values = oracle.visible_values(sector, now);
    match values.last() {
        Some(latest) if random.chance(800) => *latest,
        Some(_) => values[random.below(values.len())],
        None => Value::Zero,
    }
}
