//! Idle workers use no CPU time.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use block::{CacheMode, DiskOptions, RawFile};
use devices::virtio::{Block, Rng};
use driver::{Arena, Device, Disk, Machine, feature};
use fixtures::scratch;

/// CPU time and number of this process' threads named `name`.
fn cpu_time(name: &str) -> (Duration, usize) {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let found: Vec<u64> = tasks
        .filter(|task| {
            let comm = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            comm.trim_end() == name
        })
        .map(|task| {
            let figures = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            figures.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0)
        })
        .collect();
    (Duration::from_nanos(found.iter().sum()), found.len())
}

#[test]
fn idle_workers_sleep() {
    let file = tempfile::NamedTempFile::new_in(scratch()).unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let backend = RawFile::open(file.path(), &DiskOptions::new(CacheMode::WriteBack)).unwrap();
    let block = Block::new("idle", "", 1, Arc::new(backend));
    let machine = Machine::new(vec![Box::new(block), Box::new(Rng)]);
    let mut disk = Disk::start(Device::find(&machine, 1), u64::MAX, 16);
    let rng = Device::find(&machine, 2);
    assert!(rng.negotiate(feature::VERSION_1));
    let _ = rng.queue(0, 16, 0, &mut Arena::new(0x4000, 0x8000));
    rng.start();
    disk.write(0, &[1; 512]);
    disk.flush();
    std::thread::sleep(Duration::from_millis(50));
    let names = ["idle/q0", "rng/q0"];
    let before = names.map(cpu_time);
    assert!(before.iter().all(|(_, threads)| *threads >= 1), "{before:?}");
    std::thread::sleep(Duration::from_millis(300));
    let spent = cpu_time(names[0]).0.saturating_sub(before[0].0);
    assert!(spent < Duration::from_millis(2), "{spent:?} of 300 ms");
}
