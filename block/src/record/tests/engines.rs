//! Engines that come and go while a disk is recorded, and afterwards.

use super::*;

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// As a guest does that resets its device. Other tests run meanwhile.
#[test]
fn engines_made_after_the_end_leave_nothing_behind() {
    let store = TestStore::with_space(1 << 30);
    let rig = Rig::new(&store, 8);
    let disk = RecordedDisk::new(Arc::new(rig.disk.clone()), Arc::clone(&rig.recording));
    let setup = EngineSetup { depth: DEPTH, memory: &[], kick: rig.kick.as_fd() };
    assert_eq!(rig.recording.queues(), 1);
    assert!(rig.recording.stop("stopped by request"));
    assert_eq!(rig.recording.queues(), 0, "removed by the log thread at its end");
    let before = open_descriptors();
    for _ in 0..300 {
        drop(disk.engine(&setup).unwrap());
    }
    assert_eq!(rig.recording.queues(), 0);
    assert!(open_descriptors() < before + 200);
}

/// A guest that resets its device has no more memory than one that does not.
#[test]
fn a_reset_waits_for_the_log_and_ends_the_recording_if_it_hangs() {
    let store = TestStore::with_space(1 << 30);
    let mut rig = Rig::new(&store, 8);
    let disk = RecordedDisk::new(Arc::new(rig.disk.clone()), Arc::clone(&rig.recording));
    let kick = rig.kick.try_clone().unwrap();
    let setup = EngineSetup { depth: DEPTH, memory: &[], kick: kick.as_fd() };
    let reset = |rig: &mut Rig| {
        rig.engine = rig.disk.engine(&setup).unwrap();
        rig.engine = disk.engine(&setup).unwrap();
        assert!(rig.recording.queues() <= 1);
        rig.push_writes(4);
        rig.complete(4);
    };
    for _ in 0..50 {
        reset(&mut rig);
    }
    assert_eq!(rig.recording.status().end, None);
    store.block(true);
    let start = Instant::now();
    for _ in 0..25 {
        reset(&mut rig);
    }
    assert!(start.elapsed() > Duration::from_millis(1900));
    assert!(start.elapsed() < Duration::from_secs(10), "waited once");
    assert_eq!(rig.wait_end(), "the storage of the log is too slow for the guest's resets");
    store.block(false);
}
