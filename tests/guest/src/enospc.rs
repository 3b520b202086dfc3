//! A real guest whose host has no space left: with `on_enospc = "hold"` it runs on, is shown as
//! held, and loses nothing.

#![allow(clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::{Guest, Host, disk};
use serde_json::Value;

/// How long fio may take: it shares the emulated processors with the host and with other scenarios.
const FIO_TIMEOUT: Duration = Duration::from_secs(900);
/// How long the guest may take to fill what little space there is.
const FULL_TIMEOUT: Duration = Duration::from_secs(300);

/// A guest with the disk `data` of 64 MiB on a file system of the host's with less room than that.
struct Rig<'host> {
    host: &'host Host,
    guest: Guest<'host>,
}

impl<'host> Rig<'host> {
    fn start(host: &'host Host, file_system: &str, settings: &str) -> Result<Self> {
        let scratch = host.scratch("ext4")?;
        let (small, force) = (host.path("small"), if file_system == "ext4" { "-F" } else { "-f" });
        // An XFS has 300 MiB at least. What is left of either is a matter of the ballast.
        host.run(&format!(
            "modprobe loop; truncate -s 320M {scratch}/small && mkfs.{file_system} -q {force} {scratch}/small && mkdir {small} && \
             mount -o loop {scratch}/small {small} && truncate -s 64M {small}/data.img && \
             fallocate -l $(( ($(stat -f -c '%a * %S' {small})) - (12 << 20) )) {small}/ballast"
        ))?;
        let tables = disk("data", &format!("{small}/data.img"), settings);
        let control = format!("[control]\nsocket = \"{}\"\n", host.path("control.sock"));
        let config = host.guest_config(2, "512MiB", "initramfs-tools", "", &(tables + &control));
        let guest = host.boot(&config)?;
        Ok(Self { host, guest })
    }

    fn ctl(&self, arguments: &str) -> Result<String> {
        let (bulkhead, socket) = (self.host.path("bulkhead"), self.host.path("control.sock"));
        self.host.run(&format!("{bulkhead} ctl {socket} {arguments}"))
    }

    fn disk(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.ctl("stats data --json")?)?)
    }

    fn wait_until_held(&self) -> Result<Value> {
        let start = Instant::now();
        loop {
            let held = self.disk()?["held"].clone();
            if !held.is_null() {
                return Ok(held);
            }
            ensure!(start.elapsed() < FULL_TIMEOUT, "nothing is held: {}", self.ctl("status")?);
            thread::sleep(Duration::from_millis(200));
        }
    }

    fn uptime(&self) -> Result<f64> {
        let text = self.guest.run("cat /proc/uptime")?;
        Ok(text.split(' ').next().unwrap_or_default().parse()?)
    }
}

impl Drop for Rig<'_> {
    fn drop(&mut self) {
        // Where the host is this machine.
        let small = self.host.path("small");
        self.host.try_run(&format!("umount -l {small}")).ok();
    }
}

fn a_full_host_holds_writes(file_system: &str, cache: &str) -> Result<()> {
    let host = Host::start(&format!("space-hold-{file_system}"))?;
    let settings =
        format!("cache = \"{cache}\"\non_enospc = \"hold\"\nhold_deadline = \"60m\"\nqueues = 2");
    let rig = Rig::start(&host, file_system, &settings)?;
    rig.guest.run(
        "fio --name=full --filename=/dev/vda --ioengine=libaio --direct=1 --iodepth=8 --rw=randwrite --bs=64k --size=40m \
         --verify=crc32c --verify_fatal=1 --do_verify=1 --end_fsync=1 --output-format=terse --terse-version=3 \
         >/run/fio.out 2>/run/fio.err & echo $! >/run/fio.pid",
    )?;

    let held = rig.wait_until_held()?;
    println!("{file_system}, cache = {cache}: {held}\n{}", rig.ctl("status")?);
    assert_eq!(held["error"], "ENOSPC");
    assert!(held["requests"].as_u64() >= Some(1));

    // The guest runs on, and what needs no space is done: its console answers, its clock goes, its
    // disk reads.
    let before = rig.uptime()?;
    assert_eq!(rig.guest.run("echo alive")?.trim(), "alive");
    rig.guest.run("dd if=/dev/vda of=/dev/null bs=4k count=16 iflag=direct 2>/dev/null")?;
    rig.guest.run("sleep 2")?;
    assert!(rig.uptime()? >= before + 2.0);
    rig.guest.run("kill -0 $(cat /run/fio.pid)")?;

    // It is shown, and grows older.
    let later = rig.disk()?;
    let ages = (held["age_ms"].as_u64(), later["held"]["age_ms"].as_u64());
    assert!(ages.1 >= ages.0.map(|age| age + 2000), "{ages:?}");
    assert!(later["held"]["deadline_ms"].as_u64() < Some(3_600_000 - 2000), "{later}");
    assert_eq!(later["total"]["requests"]["write"]["errors"], 0);
    let status = rig.ctl("status")?;
    assert!(
        status.contains("warning: disk data: held for want of space on the host: "),
        "{status}"
    );
    assert!(status.contains("(ENOSPC: no space is left)"), "{status}");
    let metrics = rig.ctl("metrics")?;
    assert!(metrics.contains("bulkhead_disk_held_age_seconds{disk=\"data\",error=\"ENOSPC\"} "));

    // Space is back: all that was held goes on, and what fio finds is what it wrote.
    host.run(&format!("rm {}", host.path("small/ballast")))?;
    rig.guest
        .run_for("while kill -0 $(cat /run/fio.pid) 2>/dev/null; do sleep 1; done", FIO_TIMEOUT)?;
    let said = rig.guest.run("cat /run/fio.out /run/fio.err")?;
    assert!(said.contains("3;fio-") && said.contains(";full;0;0;"), "an error of fio's: {said}");
    let disk = rig.disk()?;
    assert!(disk["held"].is_null(), "{disk}");
    assert_eq!(disk["total"]["requests"]["write"]["errors"], 0);
    assert_eq!(disk["total"]["requests"]["flush"]["errors"], 0);
    assert_eq!(disk["lost_writes"], false);
    assert_eq!(rig.guest.power_off()?, 0);
    let log = rig.guest.vmm_output()?;
    assert_eq!(
        log.matches("the host has no space").count(),
        log.matches("is held for want of space any more").count()
    );
    assert!(log.contains("the host has no space: writes are held until it has"), "{log}");
    Ok(())
}

#[test]
fn a_full_ext4_holds_writes_until_space_is_freed() -> Result<()> {
    a_full_host_holds_writes("ext4", "writeback")
}

#[test]
fn a_full_xfs_holds_direct_writes_until_space_is_freed() -> Result<()> {
    a_full_host_holds_writes("xfs", "none")
}

#[test]
fn after_its_deadline_the_guest_sees_the_error() -> Result<()> {
    let host = Host::start("space-deadline")?;
    let rig = Rig::start(&host, "ext4", "on_enospc = \"hold\"\nhold_deadline = \"10s\"")?;
    let start = Instant::now();
    rig.guest.run("(dd if=/dev/zero of=/dev/vda bs=1M oflag=direct; echo $? >/run/dd.status) >/run/dd.out 2>&1 &")?;
    let held = rig.wait_until_held()?;
    assert!(held["deadline_ms"].as_u64() <= Some(10_000), "{held}");
    rig.guest.run("for i in $(seq 300); do test -s /run/dd.status && break; sleep 1; done")?;
    assert!(start.elapsed() >= Duration::from_secs(10));
    assert_eq!(rig.guest.run("cat /run/dd.status")?.trim(), "1");
    let said = rig.guest.run("cat /run/dd.out; dmesg | tail -3")?;
    assert!(said.contains("I/O error") || said.contains("No space left"), "{said}");
    let disk = rig.disk()?;
    println!("{said}\n{}", disk["total"]["requests"]["write"]);
    assert!(disk["held"].is_null() && disk["lost_writes"] == false, "{disk}");
    assert!(disk["total"]["requests"]["write"]["errors"].as_u64() >= Some(1), "{disk}");

    // It is a full disk and no broken one.
    host.run(&format!("rm {}", host.path("small/ballast")))?;
    rig.guest.run("dd if=/dev/zero of=/dev/vda bs=1M count=64 oflag=direct conv=fsync 2>&1")?;
    assert_eq!(rig.guest.power_off()?, 0);
    Ok(())
}
