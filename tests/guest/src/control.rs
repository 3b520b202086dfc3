//! The control socket of a monitor with a running guest.

use std::time::Duration;

use anyhow::{Context, Result};
use lab::{Guest, Host};

use crate::control_socket;
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// A guest with a disk `data` of 64 MiB and a control socket.
struct ControlledGuest<'host> {
    host: &'host Host,
    guest: Guest<'host>,
}

impl<'host> ControlledGuest<'host> {
    fn start(host: &'host Host) -> Result<Self> {
        let scratch = host.scratch("ext4")?;
        host.run(&format!("truncate -s 64M {scratch}/data.img"))?;
        let guest = host.boot(&format!(
            "[machine]\nvcpus = 2\nmemory = \"128MiB\"\nshutdown_grace = \"60s\"\n\
             [kernel]\nimage = \"{}\"\ninitramfs = \"{}\"\n\
             cmdline = \"console=ttyS0 quiet cryptomgr.notests no_timer_check\"\n\
             [[disk]]\nid = \"data\"\npath = \"{scratch}/data.img\"\n{}",
            host.kit("vmlinux"),
            host.kit("initramfs"),
            control_socket::table(host),
        ))?;
        Ok(Self { host, guest })
    }

    fn ctl(&self, arguments: &str) -> Result<String> {
        control_socket::ctl(self.host, arguments)
    }

    /// Completed requests of one kind, and their bytes.
    fn completed(&self, kind: &str) -> Result<[u64; 2]> {
        let disk = control_socket::stats(self.host, "data")?;
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
fn statistics_count_guest_requests() -> Result<()> {
    let host = Host::start("control-statistics")?;
    let machine = ControlledGuest::start(&host)?;
    let [reads, read_bytes] = machine.completed("read")?;
    let [writes, _] = machine.completed("write")?;
    machine.guest.run("dd if=/dev/vda of=/dev/null bs=4k count=1000 iflag=direct 2>/dev/null")?;
    machine
        .guest
        .run("dd if=/dev/zero of=/dev/vda bs=4k count=200 oflag=direct conv=fsync 2>/dev/null")?;
    let [reads_after, read_bytes_after] = machine.completed("read")?;
    assert!((1000..1100).contains(&(reads_after - reads)), "{reads} to {reads_after}");
    assert!(read_bytes_after - read_bytes >= 4 * MIB - 96 * 1024);
    assert!((200..300).contains(&(machine.completed("write")?[0] - writes)));
    assert!(machine.completed("flush")?[0] > 0);

    let disk = control_socket::stats(&host, "data")?;
    assert_eq!(disk["engine"]["name"], "io_uring", "{disk}");
    assert_eq!(disk["total"]["in_flight"], 0);
    let waits = disk["total"]["wait"]["count"].as_u64();
    assert!(waits >= Some(reads_after), "{waits:?} waits of {reads_after} reads: each is counted");
    println!("{}\n{}", machine.ctl("status")?, machine.ctl("stats data")?);

    machine.guest.run("echo 'write through' >/sys/block/vda/cache_type")?;
    let disk = control_socket::stats(&host, "data")?;
    assert_eq!(disk["write_cache"], false, "the guest disabled it: {disk}");
    assert_eq!(machine.guest.power_off()?, 0);
    Ok(())
}

#[test]
fn drained_pause_leaves_no_request_in_flight() -> Result<()> {
    let host = Host::start("control-drain")?;
    let machine = ControlledGuest::start(&host)?;
    let write = "dd if=/dev/zero of=/dev/vda bs=256k count=64 oflag=direct";
    machine.guest.run(&format!("(while :; do {write}; done) >/dev/null 2>&1 &"))?;
    for _ in 0..5 {
        assert_eq!(machine.ctl("pause --drain")?, "paused; no request is in flight\n");
        let disk = control_socket::stats(&host, "data")?;
        assert_eq!(disk.pointer("/total/in_flight"), Some(&Value::from(0)), "{disk}");
        assert_eq!(machine.ctl("resume")?, "running\n");
        host.run("sleep 0.5")?;
    }
    assert_eq!(machine.guest.power_off()?, 0);
    Ok(())
}

#[test]
fn paused_guest_stops_without_lockup_reports() -> Result<()> {
    let host = Host::start("control-pause")?;
    let machine = ControlledGuest::start(&host)?;
    // The soft lockup detector reports a processor that is stuck for twice this many seconds.
    machine.guest.run("echo 4 >/proc/sys/kernel/watchdog_thresh")?;
    machine.guest.run("(while :; do printf . >>/run/count; sleep 0.1; done) >/dev/null 2>&1 &")?;
    // Idle processors reset the detector: keep both busy.
    machine.guest.run("for cpu in 0 1; do (while :; do :; done) & done >/dev/null 2>&1")?;
    let count = "wc -c </run/count";
    host.run("sleep 2")?;
    let before = machine.number(count)?;
    host.run("sleep 6")?;
    let running = machine.number(count)? - before;

    let before = machine.number(count)?;
    assert!(machine.ctl("pause")?.starts_with("paused"));
    assert!(machine.ctl("status")?.starts_with("paused"));
    host.run("sleep 12")?;
    assert_eq!(machine.ctl("resume")?, "running\n");
    let paused = machine.number(count)? - before;
    println!("the guest counted {running} in 6 s running, {paused} in 12 s paused");
    assert!(paused < running / 2, "{paused} of {running}");
    host.run("sleep 6")?;
    assert!(machine.number(count)? > before + paused, "the guest runs again");
    // Filtered in the guest: printing the whole log would keep a processor busy for longer than the
    // watchdog allows.
    let reports = "dmesg | grep -E 'soft lockup|detected stall|hung task' || true";
    assert_eq!(machine.guest.run(reports)?, "");
    assert_eq!(machine.guest.power_off()?, 0);
    Ok(())
}

#[test]
fn power_button_of_paused_guest_acts_after_resume() -> Result<()> {
    let host = Host::start("control-button")?;
    let machine = ControlledGuest::start(&host)?;
    machine.ctl("pause")?;
    machine.ctl("power-button")?;
    host.run("sleep 1")?;
    assert!(machine.ctl("status")?.starts_with("paused"), "the button press is queued");
    machine.ctl("resume")?;
    assert_eq!(machine.guest.wait_exit(Duration::from_secs(60))?, 0);
    assert_eq!(host.try_run(&format!("test -e {}", host.path("control.sock")))?.status, 1);
    Ok(())
}

#[test]
fn sigterm_resumes_paused_guest_and_powers_it_off() -> Result<()> {
    let host = Host::start("control-signal")?;
    let machine = ControlledGuest::start(&host)?;
    machine.ctl("pause")?;
    machine.guest.signal("TERM")?;
    assert_eq!(machine.guest.wait_exit(Duration::from_secs(60))?, 0);
    Ok(())
}

#[test]
fn guest_sees_disk_grow() -> Result<()> {
    let host = Host::start("control-resize")?;
    let machine = ControlledGuest::start(&host)?;
    let sectors = "cat /sys/block/vda/size";
    assert_eq!(machine.number(sectors)?, 64 * MIB / 512);
    machine.guest.run("mke2fs -q /dev/vda && mount /dev/vda /mnt && echo kept >/mnt/file")?;

    assert_eq!(machine.ctl("resize data 96MiB")?, "data has 96 MiB\n");
    machine.guest.run(&format!(
        "for i in $(seq 50); do test $({sectors}) = {} && break; sleep 0.1; done",
        96 * MIB / 512
    ))?;
    assert_eq!(machine.number(sectors)?, 96 * MIB / 512);
    machine
        .guest
        .run("dmesg | grep -q 'new size'")
        .context("the driver has no configuration change")?;
    // The added blocks hold data, and the file system is intact.
    machine.guest.run("dd if=/dev/urandom of=/run/noise bs=4k count=1 2>/dev/null")?;
    machine.guest.run("dd if=/run/noise of=/dev/vda bs=4k seek=24575 oflag=direct 2>/dev/null")?;
    machine.guest.run(
        "dd if=/dev/vda bs=4k skip=24575 count=1 iflag=direct 2>/dev/null | cmp - /run/noise",
    )?;
    assert_eq!(machine.guest.run("cat /mnt/file")?.trim(), "kept");

    // Growth of the image by another process, while the guest is paused.
    host.run("truncate -s 128M /scratch/data.img")?;
    machine.ctl("pause")?;
    assert_eq!(machine.ctl("resize data")?, "data has 128 MiB\n");
    machine.ctl("resume")?;
    machine.guest.run(&format!(
        "for i in $(seq 50); do test $({sectors}) = {} && break; sleep 0.1; done",
        128 * MIB / 512
    ))?;
    assert_eq!(machine.number(sectors)?, 128 * MIB / 512);
    let refused = machine.ctl("resize data 64MiB").unwrap_err().to_string();
    assert!(refused.contains("a disk cannot shrink"), "{refused}");
    assert_eq!(machine.guest.power_off()?, 0);
    Ok(())
}
