//! `bench snapshots`: for how long a snapshot holds the requests of four disks, each with 32 random
//! writes in flight.

use std::ffi::OsString;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use block::{Backend, CacheMode, DiskOptions, LayeredDisk, MadeSnapshot, create_layer, snapshot};
use devices::virtio::Block;
use driver::Machine;

use super::host::{self, folder};
use super::load::{self, LoadDriver};
use super::ours;
use super::report::median;
use super::workload::{Cpus, Direction, Order, Store, Workload};

const DISKS: usize = 4;
/// Each adds a layer, of which a disk has 16 at most.
const SNAPSHOTS: usize = 14;
const DISK_BYTES: usize = 64 << 20;
const INTERVAL: Duration = Duration::from_millis(300);
const LIMIT: Duration = Duration::from_secs(20);

const WORKLOAD: Workload = Workload {
    name: "snapshots",
    direction: Direction::Write,
    order: Order::Random,
    store: Store::Disk,
    block_bytes: 4 << 10,
    depth: 32,
    cpus: Cpus::One,
};

/// Prints the times of each snapshot, by cache mode, and their medians.
///
/// # Errors
///
/// If a system call, a request or a snapshot fails.
pub(crate) fn snapshots() -> Result<()> {
    let folder = folder().join("snapshots");
    std::fs::create_dir_all(&folder)?;
    let base = folder.join("base.img");
    host::fill(&base, DISK_BYTES)?;
    println!("{}; {DISKS} disks, random 4 KiB writes, depth 32 each\n", host::describe(&base)?);
    println!("{:<14}{:>12}{:>12}   held, each", "cache", "held ms", "flush ms");
    for cache in [CacheMode::None, CacheMode::WriteBack, CacheMode::WriteThrough] {
        let times = measure(&folder, &base, cache)?;
        let of = |time: fn(&MadeSnapshot) -> Duration| {
            median(times.iter().map(|times| time(times).as_secs_f64() * 1000.0))
        };
        let each = times.iter().map(|times| format!("{:.1}", times.held.as_secs_f64() * 1000.0));
        println!(
            "{:<14}{:>12.1}{:>12.1}   {}",
            cache.to_string(),
            of(|times| times.held),
            of(|times| times.flush),
            each.collect::<Vec<_>>().join(" ")
        );
    }
    Ok(std::fs::remove_dir_all(&folder)?)
}

fn measure(
    folder: &std::path::Path,
    base: &std::path::Path,
    cache: CacheMode,
) -> Result<Vec<MadeSnapshot>> {
    let scratch = tempfile::tempdir_in(folder)?;
    let options = DiskOptions::new(cache);
    let open = |index: usize| {
        let path = scratch.path().join(format!("{index}.layer"));
        create_layer(&path, base, None)?;
        Ok(Arc::new(LayeredDisk::open(&path, base, &options)?))
    };
    let disks: Vec<Arc<LayeredDisk>> = (0..DISKS).map(open).collect::<Result<_>>()?;
    // The last interval is longer than the last snapshot.
    let duration = INTERVAL * (u32::try_from(SNAPSHOTS)? + 4);
    thread::scope(|scope| {
        let loads: Vec<_> =
            disks.iter().map(|disk| scope.spawn(move || load(disk, duration))).collect();
        let times: Result<Vec<_>> = (0..SNAPSHOTS)
            .map(|count| {
                thread::sleep(INTERVAL);
                let name = |index| OsString::from(format!("{index}.{count}.layer"));
                let disks: Vec<_> = disks.iter().map(|disk| &**disk).zip((0..).map(name)).collect();
                Ok(snapshot(&disks, LIMIT)?)
            })
            .collect();
        for load in loads {
            load.join().ok().context("a driver panicked")??;
        }
        times
    })
}

/// Writes to the disk for a time.
fn load(disk: &Arc<LayeredDisk>, duration: Duration) -> Result<()> {
    let memory = load::guest_memory()?;
    let capacity = disk.geometry().capacity;
    let block = Block::new("bench", "", 1, Arc::clone(disk) as Arc<dyn Backend>);
    let machine = Machine::with_memory(memory.clone(), vec![Box::new(block)]);
    let events = ours::start(&machine)?;
    LoadDriver::new(&memory, events, &WORKLOAD, capacity)?.run(duration)?;
    Ok(())
}
