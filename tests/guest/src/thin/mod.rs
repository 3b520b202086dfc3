//! Thin provisioning as guest and host see it: space that the guest's file systems free returns to
//! the host.
//!
//! By default each file system, store, bus and method is covered once; with `BULKHEAD_THIN=all`
//! (`make thin`) every combination is, and reads under a trim run for long enough to compare their
//! latency.

#![allow(clippy::indexing_slicing, reason = "a test fails by panicking")]

mod reads;
mod reclaim;
mod small_trims;
mod soft_limit;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::{Guest, Host, disk};
use serde_json::Value;

use crate::control_socket;

const MIB: u64 = 1 << 20;
/// Bytes that a guest writes and deletes.
const WRITTEN: u64 = 400 * MIB;
/// Bytes that may stay allocated: metadata of the guest's file system.
const TOLERANCE: u64 = WRITTEN / 50;
const WRITE_TIMEOUT: Duration = Duration::from_secs(900);
/// Time limit for file systems to discard deleted files.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(120);

/// The host's store of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Store {
    Ext4,
    Xfs,
    Loop,
    /// A ZFS volume. Its granularity of 16 KiB exceeds the block size of the guest's file systems.
    Zvol,
}

/// The guest's method of discarding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Fstrim,
    MountedDiscard,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bus {
    Block,
    Scsi,
}

impl Bus {
    /// The bus' line of a `[[disk]]` table.
    fn setting(self) -> &'static str {
        match self {
            Self::Block => "",
            Self::Scsi => "bus = \"virtio-scsi\"\n",
        }
    }

    /// Device node of disk `number` in the guest. Linux names SCSI disks in the order of its scan.
    fn node(self, number: usize) -> String {
        match self {
            Self::Block => format!("/dev/vd{}", ["a", "b", "c"][number]),
            Self::Scsi => format!("/dev/$(ls /sys/bus/scsi/devices/0:0:0:{number}/block)"),
        }
    }
}

/// A guest with a disk for each file system, and a control socket.
struct ThinGuest<'host> {
    host: &'host Host,
    guest: Guest<'host>,
    store: Store,
    /// Backing file or volume by disk.
    files: Vec<String>,
}

impl<'host> ThinGuest<'host> {
    fn start(host: &'host Host, store: Store, bus: Bus, disks: &[&str]) -> Result<Self> {
        let files: Vec<_> = match store {
            Store::Zvol => disks.iter().map(ToString::to_string).collect(),
            _ => {
                let scratch = host.scratch(if store == Store::Xfs { "xfs" } else { "ext4" })?;
                disks.iter().map(|id| format!("{scratch}/{id}.img")).collect()
            }
        };
        let mut tables = control_socket::table(host);
        for (id, file) in disks.iter().zip(&files) {
            if store != Store::Zvol {
                host.run(&format!("truncate -s 1G {file}"))?;
            }
            let path = match store {
                Store::Loop => host.run(&format!("modprobe loop; losetup -f --show {file}"))?,
                Store::Ext4 | Store::Xfs => file.clone(),
                Store::Zvol => host.volume(file, "1G", "-b 16k")?,
            };
            tables += &disk(id, path.trim(), bus.setting());
        }
        let guest = host.boot(&host.guest_config(2, "512MiB", "initramfs-tools", "", &tables))?;
        Ok(Self { host, guest, store, files })
    }

    /// Bytes allocated on the host to a disk.
    fn allocated(&self, number: usize) -> Result<u64> {
        if self.store == Store::Zvol {
            return self.host.referenced(&self.files[number]);
        }
        let blocks = self.host.run(&format!("sync; stat -c %b {}", self.files[number]))?;
        Ok(blocks.trim().parse::<u64>().context("reading a number of blocks")? * 512)
    }

    /// Discard statistics of a disk.
    fn discard_stats(&self, id: &str) -> Result<Value> {
        Ok(control_socket::stats(self.host, id)?["discards"].clone())
    }

    /// Bytes that the guest has discarded.
    fn discarded(&self, id: &str) -> Result<u64> {
        self.discard_stats(id)?["requested_bytes"].as_u64().context("no count of bytes")
    }

    /// Waits until at most `bytes` are allocated to a disk. Returns without error after a time
    /// limit.
    fn wait_allocated(&self, number: usize, bytes: u64) -> Result<()> {
        let start = Instant::now();
        while self.allocated(number)? > bytes && start.elapsed() < DISCARD_TIMEOUT {
            thread::sleep(Duration::from_secs(1));
        }
        Ok(())
    }
}

/// A command that makes a file system and mounts it. No initialization is left to the background,
/// where it would change the allocation later.
fn make_and_mount(file_system: &str, node: &str, method: Method) -> String {
    let make = match file_system {
        "ext4" => "mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0",
        "xfs" => "mkfs.xfs -q -f",
        _ => "mkfs.btrfs -q -f",
    };
    // By default btrfs discards asynchronously, minutes later.
    let option = match (method, file_system) {
        (Method::Fstrim, _) => "nodiscard",
        (Method::MountedDiscard, "btrfs") => "discard=sync",
        (Method::MountedDiscard, _) => "discard",
    };
    format!("{make} {node} && mount -t {file_system} -o {option} {node} /mnt && sync")
}

/// Whether every combination is tested.
fn is_thorough() -> bool {
    std::env::var_os("BULKHEAD_THIN").is_some_and(|wanted| wanted == "all")
}
