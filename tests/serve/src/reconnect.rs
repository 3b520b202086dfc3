//! Restart of the back-end, by signal or killed, under a running guest.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use driver::feature;
use driver::vhost_user::{Monitor, PendingIo};
use fixtures::host::Mount;
use fixtures::wait_for;
use lab::ServeProcess;
use vhost::vhost_user::VhostUserFrontend;

const MIB: u64 = 1 << 20;
const ALL: u64 = feature::EVENT_IDX | feature::INDIRECT_DESC;
/// Entries of a ring over buffers of a request.
const DEPTH: u64 = 20;
const WRITE_BYTES: usize = 32 << 10;

/// Number of requests in flight in the inflight region: `DescStateSplit.inflight`, 16 bytes each
/// after a header of 16.
fn inflight_requests(monitor: &Monitor, queues: u64) -> usize {
    let inflight = monitor.inflight.as_ref().unwrap();
    let stride = (inflight.layout.mmap_size - 64) / queues;
    let mut region = vec![0; usize::try_from(inflight.layout.mmap_size).unwrap()];
    inflight.file.read_exact_at(&mut region, 0).unwrap();
    (0..queues)
        .map(|queue| {
            let record = &region[usize::try_from(queue * stride).unwrap()..];
            (0..64).filter(|head| record[16 + 16 * head] == 1).count()
        })
        .sum()
}

/// Waits for all requests; each must be used once and succeed.
fn reap_all(monitor: &mut Monitor, queue: usize, requests: &[PendingIo]) {
    let mut open: BTreeSet<u32> = requests.iter().map(|request| request.head.into()).collect();
    for _ in requests {
        let used = monitor.wait_used(queue);
        assert!(open.remove(&used.id), "head {} is used twice, or not in flight", used.id);
    }
    assert!(requests.iter().all(|request| monitor.status(request) == 0), "all succeed");
}

/// The process is killed repeatedly with requests in flight on four queues. Each request completes
/// once, and the image has the written data.
#[test]
fn killed_backend_completes_each_request_once() {
    let mut served = ServeProcess::start(32 * MIB, "");
    let mut monitor = Monitor::start(&served.socket(), 4, ALL, true);
    let mut caught = 0;
    for round in 0..12_u8 {
        let mut requests: Vec<Vec<PendingIo>> = Vec::new();
        for queue in 0..4_u8 {
            let data = vec![round << 2 | queue; WRITE_BYTES];
            let first = u64::from(queue) * DEPTH;
            let place = |at: u64| (first + at) * (WRITE_BYTES as u64 / 512);
            requests.push(
                (0..DEPTH)
                    .map(|at| monitor.offer_write(queue.into(), 1, place(at), &data))
                    .collect(),
            );
        }
        (0..4).for_each(|queue| monitor.publish(queue));
        std::thread::sleep(Duration::from_micros(300 * u64::from(round)));
        served.kill();
        caught += inflight_requests(&monitor, 4);
        served.restart();
        monitor.reconnect(&served.socket());
        for (queue, requests) in requests.iter().enumerate() {
            reap_all(&mut monitor, queue, requests);
        }
        std::thread::sleep(Duration::from_millis(2));
        for (queue, vq) in monitor.queues.iter().enumerate() {
            let offered = vq.ring.available_index();
            assert_eq!(vq.ring.used_index(), offered, "queue {queue}: each request completes once");
        }
        let image = fs::read(served.image()).unwrap();
        for queue in 0..4_u8 {
            let bytes = usize::try_from(DEPTH).unwrap() * WRITE_BYTES;
            let part = &image[usize::from(queue) * bytes..][..bytes];
            assert!(part.iter().all(|byte| *byte == round << 2 | queue), "round {round}");
        }
    }
    println!("{caught} requests in flight at the kills");
    assert!(caught > 0, "no request was in flight at a kill: the test is void");
    assert_eq!(inflight_requests(&monitor, 4), 0);
}

/// Writes held for ENOSPC stay in flight across a stop of the ring and a kill of the process.
#[test]
fn held_writes_survive_the_process() {
    let small = Mount::new("tmpfs", "size=256k");
    let image = small.path().join("disk.img");
    File::create(&image).unwrap().set_len(MIB).unwrap();
    let keys = format!("on_enospc = \"hold\"\n[control]\nsocket = \"{}\"", "c.sock");
    let mut served = ServeProcess::start_at(&image, &keys);
    let mut monitor = Monitor::start(&served.socket(), 1, ALL, true);
    let ballast = small.path().join("ballast");
    let _ = fs::write(&ballast, vec![1; 1 << 20]);
    let data = |at: u8| vec![0x40 + at; 16 << 10];
    let place = |at: u8| u64::from(at) * 64;
    let requests: Vec<_> =
        (0..4_u8).map(|at| monitor.offer_write(0, 1, place(at), &data(at))).collect();
    monitor.publish(0);
    served.wait_log("no space on the host", 1);
    wait_for(|| (inflight_requests(&monitor, 1) == 4).then_some(())).expect("all are in flight");

    // A stop of the ring does not wait for held writes.
    assert_eq!(monitor.stop(0), 4, "all four are consumed");
    assert_eq!(monitor.queues[0].ring.used_index(), 0, "and not complete");
    monitor.set_up(0, 4);
    served.wait_log("no space on the host", 2);
    served.kill();
    served.restart();
    monitor.reconnect(&served.socket());
    served.wait_log("no space on the host", 3);
    assert_eq!(monitor.queues[0].ring.used_index(), 0);
    fs::remove_file(&ballast).unwrap();
    reap_all(&mut monitor, 0, &requests);
    for at in 0..4 {
        assert_eq!(monitor.read(0, place(at), 16 << 10), data(at));
    }
}

/// Without an inflight region, held writes fail when the ring stops: they could not be resumed.
/// QEMU disables a ring before it stops it.
#[test]
fn stop_without_inflight_region_fails_held_writes() {
    for disables in [false, true] {
        check_held_writes_fail(disables);
    }
}

fn check_held_writes_fail(disables: bool) {
    let small = Mount::new("tmpfs", "size=128k");
    let image = small.path().join("disk.img");
    File::create(&image).unwrap().set_len(MIB).unwrap();
    let served = ServeProcess::start_at(&image, "on_enospc = \"hold\"");
    let mut monitor = Monitor::start(&served.socket(), 1, ALL, false);
    let _ = fs::write(small.path().join("ballast"), vec![1; 1 << 20]);
    let request = monitor.offer_write(0, 1, 0, &[7; 4096]);
    monitor.publish(0);
    served.wait_log("no space on the host", 1);
    // A new memory table does not end the hold.
    monitor.share_memory();
    served.wait_log("no space on the host", 2);
    assert_eq!(monitor.queues[0].ring.used_index(), 0);
    if disables {
        monitor.frontend.set_vring_enable(0, false).unwrap();
    }
    assert_eq!(monitor.stop(0), 1);
    assert_eq!(monitor.wait_used(0).id, u32::from(request.head));
    assert_eq!(monitor.status(&request), 1, "VIRTIO_BLK_S_IOERR");
}

/// A guest that disabled the write cache no longer flushes: a new process must keep it disabled.
#[test]
fn write_cache_stays_disabled_after_kill() {
    let mut served = ServeProcess::start(MIB, "");
    let mut monitor = Monitor::start(&served.socket(), 1, ALL, true);
    monitor.write(0, 0, &[1; 512]);
    monitor.set_write_cache(false);
    served.kill();
    served.restart();
    monitor.reconnect(&served.socket());
    monitor.write(0, 0, &[2; 512]);
    assert_eq!(monitor.config(32), [0], "the inflight region has the setting");
    // Without it the setting is unknown: the safe one is used.
    monitor.inflight = None;
    monitor.set_write_cache(true);
    served.kill();
    served.restart();
    monitor.reconnect(&served.socket());
    monitor.write(0, 0, &[3; 512]);
    assert_eq!(monitor.config(32), [0]);
    served.wait_log("resumes a guest without its write cache setting", 1);
    monitor.set_write_cache(true);
    assert_eq!(monitor.config(32), [1]);
}

/// Requests of a front-end that disconnects complete before the next one is served.
#[test]
fn requests_complete_before_next_frontend() {
    let served = ServeProcess::start(32 * MIB, "");
    let mut monitor = Monitor::start(&served.socket(), 1, ALL, true);
    for round in 1..=10 {
        let requests: Vec<_> = (0..DEPTH)
            .map(|at| monitor.offer_write(0, 1, at * 64, &vec![9; WRITE_BYTES]))
            .collect();
        monitor.publish(0);
        // Replacing the front-end closes its connection.
        monitor.reconnect(&served.socket());
        reap_all(&mut monitor, 0, &requests);
        served.wait_log("closed the connection", round);
    }
    assert_eq!(inflight_requests(&monitor, 1), 0);
}
