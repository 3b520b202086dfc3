//! Random chains, checked against the reference implementation.
//!
//! One test mutates valid requests, so that they pass most checks, and compares with
//! [`super::reference`]. The other writes random bytes and checks invariants only.

use std::cell::RefCell;
use std::collections::HashMap;

use block::Operation;
use driver::{Descriptor, HIGH_MEMORY, HOLE, LOW_BYTES, feature};
use fixtures::wait_for;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::dut::{DeviceUnderTest, SECTORS, TABLE};
use super::reference::{Expected, expected_outcome};
use driver::Shape;

/// The window of the buffers, compared byte by byte.
const ZONE: u64 = 0x20_0000;
const ZONE_BYTES: u64 = 0x1_0000;

/// A mutation of one descriptor of a valid chain.
#[derive(Clone, Debug)]
enum Mutation {
    Address(u64),
    Length(u32),
    Direction,
    Remove,
    Repeat,
    Flags(u16),
    Next(u16),
}

/// Device-readable data, in a compact form for failure reports.
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

/// A request and its mutations.
#[derive(Clone, Debug)]
struct Case {
    header: [u8; 16],
    data_out: Payload,
    data_in: u32,
    cuts: Vec<u32>,
    /// Index of the first descriptor in the indirect table.
    indirect_from: Option<usize>,
    head: u16,
    mutations: Vec<(usize, Mutation)>,
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

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        address().prop_map(Mutation::Address),
        length().prop_map(Mutation::Length),
        Just(Mutation::Direction),
        Just(Mutation::Remove),
        Just(Mutation::Repeat),
        (0..8u16).prop_map(Mutation::Flags),
        prop_oneof![4 => 0..17u16, 1 => any::<u16>()].prop_map(Mutation::Next),
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

/// The data of a DISCARD or WRITE_ZEROES.
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
    let mutations = prop_oneof![
        2 => Just(vec![]),
        3 => proptest::collection::vec((0..8usize, mutation()), 1..4),
    ];
    let indirect = proptest::option::weighted(0.4, 0..4usize);
    let head = prop_oneof![30 => 0..16u16, 1 => any::<u16>()];
    (header, data_out(), length(), cuts, indirect, head, mutations).prop_map(
        |(header, data_out, data_in, cuts, indirect_from, head, mutations)| Case {
            header,
            data_out,
            data_in: if data_in > 4096 { 512 } else { data_in },
            cuts,
            indirect_from,
            head,
            mutations,
        },
    )
}

impl Case {
    /// The divided and mutated buffers in the order of the chain, with the readable bytes at
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
        for (at, change) in &self.mutations {
            let at = at % chain.len().max(1);
            match (change, chain.get_mut(at)) {
                (Mutation::Address(addr), Some(buffer)) => buffer.addr = *addr,
                (Mutation::Length(len), Some(buffer)) => buffer.len = *len,
                (Mutation::Direction, Some(buffer)) => buffer.flags ^= 2,
                (Mutation::Repeat, Some(buffer)) => {
                    let buffer = *buffer;
                    chain.insert(at, buffer);
                }
                (Mutation::Remove, Some(_)) => drop(chain.remove(at)),
                _ => {}
            }
        }
        chain.truncate(16);
        chain
    }

    /// The queue's table, with the chain from its head and wrapping around, and the indirect table.
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
        for (at, change) in &self.mutations {
            let spot = usize::from(self.head.wrapping_add(u16::try_from(*at).unwrap()) % 16);
            let inner = inner.get_mut(*at).filter(|_| self.indirect_from == Some(0));
            let descriptor = inner.unwrap_or(&mut table[spot]);
            match change {
                Mutation::Flags(flags) => descriptor.flags = *flags,
                Mutation::Next(next) => descriptor.next = *next,
                _ => {}
            }
        }
        (table, inner)
    }
}

fn config() -> Config {
    // Shrinking is limited in time: each case that hangs costs the whole patience.
    Config { cases: 700, failure_persistence: None, max_shrink_time: 10_000, ..Config::default() }
}

/// Runs one case and compares ring, memory and disk with [`expected_outcome`].
fn play(dut: &mut DeviceUnderTest, case: &Case) -> Result<(), TestCaseError> {
    let (table, inner) = case.tables();
    dut.write(ZONE, &case.header);
    dut.write(ZONE + 16, &case.data_out.bytes());
    dut.write(ZONE + 0x8000, &vec![0xa5; 0x2000]);
    dut.disk.rings[0].set_table(TABLE, &inner);
    for (index, descriptor) in (0..).zip(table) {
        dut.disk.rings[0].set_descriptor(index, descriptor);
    }
    let (mut zone, mut content) = (dut.read(ZONE, ZONE_BYTES), dut.backend.content());
    let indirect = dut.disk.features & feature::INDIRECT_DESC != 0;
    let verdict =
        expected_outcome(dut.disk.device.machine(), &table, case.head, indirect, &mut content);

    let before = dut.disk.rings[0].used_index();
    dut.disk.rings[0].offer_raw(case.head);
    dut.kick();
    let done = || {
        let used = dut.disk.rings[0].used_index() != before;
        (used || dut.disk.device.needs_reset()).then_some(())
    };
    prop_assert!(wait_for(done).is_some(), "the chain is used or a reset is needed");
    match verdict {
        Expected::NeedsReset => {
            let needs_reset = || dut.disk.device.needs_reset().then_some(());
            prop_assert!(wait_for(needs_reset).is_some(), "the device needs a reset");
            // A reset, so that all effects are complete.
            dut.disk.restart();
        }
        Expected::Used { written, writes } => {
            prop_assert!(!dut.disk.device.needs_reset());
            let used = dut.disk.rings[0].take_used().unwrap();
            prop_assert_eq!((used.id, used.len), (u32::from(case.head), written));
            let mut outside = HashMap::new();
            for (addr, byte) in writes {
                match usize::try_from(addr.wrapping_sub(ZONE)) {
                    Ok(at) if at < zone.len() => zone[at] = byte,
                    _ => drop(outside.insert(addr, byte)),
                }
            }
            for (addr, byte) in outside {
                prop_assert_eq!(dut.read(addr, 1)[0], byte);
            }
        }
    }
    prop_assert!(dut.disk.rings[0].take_used().is_none(), "no further chain is used");
    prop_assert!(dut.read(ZONE, ZONE_BYTES) == zone, "guest memory differs");
    prop_assert!(dut.backend.content() == content, "the disk differs");
    Ok(())
}

#[test]
fn mutated_requests_match_reference() {
    for features in [0, feature::INDIRECT_DESC, feature::INDIRECT_DESC | feature::EVENT_IDX] {
        let dut = RefCell::new(DeviceUnderTest::with(Shape::default(), features));
        let steps = proptest::collection::vec(case(), 1..4);
        TestRunner::new(config())
            .run(&steps, |cases| {
                let dut = &mut *dut.borrow_mut();
                dut.disk.restart();
                cases.iter().try_for_each(|case| play(dut, case))
            })
            .unwrap();
        dut.borrow_mut().check_works_after_reset();
    }
}

/// Random table, available ring and memory.
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
        // Small numbers are more often valid types, flags and sectors.
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

fn run_noise(dut: &mut DeviceUnderTest, noise: &Noise) -> Result<(), TestCaseError> {
    let content = dut.backend.content();
    let _ = dut.backend.take_pushed();
    for at in (0..ZONE_BYTES).step_by(512) {
        dut.write(ZONE + at, &noise.memory);
    }
    let ring = &dut.disk.rings[0];
    for ((index, descriptor), head) in (0..).zip(&noise.table).zip(&noise.heads) {
        ring.set_descriptor(index, *descriptor);
        ring.set_available(index, *head);
    }
    ring.set_available_index(noise.index);
    (0..noise.kicks).for_each(|_| dut.kick());
    let done = || {
        let all = ring.used_index() == noise.index;
        (all || dut.disk.device.needs_reset()).then_some(())
    };
    prop_assert!(wait_for(done).is_some(), "all chains are used or a reset is needed");
    // A reset, so that all effects are complete.
    dut.disk.device.reset();
    let used = ring.used_index();
    prop_assert!(used <= noise.index.min(16), "{} used of {}", used, noise.index);
    for at in 0..used {
        let id = ring.used_entry(at).id;
        let offered = noise.heads[..usize::from(noise.index)].iter();
        prop_assert!(offered.map(|head| u32::from(*head)).any(|head| head == id));
    }
    let mut touched = vec![false; content.len() / 512];
    for op in dut.backend.take_pushed() {
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
    let now = dut.backend.content();
    let mut sectors = now.chunks(512).zip(content.chunks(512)).zip(touched);
    let same = sectors.all(|((now, before), touched)| touched || now == before);
    prop_assert!(same, "the disk changed outside of written ranges");
    dut.disk.restart();
    prop_assert_eq!(dut.backend.engines(), 1);
    Ok(())
}

#[test]
fn random_memory_is_survived() {
    for features in [0, feature::INDIRECT_DESC | feature::EVENT_IDX] {
        let dut = RefCell::new(DeviceUnderTest::with(Shape::default(), features));
        TestRunner::new(config())
            .run(&noise(), |noise| run_noise(&mut dut.borrow_mut(), &noise))
            .unwrap();
        dut.borrow_mut().check_works_after_reset();
    }
}
