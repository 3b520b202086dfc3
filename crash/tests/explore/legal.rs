//! The states that a recording offers, compared with the oracle sector by sector.

use std::collections::{BTreeMap, BTreeSet};

use block::LogKind;
use crash::{CheckedDisk, Loss, Losses, Recording, StateError, StateName};
use proptest::prelude::*;

use crate::log_files::{SECTOR, TestLog, TestRequest, content};
use crate::oracle::Writer;

/// A request as proptest draws it: what it is, where, how long, and how many completions before its
/// own it was issued.
pub(crate) type Drawn = (u8, u64, u64, u64);

/// Requests for [`log_of`].
pub(crate) fn drawn(requests: usize) -> impl Strategy<Value = Vec<Drawn>> {
    proptest::collection::vec((0..24u8, 0..1000u64, 0..1000u64, 0..6u64), 1..requests)
}

/// A log on `sectors` sectors of requests of at most `longest` sectors.
pub(crate) fn log_of(drawn: &[Drawn], sectors: u64, longest: u64) -> TestLog {
    let mut log = TestLog::new(sectors);
    for (what, place, len, lag) in drawn {
        let number = log.len();
        let (sector, len) = (place % sectors, len % longest + 1);
        let end = (sector + len).min(sectors);
        let writer = if *what == 9 { 1 } else { number + 1 };
        let sectors: Vec<_> = (sector..end).map(|sector| content(writer, sector)).collect();
        let zeroes = vec![[0; SECTOR]; sectors.len()];
        let (kind, data) = match what {
            0..=4 => (LogKind::Flush, Vec::new()),
            5 => (LogKind::Discard, zeroes),
            6 => (LogKind::Zero, zeroes),
            _ => (LogKind::Write, sectors),
        };
        log.add(TestRequest {
            kind,
            sector: if kind == LogKind::Flush { 0 } else { sector },
            data,
            issued_after: number.saturating_sub(*lag),
            fua: kind == LogKind::Write && *what >= 20,
            errno: if *what == 4 || *what == 10 { 5 } else { 0 },
        });
    }
    log
}

fn read_sector(recording: &Recording, name: &StateName, sector: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    let disk = recording.state(name).unwrap();
    disk.read(sector * SECTOR as u64, &mut bytes).unwrap();
    bytes
}

/// The name of the state that lost these sectors of the disk, each of a write.
fn lost_sectors(log: &TestLog, point: u64, lost: &[(u64, u64)]) -> StateName {
    let mut losses = Losses::none();
    for (number, sector) in lost {
        let start = log.requests[usize::try_from(*number).unwrap()].sector;
        losses = losses.with(*number, &Loss::Sectors(vec![(sector - start, 1)]));
    }
    StateName { point, losses, discards: false }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn each_sector_has_all_legal_contents_and_no_other(drawn in drawn(14)) {
        let log = log_of(&drawn, 12, 12);
        let (_folder, recording) = log.open();
        for point in 0..=log.len() {
            for sector in 0..12 {
                let touching: Vec<u64> = log.writes_at(point).into_iter()
                    .map(|(number, _)| number)
                    .filter(|number| log.requests[usize::try_from(*number).unwrap()].touches(sector))
                    .collect();
                if touching.len() > 7 {
                    continue;
                }
                let contents = |writers: BTreeSet<Writer>| -> BTreeSet<[u8; SECTOR]> {
                    writers.into_iter().map(|writer| log.content_of(writer, sector)).collect()
                };
                let legal = contents(log.legal_writers(sector, point));
                let mut found = BTreeSet::new();
                for subset in 0..1u64 << touching.len() {
                    let lost: Vec<(u64, u64)> = touching.iter().enumerate()
                        .filter(|(at, _)| subset >> at & 1 == 1)
                        .map(|(_, number)| (*number, sector))
                        .collect();
                    let name = lost_sectors(&log, point, &lost);
                    if lost.iter().any(|(number, _)| log.must_be_there(*number, sector, point)) {
                        let refused = recording.state(&name).map(|_| ());
                        prop_assert!(matches!(refused, Err(StateError::Durable { .. })), "{name}");
                        continue;
                    }
                    found.insert(read_sector(&recording, &name, sector));
                }
                prop_assert_eq!(&found, &legal, "sector {} after {}", sector, point);
                let all = StateName { point, losses: Losses::All, discards: false };
                prop_assert!(legal.contains(&read_sector(&recording, &all, sector)));
            }
        }
    }

    #[test]
    fn states_that_lost_whole_writes_are_legal(drawn in drawn(30), seed in any::<u64>()) {
        let log = log_of(&drawn, 40, 17);
        let (_folder, recording) = log.open();
        for point in 0..=log.len() {
            let lost: BTreeMap<u64, Loss> = log.writes_at(point).into_iter()
                .filter(|(number, durable)| !durable && seed >> (number % 61) & 1 == 1)
                .map(|(number, _)| (number, Loss::Whole))
                .collect();
            let kinds = [Losses::These(lost), Losses::All, Losses::none()];
            let discards = kinds.iter().cloned().map(|losses| (losses, true));
            let kinds = kinds.iter().cloned().map(|losses| (losses, false)).chain(discards);
            let has_discards = (0..log.len()).any(|number| log.is_flushed_discard(number, point));
            for (losses, discards) in kinds {
                let disk = recording.state(&StateName { point, losses, discards });
                if discards && !has_discards {
                    prop_assert!(matches!(disk, Err(StateError::NoDiscards(_))));
                    continue;
                }
                let disk = disk.unwrap();
                let mut bytes = vec![0; 40 * SECTOR];
                disk.read(0, &mut bytes).unwrap();
                for (sector, found) in (0u64..).zip(bytes.chunks(SECTOR)) {
                    let legal = log.legal_writers(sector, point);
                    let is_legal = legal.into_iter()
                        .any(|writer| log.content_of(writer, sector) == *found);
                    prop_assert!(is_legal, "sector {} after {}", sector, point);
                }
            }
        }
    }

    #[test]
    fn a_checks_own_writes_are_read_as_written(
        ops in proptest::collection::vec((0..3u8, 0..20_480u64, 1..9000u64), 1..20),
    ) {
        let mut log = TestLog::new(40);
        log.write(5, (5..20).map(|sector| content(1, sector)).collect(), false);
        let (_folder, recording) = log.open();
        let disk = recording.state(&"1".parse().unwrap()).unwrap();
        let mut expected = vec![0; 40 * SECTOR];
        disk.read(0, &mut expected).unwrap();
        for (what, at, len) in ops {
            let end = (at + len).min(40 * SECTOR as u64);
            let (from, to) = (usize::try_from(at).unwrap(), usize::try_from(end).unwrap());
            match what {
                0 => {
                    disk.write(at, &vec![what + 7; to - from]).unwrap();
                    expected[from..to].fill(what + 7);
                }
                1 => {
                    disk.zero(at, end - at).unwrap();
                    expected[from..to].fill(0);
                }
                _ => {}
            }
            let mut found = vec![0; to - from];
            disk.read(at, &mut found).unwrap();
            prop_assert_eq!(&found, &expected[from..to]);
        }
    }
}

#[test]
fn ranges_beyond_the_disk_are_refused() {
    let (_folder, recording) = TestLog::new(3).open();
    let disk = recording.state(&"0".parse().unwrap()).unwrap();
    assert_eq!(disk.size(), 3 * 512);
    for (at, len) in [(1536, 1), (1000, 1000), (u64::MAX, 2)] {
        let error = disk.read(at, &mut vec![0; len]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        assert!(disk.write(at, &vec![0; len]).is_err() && disk.zero(at, len as u64).is_err());
    }
    disk.read(1536, &mut []).unwrap();
}

#[test]
fn other_names_than_those_of_states_are_refused() {
    let mut log = TestLog::new(16);
    log.write(0, vec![[1; SECTOR]; 4], false);
    log.flush();
    log.write(4, vec![[1; SECTOR]; 4], false);
    let (_folder, recording) = log.open();
    for (name, message) in [
        ("4", "there is no state after 4 completions: the recording has 3 requests"),
        ("3-1", "request 1 is no write, discard or zeroing that was issued before the power cut"),
        ("1-2", "request 2 is no write, discard or zeroing that was issued before the power cut"),
        ("3-9", "request 9 is no write, discard or zeroing that was issued before the power cut"),
        ("3-2.4", "write 2 has 4 sectors only"),
        ("3-2.0+18446744073709551615", "write 2 has 4 sectors only"),
    ] {
        let error = recording.state(&name.parse().unwrap()).map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(recording.explain(&name.parse().unwrap()).unwrap_err(), error);
    }
    assert_eq!(recording.state(&"3-2.0+4".parse().unwrap()).unwrap().name().to_string(), "3-2");
}
