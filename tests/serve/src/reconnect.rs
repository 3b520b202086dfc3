//! The back end goes away, in good order or killed, and the guest goes on.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Duration;

use driver::feature;
use driver::vhost_user::{Monitor, PendingIo};
use fixtures::wait_for;
use lab::ServeProcess;
use vhost::vhost_user::VhostUserFrontend;

const MIB: u64 = 1 << 20;
const ALL: u64 = feature::EVENT_IDX | feature::INDIRECT_DESC;
/// Entries of a ring over buffers of a request.
const DEPTH: u64 = 20;
const WRITE_BYTES: usize = 32 << 10;

/// How many requests the record has in flight: `DescStateSplit.inflight`, 16 bytes each after a
/// header of 16.
fn recorded(monitor: &Monitor, queues: u64) -> usize {
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

/// Waits for all requests; each is used once and succeeds.
fn collect(monitor: &mut Monitor, queue: usize, requests: &[PendingIo]) {
    let mut open: BTreeSet<u32> = requests.iter().map(|request| request.head.into()).collect();
    for _ in requests {
        let used = monitor.wait_used(queue);
        assert!(open.remove(&used.id), "head {} is used twice, or was not asked", used.id);
    }
    assert!(requests.iter().all(|request| monitor.status(request) == 0), "all succeed");
}

/// The process is killed again and again while requests are in flight on four queues. None is lost,
/// none comes back twice, and what was written is there.
#[test]
fn a_killed_back_end_loses_no_request_and_repeats_none() {
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
        caught += recorded(&monitor, 4);
        served.restart();
        monitor.reconnect(&served.socket());
        for (queue, requests) in requests.iter().enumerate() {
            collect(&mut monitor, queue, requests);
        }
        std::thread::sleep(Duration::from_millis(2));
        for (queue, vq) in monitor.queues.iter().enumerate() {
            let offered = vq.ring.available_index();
            assert_eq!(vq.ring.used_index(), offered, "queue {queue}: all came back once");
        }
        let image = fs::read(served.image()).unwrap();
        for queue in 0..4_u8 {
            let bytes = usize::try_from(DEPTH).unwrap() * WRITE_BYTES;
            let part = &image[usize::from(queue) * bytes..][..bytes];
            assert!(part.iter().all(|byte| *byte == round << 2 | queue), "round {round}");
        }
    }
    println!("{caught} requests were in flight when the process was killed");
    assert!(caught > 0, "no request was caught in flight: the test shows nothing");
    assert_eq!(recorded(&monitor, 4), 0);
}

/// A file system of its own, unmounted in the end.
struct Small(tempfile::TempDir);

impl Small {
    fn mount(bytes: u64) -> Self {
        let small = Self(tempfile::tempdir().unwrap());
        let run = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(small.0.path())
            .status();
        assert!(run.unwrap().success(), "mounting a small file system needs root");
        small
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Writes that wait for space are in flight for as long as one likes: when the process is killed,
/// and when a ring stops.
#[test]
fn writes_held_for_want_of_space_survive_the_process() {
    let small = Small::mount(256 << 10);
    let image = small.0.path().join("disk.img");
    File::create(&image).unwrap().set_len(MIB).unwrap();
    let keys = format!("on_enospc = \"hold\"\n[control]\nsocket = \"{}\"", "c.sock");
    let mut served = ServeProcess::start_at(&image, &keys);
    let mut monitor = Monitor::start(&served.socket(), 1, ALL, true);
    let ballast = small.0.path().join("ballast");
    let _ = fs::write(&ballast, vec![1; 1 << 20]);
    let data = |at: u8| vec![0x40 + at; 16 << 10];
    let place = |at: u8| u64::from(at) * 64;
    let requests: Vec<_> =
        (0..4_u8).map(|at| monitor.offer_write(0, 1, place(at), &data(at))).collect();
    monitor.publish(0);
    served.wait_log("no space on the host", 1);
    wait_for(|| (recorded(&monitor, 1) == 4).then_some(())).expect("all are in flight");

    // A monitor that stops the guest waits no longer than for what moves.
    assert_eq!(monitor.stop(0), 4, "all four were taken");
    assert_eq!(monitor.queues[0].ring.used_index(), 0, "and are owed");
    monitor.set_up(0, 4);
    served.wait_log("no space on the host", 2);
    served.kill();
    served.restart();
    monitor.reconnect(&served.socket());
    served.wait_log("no space on the host", 3);
    assert_eq!(monitor.queues[0].ring.used_index(), 0);
    fs::remove_file(&ballast).unwrap();
    collect(&mut monitor, 0, &requests);
    for at in 0..4 {
        assert_eq!(monitor.read(0, place(at), 16 << 10), data(at));
    }
}

/// Without a record they cannot be found again, so the guest is told. QEMU disables a ring before
/// it stops it.
#[test]
fn a_ring_that_stops_without_a_record_reports_what_is_held() {
    for disables in [false, true] {
        report_what_is_held(disables);
    }
}

fn report_what_is_held(disables: bool) {
    let small = Small::mount(128 << 10);
    let image = small.0.path().join("disk.img");
    File::create(&image).unwrap().set_len(MIB).unwrap();
    let served = ServeProcess::start_at(&image, "on_enospc = \"hold\"");
    let mut monitor = Monitor::start(&served.socket(), 1, ALL, false);
    let _ = fs::write(small.0.path().join("ballast"), vec![1; 1 << 20]);
    let request = monitor.offer_write(0, 1, 0, &[7; 4096]);
    monitor.publish(0);
    served.wait_log("no space on the host", 1);
    // The same frontend's memory table does not end the wait.
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

/// The guest switched the cache off and flushes no more: a new process must know that.
#[test]
fn the_write_cache_is_off_after_the_process_was_killed() {
    let mut served = ServeProcess::start(MIB, "");
    let mut monitor = Monitor::start(&served.socket(), 1, ALL, true);
    monitor.write(0, 0, &[1; 512]);
    monitor.set_write_cache(false);
    served.kill();
    served.restart();
    monitor.reconnect(&served.socket());
    monitor.write(0, 0, &[2; 512]);
    assert_eq!(monitor.config(32), [0], "the record tells");
    // Without one nothing tells, and what nobody knows is answered with the safe one.
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

/// A frontend that goes away leaves requests behind: they are finished before the next one is
/// served.
#[test]
fn a_frontend_that_leaves_finds_its_requests_done() {
    let served = ServeProcess::start(32 * MIB, "");
    let mut monitor = Monitor::start(&served.socket(), 1, ALL, true);
    for round in 1..=10 {
        let requests: Vec<_> = (0..DEPTH)
            .map(|at| monitor.offer_write(0, 1, at * 64, &vec![9; WRITE_BYTES]))
            .collect();
        monitor.publish(0);
        // Replacing the frontend closes the connection.
        monitor.reconnect(&served.socket());
        collect(&mut monitor, 0, &requests);
        served.wait_log("closed the connection", round);
    }
    assert_eq!(recorded(&monitor, 1), 0);
}
