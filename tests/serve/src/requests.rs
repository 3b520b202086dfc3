//! Requests of a guest, and operations of its monitor on the rings meanwhile.

use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use driver::feature;
use driver::vhost_user::Monitor;
use fixtures::wait_for;
use lab::ServeProcess;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MIB: u64 = 1 << 20;
const ALL: u64 = feature::EVENT_IDX | feature::INDIRECT_DESC;

fn pattern(seed: u8) -> Vec<u8> {
    (0..8192).map(|at: u32| seed ^ u8::try_from(at % 251).unwrap()).collect()
}

#[test]
fn four_queues_read_write_flush_and_discard() {
    let mut served = ServeProcess::start(16 * MIB, "");
    let mut monitor = Monitor::start(&served.socket(), 4, ALL, true);
    assert_eq!(monitor.frontend.get_queue_num().unwrap(), 4);
    assert_eq!(u64::from_le_bytes(monitor.config(0)), 16 * MIB / 512);
    assert_eq!(u16::from_le_bytes(monitor.config(34)), 4);
    for queue in 0..4_u8 {
        monitor.write(queue.into(), 2048 * u64::from(queue), &pattern(queue));
    }
    for queue in 0..4_u8 {
        let read = monitor.read(usize::from(3 - queue), 2048 * u64::from(queue), 8192);
        assert_eq!(read, pattern(queue), "written on queue {queue}");
        monitor.flush(queue.into());
    }
    let mut found = [0; 8192];
    let image = std::fs::File::open(served.image()).unwrap();
    image.read_exact_at(&mut found, 3 * MIB).unwrap();
    assert_eq!(found[..], pattern(3));
    let before = image.metadata().unwrap().blocks();
    monitor.discard(2, 3 * 2048, 16);
    assert_eq!(monitor.read(0, 3 * 2048, 8192), [0; 8192]);
    assert!(image.metadata().unwrap().blocks() < before, "the host has freed the blocks");
    drop(monitor);
    served.wait_log("closed the connection", 1);
    served.terminate();
}

/// GET_VRING_BASE returns once all requests are used; the ring resumes at that index.
#[test]
fn stopped_ring_has_completed_all_requests() {
    let served = ServeProcess::start(16 * MIB, "");
    for (features, keeps) in [(0, false), (ALL, false), (0, true), (ALL, true)] {
        let mut monitor = Monitor::start(&served.socket(), 1, features, keeps);
        let mut reached = 0;
        for round in 0..20_u16 {
            let requests: Vec<_> = (0..16_u64)
                .map(|at| monitor.offer_write(0, 1, at * 64, &pattern(round.to_le_bytes()[0])))
                .collect();
            monitor.publish(0);
            let base = monitor.stop(0);
            let used = monitor.queues[0].ring.used_index();
            assert_eq!(used, base, "consumed requests complete before the reply");
            monitor.set_up(0, base);
            for _ in &requests {
                let _ = monitor.wait_used(0);
            }
            reached += 16;
            assert!(requests.iter().all(|request| monitor.status(request) == 0));
        }
        assert_eq!(monitor.stop(0), reached);
    }
}

/// A discard parked for a merge is not an ENOSPC hold: it succeeds when the ring stops.
#[test]
fn parked_discard_succeeds_when_ring_stops() {
    let served = ServeProcess::start(16 * MIB, "");
    let mut monitor = Monitor::start(&served.socket(), 1, ALL, false);
    for round in 0..50 {
        let request = monitor.offer_discard(0, round * 8, 1);
        monitor.publish(0);
        std::thread::sleep(Duration::from_micros(20 * round));
        let base = monitor.stop(0);
        monitor.set_up(0, base);
        let _ = monitor.wait_used(0);
        assert_eq!(monitor.status(&request), 0, "round {round}");
    }
}

/// A monitor sends a new memory table at each change of memory, without stopping the rings.
#[test]
fn memory_table_changes_under_running_rings() {
    let served = ServeProcess::start(16 * MIB, "");
    let mut monitor = Monitor::start(&served.socket(), 2, ALL, true);
    for round in 0..20 {
        let requests: Vec<_> =
            (0..20).map(|at| monitor.offer_write(0, 1, at * 64, &pattern(round))).collect();
        monitor.publish(0);
        monitor.share_memory();
        monitor.write(1, 4096, &pattern(!round));
        for _ in &requests {
            let _ = monitor.wait_used(0);
        }
        assert!(requests.iter().all(|request| monitor.status(request) == 0));
    }
    // The same with ADD_MEM_REG and REM_MEM_REG.
    let region = monitor.region();
    let base = monitor.stop(1);
    assert_eq!(monitor.stop(0), monitor.queues[0].ring.used_index());
    monitor.frontend.remove_mem_region(&region).unwrap();
    monitor.frontend.add_mem_region(&region).unwrap();
    assert!(monitor.frontend.get_max_mem_slots().unwrap() >= 32);
    monitor.set_up(1, base);
    assert_eq!(monitor.read(1, 4096, 8192), pattern(!19));
}

#[test]
fn disabled_ring_is_idle_and_new_call_eventfd_is_used() {
    let served = ServeProcess::start(MIB, "");
    let mut monitor = Monitor::start(&served.socket(), 1, 0, true);
    monitor.frontend.set_vring_enable(0, false).unwrap();
    let request = monitor.offer_write(0, 1, 0, &pattern(1));
    monitor.publish(0);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(monitor.queues[0].ring.used_index(), 0, "a disabled ring is idle");
    let call = EventFd::new(EFD_NONBLOCK).unwrap();
    monitor.frontend.set_vring_call(0, &call).unwrap();
    monitor.frontend.set_vring_enable(0, true).unwrap();
    assert_eq!(monitor.wait_used(0).id, u32::from(request.head));
    wait_for(|| call.read().ok()).expect("the new eventfd is signalled");
}

/// A driver may wait for an interrupt that a killed back-end did not send.
#[test]
fn resumed_ring_interrupts_immediately() {
    let served = ServeProcess::start(MIB, "");
    let mut monitor = Monitor::start(&served.socket(), 1, ALL, true);
    monitor.write(0, 0, &pattern(1));
    let base = monitor.stop(0);
    while monitor.queues[0].call.read().is_ok() {}
    monitor.set_up(0, base);
    wait_for(|| monitor.queues[0].call.read().ok()).expect("an interrupt");
}

#[test]
fn corrupt_ring_signals_error_eventfd() {
    let served = ServeProcess::start(MIB, "");
    let mut monitor = Monitor::start(&served.socket(), 2, 0, true);
    monitor.queues[0].ring.set_available_index(5000);
    monitor.queues[0].kick.write(1).unwrap();
    wait_for(|| monitor.queues[0].error.read().ok()).expect("the error eventfd is signalled");
    monitor.write(1, 0, &pattern(7));
}

#[test]
fn growth_sends_config_change_message() {
    let served = ServeProcess::start(16 * MIB, "[control]\nsocket = \"c.sock\"");
    let mut monitor = Monitor::start(&served.socket(), 1, ALL, true);
    let run = served.command(&["ctl", "disk.toml", "resize", "data", "32MiB"]).output().unwrap();
    assert!(run.status.success(), "{run:?}");
    let mut message = [0; 12];
    monitor.backend_channel.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    monitor.backend_channel.read_exact(&mut message).unwrap();
    // VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, version 1, no body.
    assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(u64::from_le_bytes(monitor.config(0)), 32 * MIB / 512);
    monitor.write(0, 31 * MIB / 512, &pattern(3));
}

#[test]
fn guest_switches_write_cache() {
    let served = ServeProcess::start(MIB, "");
    let mut monitor = Monitor::start(&served.socket(), 1, ALL, true);
    assert_eq!(monitor.config(32), [1], "writeback has a write cache");
    monitor.set_write_cache(false);
    assert_eq!(monitor.config(32), [0]);
    // A repeated SET_FEATURES at each start of the rings changes nothing.
    monitor.frontend.set_features(monitor.features).unwrap();
    assert_eq!(monitor.config(32), [0]);
    monitor.set_write_cache(true);
    assert_eq!(monitor.config(32), [1]);
    monitor.set_write_cache(false);
    drop(monitor);
    let mut next = Monitor::start(&served.socket(), 1, ALL, true);
    assert_eq!(next.config(32), [0], "it stays off until a guest switches it on");
    next.write(0, 0, &pattern(1));
}
