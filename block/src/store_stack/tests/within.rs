//! A walk that waits for the programs of ZFS only so long.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::fake_host::FakeHost;
use crate::store_stack::host_view::{FileFacts, HostView, ZfsQueries};
use crate::store_stack::{FlushPromise, StoreStack};

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(600);

/// How long the programs hang.
const HANG: Duration = Duration::from_secs(20);

/// A volume with `sync=standard`, for as long as the programs answer.
fn volume() -> (FakeHost, FileFacts) {
    let mut host = FakeHost::new();
    host.write("sys/module/zfs/version", "2.3.9-1\n");
    host.write("zfs/tank/vol", "sync\tstandard\n");
    let device = host.disk("zd0", &[]);
    let dataset = Some("tank/vol".to_owned());
    (host, FileFacts { device: Some(device), dataset, ..FileFacts::default() })
}

fn on_thread(query: Box<dyn FnOnce() + Send>) -> io::Result<()> {
    thread::Builder::new().spawn(query).map(drop)
}

/// It is an unknown property, not a failure: a disk must not depend on a moment without threads.
#[test]
fn without_a_thread_zfs_may_keep_a_flush_or_not() {
    let (host, facts) = volume();
    let found = StoreStack::walked_within(host.view(), &facts, LONG, on_thread);
    assert_eq!(found.flush_promise(), FlushPromise::Kept);
    let refused = |_| Err(io::ErrorKind::WouldBlock.into());
    let found = StoreStack::walked_within(host.view(), &facts, LONG, refused);
    assert_eq!(found.flush_promise(), FlushPromise::Unknown);
}

#[test]
fn programs_that_hang_are_abandoned() {
    let (host, facts) = volume();
    let hung = ZfsQueries {
        properties: |_, _, _| {
            thread::sleep(HANG);
            Err(io::ErrorKind::TimedOut.into())
        },
        ..host.view().zfs.unwrap()
    };
    let view = HostView { zfs: Some(hung), ..host.view() };
    let start = Instant::now();
    let limit = Duration::from_millis(50);
    let found = StoreStack::walked_within(view, &facts, limit, on_thread);
    assert_eq!(found.flush_promise(), FlushPromise::Unknown);
    assert!(start.elapsed() < HANG / 2);
}

#[test]
fn the_storage_is_walked_once() {
    static WALKS: AtomicU32 = AtomicU32::new(0);
    let (host, facts) = volume();
    let counting = ZfsQueries {
        properties: |_, _, _| Ok("sync\tstandard\n".to_owned()),
        members: |_, _| {
            WALKS.fetch_add(1, Ordering::Relaxed);
            Ok(String::new())
        },
    };
    let view = HostView { zfs: Some(counting), ..host.view() };
    let found = StoreStack::walked_within(view, &facts, LONG, on_thread);
    assert_eq!(found.flush_promise(), FlushPromise::Kept);
    assert_eq!(WALKS.load(Ordering::Relaxed), 1);
}
