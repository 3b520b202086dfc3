//! A recorded disk: the contract of disks, and what its log says of its requests.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test may panic, and its values are small"
)]

mod common;
mod contract;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use block::{
    BASE_SAMPLE, Backend, BaseSamples, ByteOffset, ByteRange, CacheMode, Durability, EngineKind,
    Geometry, LOG_SECTOR, LogEntry, LogKind, LogStamp, LogSuper, MemoryDisk, OpenError, Operation,
    RawFile, RecordOptions, RecordedDisk, Recording,
};
use common::{DEPTH, KIB, MIB, Memory, Rig, numbered_file, open, write};
use fixtures::host::Mount;
use fixtures::{Random, needs};

const ENGINE: EngineKind = EngineKind::Auto;

/// A name for a log that no other test has.
fn log_path() -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = common::scratch().join(format!("record-{}-{number}.log", std::process::id()));
    let _ = std::fs::remove_file(&path);
    path
}

fn disk_under_test(file: RawFile) -> Box<dyn Backend> {
    Box::new(Recorded::new(Arc::new(file)).disk)
}

/// A disk and its log, which is removed.
struct Recorded {
    disk: RecordedDisk,
    recording: Arc<Recording>,
    log: LogPath,
}

fn start(disk: &dyn Backend, log: &Path) -> Result<Arc<Recording>, OpenError> {
    start_with(disk, log, None)
}

fn start_with(
    disk: &dyn Backend,
    log: &Path,
    limit: Option<u64>,
) -> Result<Arc<Recording>, OpenError> {
    Recording::start("disk", disk, &RecordOptions { limit, ..RecordOptions::new(log) })
}

struct LogPath(PathBuf);

impl Drop for LogPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Recorded {
    fn new(inner: Arc<dyn Backend>) -> Self {
        let log = LogPath(log_path());
        let recording = start(&*inner, &log.0).unwrap();
        let disk = RecordedDisk::new(inner, Arc::clone(&recording));
        Self { disk, recording, log }
    }

    /// Closes the disk, and reads its log.
    fn close(self) -> (Vec<Logged>, LogPath) {
        drop(self.disk);
        drop(self.recording);
        (read_log(&self.log.0), self.log)
    }
}

struct Logged {
    entry: LogEntry,
    stamp: LogStamp,
    data: Vec<u8>,
    text: String,
}

/// All entries of a log, and its end, as a reader finds them: up to the first that is incomplete.
fn read_log(path: &Path) -> Vec<Logged> {
    let bytes = std::fs::read(path).unwrap();
    let count = LogSuper::decode(&bytes).unwrap().entries;
    let mut left = &bytes[LOG_SECTOR..];
    let mut log = Vec::new();
    while let Some((sector, rest)) = left.split_at_checked(LOG_SECTOR) {
        let entry = LogEntry::decode(sector).unwrap();
        let Some(stamp) = entry.stamp else { break };
        let len = entry.data_sectors() as usize * LOG_SECTOR;
        let Some((data, rest)) = rest.split_at_checked(len) else { break };
        let text = String::from_utf8(entry.text(sector).to_vec()).unwrap();
        log.push(Logged { entry, stamp, data: data.to_vec(), text });
        left = rest;
    }
    assert!(count == 0 || count == log.len() as u64, "{count} entries of {}", log.len());
    check_stamps(&log);
    log
}

/// Completions have consecutive numbers, issues have each number once, and no request was issued
/// after its own completion.
fn check_stamps(log: &[Logged]) {
    let mut next = 0;
    let mut issues = Vec::new();
    for Logged { entry, stamp, .. } in log {
        assert_eq!(stamp.completion, next, "{entry:?}");
        if matches!(entry.kind, LogKind::Mark | LogKind::End) {
            continue;
        }
        next += 1;
        assert!(stamp.issued_after <= stamp.completion, "{entry:?}");
        assert!(stamp.issued_ns <= stamp.completed_ns, "{entry:?}");
        issues.push(stamp.issue);
        // Requests that had completed before it was issued were issued before it.
        for other in log.iter().take(stamp.issued_after as usize) {
            assert!(
                other.stamp.completion >= stamp.issued_after || other.stamp.issue < stamp.issue
            );
        }
    }
    issues.sort_unstable();
    issues.dedup();
    assert_eq!(issues.len() as u64, next, "issue numbers are unique");
}

/// The image after the requests of a log, in order.
fn replay(log: &[Logged], image: &mut [u8]) {
    for Logged { entry, data, .. } in log {
        let start = entry.sector as usize * LOG_SECTOR;
        let range = start..start + entry.sectors as usize * LOG_SECTOR;
        match entry.kind {
            LogKind::Write => image[range].copy_from_slice(data),
            LogKind::Discard | LogKind::Zero => image[range].fill(0),
            LogKind::Flush | LogKind::Mark | LogKind::End => {}
        }
    }
}

fn kinds(log: &[Logged]) -> Vec<LogKind> {
    log.iter().map(|logged| logged.entry.kind).collect()
}

/// Up to `DEPTH` requests at a time in the blocks from `first` on. Those in flight do not overlap.
fn play(disk: &dyn Backend, seed: u64, first: u64, rounds: u32) {
    let mut random = Random::new(seed);
    let mut rig = Rig::new(disk);
    let mut memories: Vec<_> = (0..DEPTH).map(|_| Memory::filled(0, 64 * KIB)).collect();
    for _ in 0..rounds {
        let count = 1 + below(&mut random, u64::from(DEPTH)) as u16;
        for tag in 0..count {
            let start =
                ByteOffset(first + u64::from(tag) * 64 * KIB + below(&mut random, 64) * 512);
            let len = (1 + below(&mut random, 64)) * 512;
            let durability =
                if below(&mut random, 4) == 0 { Durability::Durable } else { Durability::Volatile };
            let range = ByteRange { start, len };
            let mut segments = Vec::new();
            let op = match below(&mut random, 8) {
                0 => Operation::Flush,
                // Parts of granules keep their content.
                1 => {
                    let len = len.next_multiple_of(4096);
                    let range = ByteRange { start: ByteOffset(start.0 & !4095), len };
                    Operation::Discard { range, durability, more_follows: false }
                }
                2 => Operation::WriteZeroes { range, unmap: true, durability },
                _ => {
                    let memory = &mut memories[usize::from(tag)];
                    memory.set(below(&mut random, len) as usize, below(&mut random, 256) as u8);
                    let cut = below(&mut random, len) as usize;
                    segments =
                        vec![memory.segment(0, cut), memory.segment(cut, len as usize - cut)];
                    Operation::Write { at: start, durability }
                }
            };
            rig.push(tag, op, segments);
        }
        rig.submit();
        rig.complete_all(count);
    }
}

fn below(random: &mut Random, bound: u64) -> u64 {
    random.below(usize::try_from(bound).unwrap()) as u64
}

#[test]
fn the_log_replayed_over_the_start_is_the_end() {
    let image = numbered_file(4 * MIB);
    let mut replayed = std::fs::read(image.path()).unwrap();
    let recorded = Recorded::new(Arc::new(open(image.path(), CacheMode::WriteBack)));
    play(&recorded.disk, 1, 0, 200);
    let (log, _path) = recorded.close();
    assert!(log.len() > 1000, "{}", log.len());
    let end = log.last().unwrap();
    assert_eq!((end.entry.kind, end.text.as_str()), (LogKind::End, "the disk was closed"));
    assert!(log.iter().any(|logged| logged.entry.fua));
    replay(&log, &mut replayed);
    let found = std::fs::read(image.path()).unwrap();
    assert!(
        replayed == found,
        "differs at {:?}",
        replayed.iter().zip(&found).position(|(a, b)| a != b)
    );
}

#[test]
fn queues_on_several_threads_are_merged_in_the_order_of_completion() {
    const QUEUES: u64 = 4;
    let geometry = Geometry {
        capacity: QUEUES * 4 * MIB,
        logical_block: 512,
        physical_block: 512,
        optimal_io: 0,
        discard: None,
    };
    let memory = MemoryDisk::new(geometry, CacheMode::WriteBack, false);
    let image = numbered_file(QUEUES * 4 * MIB);
    let raw = open(image.path(), CacheMode::WriteBack);
    let disks: [(Arc<dyn Backend>, Vec<u8>); 2] = [
        (Arc::new(memory.clone()), memory.content().clone()),
        (Arc::new(raw), std::fs::read(image.path()).unwrap()),
    ];
    for (disk, mut replayed) in disks {
        let is_memory = disk.status().engine.name == "memory";
        let recorded = Recorded::new(disk);
        std::thread::scope(|scope| {
            for queue in 0..QUEUES {
                let disk = &recorded.disk;
                scope.spawn(move || play(disk, 7 + queue, queue * 4 * MIB, 100));
            }
        });
        let (log, _path) = recorded.close();
        let queues: std::collections::BTreeSet<_> =
            log.iter().map(|logged| logged.stamp.queue).collect();
        assert!(queues.len() > 1, "{queues:?}");
        replay(&log, &mut replayed);
        let found =
            if is_memory { memory.content().clone() } else { std::fs::read(image.path()).unwrap() };
        assert!(replayed == found);
    }
}

#[test]
fn a_flush_covers_what_was_reaped_before_it_was_pushed() {
    let image = numbered_file(MIB);
    let recorded = Recorded::new(Arc::new(open(image.path(), CacheMode::WriteBack)));
    let (mut one, mut other) = (Rig::new(&recorded.disk), Rig::new(&recorded.disk));
    let mut memory = Memory::filled(9, 4096);
    one.fill(0, 4096, 1, Durability::Volatile).unwrap();
    // The host completes it, and its completion is not reaped.
    one.push(0, write(8192, Durability::Volatile), memory.whole());
    one.submit();
    one.wait();
    other.flush().unwrap();
    one.complete();
    drop((one, other));
    let (log, _path) = recorded.close();
    assert_eq!(kinds(&log), [LogKind::Write, LogKind::Flush, LogKind::Write, LogKind::End]);
    assert_eq!(log[1].stamp.issued_after, 1, "the second write is not covered");
    assert_eq!(log.iter().map(|logged| logged.stamp.queue).collect::<Vec<_>>(), [0, 1, 0, 0]);
}

#[test]
fn a_compare_and_write_is_a_write_if_it_wrote() {
    let image = numbered_file(MIB);
    let recorded = Recorded::new(Arc::new(open(image.path(), CacheMode::WriteBack)));
    let mut rig = Rig::new(&recorded.disk);
    let old = common::numbered(0, 512)[0];
    let op = Operation::CompareAndWrite { at: ByteOffset(0), durability: Durability::Durable };
    for (expected, is_equal) in [(old, true), (old, false), (77, true)] {
        let mut memory = Memory::filled(77, 1024);
        (0..512).for_each(|at| memory.set(at, expected));
        assert_eq!(rig.run(op, memory.whole()).is_ok(), is_equal);
    }
    drop(rig);
    let (log, _path) = recorded.close();
    assert_eq!(kinds(&log), [LogKind::Write, LogKind::Write, LogKind::End]);
    for write in &log[..2] {
        assert!(write.entry.fua && write.data == [77; 512] && write.entry.sector == 0);
    }
}

#[test]
fn reads_are_not_recorded_and_refused_requests_have_their_errno() {
    let image = numbered_file(MIB);
    let recorded = Recorded::new(Arc::new(open(image.path(), CacheMode::WriteBack)));
    let mut rig = Rig::new(&recorded.disk);
    rig.read(0, 4096).unwrap();
    rig.fill(MIB, 512, 1, Durability::Volatile).unwrap_err();
    // Neither is whole sectors.
    rig.fill(1, 512, 1, Durability::Volatile).unwrap_err();
    rig.fill(0, 100, 1, Durability::Volatile).unwrap_err();
    rig.fill(u64::MAX - 511, 512, 1, Durability::Volatile).unwrap_err();
    drop(rig);
    let (log, _path) = recorded.close();
    assert_eq!(kinds(&log), [LogKind::Write, LogKind::End]);
    assert_eq!(log[0].stamp.errno, libc::EINVAL);
}

#[test]
fn what_an_engine_leaves_in_flight_is_no_completion_of_the_guest() {
    let image = numbered_file(MIB);
    let recorded = Recorded::new(Arc::new(open(image.path(), CacheMode::WriteBack)));
    let mut rig = Rig::new(&recorded.disk);
    let mut memory = Memory::filled(9, 4096);
    rig.push(3, write(0, Durability::Durable), memory.whole());
    rig.submit();
    drop(rig);
    let (log, _path) = recorded.close();
    assert_eq!(kinds(&log), [LogKind::Write, LogKind::End]);
    assert_eq!(log[0].stamp.errno, libc::ECANCELED);
}

#[test]
fn a_log_is_a_new_file_that_others_do_not_use() {
    let (image, recorded) = (numbered_file(MIB), numbered_file(MIB));
    let disk = open(recorded.path(), CacheMode::WriteBack);
    let refusal = |path: &Path| start(&disk, path).unwrap_err().to_string();
    assert!(refusal(image.path()).ends_with("this one is not empty; name another file"));
    assert!(refusal(Path::new("/dev/null")).ends_with("a log is a regular file; this is none"));
    assert!(refusal(Path::new("/missing/disk.log")).contains("cannot open it as a log"));
    let log = LogPath(log_path());
    let recording = start(&disk, &log.0).unwrap();
    assert!(refusal(&log.0).contains("in use by"), "{}", refusal(&log.0));
    drop(recording);
    assert!(refusal(&log.0).contains("it is the log of an earlier recording"));
    assert_eq!(read_log(&log.0).len(), 1);
}

#[test]
fn marks_are_between_what_completed_and_what_is_issued_later() {
    let image = numbered_file(MIB);
    let recorded = Recorded::new(Arc::new(open(image.path(), CacheMode::WriteBack)));
    let mut rig = Rig::new(&recorded.disk);
    for number in 0..50 {
        rig.fill(0, 4096, 1, Durability::Volatile).unwrap();
        recorded.recording.mark(&format!("mark {number}")).unwrap();
    }
    for text in ["", "a\nb", "\u{7f}", &"x".repeat(417)] {
        recorded.recording.mark(text).unwrap_err();
    }
    drop(rig);
    let recording = Arc::clone(&recorded.recording);
    assert!(recording.stop("enough"));
    assert_eq!(recording.status().end.unwrap().reason, "enough");
    let ended = recording.mark("late").unwrap_err().to_string();
    assert_eq!(ended, "the recording has ended: enough");
    drop(recording);
    let (log, _path) = recorded.close();
    for (number, pair) in log[..100].chunks(2).enumerate() {
        assert_eq!(kinds(pair), [LogKind::Write, LogKind::Mark]);
        assert_eq!(pair[1].text, format!("mark {number}"));
    }
    assert_eq!(log[100].text, "enough");
    assert_eq!(log.len(), 101);
}

#[test]
fn a_guest_makes_marks_with_its_writes() {
    let image = numbered_file(MIB);
    let recorded = Recorded::new(Arc::new(open(image.path(), CacheMode::WriteBack)));
    let mut rig = Rig::new(&recorded.disk);
    let mut memory = Memory::filled(0, 16 * KIB);
    // The second begins at no step; the last is not of UTF-8.
    for (at, text) in [
        (4096, &b"bulkhead-mark: one\n"[..]),
        (4096 + 512, b"bulkhead-mark: none\n"),
        (8192, b"bulkhead-mark: two\n"),
        (12288, b"bulkhead-mark: \xff\n"),
    ] {
        text.iter().zip(at..).for_each(|(byte, at)| memory.set(at, *byte));
    }
    rig.run(write(0, Durability::Volatile), memory.whole()).unwrap();
    rig.run(write(MIB, Durability::Volatile), memory.whole()).unwrap_err();
    rig.run(write(512, Durability::Volatile), memory.whole()).unwrap();
    drop(rig);
    let (log, _path) = recorded.close();
    let [write, mark] = [LogKind::Write, LogKind::Mark];
    assert_eq!(kinds(&log), [write, mark, mark, write, write, mark, mark, LogKind::End]);
    assert_eq!((log[1].text.as_str(), log[2].text.as_str()), ("one", "two"));
    assert_eq!(log[1].stamp.issue, log[0].stamp.issue);
    assert_eq!(log[1].stamp.completion, log[0].stamp.completion + 1);
}

/// As a kill leaves it: nothing closes the log.
#[test]
fn a_log_that_is_not_closed_has_all_that_completed_a_while_ago() {
    let image = numbered_file(MIB);
    let mut replayed = std::fs::read(image.path()).unwrap();
    let recorded = Recorded::new(Arc::new(open(image.path(), CacheMode::WriteBack)));
    let mut rig = Rig::new(&recorded.disk);
    for number in 0..100 {
        rig.fill(number * 4096, 4096, number as u8, Durability::Volatile).unwrap();
    }
    recorded.recording.mark("all of them").unwrap();
    let log = read_log(&recorded.log.0);
    assert_eq!((log.len(), log[100].text.as_str()), (101, "all of them"));
    replay(&log, &mut replayed);
    assert!(replayed == std::fs::read(image.path()).unwrap());
}

/// A disk of 4 MiB whose log has a file system of 1 MiB, until more than that was written.
struct SmallStore {
    recording: Arc<Recording>,
    disk: RecordedDisk,
    path: PathBuf,
    _mount: Mount,
}

impl SmallStore {
    fn filled(limit: Option<u64>) -> Self {
        let mount = Mount::new("tmpfs", "size=1M");
        let path = mount.path().join("disk.log");
        let image = numbered_file(4 * MIB);
        let inner = Arc::new(open(image.path(), CacheMode::WriteBack));
        let recording = start_with(&*inner, &path, limit).unwrap();
        let disk = RecordedDisk::new(inner, Arc::clone(&recording));
        play(&disk, 3, 0, 50);
        Self { recording, disk, path, _mount: mount }
    }
}

#[test]
fn a_full_file_system_ends_the_recording() {
    if !needs::root() {
        return;
    }
    let SmallStore { recording, disk, path, _mount } = SmallStore::filled(Some(u64::MAX));
    assert!(recording.stop("too late"));
    let end = recording.status().end.unwrap();
    assert!(end.is_failure && end.reason.starts_with("cannot write the log: No space left"));
    let log = read_log(&path);
    assert_eq!(log.last().unwrap().entry.kind, LogKind::End);
    assert_eq!(recording.status().bytes, std::fs::metadata(&path).unwrap().len());
    play(&disk, 4, 0, 50);
    drop(recording);
    drop(disk);
}

/// The rest is for the disk, which may be in the same file system.
#[test]
fn a_log_without_a_limit_leaves_a_tenth_of_the_space() {
    if !needs::root() {
        return;
    }
    let SmallStore { recording, path, .. } = &SmallStore::filled(None);
    assert!(recording.close());
    let end = recording.status().end.unwrap();
    assert!(end.is_failure && end.reason.contains("only a tenth left"));
    let bytes = recording.status().bytes;
    assert!((800 * KIB..=MIB / 10 * 9).contains(&bytes), "{bytes}");
    assert_eq!(read_log(path).last().unwrap().entry.kind, LogKind::End);
}

/// Samples of the disk as it was at the start.
#[test]
fn a_log_begins_with_samples_of_its_base() {
    let image = numbered_file(MIB);
    let before = std::fs::read(image.path()).unwrap();
    let recorded = Recorded::new(Arc::new(open(image.path(), CacheMode::WriteBack)));
    let mut rig = Rig::new(&recorded.disk);
    rig.fill(0, MIB, 1, Durability::Volatile).unwrap();
    drop(rig);
    let (_, log) = recorded.close();
    let base = LogSuper::decode(&std::fs::read(&log.0).unwrap()).unwrap().base.unwrap();
    assert_eq!((base.size, base.read().count()), (MIB, 54));
    for (at, checksum) in base.read() {
        assert_eq!(BaseSamples::checksum(&before[at as usize..][..BASE_SAMPLE]), checksum, "{at}");
    }
}
