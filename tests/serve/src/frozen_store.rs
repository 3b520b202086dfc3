//! The end of the program while its store does not answer.

use std::fs;
use std::time::{Duration, Instant};

use driver::vhost_user::Monitor;
use fixtures::host::Loop;
use fixtures::{Ext4, needs};
use lab::ServeProcess;
use rustix::process::Signal;

const MIB: u64 = 1 << 20;

/// A service of a loop device on a frozen store, with written data to flush.
struct Frozen {
    // Dropped in this order: the program ends before its device, and that before the store.
    monitor: Monitor,
    served: ServeProcess,
    _device: Loop,
    store: Ext4,
}

impl Frozen {
    fn start() -> Self {
        Self::with("cache = \"writeback\"")
    }

    fn with(keys: &str) -> Self {
        let mut store = Ext4::new(4096);
        let device = Loop::new(&store.file(16 * MIB, 0));
        let served = ServeProcess::start_at(&device.0, keys);
        let mut monitor = Monitor::start(&served.socket(), 1, 0, true);
        monitor.write(0, 0, &[1; 8 << 10]);
        store.freeze();
        Self { monitor, served, _device: device, store }
    }
}

/// Whether all threads of a process have ended, or have only to return from the kernel.
fn is_ending(pid: u32) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return true };
    let pending = status.lines().find_map(|line| line.strip_prefix("State:"));
    pending.is_none_or(|state| state.contains('Z') || state.contains('X'))
}

/// A write and a flush are in flight on a frozen store. The first signal waits for them, the second
/// one for the last flush, and the third one ends the program.
#[test]
fn the_third_signal_ends_a_service_on_a_frozen_store() {
    if !needs::root() {
        return;
    }
    let mut frozen = Frozen::start();
    let Frozen { monitor, served, store, .. } = &mut frozen;
    let _flush = monitor.offer_write(0, 4, 0, &[]);
    monitor.publish(0);
    std::thread::sleep(Duration::from_millis(300));

    served.signal(Signal::TERM);
    served.wait_log("data (1 request in flight); 2 more signals end the program", 1);
    assert!(!is_ending(served.pid()), "the first signal waits for the requests");
    served.signal(Signal::INT);
    served.wait_log("data (1 request in flight); 1 more signal ends the program", 1);
    assert!(!is_ending(served.pid()), "the second signal waits for the flush");
    let third = Instant::now();
    served.signal(Signal::QUIT);
    served.wait_log("ended by a signal; the host did not finish: data (1 request in flight)", 1);
    assert!(third.elapsed() < Duration::from_secs(5), "after {:?}", third.elapsed());
    // Threads in uninterruptible calls keep the process until the kernel returns.
    store.thaw();
    assert_eq!(served.wait().code(), Some(13), "{}", served.log());
}

#[test]
fn a_service_on_a_thawed_store_ends_in_order() {
    if !needs::root() {
        return;
    }
    let mut frozen = Frozen::start();
    let Frozen { served, store, .. } = &mut frozen;
    served.signal(Signal::TERM);
    served.wait_log("waiting for the host for 2 s: data (being flushed); 2 more signals end", 1);
    store.thaw();
    assert_eq!(served.wait().code(), Some(0), "{}", served.log());
}

/// The control socket answers until the disks are closed, and names those for which the end waits.
#[test]
fn the_status_names_the_disk_for_which_the_end_waits() {
    if !needs::root() {
        return;
    }
    let mut frozen = Frozen::with("cache = \"writeback\"\n[control]\nsocket = \"control.sock\"");
    let Frozen { monitor, served, store, .. } = &mut frozen;
    let _flush = monitor.offer_write(0, 4, 0, &[]);
    monitor.publish(0);
    served.signal(Signal::TERM);
    let status = |served: &ServeProcess, text: &str| {
        let output = served.command(&["ctl", "control.sock", "status"]).output().unwrap();
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && shown.contains(text), "{output:?}");
    };
    served.wait_log("waiting for the host for 2 s: data (1 request in flight)", 1);
    status(served, "warning: disk data: the program has been waiting for");
    status(served, "s to end: 1 request in flight");
    served.wait_log("data (1 request in flight, the oldest for ", 1);
    served.signal(Signal::TERM);
    served.wait_log("1 more signal ends the program", 1);
    status(served, "s to end: 1 request in flight");
    store.thaw();
    assert_eq!(served.wait().code(), Some(13), "{}", served.log());
    assert!(!served.folder().join("control.sock").exists());
}

/// A read-only disk has nothing to flush and nothing to lose.
#[test]
fn a_read_only_disk_does_not_hold_up_the_end() {
    if !needs::root() {
        return;
    }
    let mut store = Ext4::new(4096);
    let device = Loop::new(&store.file(16 * MIB, 0));
    // Dirty pages of another writer, which a flush would write.
    let writer = fs::OpenOptions::new().write(true).open(&device.0).unwrap();
    let mut served = ServeProcess::start_at(&device.0, "readonly = true");
    std::os::unix::fs::FileExt::write_all_at(&writer, &[1; 8 << 10], 0).unwrap();
    store.freeze();
    served.signal(Signal::TERM);
    let status = served.wait();
    store.thaw();
    assert_eq!(status.code(), Some(0), "{}", served.log());
    for text in ["failed", "be lost at", "waiting for the host"] {
        assert!(!served.log().contains(text), "{}", served.log());
    }
}

#[test]
fn a_request_that_the_host_keeps_is_a_warning_with_its_age() {
    if !needs::root() {
        return;
    }
    let mut frozen = Frozen::with("cache = \"writeback\"\n[control]\nsocket = \"control.sock\"");
    let Frozen { monitor, served, store, .. } = &mut frozen;
    let _flush = monitor.offer_write(0, 4, 0, &[]);
    monitor.publish(0);
    // Reads complete meanwhile, so that the worker does not sleep until the flush completes.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(7) {
        let _ = monitor.read(0, 0, 512);
        std::thread::sleep(Duration::from_millis(50));
    }
    served.wait_log("the host does not answer: ", 1);
    let status = |served: &ServeProcess| {
        let output = served.command(&["ctl", "control.sock", "status"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(status(served).contains("the host does not answer: 1 request in flight"));
    store.thaw();
    // The watch measures every second, the status knows the requests in flight.
    let thawed = Instant::now();
    while !served.log().contains("the host answers again") {
        assert!(thawed.elapsed() < Duration::from_secs(60), "{}", served.log());
        let shown = status(served);
        assert!(!shown.contains("does not answer: 0 requests"), "{shown}");
    }
    served.terminate();
}
