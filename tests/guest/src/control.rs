//! The control socket, with a real guest at the other end.

use std::time::Duration;

use anyhow::{Context, Result};
use lab::{Guest, Host};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// A machine of the lab with one disk, `data`, of 64 MiB, and a control socket.
struct Rig<'host> {
    host: &'host Host,
    guest: Guest<'host>,
}

impl<'host> Rig<'host> {
    fn start(host: &'host Host) -> Result<Self> {
        let scratch = host.scratch("ext4")?;
        host.run(&format!("truncate -s 64M {scratch}/data.img"))?;
        let guest = host.boot(&format!(
            "[machine]\nvcpus = 2\nmemory = \"128MiB\"\nshutdown_grace = \"60s\"\n\
             [kernel]\nimage = \"{}\"\ninitramfs = \"{}\"\n\
             cmdline = \"console=ttyS0 quiet cryptomgr.notests no_timer_check\"\n\
             [[disk]]\nid = \"data\"\npath = \"{scratch}/data.img\"\n\
             [control]\nsocket = \"{}\"\n",
            host.kit("vmlinux"),
            host.kit("initramfs"),
            host.path("control.sock"),
        ))?;
        Ok(Self { host, guest })
    }

    fn ctl(&self, arguments: &str) -> Result<String> {
        let (bulkhead, socket) = (self.host.path("bulkhead"), self.host.path("control.sock"));
        self.host.run(&format!("{bulkhead} ctl {socket} {arguments}"))
    }

    /// What was done of one kind of request: the requests and their bytes.
    fn done(&self, kind: &str) -> Result<[u64; 2]> {
        let disk: Value = serde_json::from_str(&self.ctl("stats data --json")?)?;
        let figure = |name: &str| {
            let figure = disk.pointer(&format!("/total/requests/{kind}/{name}"));
            figure.and_then(Value::as_u64).with_context(|| format!("{kind} has no {name}: {disk}"))
        };
        Ok([figure("count")?, figure("bytes")?])
    }

    fn number(&self, command: &str) -> Result<u64> {
        Ok(self.guest.run(command)?.trim().parse()?)
    }
}

#[test]
fn statistics_count_what_the_guest_did() -> Result<()> {
    let host = Host::start("control-statistics")?;
    let rig = Rig::start(&host)?;
    let [reads, read_bytes] = rig.done("read")?;
    let [writes, _] = rig.done("write")?;
    rig.guest.run("dd if=/dev/vda of=/dev/null bs=4k count=1000 iflag=direct 2>/dev/null")?;
    rig.guest
        .run("dd if=/dev/zero of=/dev/vda bs=4k count=200 oflag=direct conv=fsync 2>/dev/null")?;
    let [reads_after, read_bytes_after] = rig.done("read")?;
    assert!((1000..1100).contains(&(reads_after - reads)), "{reads} to {reads_after}");
    assert!(read_bytes_after - read_bytes >= 4 * MIB - 96 * 1024);
    assert!((200..300).contains(&(rig.done("write")?[0] - writes)));
    assert!(rig.done("flush")?[0] > 0);

    let disk: Value = serde_json::from_str(&rig.ctl("stats data --json")?)?;
    assert_eq!(disk["engine"]["name"], "io_uring", "{disk}");
    assert_eq!(disk["total"]["in_flight"], 0);
    let waits = disk["total"]["wait"]["count"].as_u64();
    assert!(waits >= Some(reads_after), "{waits:?} of {reads_after}: each request waited");
    println!("{}\n{}", rig.ctl("status")?, rig.ctl("stats data")?);

    rig.guest.run("echo 'write through' >/sys/block/vda/cache_type")?;
    let disk: Value = serde_json::from_str(&rig.ctl("stats data --json")?)?;
    assert_eq!(disk["write_cache"], false, "the guest switched it off: {disk}");
    assert_eq!(rig.guest.power_off()?, 0);
    Ok(())
}

#[test]
fn a_paused_guest_stands_still_and_takes_no_offence() -> Result<()> {
    let host = Host::start("control-pause")?;
    let rig = Rig::start(&host)?;
    // A processor that seems stuck for twice as many seconds is reported.
    rig.guest.run("echo 4 >/proc/sys/kernel/watchdog_thresh")?;
    rig.guest.run("(while :; do printf . >>/run/count; sleep 0.1; done) >/dev/null 2>&1 &")?;
    // Idle processors forgive; these two have no time to.
    rig.guest.run("for cpu in 0 1; do (while :; do :; done) & done >/dev/null 2>&1")?;
    let count = "wc -c </run/count";
    host.run("sleep 2")?;
    let before = rig.number(count)?;
    host.run("sleep 6")?;
    let running = rig.number(count)? - before;

    let before = rig.number(count)?;
    assert_eq!(rig.ctl("pause")?, "paused\n");
    assert!(rig.ctl("status")?.starts_with("paused"));
    host.run("sleep 12")?;
    assert_eq!(rig.ctl("resume")?, "running\n");
    let paused = rig.number(count)? - before;
    println!("the guest counted {running} in 6 s running and {paused} in 12 s paused");
    assert!(paused < running / 2, "{paused} of {running}");
    host.run("sleep 6")?;
    assert!(rig.number(count)? > before + paused, "it goes on");
    // Looked through in the guest: to print it all keeps a processor of the lab busy for longer
    // than the watchdog likes.
    let offences = "dmesg | grep -E 'soft lockup|detected stall|hung task' || true";
    assert_eq!(rig.guest.run(offences)?, "");
    assert_eq!(rig.guest.power_off()?, 0);
    Ok(())
}

#[test]
fn a_paused_guest_obeys_the_button_and_the_signal_afterwards() -> Result<()> {
    let host = Host::start("control-button")?;
    let rig = Rig::start(&host)?;
    rig.ctl("pause")?;
    rig.ctl("power-button")?;
    host.run("sleep 1")?;
    assert!(rig.ctl("status")?.starts_with("paused"), "the press waits");
    rig.ctl("resume")?;
    assert_eq!(rig.guest.wait_exit(Duration::from_secs(60))?, 0);
    assert_eq!(host.try_run(&format!("test -e {}", host.path("control.sock")))?.status, 1);
    Ok(())
}

#[test]
fn a_signal_wakes_a_paused_guest_so_that_it_can_power_off() -> Result<()> {
    let host = Host::start("control-signal")?;
    let rig = Rig::start(&host)?;
    rig.ctl("pause")?;
    rig.guest.signal("TERM")?;
    assert_eq!(rig.guest.wait_exit(Duration::from_secs(60))?, 0);
    Ok(())
}

#[test]
fn the_guest_sees_its_disk_grow() -> Result<()> {
    let host = Host::start("control-resize")?;
    let rig = Rig::start(&host)?;
    let sectors = "cat /sys/block/vda/size";
    assert_eq!(rig.number(sectors)?, 64 * MIB / 512);
    rig.guest.run("mke2fs -q /dev/vda && mount /dev/vda /mnt && echo kept >/mnt/file")?;

    assert_eq!(rig.ctl("resize data 96MiB")?, "data has 96 MiB\n");
    rig.guest.run(&format!(
        "for i in $(seq 50); do test $({sectors}) = {} && break; sleep 0.1; done",
        96 * MIB / 512
    ))?;
    assert_eq!(rig.number(sectors)?, 96 * MIB / 512);
    rig.guest.run("dmesg | grep -q 'new size'").context("the driver was not told")?;
    // The new end takes data, and what was there is there.
    rig.guest.run("dd if=/dev/urandom of=/run/noise bs=4k count=1 2>/dev/null")?;
    rig.guest.run("dd if=/run/noise of=/dev/vda bs=4k seek=24575 oflag=direct 2>/dev/null")?;
    rig.guest.run(
        "dd if=/dev/vda bs=4k skip=24575 count=1 iflag=direct 2>/dev/null | cmp - /run/noise",
    )?;
    assert_eq!(rig.guest.run("cat /mnt/file")?.trim(), "kept");

    // From outside, and while the guest is paused.
    host.run("truncate -s 128M /scratch/data.img")?;
    rig.ctl("pause")?;
    assert_eq!(rig.ctl("resize data")?, "data has 128 MiB\n");
    rig.ctl("resume")?;
    rig.guest.run(&format!(
        "for i in $(seq 50); do test $({sectors}) = {} && break; sleep 0.1; done",
        128 * MIB / 512
    ))?;
    assert_eq!(rig.number(sectors)?, 128 * MIB / 512);
    let refused = rig.ctl("resize data 64MiB").unwrap_err().to_string();
    assert!(refused.contains("never shrinks"), "{refused}");
    assert_eq!(rig.guest.power_off()?, 0);
    Ok(())
}
