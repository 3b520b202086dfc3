//! The volatile cache, compared with a model that knows for each sector what may survive.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests fail by panicking")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::ops::Range;
use std::path::PathBuf;

use powercut::{Fates, Lie, SECTOR, Server, Store};
use proptest::prelude::*;

const SECTORS: u64 = 24;
/// Sectors of a layer's map.
const MAP: Range<u64> = 6..10;

struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    fn new(lie: Option<Lie>) -> (Self, Store) {
        let disk = Self { folder: tempfile::tempdir().unwrap() };
        let file = File::options().create_new(true).read(true).write(true).open(disk.file());
        let file = file.unwrap();
        file.set_len(SECTORS * SECTOR as u64).unwrap();
        (disk, Store::new(file, lie).unwrap().with_map(MAP))
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// Cuts the power and returns what each sector starts with.
    fn cut(&self, store: Store, seed: u64) -> Vec<u8> {
        self.cut_with(store, seed).1
    }

    /// The same, and the fates of the unflushed writes.
    fn cut_with(&self, store: Store, seed: u64) -> (Fates, Vec<u8>) {
        let server = Server::start(store, &self.folder.path().join("sock")).unwrap();
        let cut = server.cut().unwrap();
        server.cut().unwrap_err();
        let state = self.folder.path().join("state");
        let fates = cut.make_state(seed, &self.file(), &state).unwrap();
        let bytes = fs::read(state).unwrap();
        assert_eq!(bytes.len() as u64, SECTORS * SECTOR as u64);
        (fates, bytes.chunks(SECTOR).map(one_byte).collect())
    }
}

/// The byte that all of a sector has.
fn one_byte(sector: &[u8]) -> u8 {
    assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector is divided");
    sector[0]
}

#[derive(Clone, Debug)]
enum Step {
    Write { first: u64, count: u64, fua: bool },
    Zero { first: u64, count: u64, fua: bool },
    Flush,
    Read,
}

fn step() -> impl Strategy<Value = Step> {
    let range = (0..SECTORS).prop_flat_map(|first| (Just(first), 1..=(SECTORS - first).min(8)));
    prop_oneof![
        8 => (range.clone(), prop::bool::weighted(0.2))
            .prop_map(|((first, count), fua)| Step::Write { first, count, fua }),
        2 => (range, prop::bool::weighted(0.2))
            .prop_map(|((first, count), fua)| Step::Zero { first, count, fua }),
        1 => Just(Step::Flush),
        1 => Just(Step::Read),
    ]
}

/// For each sector: what may survive; the last is the newest.
struct Model(Vec<Vec<u8>>);

impl Model {
    fn write(&mut self, first: u64, count: u64, byte: u8, is_durable: bool) {
        for sector in first..first + count {
            let survivors = &mut self.0[usize::try_from(sector).unwrap()];
            if is_durable {
                survivors.clear();
            }
            survivors.push(byte);
        }
    }

    fn flush(&mut self) {
        for survivors in &mut self.0 {
            survivors.drain(..survivors.len() - 1);
        }
    }

    fn newest(&self) -> Vec<u8> {
        self.0.iter().map(|survivors| *survivors.last().unwrap()).collect()
    }
}

/// Plays steps on a disk and on the model of one that keeps its promises, and cuts the power.
fn play(steps: &[Step], lie: Option<Lie>, seed: u64) -> (Model, Vec<u8>) {
    let (disk, mut store) = Disk::new(lie);
    let mut model = Model(vec![vec![0]; usize::try_from(SECTORS).unwrap()]);
    for (number, step) in (1_u8..).zip(steps) {
        let at = |first: u64| first * SECTOR as u64;
        match *step {
            Step::Write { first, count, fua } => {
                let data = vec![number; usize::try_from(at(count)).unwrap()];
                store.write(at(first), &data, fua).unwrap();
                model.write(first, count, number, fua);
            }
            Step::Zero { first, count, fua } => {
                store.zero(at(first), at(count), fua).unwrap();
                model.write(first, count, 0, fua);
            }
            Step::Flush => {
                store.flush().unwrap();
                model.flush();
            }
            Step::Read => {}
        }
        let mut all = vec![0xee; usize::try_from(at(SECTORS)).unwrap()];
        store.read(0, &mut all).unwrap();
        let seen: Vec<u8> = all.chunks(SECTOR).map(one_byte).collect();
        assert_eq!(seen, model.newest(), "reads see the cache");
    }
    let left = disk.cut(store, seed);
    (model, left)
}

fn is_legal(model: &Model, left: &[u8]) -> bool {
    model.0.iter().zip(left).all(|(survivors, byte)| survivors.contains(byte))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn power_cut_leaves_old_or_new_sectors(
        steps in prop::collection::vec(step(), 1..40),
        seed in any::<u64>(),
    ) {
        let (model, left) = play(&steps, None, seed);
        prop_assert!(is_legal(&model, &left), "{left:?} of {:?}", model.0);
        let again = play(&steps, None, seed).1;
        prop_assert_eq!(left, again, "a seed draws one state");
    }
}

const WRITE: Step = Step::Write { first: 3, count: 4, fua: false };
const DURABLE: Step = Step::Write { first: 3, count: 4, fua: true };

/// Whether a power cut of some seed breaks a promise.
fn is_caught(steps: &[Step], lie: Option<Lie>) -> bool {
    (0..20).any(|seed| {
        let (model, left) = play(steps, lie, seed);
        !is_legal(&model, &left)
    })
}

#[test]
fn each_lie_breaks_its_promise() {
    assert!(is_caught(&[WRITE, Step::Flush], Some(Lie::DropFlush)));
    assert!(is_caught(&[DURABLE], Some(Lie::IgnoreFua)));
    assert!(is_caught(&[WRITE, Step::Flush], Some(Lie::ReportEarly)));
    assert!(is_caught(&[DURABLE], Some(Lie::ReportEarly)));
    for steps in [&[WRITE, Step::Flush], &[DURABLE, WRITE]] {
        assert!(!is_caught(steps, None));
    }
    assert!(!is_caught(&[DURABLE], Some(Lie::DropFlush)), "FUA is kept");
    assert!(!is_caught(&[WRITE, Step::Flush], Some(Lie::IgnoreFua)), "flushes are kept");
}

#[test]
fn the_flush_after_a_write_to_the_map_does_not_cover_it() {
    let write = |first| Step::Write { first, count: 2, fua: false };
    let is_caught = |steps: &[Step]| is_caught(steps, Some(Lie::DropMapFlush));
    for first in [5, 6, 9] {
        assert!(is_caught(&[write(first), Step::Flush]));
        assert!(is_caught(&[write(first), Step::Flush, write(first), Step::Flush]));
        assert!(is_caught(&[write(first), Step::Flush, write(0)]));
        assert!(!is_caught(&[write(first), Step::Flush, Step::Flush]), "the next one does");
    }
    for first in [4, 10] {
        assert!(!is_caught(&[write(6), Step::Flush, write(first), Step::Flush]), "not the map");
    }
}

#[test]
fn unflushed_writes_are_lost_kept_and_torn() {
    let mut seen = BTreeSet::new();
    let mut torn = BTreeSet::new();
    for seed in 0..100 {
        let (_, left) = play(&[WRITE, Step::Flush, WRITE], None, seed);
        seen.insert(left[3..7].to_vec());
        if left[3..7].contains(&1) && left[3..7].contains(&3) {
            torn.insert(left[3..7].to_vec());
        }
    }
    assert!(seen.contains(&vec![1; 4]) && seen.contains(&vec![3; 4]), "{seen:?}");
    assert!(torn.contains(&vec![3, 1, 1, 1]) && torn.contains(&vec![1, 3, 1, 3]), "{torn:?}");
}

#[test]
fn states_are_what_the_fates_say() {
    let mut seen = BTreeSet::new();
    for seed in 0..300 {
        let (disk, mut store) = Disk::new(None);
        store.write(0, &[1; 4 * SECTOR], false).unwrap();
        store.write(0, &[2; 4 * SECTOR], false).unwrap();
        let (fates, left) = disk.cut_with(store, seed);
        let has = [0, 1, 2].map(|byte| left[..4].contains(&byte));
        let expected = match (fates.lost, fates.kept, fates.torn) {
            (2, 0, 0) => has == [true, false, false],
            (0, 2, 0) => has == [false, false, true],
            (1, 1, 0) => !has[0] && has[1] != has[2],
            (1, 0, 1) => has[0] && has[1] != has[2],
            (0, 1, 1) => !has[0],
            (0, 0, 2) => has[2],
            _ => false,
        };
        assert!(expected, "seed {seed}: {fates:?} left {:?}", &left[..4]);
        seen.insert((fates.lost, fates.kept, fates.torn));
    }
    assert_eq!(seen.len(), 6, "{seen:?}");
}

#[test]
fn long_zeroing_is_durable_and_replaces_what_was_cached() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let file = File::options().create_new(true).read(true).write(true).open(path).unwrap();
    file.set_len(4 << 20).unwrap();
    for lie in [None, Some(Lie::ReportEarly)] {
        let mut store = Store::new(file.try_clone().unwrap(), lie).unwrap();
        store.write(1 << 20, &[7; 4096], false).unwrap();
        store.zero(0, 3 << 20, false).unwrap();
        let mut read = [1; 4096];
        store.read(1 << 20, &mut read).unwrap();
        assert_eq!(read, [0; 4096]);
        store.flush().unwrap();
        store.read(1 << 20, &mut read).unwrap();
        assert_eq!(read, [0; 4096]);
    }
}

#[test]
fn ranges_must_be_sectors_of_the_disk() {
    let (_disk, mut store) = Disk::new(None);
    let end = SECTORS * SECTOR as u64;
    for (offset, len) in [(1, 512), (0, 511), (end, 512), (end - 512, 1024), (u64::MAX - 511, 512)]
    {
        let mut data = vec![0; usize::try_from(len).unwrap()];
        store.read(offset, &mut data).unwrap_err();
        store.write(offset, &data, false).unwrap_err();
        store.zero(offset, len, false).unwrap_err();
    }
    store.zero(0, 1 << 63, false).unwrap_err();
    store.read(end, &mut []).unwrap();
}
