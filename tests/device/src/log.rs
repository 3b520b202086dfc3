//! Rate limits of log lines that a guest can cause.
//!
//! A process of its own: the log subscriber is global.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::io::{self, Write};
use std::sync::{Arc, Mutex, OnceLock};

use devices::virtio::Block;
use driver::{Device, Disk, Machine, Shape, Structure, TestDisk, feature};
use fixtures::wait_for;
use tracing_subscriber::fmt::MakeWriter;

/// Repetitions of each cause.
const TIMES: usize = 1000;

/// The log of all threads of this process.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn get() -> &'static Self {
        static LOG: OnceLock<Log> = OnceLock::new();
        LOG.get_or_init(|| {
            let log = Self::default();
            tracing_subscriber::fmt().with_ansi(false).with_writer(log.clone()).init();
            log
        })
    }

    /// Number of lines that contain `text`.
    fn lines(&self, text: &str) -> usize {
        let log = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        log.lines().filter(|line| line.contains(text)).count()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

fn block(name: &str, backend: &TestDisk) -> Box<Block> {
    Box::new(Block::new(name, "serial", 2, Arc::new(backend.clone())))
}

/// A function moved repeatedly to the address of another one, whose doorbells are in use.
#[test]
fn unavailable_doorbells() {
    let log = Log::get();
    let backend = TestDisk::new(Shape::default());
    let machine = Machine::new(vec![block("mover", &backend), block("other", &backend)]);
    let [mut mover, other] = [1, 2].map(|slot| Disk::start(Device::find(&machine, slot), 0, 16));
    let [home, there] =
        [&mover, &other].map(|disk| u32::try_from(disk.device.function.bar()).unwrap());
    for _ in 0..TIMES {
        mover.device.function.move_bar(there);
        mover.device.function.move_bar(home);
    }
    assert_eq!(log.lines("mover: no doorbell"), 1);
    mover.write(0, &[1; 512]);
}

/// A write cache disabled repeatedly although each sync fails.
#[test]
fn failed_write_cache_switches() {
    let log = Log::get();
    let backend = TestDisk::new(Shape::default());
    let machine = Machine::new(vec![block("cached", &backend)]);
    let features = feature::BLK_FLUSH | feature::BLK_CONFIG_WCE;
    let disk = Disk::start(Device::find(&machine, 1), features, 16);
    for _ in 0..TIMES {
        backend.fail_next(libc::EIO);
        disk.device.function.write(Structure::Device, 32, &[0]);
    }
    assert_eq!((log.lines("cached: the write cache stays on"), backend.syncs()), (1, TIMES));
}

/// A corrupt ring and a reset, repeatedly.
#[test]
fn corrupt_rings() {
    let log = Log::get();
    let backend = TestDisk::new(Shape::default());
    let machine = Machine::new(vec![block("broken", &backend)]);
    let mut disk = Disk::start(Device::find(&machine, 1), 0, 16);
    let started = std::time::Instant::now();
    for _ in 0..TIMES / 10 {
        disk.rings[0].offer_raw(999);
        disk.kick(0);
        wait_for(|| disk.device.needs_reset().then_some(())).unwrap();
        disk.restart();
    }
    let seconds = usize::try_from(started.elapsed().as_secs()).unwrap();
    assert!((1..=seconds + 1).contains(&log.lines("device needs a reset")));
}
