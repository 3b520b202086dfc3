//! Logs that are damaged, that end early, that lie, and those of other programs.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use block::{LOG_SECTOR, LogEntry, LogKind, LogSuper};
use crash::{
    CheckError, CheckedDisk, Checker, ExploreOptions, LogEnd, Recording, RecordingError, SearchEnd,
    Verdict, explore,
};
use proptest::prelude::*;

use crate::legal::{drawn, log_of};
use crate::log_files::{SECTOR, TestLog, content};

fn opened(log: &TestLog, bytes: &[u8]) -> Result<Recording, RecordingError> {
    let (_folder, log, base) = log.files(bytes);
    Recording::open(&log, &base)
}

fn refusal(log: &TestLog, bytes: &[u8]) -> String {
    opened(log, bytes).map(|_| ()).expect_err("the log is refused").to_string()
}

/// Two writes of a sector each, a flush and a mark: five entries with the end, at 512, 1536, 2560,
/// 3072 and 3584.
fn sample() -> TestLog {
    let mut log = TestLog::new(16);
    log.write(0, vec![content(1, 0)], false);
    log.write(8, vec![content(2, 8)], false);
    log.flush();
    log.mark("done");
    log
}

#[test]
fn what_is_no_log_is_refused() {
    let log = sample();
    let bytes = log.encode(false);
    assert!(refusal(&log, b"").contains("signature"));
    assert!(refusal(&log, &bytes[..511]).contains("signature"));
    let mut other = bytes.clone();
    other[8] = 2;
    assert!(refusal(&log, &other).contains("version 2"));
    other.clone_from(&bytes);
    other[24..28].copy_from_slice(&7u32.to_le_bytes());
    assert!(refusal(&log, &other).contains("sectors have 7 bytes"));
    let (folder, _, base) = log.files(&bytes);
    let pipe = folder.path().join("pipe");
    let status = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(status.success());
    for (log, base, message) in [
        (pipe.as_path(), base.as_path(), "cannot read the log: Illegal seek"),
        (folder.path(), base.as_path(), "cannot read the log: is a directory"),
        (base.as_path(), folder.path(), "cannot read the base: is a directory"),
    ] {
        let error = Recording::open(log, base).map(|_| ()).unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    }
    let missing = std::path::Path::new("/nonexistent/log");
    let error = Recording::open(missing, missing).map(|_| ()).unwrap_err();
    assert!(error.to_string().starts_with("cannot read the log: No such file"), "{error}");
}

#[test]
fn a_log_that_ends_before_its_count_is_refused() {
    let log = sample();
    let bytes = log.encode(false);
    for (len, message) in [
        (512, "entry 0 of the log, at byte 512: the log ends here, and should have 5 entries"),
        (1000, "entry 0 of the log, at byte 512: the log ends here, and should have 5 entries"),
        (1500, "entry 0 of the log, at byte 512: the log ends within its data"),
        (1536, "entry 1 of the log, at byte 1536: the log ends here, and should have 5 entries"),
        (3100, "entry 3 of the log, at byte 3072: the log ends here, and should have 5 entries"),
    ] {
        assert_eq!(refusal(&log, &bytes[..len]), message);
    }
}

#[test]
fn a_recording_that_was_killed_is_read_up_to_its_last_whole_entry() {
    let log = sample();
    let bytes = log.encode(true);
    for (len, requests, marks) in [
        (512, 0, 0),
        (1000, 0, 0),
        (1535, 0, 0),
        (1536, 1, 0),
        (3071, 2, 0),
        (3072, 3, 0),
        (3584, 3, 1),
    ] {
        let recording = opened(&log, &bytes[..len]).unwrap();
        assert_eq!((recording.requests(), recording.marks()), (requests, marks), "{len} bytes");
        assert_eq!(recording.end(), &LogEnd::Unclean);
    }
    let mut rest = bytes.clone();
    rest.extend([0xee; 5000]);
    assert_eq!(opened(&log, &rest).unwrap().requests(), 3);
    // An older recording in the same file has other numbers.
    let mut older = bytes.clone();
    older.extend(&bytes[512..]);
    assert_eq!(opened(&log, &older).unwrap().requests(), 3);
    let smaller = TestLog { base: log.base[..8].to_vec(), ..log.clone() };
    let error = refusal(&smaller, &bytes);
    assert!(error.starts_with("entry 1 of the log, at byte 1536: its range of 1 "), "{error}");
    let closed = opened(&log, &log.encode(false)).unwrap();
    assert_eq!(closed.end(), &LogEnd::Closed("closed".to_string()));
    assert_eq!((closed.requests(), closed.marks()), (3, 1));
    let mut failed = log.encode(false);
    let end = failed.len() - LOG_SECTOR;
    let mut entry = LogEntry::decode(&failed[end..]).unwrap();
    entry.stamp.as_mut().unwrap().errno = 5;
    entry.encode(b"closed", (&mut failed[end..]).try_into().unwrap());
    let failed = opened(&log, &failed).unwrap();
    assert_eq!((failed.requests(), failed.end()), (3, &LogEnd::Failed("closed".to_string())));
}

/// The sample with one entry changed.
fn with_entry(at: usize, change: impl FnOnce(&mut LogEntry)) -> Vec<u8> {
    let mut bytes = sample().encode(false);
    let mut entry = LogEntry::decode(&bytes[at..at + LOG_SECTOR]).unwrap();
    change(&mut entry);
    let mut sector = [0; LOG_SECTOR];
    entry.encode(b"done", &mut sector);
    bytes[at..at + LOG_SECTOR].copy_from_slice(&sector);
    bytes
}

#[test]
fn entries_that_lie_are_refused_with_their_place() {
    let log = sample();
    let refused = |at, change: &dyn Fn(&mut LogEntry), message: &str| {
        let error = refusal(&log, &with_entry(at, change));
        assert!(
            error.starts_with("entry ") && error.contains(&format!("at byte {at}: ")),
            "{error}"
        );
        assert!(error.contains(message), "{error}");
    };
    let stamp = |entry: &mut LogEntry| entry.stamp.unwrap();
    refused(512, &|entry| entry.sectors = 0, "has no sectors");
    refused(512, &|entry| entry.sectors = 17, "17 sectors from 0 is not within the base of 8192");
    refused(512, &|entry| entry.sectors = u64::MAX, "is not within the base");
    refused(512, &|entry| entry.sectors = 1 << 62, "is not within the base");
    refused(1536, &|entry| entry.sector = 16, "1 sectors from 16 is not within");
    refused(1536, &|entry| entry.sector = u64::MAX, "contradict");
    let numbered = |number| {
        move |entry: &mut LogEntry| {
            entry.stamp = Some(block::LogStamp { completion: number, ..stamp(entry) });
        }
    };
    refused(1536, &numbered(0), "it has number 0, and 1 follows");
    refused(1536, &numbered(u64::MAX), "and 1 follows");
    refused(3072, &numbered(2), "it has number 2, and 3 follows");
    let late = |entry: &mut LogEntry| {
        entry.stamp = Some(block::LogStamp { issued_after: 2, ..stamp(entry) });
    };
    refused(1536, &late, "issued after 2 completions, later than it completed");
    refused(1536, &|entry| entry.stamp = None, "no stamp, unlike those before it");
    // A request that is said to be something else moves what follows.
    let error = refusal(&log, &with_entry(1536, |entry| entry.kind = LogKind::Mark));
    assert!(error.starts_with("entry 2 of the log, at byte 2048: "), "{error}");
    let error = refusal(&log, &with_entry(2560, |entry| entry.kind = LogKind::End));
    assert_eq!(error, "entry 3 of the log, at byte 3072: it follows the end of the log");
}

#[test]
fn entries_after_the_end_are_refused() {
    let mut log = sample();
    log.marks.clear();
    let mut bytes = log.encode(false);
    let end = bytes.len() - LOG_SECTOR;
    bytes.extend_from_within(end..);
    bytes[..LOG_SECTOR].copy_from_slice(&LogSuper::new(5, None).encode());
    let error = refusal(&log, &bytes);
    assert_eq!(error, "entry 4 of the log, at byte 3584: it follows the end of the log");
}

#[test]
fn a_count_of_entries_that_are_not_there_takes_no_memory() {
    let log = sample();
    let mut bytes = log.encode(false);
    bytes[..LOG_SECTOR].copy_from_slice(&LogSuper::new(u64::MAX, None).encode());
    assert!(refusal(&log, &bytes).contains("the log ends here"));
    // Nor does a log that is long, and has holes only.
    let (_folder, path, base) = log.files(&bytes);
    OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 42).unwrap();
    let error = Recording::open(&path, &base).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("it has no stamp"), "{error}");
}

#[test]
fn a_huge_write_and_a_huge_discard_take_no_memory() {
    let folder = tempfile::tempdir().unwrap();
    let (path, base) = (folder.path().join("log"), folder.path().join("base"));
    fs::write(&base, b"").unwrap();
    OpenOptions::new().write(true).open(&base).unwrap().set_len(1 << 43).unwrap();
    let mut log = TestLog::new(0);
    let mut bytes = LogSuper::new(2, None).encode().to_vec();
    log.write(8, Vec::new(), false);
    let template = with_entry(512, |entry| entry.sectors = (1 << 40) / 512);
    bytes.extend(&template[512..1024]);
    fs::write(&path, &bytes).unwrap();
    let entry_end = 1024 + (1u64 << 40);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(entry_end).unwrap();
    let discard = with_entry(1536, |entry| {
        entry.kind = LogKind::Discard;
        entry.sector = 3;
        entry.sectors = (1 << 43) / 512 - 4;
    });
    std::os::unix::fs::FileExt::write_all_at(&file, &discard[1536..2048], entry_end).unwrap();
    let recording = Recording::open(&path, &base).unwrap();
    assert_eq!((recording.requests(), recording.end()), (2, &LogEnd::Unclean));
    let mut read = [1; 4096];
    for name in ["2", "2-0", "2-1", "2-all", "2-1.5000000000+8", "2-0.7.9-1"] {
        let disk = recording.state(&name.parse().unwrap()).unwrap();
        disk.read((1 << 43) - 8192, &mut read).unwrap();
        assert_eq!(read, [0; 4096]);
    }
    let options = ExploreOptions { samples: 200, ..ExploreOptions::default() };
    let stop = AtomicBool::new(false);
    let outcome = explore(&recording, &options, &ReadsEnds, &stop, &|_| {}).unwrap();
    assert_eq!(outcome.end, SearchEnd::Complete);
    assert!(outcome.pruned > 100, "{outcome:?}");
}

/// Reads and zeroes at both ends of a disk, and between.
struct ReadsEnds;

impl Checker for ReadsEnds {
    fn check(&self, disk: Arc<dyn CheckedDisk>) -> Result<Verdict, CheckError> {
        let mut read = [0; 8192];
        for at in [0, 4096, 1 << 30, 1 << 42, disk.size() - 8192] {
            disk.read(at, &mut read).unwrap();
            disk.zero(at + 512, disk.size() - at - 1024).unwrap();
        }
        Ok(Verdict::Passed)
    }
}

#[test]
fn a_log_of_another_program_is_in_the_order_of_completion() {
    // Write A, write B with a flush before it, FUA C, write D, flush; sectors of 4096 bytes.
    let entry = |flags: u64, sector: u64, sectors: u64| {
        let mut bytes = vec![0; 4096];
        for (place, field) in bytes.chunks_mut(8).zip([sector, sectors, flags]) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    };
    let mut bytes = LogSuper::new(7, None).encode().to_vec();
    bytes[24..28].copy_from_slice(&4096u32.to_le_bytes());
    bytes.resize(4096, 0);
    let mut mark = entry(8, 0, 0);
    mark[24] = 4;
    mark[32..36].copy_from_slice(b"mark");
    for (head, fill) in [
        (entry(0, 0, 1), Some(b'A')),
        (entry(1 | 16, 0, 1), Some(b'B')),
        (entry(2, 1, 1), Some(b'C')),
        (mark, None),
        (entry(0, 1, 1), Some(b'D')),
        (entry(1, 0, 0), None),
        (entry(4, 0, 2), None),
    ] {
        bytes.extend(head);
        bytes.extend(fill.into_iter().flat_map(|fill| [fill; 4096]));
    }
    let log = TestLog { base: vec![[b'-'; SECTOR]; 16], ..TestLog::default() };
    let (_folder, path, base) = log.files(&bytes);
    let recording = Recording::open(&path, &base).unwrap();
    assert_eq!((recording.requests(), recording.marks()), (6, 1));
    assert_eq!(recording.end(), &LogEnd::Foreign);
    let shown = |name: &str| {
        let disk = recording.state(&name.parse().unwrap()).unwrap();
        let mut blocks = [0; 8192];
        disk.read(0, &mut blocks).unwrap();
        let marks = if disk.marks().is_empty() { "" } else { " mark" };
        format!("{}{}{marks}", char::from(blocks[0]), char::from(blocks[4096]))
    };
    assert_eq!(shown("1"), "B-", "B is in flight");
    assert_eq!(shown("1-all"), "--");
    assert_eq!(shown("1-0"), "B-");
    assert_eq!(shown("2-all"), "A-", "A was flushed before B");
    assert_eq!(shown("3-all"), "AC mark");
    assert_eq!(shown("4-1"), "AD mark");
    assert_eq!(shown("4-1-3"), "AC mark");
    assert_eq!(shown("5-all"), "BD mark");
    assert_eq!(shown("6"), "\0\0 mark");
    assert_eq!(shown("6-5.0+8"), "B\0 mark");
    // Without a stamp nothing says that an entry beyond the count is one.
    for (count, requests) in [(0, 0), (3, 3), (4, 3), (7, 6)] {
        let mut counted = bytes.clone();
        counted[16..24].copy_from_slice(&u64::to_le_bytes(count));
        counted.extend(entry(1, 0, 0));
        assert_eq!(opened(&log, &counted).unwrap().requests(), requests, "{count} entries");
    }
    let explained = recording.explain(&"4-1".parse().unwrap()).unwrap().to_string();
    assert!(explained.contains("write 1 of 4096 bytes at byte 0: lost as a whole"), "{explained}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_damaged_log_is_refused_or_read(
        drawn in drawn(8),
        killed in any::<bool>(),
        damage in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..4),
        cut in any::<u16>(),
    ) {
        let log = log_of(&drawn, 24, 4);
        let mut bytes = log.encode(killed);
        for (place, with) in damage {
            let place = usize::from(place) % bytes.len();
            bytes[place] = with;
        }
        if cut % 3 == 0 {
            bytes.truncate(usize::from(cut) % bytes.len());
        }
        if let Ok(recording) = opened(&log, &bytes) {
            prop_assert!(recording.requests() <= log.len());
            let names = ["0".to_string(), format!("{}-all", recording.requests())];
            let seen: BTreeSet<Vec<u8>> = names.iter().map(|name| {
                let disk = recording.state(&name.parse().unwrap()).unwrap();
                let mut read = vec![0; 24 * SECTOR];
                disk.read(0, &mut read).unwrap();
                read
            }).collect();
            prop_assert!(!seen.is_empty());
        }
    }
}

/// A disk refuses a request beyond its end, and the log has that.
#[test]
fn a_refused_request_beyond_the_disk_changes_nothing() {
    let mut log = sample();
    log.write(16, vec![content(3, 16)], false);
    let bytes = log.encode(false);
    assert!(refusal(&log, &bytes).contains("is not within the base"));
    log.requests.last_mut().unwrap().errno = 22;
    log.write(1, vec![content(4, 1)], false);
    let recording = opened(&log, &log.encode(false)).unwrap();
    assert_eq!((recording.requests(), recording.end()), (5, &LogEnd::Closed("closed".into())));
    let state = recording.state(&"5".parse().unwrap()).unwrap();
    let mut sector = [0; SECTOR];
    state.read(SECTOR as u64, &mut sector).unwrap();
    assert_eq!(sector, content(4, 1));
    let refused = recording.state(&"5-3".parse().unwrap()).map(|_| ());
    assert!(refused.is_err(), "the refused request cannot be lost");
}
