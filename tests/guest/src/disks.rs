//! virtio-blk disks as guest and host see them: identity, data integrity, discard, flush.

use std::time::Duration;

use anyhow::{Context, Result};
use lab::{EXIT_TIMEOUT, Host, ManyDisks, disk};

const MIB: u64 = 1 << 20;
/// Time limit of fio, which shares the emulated processors with the host and with other scenarios.
const FIO_TIMEOUT: Duration = Duration::from_secs(900);
/// Kernel parameters of Debian: its root, and a start timeout of services for a busy machine.
const ROOT: &str = "root=/dev/vda systemd.default_timeout_start_sec=900";

/// Bytes allocated to a file of the host.
fn allocated(host: &Host, file: &str) -> Result<u64> {
    let blocks = host.run(&format!("sync {file}; stat -c %b {file}"))?;
    Ok(blocks.trim().parse::<u64>().context("reading a number of blocks")? * 512)
}

/// With one disk, and with as many as fit on a bus of 32 slots.
#[test]
fn disks_keep_their_identity() -> Result<()> {
    let host = Host::start("disks-many")?;
    for count in [1, 24] {
        let disks = ManyDisks::make(&host, count)?;
        let tables = disks.tables(|_, name, image| disk(name, image, ""));
        let guest = host.boot(&host.small_guest(1, &tables))?;
        disks.check_identities(&guest, "vd*", "cat $disk/serial")?;
        assert_eq!(guest.power_off()?, 0);
    }
    Ok(())
}

#[test]
fn file_survives_reboot() -> Result<()> {
    let host = Host::start("disks-reboot")?;
    let scratch = host.scratch("ext4")?;
    let modes = ["writeback", "none"];
    let mut tables = String::new();
    for mode in modes {
        let image = format!("{scratch}/{mode}.img");
        host.run(&format!("truncate -s 256M {image} && mkfs.ext4 -q -F {image}"))?;
        tables += &disk(mode, &image, &format!("cache = \"{mode}\""));
    }
    let config = host.guest_config(2, "256MiB", "initramfs", "", &tables);
    let mount = "mkdir /mnt/a /mnt/b; mount /dev/vda /mnt/a && mount /dev/vdb /mnt/b";

    let guest = host.boot(&config)?;
    guest.run(mount)?;
    let sum = guest.run(
        "dd if=/dev/urandom bs=1M count=64 2>/dev/null | tee /mnt/a/file /mnt/b/file | md5sum",
    )?;
    assert_eq!(guest.run("stat -c %s /mnt/a/file /mnt/b/file | uniq")?.trim(), "67108864");
    guest.run("sync")?;
    guest.send("reboot -f\n")?; // Without unmounting.
    assert_eq!(guest.wait_exit(EXIT_TIMEOUT)?, 10);
    drop(guest);

    let guest = host.boot(&config)?;
    guest.run(mount)?;
    for (mode, folder) in modes.iter().zip(["a", "b"]) {
        assert_eq!(guest.run(&format!("md5sum </mnt/{folder}/file"))?, sum, "cache={mode}");
    }
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
#[ignore = "long: make guests"]
fn stock_debian_runs_from_disk() -> Result<()> {
    let host = Host::start("disks-debian")?;
    host.run(&format!("truncate -s 64M {}", host.path("data.img")))?;
    let tables = disk("root", &host.debian()?, "cache = \"none\"")
        + &disk("data", &host.path("data.img"), "");
    let config = host.guest_config(2, "512MiB", "initramfs", ROOT, &tables);

    let guest = host.boot(&config)?;
    assert_eq!(
        guest.run("readlink -f /dev/disk/by-id/virtio-root /dev/disk/by-id/virtio-data")?.trim(),
        "/dev/vda\n/dev/vdb"
    );
    assert_eq!(guest.run("systemctl is-system-running --wait")?.trim(), "running");
    guest.run("mkfs.ext4 -q /dev/disk/by-id/virtio-data && mount /dev/vdb /mnt")?;
    guest.run(
        "cp -a /etc /mnt && diff -r --no-dereference /etc /mnt/etc && echo kept >/root/note",
    )?;
    guest.signal("TERM")?; // The power button: Debian stops its services and unmounts.
    assert_eq!(guest.wait_exit(EXIT_TIMEOUT)?, 0);
    drop(guest);

    let guest = host.boot(&config)?;
    assert_eq!(guest.run("cat /root/note")?.trim(), "kept");
    guest.run("mount /dev/vdb /mnt && diff -r --no-dereference /etc /mnt/etc")?;
    assert!(!guest.run("dmesg")?.contains("recovery complete"), "the file system was unmounted");
    guest.signal("TERM")?;
    assert_eq!(guest.wait_exit(EXIT_TIMEOUT)?, 0);
    Ok(())
}

/// Four fio jobs per disk write blocks of several sizes at random and verify them, during the run
/// and after it.
fn fio_verifies_its_writes(file_system: &str) -> Result<()> {
    let host = Host::start(&format!("disks-fio-{file_system}"))?;
    let scratch = host.scratch(file_system)?;
    let mut tables = String::new();
    for mode in ["writeback", "none"] {
        let image = format!("{scratch}/{mode}.img");
        host.run(&format!("truncate -s 16M {image}"))?;
        tables += &disk(mode, &image, &format!("cache = \"{mode}\"\nqueues = 4"));
    }
    let guest = host.boot(&host.guest_config(4, "512MiB", "initramfs-tools", "", &tables))?;
    assert_eq!(guest.run("ls /sys/block/vda/mq | wc -l")?.trim(), "4");
    let output = guest.run_for(
        "fio --ioengine=libaio --direct=1 --iodepth=16 --numjobs=4 --thread --rw=randwrite --size=2m --offset_increment=2m \
         --bssplit=512/10:4k/50:12k/10:16k/20:64k/10 --verify=crc32c --verify_backlog=64 --verify_fatal=1 --do_verify=1 --end_fsync=1 \
         --group_reporting --output-format=terse --terse-version=3 \
         --name=writeback --filename=/dev/vda --new_group --name=none --filename=/dev/vdb",
        FIO_TIMEOUT,
    )?;
    assert!(output.contains(";writeback;0;0;"), "one group of jobs without errors: {output}");
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
#[ignore = "long: make guests"]
fn fio_verifies_its_writes_on_ext4() -> Result<()> {
    fio_verifies_its_writes("ext4")
}

#[test]
#[ignore = "long: make guests"]
fn fio_verifies_its_writes_on_xfs() -> Result<()> {
    fio_verifies_its_writes("xfs")
}

#[test]
fn discarded_space_is_freed_on_host() -> Result<()> {
    let host = Host::start("disks-discard")?;
    let image = format!("{}/thin.img", host.scratch("xfs")?);
    host.run(&format!("truncate -s 256M {image} && mkfs.ext4 -q -F {image}"))?;
    let tables = disk("thin", &image, "");
    let guest = host.boot(&host.guest_config(1, "512MiB", "initramfs-tools", "", &tables))?;
    let empty = allocated(&host, &image)?;

    guest
        .run("mount /dev/vda /mnt && head -c 67108864 /dev/zero | tr '\\0' x >/mnt/file && sync")?;
    let full = allocated(&host, &image)?;
    assert!(full >= empty + 64 * MIB, "{empty} bytes, then {full}");

    guest.run("rm /mnt/file && sync && fstrim /mnt")?;
    let trimmed = allocated(&host, &image)?;
    assert!(trimmed < empty + 4 * MIB, "{empty} bytes, {full}, then {trimmed}");

    // Zeroed blocks read zero, discarded blocks are deallocated, and the disk still works.
    guest.run("umount /mnt && tr '\\0' x </dev/zero | dd of=/dev/vda bs=1M count=16 iflag=fullblock oflag=direct")?;
    guest.run("/usr/bin/blkdiscard -z -o 1M -l 4M /dev/vda && echo 3 >/proc/sys/vm/drop_caches")?;
    let sums = "for at in 0 1 4 5; do dd if=/dev/vda bs=1M skip=$at count=1 iflag=direct 2>/dev/null | md5sum; done | uniq -c";
    let counts: Vec<String> = guest
        .run(sums)?
        .lines()
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .collect();
    assert_eq!(counts, ["1", "2", "1"], "written, zeroed, zeroed, written");
    guest.run("blkdiscard /dev/vda && sync")?;
    assert!(allocated(&host, &image)? < MIB);
    guest.run("echo again | dd of=/dev/vda conv=fsync && dd if=/dev/vda iflag=direct count=1 | grep again")?;
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn read_only_disk_refuses_writes() -> Result<()> {
    let host = Host::start("disks-readonly")?;
    let image = host.path("fixed.img");
    host.run(&format!("head -c 1M /dev/urandom >{image} && chmod 444 {image}"))?;
    let before = host.run(&format!("md5sum <{image}"))?;
    let guest = host.boot(&host.small_guest(1, &disk("fixed", &image, "readonly = true")))?;
    assert_eq!(guest.run("cat /sys/block/vda/ro")?.trim(), "1");
    assert_eq!(guest.run("md5sum </dev/vda")?, before);
    // Linux refuses these itself; the device tests cover a driver that does not.
    for command in [
        "dd if=/dev/zero of=/dev/vda count=1",
        "blkdiscard /dev/vda",
        "blockdev --setrw /dev/vda && dd if=/dev/zero of=/dev/vda count=1 oflag=direct",
    ] {
        assert_ne!(guest.try_run(command)?.status, 0, "{command}");
    }
    assert_eq!(guest.power_off()?, 0);
    assert_eq!(host.run(&format!("md5sum <{image}"))?, before);
    Ok(())
}

/// Counts the flushes of the host's own disk.
#[test]
fn flush_reaches_the_hosts_disk() -> Result<()> {
    let host = Host::start("disks-flush")?;
    if host.is_direct() {
        return Ok(()); // Other processes flush the disk of this machine.
    }
    // On its own the host flushes every 30 s, in which a slow machine may overwrite a few times.
    host.run(
        "echo 720000 >/proc/sys/fs/xfs/xfssyncd_centisecs && echo 0 >/proc/sys/vm/dirty_writeback_centisecs",
    )?;
    let scratch = host.scratch("xfs")?;
    let mut tables = String::new();
    for mode in ["writeback", "none", "unsafe"] {
        host.run(&format!("head -c 1M /dev/zero >{scratch}/{mode}.img"))?;
        tables += &disk(mode, &format!("{scratch}/{mode}.img"), &format!("cache = \"{mode}\""));
    }
    let guest = host.boot(&host.small_guest(1, &tables))?;
    // Flushes of the host's disk by ten overwrites in place.
    let flushes = |disk: &str, how: &str| -> Result<u64> {
        let count = || -> Result<u64> {
            let stat = host.run("sync; cat /sys/class/block/$(basename $(readlink -f /dev/disk/by-id/virtio-scratch))/stat")?;
            Ok(stat.split_whitespace().nth(15).context("no count of flushes")?.parse()?)
        };
        let before = count()?;
        guest.run(&format!("for n in 0 1 2 3 4 5 6 7 8 9; do dd if=/dev/zero of=/dev/{disk} bs=4k count=1 seek=$n {how} 2>/dev/null || exit 1; done"))?;
        Ok(count()? - before)
    };
    for disk in ["vda", "vdb"] {
        let cache = format!("/sys/block/{disk}/cache_type");
        assert_eq!(guest.run(&format!("cat {cache}"))?.trim(), "write back");
        let (flushed, unflushed) =
            (flushes(disk, "oflag=direct conv=fsync")?, flushes(disk, "oflag=direct")?);
        guest.run(&format!("echo write through >{cache}; cat {cache} | grep through"))?;
        let through = flushes(disk, "oflag=direct")?;
        guest.run(&format!("echo write back >{cache}; cat {cache} | grep back"))?;
        let back = flushes(disk, "oflag=direct")?;
        println!(
            "{disk}: {flushed} flushes with fsync, {unflushed} without, {through} in write-through, {back} in write-back"
        );
        assert!(flushed >= 10 && through >= 10 && unflushed < 5 && back < 5);
    }
    assert!(flushes("vdc", "oflag=direct conv=fsync")? < 5, "unsafe ignores flushes");
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}
