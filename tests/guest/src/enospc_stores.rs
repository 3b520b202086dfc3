//! Stores that allocate when data is written, and are full: dm-thin, a file on it, ZFS volumes. The
//! cells of the table in docs/disks.md, each by the program `full-store` on the host; and a guest
//! that verifies its data.
//!
//! The host is always the emulated one, because volume groups are made on it.

#![allow(clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::{Host, disk};

use crate::control_socket;

const PROGRAM: &str = env!("CARGO_BIN_EXE_full-store");
/// Time limit of one run of the program.
const RUN_LIMIT: Duration = Duration::from_secs(600);
/// Time limit of the scenario with a guest.
const GUEST_LIMIT: Duration = Duration::from_secs(900);
/// The kernel's errors as the program prints them.
const ENOSPC: &str = "No space left on device (os error 28)";
const EIO: &str = "Input/output error (os error 5)";
/// Where the writes start. The first block of a thin volume stays without allocation, so that
/// dm-thin has no space for a flush, which it maps to that block.
const FIRST: u64 = 1 << 20;

/// A host with a volume group and the program.
struct Stores {
    host: Host,
    program: String,
}

impl Stores {
    fn start(name: &str) -> Result<Self> {
        let host = Host::start_with_zfs(name)?;
        let program = host.put(Path::new(PROGRAM), "full-store")?;
        host.run(
            "modprobe -a loop dm_thin_pool && truncate -s 600M /scratch/pv && \
             device=$(losetup --find --show /scratch/pv) && pvcreate -q $device && vgcreate -q vg $device",
        )?;
        Ok(Self { host, program })
    }

    /// Makes the volume `vg/thin` of 400 MiB in a pool of `mib`.
    fn make_thin(&self, mib: u32, error_when_full: bool) -> Result<()> {
        let full = if error_when_full { "y" } else { "n" };
        self.host.run(&format!(
            "lvcreate -q -L {mib}M --poolmetadatasize 4M --errorwhenfull {full} -T vg/pool && \
             lvcreate -q -V 400M -T vg/pool -n thin && udevadm settle && test -b /dev/vg/thin"
        ))?;
        Ok(())
    }

    fn remove_thin(&self) -> Result<()> {
        self.host.run("lvremove -q -y vg/pool")?;
        Ok(())
    }

    /// Fills a disk with `mib`, lets the store grow, and returns what the program prints.
    fn fill(&self, path: &str, cell: &str, mib: u64, grow: &str) -> Result<String> {
        let Self { host, program } = self;
        let command = format!("{program} {path} {cell} {FIRST} {} '{grow}'", mib << 20);
        let output = host.run_for(&command, RUN_LIMIT)?;
        println!("{path} {cell}\n{output}");
        Ok(output)
    }
}

/// The outcomes of a full store.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    /// The disk does not open.
    Refused,
    /// Writes are held and complete after the store has grown.
    Held,
    /// Writes wait in the kernel and complete after the store has grown.
    Waited,
    /// Writes fail; they succeed when they are repeated after the store has grown.
    Failed(&'static str),
    /// Acknowledged writes are lost, and each later flush fails.
    Lost,
}

/// Checks an outcome against what the program has printed.
fn check(output: &str, expected: Outcome, case: &str) {
    let has = |text: &str| output.lines().any(|line| line.starts_with(text));
    let lines = |text: &str| output.lines().filter(|line| line.starts_with(text)).count();
    let context = || format!("{case}: {expected:?}\n{output}");
    if expected == Outcome::Refused {
        assert!(has("refused: ") && output.contains("holds no write"), "{}", context());
        assert_eq!(output.lines().count(), 1, "{}", context());
        return;
    }
    let is_lost = expected == Outcome::Lost;
    assert!(has(&format!("lost: {is_lost}")), "{}", context());
    if is_lost {
        assert_eq!(lines(&format!("flush: {EIO}")), 2, "{}", context());
        return;
    }
    assert_eq!(lines("flush: done"), 2, "nothing was lost: {}", context());
    assert!(has("damaged: 0 of "), "{}", context());
    let failed_text =
        format!(" failed: {}", if let Outcome::Failed(error) = expected { error } else { "" });
    let is_failed = matches!(expected, Outcome::Failed(_));
    assert_eq!(output.contains(&failed_text), is_failed, "{}", context());
    assert_eq!(has("repeated: 0 acknowledged"), !is_failed, "{}", context());
    assert_eq!(lines("held: 0") == 2, expected != Outcome::Held, "{}", context());
}

const MODES: [&str; 5] = ["none", "directsync", "writethrough", "writeback", "unsafe"];

#[test]
#[ignore = "long: make guests"]
fn a_full_thin_volume_holds_direct_writes_and_loses_buffered_ones() -> Result<()> {
    let stores = Stores::start("enospc-dm-thin")?;
    for mode in MODES {
        let is_direct = matches!(mode, "none" | "directsync");
        for policy in ["hold", "report"] {
            let expected = match (is_direct, policy) {
                (true, "hold") => Outcome::Held,
                (true, _) => Outcome::Failed(ENOSPC),
                (false, "hold") => Outcome::Refused,
                // It ignores flushes, so that nothing reports a loss.
                (false, _) if mode == "unsafe" => continue,
                (false, _) => Outcome::Lost,
            };
            stores.make_thin(16, true)?;
            let cell = format!("{mode} {policy}");
            let grow = "lvextend -q -L +100M vg/pool >/dev/null 2>&1";
            let output = stores.fill("/dev/vg/thin", &cell, 24, grow)?;
            check(&output, expected, &cell);
            let flush = match expected {
                Outcome::Held => "flush while full: waits".to_owned(),
                Outcome::Failed(error) => format!("flush while full: {error}"),
                _ => String::new(),
            };
            assert!(output.contains(&flush), "dm-thin has no space for a flush: {output}");
            stores.remove_thin()?;
        }
    }
    Ok(())
}

/// dm-thin keeps requests for `no_space_timeout`, then it fails them.
#[test]
#[ignore = "long: make guests"]
fn a_full_thin_volume_that_queues_holds_requests_after_its_timeout() -> Result<()> {
    let stores = Stores::start("enospc-dm-thin-queue")?;
    stores.host.run("echo 8 >/sys/module/dm_thin_pool/parameters/no_space_timeout")?;
    for (cell, delay, expected) in [
        ("none hold", 0, Outcome::Waited),
        ("none hold", 12, Outcome::Waited),
        ("none report", 12, Outcome::Failed(ENOSPC)),
        ("writeback report", 12, Outcome::Lost),
    ] {
        stores.make_thin(16, false)?;
        let grow = format!("sleep {delay}; lvextend -q -L +100M vg/pool >/dev/null 2>&1");
        let output = stores.fill("/dev/vg/thin", cell, 24, &grow)?;
        check(&output, expected, &format!("{cell}, {delay}"));
        stores.remove_thin()?;
    }
    Ok(())
}

#[test]
#[ignore = "long: make guests"]
fn a_file_on_a_full_thin_volume_holds_direct_writes_and_loses_buffered_ones() -> Result<()> {
    let stores = Stores::start("enospc-xfs-on-thin")?;
    for (cell, expected) in [
        ("none hold", Outcome::Held),
        ("none report", Outcome::Failed(ENOSPC)),
        ("directsync hold", Outcome::Held),
        ("writethrough hold", Outcome::Refused),
        ("writeback hold", Outcome::Refused),
        ("writeback report", Outcome::Lost),
    ] {
        // The log of XFS takes 64 MiB.
        stores.make_thin(84, true)?;
        stores.host.run(
            "mkfs.xfs -q -f /dev/vg/thin && mkdir -p /run/thin && mount /dev/vg/thin /run/thin && truncate -s 200M /run/thin/disk",
        )?;
        let grow = "lvextend -q -L +100M vg/pool >/dev/null 2>&1";
        let output = stores.fill("/run/thin/disk", cell, 32, grow)?;
        check(&output, expected, cell);
        stores.host.run("umount /run/thin")?;
        stores.remove_thin()?;
    }
    Ok(())
}

#[test]
#[ignore = "long: make guests"]
fn a_volume_in_a_full_pool_holds_writes_but_not_at_a_quota() -> Result<()> {
    let stores = Stores::start("enospc-zvol")?;
    for (cell, expected) in [
        ("none hold", Outcome::Held),
        ("directsync hold", Outcome::Held),
        ("none report", Outcome::Failed(ENOSPC)),
        ("writeback hold", Outcome::Refused),
    ] {
        stores.host.run(
            "truncate -s 80M /scratch/one && truncate -s 200M /scratch/two && \
             zpool create -O compression=off -O mountpoint=none small /scratch/one && \
             zfs create -s -V 160M -b 16k small/volume && udevadm settle",
        )?;
        let output =
            stores.fill("/dev/zvol/small/volume", cell, 80, "zpool add -f small /scratch/two")?;
        check(&output, expected, cell);
        stores.host.run("udevadm settle; zpool destroy small && rm /scratch/one /scratch/two")?;
    }
    stores.host.run("zfs create -o quota=24M tank/limited && zfs create -s -V 160M -b 16k tank/limited/volume && udevadm settle")?;
    let volume = "/dev/zvol/tank/limited/volume";
    let grow = "zfs set quota=200M tank/limited && zpool sync tank";
    let output = stores.fill(volume, "none hold", 48, grow)?;
    check(&output, Outcome::Failed(EIO), "quota");
    let bulkhead = stores.host.put_bulkhead()?;
    let config = stores
        .host
        .write("vm.toml", &disk("data", volume, "cache = \"none\"\non_enospc = \"hold\""))?;
    let report = stores.host.try_run(&format!("{bulkhead} check {config} 2>&1"))?.text;
    assert!(report.contains("does not hold writes at the quota of tank/limited"), "{report}");
    Ok(())
}

/// A pool that queues: the request is first kept by dm-thin, which the status says, and then held.
#[test]
#[ignore = "long: make guests"]
fn a_guest_on_a_full_thin_volume_loses_nothing() -> Result<()> {
    let stores = Stores::start("enospc-guest-on-thin")?;
    let host = &stores.host;
    stores.make_thin(32, false)?;
    host.run("echo 15 >/sys/module/dm_thin_pool/parameters/no_space_timeout")?;
    let keys = "cache = \"none\"\non_enospc = \"hold\"\nhold_deadline = \"60m\"";
    let tables = disk("data", "/dev/vg/thin", keys) + &control_socket::table(host);
    let guest = host.boot(&host.guest_config(2, "512MiB", "initramfs-tools", "", &tables))?;
    guest.run(
        "fio --name=full --filename=/dev/vda --ioengine=libaio --direct=1 --iodepth=8 --rw=randwrite --bs=64k --offset=1m --size=64m \
         --verify=crc32c --verify_fatal=1 --do_verify=1 --fsync=64 --end_fsync=1 --output-format=terse --terse-version=3 \
         >/run/fio.out 2>/run/fio.err & echo $! >/run/fio.pid",
    )?;
    let wait_for = |text: &str| -> Result<String> {
        let start = Instant::now();
        loop {
            let status = control_socket::ctl(host, "status")?;
            if status.contains(text) {
                return Ok(status);
            }
            ensure!(start.elapsed() < GUEST_LIMIT, "{text:?} is not in {status}");
            thread::sleep(Duration::from_millis(300));
        }
    };
    println!("{}", wait_for("warning: disk data: the host does not answer: ")?);
    println!("{}", wait_for(" held for ")?);
    host.run("lvextend -q -L +100M vg/pool")?;
    guest
        .run_for("while kill -0 $(cat /run/fio.pid) 2>/dev/null; do sleep 1; done", GUEST_LIMIT)?;
    let output = guest.run("cat /run/fio.out /run/fio.err; dmesg | grep -i error || true")?;
    println!("{output}");
    assert!(output.contains("3;fio-") && output.contains(";full;0;0;"), "fio failed: {output}");
    assert!(!output.contains("I/O error"), "{output}");
    let data = control_socket::stats(host, "data")?;
    println!("{}", data["total"]["requests"]);
    for kind in ["write", "flush"] {
        assert_eq!(data["total"]["requests"][kind]["errors"], 0, "{data}");
    }
    assert!(data["enospc_hold"].is_null() && data["lost_writes"] == false, "{data}");
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}
