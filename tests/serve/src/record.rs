//! A recorded disk under the requests of a guest on four queues.

use block::{LOG_SECTOR, LogEntry, LogKind, LogSuper};
use driver::feature;
use driver::vhost_user::Monitor;
use lab::ServeProcess;

const MIB: u64 = 1 << 20;

/// The log replayed over an empty image is the image at the end, and the log has an end.
#[test]
fn the_log_of_four_queues_replayed_is_the_image() {
    let mut served = ServeProcess::start(16 * MIB, "record = \"disk.log\"\n");
    let mut monitor = Monitor::start(&served.socket(), 4, feature::EVENT_IDX, true);
    for round in 0..50_u8 {
        for queue in 0..4_u8 {
            let mut data = vec![round ^ queue << 6; 8192];
            if round == 7 {
                data[4096..][..23].copy_from_slice(b"bulkhead-mark: round 7\n");
            }
            let sector = 16 * (u64::from(round % 10) + 64 * u64::from(queue));
            monitor.write(queue.into(), sector, &data);
        }
        monitor.flush(usize::from(round % 4));
    }
    drop(monitor);
    served.terminate();
    let log = std::fs::read(served.folder().join("disk.log")).unwrap();
    let mut image = vec![0; usize::try_from(16 * MIB).unwrap()];
    let mut left = &log[LOG_SECTOR..];
    let mut kinds = Vec::new();
    while !left.is_empty() {
        let (sector, rest) = left.split_at(LOG_SECTOR);
        let entry = LogEntry::decode(sector).unwrap();
        let (data, rest) =
            rest.split_at(LOG_SECTOR * usize::try_from(entry.data_sectors()).unwrap());
        let start = LOG_SECTOR * usize::try_from(entry.sector).unwrap();
        image[start..start + data.len()].copy_from_slice(data);
        kinds.push(entry.kind);
        left = rest;
    }
    assert_eq!(LogSuper::decode(&log).unwrap().entries, kinds.len() as u64);
    let count = |kind| kinds.iter().filter(|other| **other == kind).count();
    assert_eq!((count(LogKind::Write), count(LogKind::Flush), count(LogKind::Mark)), (200, 50, 4));
    assert_eq!(kinds.last(), Some(&LogKind::End));
    assert!(image == std::fs::read(served.image()).unwrap());
}
