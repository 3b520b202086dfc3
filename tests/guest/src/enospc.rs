//! A guest whose host runs out of space: with `on_enospc = "hold"` its writes are parked, the guest
//! runs on, and no data is lost.

#![allow(clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::{Guest, Host, disk};

use crate::control_socket;
use serde_json::Value;

/// Time limit of fio, which shares the emulated processors with the host and with other scenarios.
const FIO_TIMEOUT: Duration = Duration::from_secs(900);
/// Time limit for the guest to fill the store.
const FULL_TIMEOUT: Duration = Duration::from_secs(300);

/// A guest with the disk `data` on a file system of the host with less free space.
pub(crate) struct SmallStore<'host> {
    host: &'host Host,
    pub(crate) guest: Guest<'host>,
}

impl<'host> SmallStore<'host> {
    /// With a raw disk of 64 MiB.
    fn start(host: &'host Host, file_system: &str, settings: &str) -> Result<Self> {
        let small = Self::make(host, file_system, &host.scratch("ext4")?)?;
        host.run(&format!("truncate -s 64M {small}/data.img"))?;
        Self::boot(host, &disk("data", &format!("{small}/data.img"), settings))
    }

    /// Makes the file system, with 12 MiB of free space, and returns its mount point.
    pub(crate) fn make(host: &Host, file_system: &str, scratch: &str) -> Result<String> {
        let small = host.path("small");
        // Holes below the loop device are filled again: above a sparse file no buffered write is
        // held.
        let options = match file_system {
            "ext4" => "-F -m 0 -E nodiscard,lazy_itable_init=0",
            _ => "-f -K",
        };
        // XFS needs 300 MiB. The ballast leaves 12 MiB free.
        host.run(&format!(
            "modprobe loop; fallocate -l 320M {scratch}/small && mkfs.{file_system} -q {options} {scratch}/small && fallocate -l 320M {scratch}/small && mkdir {small} && \
             mount -o loop {scratch}/small {small} && \
             fallocate -l $(( ($(stat -f -c '%a * %S' {small})) - (12 << 20) )) {small}/ballast"
        ))?;
        Ok(small)
    }

    /// Boots the guest with this disk.
    pub(crate) fn boot(host: &'host Host, disk: &str) -> Result<Self> {
        let tables = disk.to_owned() + &control_socket::table(host);
        let config = host.guest_config(2, "512MiB", "initramfs-tools", "", &tables);
        let guest = host.boot(&config)?;
        Ok(Self { host, guest })
    }

    fn ctl(&self, arguments: &str) -> Result<String> {
        control_socket::ctl(self.host, arguments)
    }

    pub(crate) fn disk(&self) -> Result<Value> {
        control_socket::stats(self.host, "data")
    }

    pub(crate) fn wait_until_held(&self) -> Result<Value> {
        let start = Instant::now();
        loop {
            let held = self.disk()?["enospc_hold"].clone();
            if !held.is_null() {
                return Ok(held);
            }
            ensure!(start.elapsed() < FULL_TIMEOUT, "no request is held: {}", self.ctl("status")?);
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Starts the `fio` job `full` on the disk, with these parameters.
    pub(crate) fn start_fio(&self, parameters: &str) -> Result<()> {
        self.guest.run(&format!(
            "fio --name=full --filename=/dev/vda --ioengine=libaio --direct=1 --iodepth=8 --rw=randwrite {parameters} \
             --verify=crc32c --verify_fatal=1 --do_verify=1 --end_fsync=1 --output-format=terse --terse-version=3 \
             >/run/fio.out 2>/run/fio.err & echo $! >/run/fio.pid"
        ))?;
        Ok(())
    }

    /// Frees space: the held writes resume, and fio verifies its data.
    pub(crate) fn free_space_and_finish(&self) -> Result<()> {
        self.host.run(&format!("rm {}", self.host.path("small/ballast")))?;
        let wait = "while kill -0 $(cat /run/fio.pid) 2>/dev/null; do sleep 1; done";
        self.guest.run_for(wait, FIO_TIMEOUT)?;
        let output = self.guest.run("cat /run/fio.out /run/fio.err")?;
        assert!(output.contains("3;fio-") && output.contains(";full;0;0;"), "fio failed: {output}");
        let disk = self.disk()?;
        assert!(disk["enospc_hold"].is_null(), "{disk}");
        assert_eq!(disk["total"]["requests"]["write"]["errors"], 0);
        assert_eq!(disk["total"]["requests"]["flush"]["errors"], 0);
        assert_eq!(disk["lost_writes"], false);
        Ok(())
    }

    fn uptime(&self) -> Result<f64> {
        let text = self.guest.run("cat /proc/uptime")?;
        Ok(text.split(' ').next().unwrap_or_default().parse()?)
    }
}

impl Drop for SmallStore<'_> {
    fn drop(&mut self) {
        // Needed if the host is this machine.
        let small = self.host.path("small");
        self.host.try_run(&format!("umount -l {small}")).ok();
    }
}

fn full_host_holds_writes(file_system: &str, cache: &str) -> Result<()> {
    let host = Host::start(&format!("space-hold-{file_system}"))?;
    let settings =
        format!("cache = \"{cache}\"\non_enospc = \"hold\"\nhold_deadline = \"60m\"\nqueues = 2");
    let store = SmallStore::start(&host, file_system, &settings)?;
    store.start_fio("--bs=64k --size=40m")?;

    let held = store.wait_until_held()?;
    println!("{file_system}, cache = {cache}: {held}\n{}", store.ctl("status")?);
    assert_eq!(held["error"], "ENOSPC");
    assert!(held["requests"].as_u64() >= Some(1));

    // The guest runs on: its console answers, its clock advances, and reads complete.
    let before = store.uptime()?;
    assert_eq!(store.guest.run("echo alive")?.trim(), "alive");
    store.guest.run("dd if=/dev/vda of=/dev/null bs=4k count=16 iflag=direct 2>/dev/null")?;
    store.guest.run("sleep 2")?;
    assert!(store.uptime()? >= before + 2.0);
    store.guest.run("kill -0 $(cat /run/fio.pid)")?;

    // Age and deadline of the hold advance.
    let later = store.disk()?;
    let ages = (held["age_ms"].as_u64(), later["enospc_hold"]["age_ms"].as_u64());
    assert!(ages.1 >= ages.0.map(|age| age + 2000), "{ages:?}");
    assert!(later["enospc_hold"]["deadline_ms"].as_u64() < Some(3_600_000 - 2000), "{later}");
    assert_eq!(later["total"]["requests"]["write"]["errors"], 0);
    let status = store.ctl("status")?;
    assert!(
        status
            .lines()
            .any(|line| line.contains("warning: disk data: ") && line.contains(" held for ")),
        "{status}"
    );
    assert!(status.contains("(ENOSPC: no space left)"), "{status}");
    let metrics = store.ctl("metrics")?;
    assert!(
        metrics.contains("bulkhead_disk_enospc_hold_age_seconds{disk=\"data\",error=\"ENOSPC\"} ")
    );

    store.free_space_and_finish()?;
    assert_eq!(store.guest.power_off()?, 0);
    let log = store.guest.vmm_output()?;
    assert_eq!(
        log.matches("no space on the host: writes are held").count(),
        log.matches("writes are no longer held for ENOSPC").count()
    );
    assert!(log.contains("no space on the host: writes are held until there is"), "{log}");
    Ok(())
}

#[test]
fn full_ext4_holds_writes_until_space_is_free() -> Result<()> {
    full_host_holds_writes("ext4", "writeback")
}

#[test]
#[ignore = "long: make guests"]
fn full_xfs_holds_direct_writes_until_space_is_free() -> Result<()> {
    full_host_holds_writes("xfs", "none")
}

#[test]
#[ignore = "long: make guests"]
fn held_writes_fail_at_the_deadline() -> Result<()> {
    let host = Host::start("space-deadline")?;
    let store = SmallStore::start(&host, "ext4", "on_enospc = \"hold\"\nhold_deadline = \"10s\"")?;
    let start = Instant::now();
    store.guest.run("(dd if=/dev/zero of=/dev/vda bs=1M oflag=direct; echo $? >/run/dd.status) >/run/dd.out 2>&1 &")?;
    let held = store.wait_until_held()?;
    assert!(held["deadline_ms"].as_u64() <= Some(10_000), "{held}");
    store.guest.run("for i in $(seq 300); do test -s /run/dd.status && break; sleep 1; done")?;
    assert!(start.elapsed() >= Duration::from_secs(10));
    assert_eq!(store.guest.run("cat /run/dd.status")?.trim(), "1");
    let output = store.guest.run("cat /run/dd.out; dmesg | tail -3")?;
    assert!(output.contains("I/O error") || output.contains("No space left"), "{output}");
    let disk = store.disk()?;
    println!("{output}\n{}", disk["total"]["requests"]["write"]);
    assert!(disk["held"].is_null() && disk["lost_writes"] == false, "{disk}");
    assert!(disk["total"]["requests"]["write"]["errors"].as_u64() >= Some(1), "{disk}");

    // The disk works again once there is space.
    host.run(&format!("rm {}", host.path("small/ballast")))?;
    store.guest.run("dd if=/dev/zero of=/dev/vda bs=1M count=64 oflag=direct conv=fsync 2>&1")?;
    assert_eq!(store.guest.power_off()?, 0);
    Ok(())
}
