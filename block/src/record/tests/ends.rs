//! Recordings that end by a limit, a resize or several at a time.

use super::*;

/// The last entry is within the limit, and nothing is beyond it.
#[test]
fn a_log_at_its_limit_ends_the_recording_and_not_the_guest() {
    let entry = (LOG_SECTOR + CHUNK) as u64;
    let sector = LOG_SECTOR as u64;
    for (limit, writes) in [
        (2 * sector + 3 * entry, 3),
        (2 * sector + 4 * entry - 1, 3),
        (2 * sector + 300 * entry, 300),
        (2 * sector, 0),
    ] {
        let store = TestStore::with_space(1 << 30);
        let mut rig = Rig::with_limit(&store, 64, SizeLimit::Bytes(limit));
        for _ in 0..=writes / usize::from(DEPTH) {
            rig.push_writes(DEPTH);
            rig.complete(DEPTH.into());
        }
        assert_eq!(rig.wait_end(), format!("the log has reached its limit of {limit} bytes"));
        rig.push_writes(DEPTH);
        rig.complete(DEPTH.into());
        let Rig { engine, recording, .. } = rig;
        drop(engine);
        assert!(recording.close());
        assert_eq!(store.entries().len(), writes + 1);
        assert_eq!(end_errno(&store), libc::EIO);
        let length = store.bytes.lock().unwrap().len() as u64;
        assert!(length <= limit && length == recording.status().bytes, "{length}");
    }
}

#[test]
fn marks_are_within_the_limit() {
    let store = TestStore::with_space(1 << 30);
    let rig = Rig::with_limit(&store, 8, SizeLimit::Bytes(4 * LOG_SECTOR as u64));
    rig.recording.mark("one").unwrap();
    rig.recording.mark("two").unwrap();
    let error = rig.recording.mark("three").unwrap_err().to_string();
    assert_eq!(error, "the recording has ended: the log has reached its limit of 2048 bytes");
    assert!(rig.recording.close());
    assert_eq!(store.bytes.lock().unwrap().len(), 2048);
}

/// The disk may be in the same file system, and take as much as its log.
#[test]
fn a_log_without_a_limit_leaves_space_to_others() {
    let store = TestStore::with_space(8 << 20);
    let mut rig = Rig::with_limit(&store, 64, SizeLimit::Reserve(2 << 20));
    for _ in 0..64 {
        rig.push_writes(DEPTH);
        rig.complete(DEPTH.into());
        if store.bytes.lock().unwrap().len() > 3 << 20 {
            store.space.store(6 << 20, Ordering::Relaxed);
        }
    }
    assert!(rig.wait_end().contains("only a tenth left"), "{}", rig.wait_end());
    drop(rig);
    let taken = store.bytes.lock().unwrap().len();
    assert!((3 << 20..6 << 20).contains(&taken), "{taken}");
    assert_eq!(end_errno(&store), 5);
}

#[test]
fn a_resize_ends_the_recording_before_the_guest_can_write_there() {
    let store = TestStore::with_space(1 << 30);
    let mut rig = Rig::new(&store, 8);
    let disk = RecordedDisk::new(Arc::new(rig.disk.clone()), Arc::clone(&rig.recording));
    rig.push_writes(3);
    rig.complete(3);
    disk.resize(Some(1 << 20)).unwrap();
    assert_eq!(rig.recording.status().end, None, "it kept its size");
    disk.resize(Some(1 << 19)).unwrap_err();
    assert_eq!(rig.recording.status().end, None, "it kept its size");
    disk.resize(Some(2 << 20)).unwrap();
    assert_eq!(
        rig.wait_end(),
        "the disk was resized, which a log cannot have; start a new one when it is next opened"
    );
    rig.push(0, write(1 << 20), CHUNK);
    rig.complete(1);
    drop(rig);
    drop(disk);
    assert_eq!(store.entries().len(), 4, "three writes and the end");
}

/// The hanging one has all of the time, and the others are closed meanwhile.
#[test]
fn several_logs_are_closed_side_by_side() {
    let stores: Vec<_> = (0..3).map(|_| TestStore::with_space(1 << 30)).collect();
    let rigs: Vec<_> = stores.iter().map(|store| Rig::new(store, 8)).collect();
    stores[0].block(true);
    stores[1].block(true);
    let start = Instant::now();
    assert!(!Recording::close_all(rigs.iter().map(|rig| &*rig.recording)));
    assert!(start.elapsed() < Duration::from_secs(15), "ten seconds for each");
    assert_eq!(end_errno(&stores[2]), 0);
    let start = Instant::now();
    drop(rigs);
    assert!(start.elapsed() < Duration::from_secs(5), "the drop waited again");
    stores.iter().for_each(|store| store.block(false));
}
