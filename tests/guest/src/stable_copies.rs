//! Memory that changes while it is written or read, on stores that compute checksums of it or write
//! it twice: btrfs, files on ZFS, md raid1; ext4 and a ZFS volume for comparison.
//!
//! `BULKHEAD_STRESS_SECONDS` is the time for each store, 4 by default.

#![allow(clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Host, disk};

const PROGRAM: &str = env!("CARGO_BIN_EXE_changing-memory");
const DISK_BYTES: u64 = 64 << 20;

/// A store under test.
struct Store {
    name: &'static str,
    path: String,
    /// Memory that changes damages it.
    is_sensitive: bool,
}

fn seconds() -> Result<u64> {
    match std::env::var("BULKHEAD_STRESS_SECONDS") {
        Ok(text) => text.parse().context("BULKHEAD_STRESS_SECONDS"),
        Err(_) => Ok(4),
    }
}

/// A time limit for commands that stress all stores.
fn limit() -> Result<Duration> {
    Ok(Duration::from_secs(600 + 8 * seconds()?))
}

/// Makes a disk of 64 MiB on each store.
fn make_stores(host: &Host) -> Result<Vec<Store>> {
    let folder = host.path("stores");
    host.run(&format!(
        "modprobe -a loop raid1 btrfs; mkdir {folder} && cd {folder} && mkdir btrfs ext4
        for recordsize in 4k 128k; do
          zfs create -o recordsize=$recordsize -o mountpoint={folder}/zfs-$recordsize tank/$recordsize
        done
        truncate -s 300M btrfs.fs ext4.fs; truncate -s 80M one two
        mkfs.btrfs -q btrfs.fs && mkfs.ext4 -q ext4.fs && for fs in btrfs ext4; do mount -o loop $fs.fs $fs; done
        members=$(for file in one two; do losetup --find --show $file; done)
        mdadm --quiet --create /dev/md7 --run --level=1 --raid-devices=2 --size=65536 --assume-clean --bitmap=none $members
        for folder in zfs-4k zfs-128k btrfs ext4; do fallocate -l {DISK_BYTES} $folder/disk || truncate -s {DISK_BYTES} $folder/disk; done"
    ))?;
    let file = |name: &'static str, is_sensitive| Store {
        name,
        path: format!("{folder}/{name}/disk"),
        is_sensitive,
    };
    Ok(vec![
        file("zfs-4k", true),
        file("zfs-128k", true),
        file("btrfs", true),
        Store { name: "md", path: "/dev/md7".to_owned(), is_sensitive: true },
        file("ext4", false),
        Store { name: "zvol", path: host.volume("volume", "64M", "-b 16k")?, is_sensitive: false },
    ])
}

/// Sectors in which the mirrors of the array differ.
fn mirror_mismatches(host: &Host) -> Result<u64> {
    let check = "cd /sys/block/md7/md && sync && echo check >sync_action &&
        until [ \"$(cat sync_action)\" = idle ]; do sleep 0.2; done; cat mismatch_cnt";
    host.run(check)?.trim().parse().context("reading a number of sectors")
}

/// Requests that failed, and pages that were damaged, as the program has printed them.
fn faults(output: &str) -> Result<u64> {
    let lines = output.lines().filter_map(|line| line.split_once(": "));
    let mut counts = lines.filter(|(name, _)| *name != "copies").map(|(_, rest)| {
        let count = rest.split(' ').next().unwrap_or_default();
        count.parse::<u64>().with_context(|| format!("a count in {rest:?}"))
    });
    let sum = counts.by_ref().sum::<Result<u64>>()?;
    ensure!(output.contains("damaged pages"), "the program has ended early: {output}");
    Ok(sum)
}

#[test]
#[ignore = "long: make guests"]
fn changing_memory_damages_stores_only_without_copies() -> Result<()> {
    let host = Host::start_with_zfs("stable-copies-host")?;
    let stores = make_stores(&host)?;
    let program = host.put(Path::new(PROGRAM), "changing-memory")?;
    for Store { name, path, is_sensitive } in &stores {
        for mode in ["off", "auto"] {
            let command = format!("{program} {path} {} {mode}", seconds()?);
            let output = host.run_for(&command, limit()?)?;
            let mut found = faults(&output)?;
            if *name == "md" {
                found += mirror_mismatches(&host)?;
                host.run("cd /sys/block/md7/md && echo repair >sync_action && until [ \"$(cat sync_action)\" = idle ]; do sleep 0.2; done")?;
            }
            println!("{name}, copies {mode}: {found} faults\n{output}");
            assert_eq!(found > 0, *is_sensitive && mode == "off", "{name}, {mode}: {found} faults");
        }
    }
    Ok(())
}

/// In the guest the program changes its memory under its own direct I/O, and fio the page cache of
/// a file system under write-back.
#[test]
#[ignore = "long: make guests"]
fn a_guest_that_changes_its_memory_loses_nothing() -> Result<()> {
    let host = Host::start_with_zfs("stable-copies-guest")?;
    let stores = make_stores(&host)?;
    let program = host.put(Path::new(PROGRAM), "changing-memory")?;
    host.run(&format!("truncate -s %4096 {program}"))?;
    let mut tables = disk("program", &program, "readonly = true");
    for Store { name, path, .. } in &stores {
        tables += &disk(name, path, "cache = \"none\"");
    }
    let without_copies = format!("{}-2", stores[0].path);
    host.run(&format!("truncate -s {DISK_BYTES} {without_copies}"))?;
    tables += &disk("uncopied", &without_copies, "cache = \"none\"\nstable_copies = \"off\"");
    let guest = host.boot(&host.guest_config(2, "512MiB", "initramfs-tools", "", &tables))?;
    guest.run("cat /dev/vda >/tmp/changing-memory; chmod +x /tmp/changing-memory")?;
    for (Store { name, .. }, letter) in stores.iter().zip('b'..) {
        let node = format!("/dev/vd{letter}");
        let command = format!("/tmp/changing-memory {node} {} off", seconds()?);
        let output = guest.run_for(&command, limit()?)?;
        println!("{name}: {output}");
        assert_eq!(faults(&output)?, 0, "{name}: {output}");
        let seconds = seconds()?;
        guest.run_for(
            &format!(
                "mkdir -p /mnt/{name} && mkfs.ext4 -q {node} && mount {node} /mnt/{name} && cd /mnt/{name} &&
                fio --name=mmap --ioengine=mmap --filename=file --size=16M --rw=randwrite --bs=4k --fsync=32 \
                  --numjobs=2 --time_based --runtime={seconds} --output=/dev/null && cd / && umount /mnt/{name}"
            ),
            limit()?,
        )?;
    }
    assert_eq!(guest.run("dmesg | grep -c 'I/O error' || true")?.trim(), "0");
    let command = format!("/tmp/changing-memory /dev/vdh {} off", seconds()?);
    let output = guest.run_for(&command, limit()?)?;
    println!("without copies: {output}");
    assert_ne!(faults(&output)?, 0, "a guest of the same program without copies: {output}");
    assert_eq!(guest.power_off()?, 0);
    assert_eq!(mirror_mismatches(&host)?, 0);
    let scrubbed = host.run(&format!(
        "zpool scrub -w tank && zpool status -x tank; btrfs scrub start -B {}/btrfs",
        host.path("stores")
    ))?;
    assert!(scrubbed.contains("pool 'tank' is healthy"), "{scrubbed}");
    assert!(scrubbed.contains("no errors found"), "{scrubbed}");
    Ok(())
}
