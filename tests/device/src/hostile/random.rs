//! Random chains, judged by a second, simpler reading of the specification.
//!
//! Most cases are valid requests with a few things changed, so that they get far; what each must
//! come to is worked out by [`super::judge`] before the kick. The others are noise, of which only
//! what must hold of anything is asked.

use std::cell::RefCell;
use std::collections::HashMap;

use block::Operation;
use driver::{Descriptor, HIGH_MEMORY, HOLE, LOW_BYTES, feature};
use fixtures::wait_for;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::judge::{Verdict, judge};
use super::victim::{SECTORS, TABLE, Victim};
use driver::Shape;

/// Where buffers are: a window that is compared byte by byte.
const ZONE: u64 = 0x20_0000;
const ZONE_BYTES: u64 = 0x1_0000;

/// A change to one descriptor of an otherwise valid chain.
#[derive(Clone, Debug)]
enum Change {
    Address(u64),
    Length(u32),
    Direction,
    Remove,
    Repeat,
    Flags(u16),
    Next(u16),
}

/// Data to the device, told shortly.
#[derive(Clone, Debug)]
enum Payload {
    Sectors(usize, u8),
    Bytes(Vec<u8>),
}

impl Payload {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Sectors(count, byte) => {
                (0..count * 512).map(|at| at.to_le_bytes()[0] ^ byte).collect()
            }
            Self::Bytes(bytes) => bytes.clone(),
        }
    }
}

/// One request and what was done to it.
#[derive(Clone, Debug)]
struct Case {
    header: [u8; 16],
    data_out: Payload,
    data_in: u32,
    cuts: Vec<u32>,
    /// From which descriptor on the chain is in a table.
    indirect_from: Option<usize>,
    head: u16,
    changes: Vec<(usize, Change)>,
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => (0..ZONE_BYTES - 4096).prop_map(|at| ZONE + at),
        1 => proptest::sample::select(vec![
            HOLE, LOW_BYTES - 100, LOW_BYTES, HIGH_MEMORY, HIGH_MEMORY - 50, u64::MAX, u64::MAX - 600,
        ]),
        1 => any::<u64>().prop_filter("not the rings", |at| *at >= ZONE),
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => 0..2048u32,
        2 => (0..5u32).prop_map(|sectors| sectors * 512),
        1 => proptest::sample::select(vec![1, 16, 20, 0x8000_0000, u32::MAX]),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        address().prop_map(Change::Address),
        length().prop_map(Change::Length),
        Just(Change::Direction),
        Just(Change::Remove),
        Just(Change::Repeat),
        (0..8u16).prop_map(Change::Flags),
        prop_oneof![4 => 0..17u16, 1 => any::<u16>()].prop_map(Change::Next),
    ]
}

fn kind() -> impl Strategy<Value = u32> {
    prop_oneof![
        12 => proptest::sample::select(vec![0u32, 0, 0, 1, 1, 1, 4, 8, 11, 13]),
        1 => any::<u32>(),
    ]
}

fn sector() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => 0..SECTORS + 2,
        1 => proptest::sample::select(vec![1u64 << 55, (1 << 55) + 1, u64::MAX >> 9, u64::MAX]),
        1 => any::<u64>(),
    ]
}

/// The data of a discard or zeroing.
fn range() -> impl Strategy<Value = Vec<u8>> {
    let sectors = prop_oneof![4 => 0..20u32, 1 => any::<u32>()];
    let flags = prop_oneof![4 => 0..3u32, 1 => any::<u32>()];
    (sector(), sectors, flags).prop_map(|(sector, sectors, flags)| {
        let words = sectors.to_le_bytes().into_iter().chain(flags.to_le_bytes());
        sector.to_le_bytes().into_iter().chain(words).collect()
    })
}

fn data_out() -> impl Strategy<Value = Payload> {
    prop_oneof![
        3 => (0..5usize, any::<u8>()).prop_map(|(count, byte)| Payload::Sectors(count, byte)),
        2 => range().prop_map(Payload::Bytes),
        1 => proptest::collection::vec(any::<u8>(), 0..100).prop_map(Payload::Bytes),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    let header = (kind(), any::<u32>(), sector()).prop_map(|(kind, reserved, sector)| {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[4..8].copy_from_slice(&reserved.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        header
    });
    let cuts = proptest::collection::vec(prop_oneof![Just(16u32), 0..600u32], 0..4);
    let changes = prop_oneof![
        2 => Just(vec![]),
        3 => proptest::collection::vec((0..8usize, change()), 1..4),
    ];
    let indirect = proptest::option::weighted(0.4, 0..4usize);
    let head = prop_oneof![30 => 0..16u16, 1 => any::<u16>()];
    (header, data_out(), length(), cuts, indirect, head, changes).prop_map(
        |(header, data_out, data_in, cuts, indirect_from, head, changes)| Case {
            header,
            data_out,
            data_in: if data_in > 4096 { 512 } else { data_in },
            cuts,
            indirect_from,
            head,
            changes,
        },
    )
}

impl Case {
    /// The buffers in the order of the chain, cut and changed, with the readable bytes from
    /// [`ZONE`].
    fn buffers(&self) -> Vec<Descriptor> {
        let mut chain = Vec::new();
        let readable = 16 + u32::try_from(self.data_out.bytes().len()).unwrap();
        let sides = [(ZONE, readable, false), (ZONE + 0x8000, self.data_in + 1, true)];
        for (mut at, mut left, writable) in sides {
            for cut in self.cuts.iter().copied().chain([u32::MAX]) {
                let len = cut.min(left);
                let make = if writable { Descriptor::writable } else { Descriptor::readable };
                chain.push(make(at, len));
                (at, left) = (at + u64::from(len), left - len);
            }
        }
        for (at, change) in &self.changes {
            let at = at % chain.len().max(1);
            match (change, chain.get_mut(at)) {
                (Change::Address(addr), Some(buffer)) => buffer.addr = *addr,
                (Change::Length(len), Some(buffer)) => buffer.len = *len,
                (Change::Direction, Some(buffer)) => buffer.flags ^= 2,
                (Change::Repeat, Some(buffer)) => {
                    let buffer = *buffer;
                    chain.insert(at, buffer);
                }
                (Change::Remove, Some(_)) => drop(chain.remove(at)),
                _ => {}
            }
        }
        chain.truncate(16);
        chain
    }

    /// The chain linked into the queue's table from the head on (around its end), and the indirect
    /// table.
    fn tables(&self) -> ([Descriptor; 16], Vec<Descriptor>) {
        let buffers = self.buffers();
        let (direct, inner) = buffers.split_at(self.indirect_from.unwrap_or(16).min(buffers.len()));
        let mut inner: Vec<_> = (1..).zip(inner).map(|(next, buffer)| buffer.then(next)).collect();
        inner.last_mut().into_iter().for_each(|last| last.flags &= !1);
        let mut chain = direct.to_vec();
        if !inner.is_empty() {
            chain.push(Descriptor::indirect(TABLE, u32::try_from(inner.len() * 16).unwrap()));
        }
        let mut table = [Descriptor::default(); 16];
        let count = u16::try_from(chain.len()).unwrap();
        for (at, descriptor) in (0..count).zip(chain) {
            let next = (self.head.wrapping_add(at + 1)) % 16;
            let linked = if at + 1 < count { descriptor.then(next) } else { descriptor };
            table[usize::from(self.head.wrapping_add(at) % 16)] = linked;
        }
        for (at, change) in &self.changes {
            let spot = usize::from(self.head.wrapping_add(u16::try_from(*at).unwrap()) % 16);
            let inner = inner.get_mut(*at).filter(|_| self.indirect_from == Some(0));
            let descriptor = inner.unwrap_or(&mut table[spot]);
            match change {
                Change::Flags(flags) => descriptor.flags = *flags,
                Change::Next(next) => descriptor.next = *next,
                _ => {}
            }
        }
        (table, inner)
    }
}

fn config() -> Config {
    // A failure is told soon rather than as short as can be: one that hangs takes long each time.
    Config { cases: 700, failure_persistence: None, max_shrink_time: 10_000, ..Config::default() }
}

/// Plays one case and compares everything that can be seen with what [`judge`] says.
fn play(victim: &mut Victim, case: &Case) -> Result<(), TestCaseError> {
    let (table, inner) = case.tables();
    victim.write(ZONE, &case.header);
    victim.write(ZONE + 16, &case.data_out.bytes());
    victim.write(ZONE + 0x8000, &vec![0xa5; 0x2000]);
    victim.disk.rings[0].set_table(TABLE, &inner);
    for (index, descriptor) in (0..).zip(table) {
        victim.disk.rings[0].set_descriptor(index, descriptor);
    }
    let (mut zone, mut content) = (victim.read(ZONE, ZONE_BYTES), victim.backend.content());
    let indirect = victim.disk.features & feature::INDIRECT_DESC != 0;
    let verdict = judge(victim.disk.device.machine(), &table, case.head, indirect, &mut content);

    let before = victim.disk.rings[0].used_index();
    victim.disk.rings[0].offer_raw(case.head);
    victim.kick();
    let done = || {
        let used = victim.disk.rings[0].used_index() != before;
        (used || victim.disk.device.needs_reset()).then_some(())
    };
    prop_assert!(wait_for(done).is_some(), "neither used nor a reset asked for");
    match verdict {
        Verdict::Reset => {
            let asks = || victim.disk.device.needs_reset().then_some(());
            prop_assert!(wait_for(asks).is_some(), "a reset must be asked for");
            // Stopped, so that what it did is complete.
            victim.disk.restart();
        }
        Verdict::Answer { written, writes } => {
            prop_assert!(!victim.disk.device.needs_reset());
            let used = victim.disk.rings[0].take_used().unwrap();
            prop_assert_eq!((used.id, used.len), (u32::from(case.head), written));
            let mut elsewhere = HashMap::new();
            for (addr, byte) in writes {
                match usize::try_from(addr.wrapping_sub(ZONE)) {
                    Ok(at) if at < zone.len() => zone[at] = byte,
                    _ => drop(elsewhere.insert(addr, byte)),
                }
            }
            for (addr, byte) in elsewhere {
                prop_assert_eq!(victim.read(addr, 1)[0], byte);
            }
        }
    }
    prop_assert!(victim.disk.rings[0].take_used().is_none(), "used more than was offered");
    prop_assert!(victim.read(ZONE, ZONE_BYTES) == zone, "guest memory differs");
    prop_assert!(victim.backend.content() == content, "the disk differs");
    Ok(())
}

#[test]
fn changed_requests_come_to_what_they_must() {
    for features in [0, feature::INDIRECT_DESC, feature::INDIRECT_DESC | feature::EVENT_IDX] {
        let victim = RefCell::new(Victim::with(Shape::default(), features));
        let steps = proptest::collection::vec(case(), 1..4);
        TestRunner::new(config())
            .run(&steps, |cases| {
                let victim = &mut *victim.borrow_mut();
                victim.disk.restart();
                cases.iter().try_for_each(|case| play(victim, case))
            })
            .unwrap();
        victim.borrow_mut().works_after_reset();
    }
}

/// A ring full of noise: its table, its available ring, and the memory it points to.
#[derive(Clone, Debug)]
struct Noise {
    table: Vec<Descriptor>,
    heads: Vec<u16>,
    index: u16,
    memory: Vec<u8>,
    kicks: usize,
}

fn noise() -> impl Strategy<Value = Noise> {
    let flags = prop_oneof![6 => 0..4u16, 2 => 0..8u16, 1 => any::<u16>()];
    let next = prop_oneof![8 => 0..16u16, 1 => any::<u16>()];
    let descriptor = (address(), length(), flags, next)
        .prop_map(|(addr, len, flags, next)| Descriptor { addr, len, flags, next });
    let heads = prop_oneof![20 => 0..16u16, 1 => any::<u16>()];
    let index = prop_oneof![8 => 0..17u16, 1 => any::<u16>()];
    (
        proptest::collection::vec(descriptor, 16),
        proptest::collection::vec(heads, 16),
        index,
        // Small numbers are types, flags and sectors more often than large ones.
        proptest::collection::vec(prop_oneof![3 => Just(0u8), 1 => 0..16u8, 1 => any::<u8>()], 512),
        1..4usize,
    )
        .prop_map(|(table, heads, index, memory, kicks)| Noise {
            table,
            heads,
            index,
            memory,
            kicks,
        })
}

fn suffer(victim: &mut Victim, noise: &Noise) -> Result<(), TestCaseError> {
    let content = victim.backend.content();
    let _ = victim.backend.take_pushed();
    for at in (0..ZONE_BYTES).step_by(512) {
        victim.write(ZONE + at, &noise.memory);
    }
    let ring = &victim.disk.rings[0];
    for ((index, descriptor), head) in (0..).zip(&noise.table).zip(&noise.heads) {
        ring.set_descriptor(index, *descriptor);
        ring.set_available(index, *head);
    }
    ring.set_available_index(noise.index);
    (0..noise.kicks).for_each(|_| victim.kick());
    let done = || {
        let all = ring.used_index() == noise.index;
        (all || victim.disk.device.needs_reset()).then_some(())
    };
    prop_assert!(wait_for(done).is_some(), "neither all used nor a reset asked for");
    // Stopped, so that what it did is complete.
    victim.disk.device.reset();
    let used = ring.used_index();
    prop_assert!(used <= noise.index.min(16), "{} used of {}", used, noise.index);
    for at in 0..used {
        let id = ring.used_entry(at).id;
        let offered = noise.heads[..usize::from(noise.index)].iter();
        prop_assert!(offered.map(|head| u32::from(*head)).any(|head| head == id));
    }
    let mut touched = vec![false; content.len() / 512];
    for op in victim.backend.take_pushed() {
        let (start, len) = match op {
            Operation::Write { at, .. } | Operation::CompareAndWrite { at, .. } => {
                (at.0, content.len() as u64)
            }
            Operation::Discard { range, .. } | Operation::WriteZeroes { range, .. } => {
                (range.start.0, range.len)
            }
            Operation::Read { .. } | Operation::Flush => continue,
        };
        let first = usize::try_from(start / 512).unwrap();
        let sectors = usize::try_from(len / 512).unwrap();
        touched.iter_mut().skip(first).take(sectors).for_each(|sector| *sector = true);
    }
    let now = victim.backend.content();
    let mut sectors = now.chunks(512).zip(content.chunks(512)).zip(touched);
    let same = sectors.all(|((now, before), touched)| touched || now == before);
    prop_assert!(same, "the disk changed where nothing was written");
    victim.disk.restart();
    prop_assert_eq!(victim.backend.engines(), 1);
    Ok(())
}

#[test]
fn noise_harms_nobody() {
    for features in [0, feature::INDIRECT_DESC | feature::EVENT_IDX] {
        let victim = RefCell::new(Victim::with(Shape::default(), features));
        TestRunner::new(config())
            .run(&noise(), |noise| suffer(&mut victim.borrow_mut(), &noise))
            .unwrap();
        victim.borrow_mut().works_after_reset();
    }
}
