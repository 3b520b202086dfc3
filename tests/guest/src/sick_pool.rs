//! A ZFS pool whose device fails under a guest and comes back, and one that is exported under it.

#![allow(clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::{Guest, Host, disk};

use crate::control_socket;

/// Time limit of a change of the status. A stall is reported after five seconds.
const STATUS_TIMEOUT: Duration = Duration::from_secs(60);
/// Time limit of an answer of the control socket, with the start of its client in L1.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const FIO_TIMEOUT: Duration = Duration::from_secs(200);

const STALL: &str = "warning: disk sick: the host does not answer: ";
const FAILURE: &str = "warning: disk sick: 1 request failed on the host, ";

/// The pool `sick` on a device that can fail.
struct SickPool<'host> {
    host: &'host Host,
}

impl<'host> SickPool<'host> {
    fn make(host: &'host Host) -> Result<Self> {
        // In the mode `wait`, the default, requests wait while the pool is suspended.
        host.run(
            "modprobe -a loop dm_mod && truncate -s 256M /scratch/sick && losetup /dev/loop6 /scratch/sick && \
             dmsetup create sick --table '0 524288 linear /dev/loop6 0' && udevadm settle && \
             zpool create -O compression=off -O recordsize=4k -m /run/sick -o failmode=wait sick /dev/mapper/sick",
        )?;
        Ok(Self { host })
    }

    fn make_volume(&self) -> Result<&'static str> {
        let path = "/dev/zvol/sick/volume";
        self.host.run(&format!(
            "zfs unmount sick && zfs create -s -V 64M -b 16k sick/volume && udevadm settle && test -b {path}"
        ))?;
        Ok(path)
    }

    fn make_file(&self) -> Result<&'static str> {
        let path = "/run/sick/disk";
        // A direct write would fail with ENOSPC, as no device takes it.
        self.host.run(&format!("zfs set direct=disabled sick && truncate -s 64M {path}"))?;
        Ok(path)
    }

    fn set_device(&self, target: &str) -> Result<()> {
        self.host.run(&format!(
            "dmsetup suspend --noflush --nolockfs sick && dmsetup load sick --table '0 524288 {target}' && dmsetup resume sick"
        ))?;
        Ok(())
    }

    /// All requests of the device fail from now on.
    fn fail(&self) -> Result<()> {
        self.set_device("error")
    }

    fn wait_suspended(&self) -> Result<()> {
        let state = "/proc/spl/kstat/zfs/sick/state";
        self.host.run(&format!(
            "timeout 60 sh -c 'until grep -qx SUSPENDED {state}; do sleep 0.1; done'"
        ))?;
        Ok(())
    }

    /// Replaces the device by the good one.
    fn restore(&self) -> Result<()> {
        self.set_device("linear /dev/loop6 0")?;
        self.host.run("timeout 60 zpool clear sick")?;
        Ok(())
    }
}

/// A guest with the disk `sick`, and the disk `well` on another pool.
fn boot<'host>(host: &'host Host, path: &str) -> Result<Guest<'host>> {
    let tables = [
        control_socket::table(host),
        disk("sick", path, "cache = \"none\""),
        disk("well", &host.volume("well", "64M", "-b 16k")?, "cache = \"none\""),
    ];
    let config = host.guest_config(2, "512MiB", "initramfs-tools", "", &tables.concat());
    let guest = host.boot(&config)?;
    guest.run("head -c 1048576 /dev/urandom >/tmp/noise")?;
    Ok(guest)
}

/// Waits until the status has, or no longer has, `text`. Each answer must be prompt.
fn wait_status(host: &Host, text: &str, is_there: bool) -> Result<String> {
    let start = Instant::now();
    loop {
        let asked = Instant::now();
        let status = control_socket::ctl(host, "status")?;
        let took = asked.elapsed();
        ensure!(took < ANSWER_TIMEOUT, "the control socket took {took:?}: {status}");
        if status.contains(text) == is_there {
            println!("{text:?}: {is_there} after {:.1?}\n{status}", start.elapsed());
            return Ok(status);
        }
        ensure!(start.elapsed() < STATUS_TIMEOUT, "not {is_there}: {text:?} in {status}");
        thread::sleep(Duration::from_millis(300));
    }
}

fn use_the_other_disk(guest: &Guest<'_>) -> Result<()> {
    guest.run(
        "dd if=/tmp/noise of=/dev/vdb bs=64k oflag=direct conv=fsync 2>/dev/null && \
         dd if=/dev/vdb bs=64k count=16 iflag=direct 2>/dev/null | cmp - /tmp/noise",
    )?;
    Ok(())
}

/// The device fails while the guest writes, and comes back: no request of the guest fails.
fn suspend_and_resume(pool: &SickPool<'_>, guest: &Guest<'_>) -> Result<()> {
    let host = pool.host;
    pool.fail()?;
    guest.run(
        "fio --name=sick --filename=/dev/vda --ioengine=libaio --direct=1 --iodepth=8 --rw=randwrite --bs=16k --size=4m \
         --verify=crc32c --verify_fatal=1 --do_verify=1 --fsync=64 --end_fsync=1 --output-format=terse --terse-version=3 \
         >/run/fio.out 2>&1 & echo $! >/run/fio.pid",
    )?;
    pool.wait_suspended()?;
    wait_status(host, STALL, true)?;
    use_the_other_disk(guest)?;
    let status = wait_status(host, STALL, true)?;
    assert!(!status.contains("warning: disk well: "), "{status}");
    guest.run("kill -0 $(cat /run/fio.pid)")?;

    pool.restore()?;
    guest.run_for(
        "while kill -0 $(cat /run/fio.pid) 2>/dev/null; do sleep 0.2; done",
        FIO_TIMEOUT,
    )?;
    let output = guest.run("cat /run/fio.out; dmesg | grep -i error || true")?;
    assert!(output.contains(";sick;0;0;") && !output.contains("I/O error"), "{output}");
    wait_status(host, "warning: disk sick: ", false)?;
    let sick = control_socket::stats(host, "sick")?;
    for kind in ["read", "write", "flush"] {
        assert_eq!(sick["total"]["requests"][kind]["errors"], 0, "{sick}");
    }
    Ok(())
}

/// ZFS neither refuses an export of a volume in use nor completes it: it fails the requests.
#[test]
#[ignore = "long: make guests"]
fn a_guest_survives_a_suspended_pool_and_sees_the_export_of_its_volume() -> Result<()> {
    let host = Host::start_with_zfs("sick-pool-volume")?;
    let pool = SickPool::make(&host)?;
    let guest = boot(&host, pool.make_volume()?)?;
    suspend_and_resume(&pool, &guest)?;

    host.run("(zpool export sick; echo $? >/run/export.status) >/run/export.out 2>&1 &")?;
    let write = "dd if=/tmp/noise of=/dev/vda bs=64k oflag=direct 2>&1";
    let written =
        guest.try_run(&format!("for n in $(seq 100); do {write} || exit 1; sleep 0.1; done"))?;
    assert!(written.text.contains("Input/output error"), "{}", written.text);
    wait_status(&host, FAILURE, true)?;
    use_the_other_disk(&guest)?;
    let exported = "cat /run/export.status /run/export.out 2>&1";
    let under_guest = host.try_run(&format!("{exported}; zpool list -H -o name"))?.text;
    assert!(!under_guest.starts_with("0\n") && under_guest.contains("\nsick\n"), "{under_guest}");

    assert_eq!(guest.power_off()?, 1, "the last flush of a disk has failed");
    let output = guest.vmm_output()?;
    let loss = "error: cannot close a device; data written to it may be lost: disk sick: ";
    assert!(output.contains(loss), "{output}");
    assert!(!output.contains("disk well"), "{output}");
    host.run("timeout 60 sh -c 'until test -s /run/export.status; do sleep 0.1; done'")?;
    assert_eq!(host.run(exported)?.trim(), "0", "it completes when the volume is closed");
    Ok(())
}

#[test]
#[ignore = "long: make guests"]
fn a_guest_survives_a_suspended_pool_below_its_file() -> Result<()> {
    let host = Host::start_with_zfs("sick-pool-file")?;
    let pool = SickPool::make(&host)?;
    let guest = boot(&host, pool.make_file()?)?;
    suspend_and_resume(&pool, &guest)?;
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}
