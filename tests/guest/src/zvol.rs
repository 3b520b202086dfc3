//! ZFS volumes as disks of a guest: data integrity, resize, zeroing, flush, crash of the pool, and
//! space accounting. Discards are tested in [`thin`](super::thin).

#![allow(clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{EXIT_TIMEOUT, Guest, Host, disk};

use crate::control_socket;
use serde_json::Value;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// The volumes' discard granularity.
const GRANULE: u64 = 16 * KIB;
const FIO_TIMEOUT: Duration = Duration::from_secs(900);
/// Time limit of a soft limit event. The pool is polled every two seconds.
const EVENT_TIMEOUT: Duration = Duration::from_secs(120);

/// A guest with two volumes: `blk` over virtio-blk with direct I/O, `scsi` over virtio-scsi through
/// the page cache.
struct VolumeGuest<'host> {
    host: &'host Host,
    guest: Guest<'host>,
}

/// Names of the volumes and their device nodes in the guest.
const NODES: [(&str, &str); 2] = [("blk", "/dev/vda"), ("scsi", "/dev/sda")];

impl<'host> VolumeGuest<'host> {
    fn start(host: &'host Host, size: &str, settings: &str) -> Result<Self> {
        let volume = |name| host.volume(name, size, "-b 16k");
        let tables = [
            control_socket::table(host),
            disk("blk", &volume("blk")?, &format!("cache = \"none\"\n{settings}")),
            disk("scsi", &volume("scsi")?, &format!("bus = \"virtio-scsi\"\n{settings}")),
        ];
        let config = host.guest_config(2, "512MiB", "initramfs-tools", "", &tables.concat());
        let guest = host.boot(&config)?;
        Ok(Self { host, guest })
    }

    fn ctl(&self, arguments: &str) -> Result<String> {
        control_socket::ctl(self.host, arguments)
    }

    fn stats(&self, id: &str) -> Result<Value> {
        control_socket::stats(self.host, id)
    }

    /// Waits until the soft limit of `blk` is reached, or no longer is.
    fn wait_soft_limit(&self, reached: bool) -> Result<()> {
        let start = Instant::now();
        while self.stats("blk")?["soft_limit"]["reached"] != reached {
            let status = self.ctl("status")?;
            ensure!(start.elapsed() < EVENT_TIMEOUT, "soft limit not {reached}: {status}");
            thread::sleep(Duration::from_millis(500));
        }
        Ok(())
    }

    fn freed(&self, id: &str) -> Result<u64> {
        self.stats(id)?["discards"]["freed_bytes"].as_u64().context("no count of bytes")
    }
}

#[test]
#[ignore = "long: make guests"]
fn fio_verifies_its_writes_on_volumes_that_grow() -> Result<()> {
    let host = Host::start_with_zfs("zvol-fio")?;
    let volumes = VolumeGuest::start(&host, "64M", "queues = 2")?;
    // Block limits in the guest.
    for (_, node) in NODES {
        let queue = format!("/sys/block/{}/queue", &node[5..]);
        let read = |name: &str| -> Result<u64> {
            Ok(volumes.guest.run(&format!("cat {queue}/{name}"))?.trim().parse()?)
        };
        assert_eq!(read("logical_block_size")?, 512, "{node}");
        assert_eq!(read("physical_block_size")?, GRANULE, "{node}");
        assert_eq!(read("discard_granularity")?, GRANULE, "{node}");
        assert!(read("discard_max_bytes")? > 0, "{node}");
        // The 32 MiB of each volume are no optimal size.
        assert_eq!(read("optimal_io_size")?, 0, "{node}");
    }
    let limits = volumes.guest.run("sg_vpd --page=bl /dev/sda")?;
    assert!(limits.contains("Optimal unmap granularity: 0x20"), "{limits}");
    let thin = volumes.guest.run("sg_vpd --page=lbpv /dev/sda")?;
    assert!(thin.contains("LBPRZ=0x1"), "{thin}");
    let status = volumes.guest.run("sg_get_lba_status --lba=0 /dev/sda")?;
    assert!(status.contains("mapped"), "{status}");

    for (id, node) in NODES {
        let output = volumes.guest.run_for(
            &format!(
                "fio --name={id} --filename={node} --ioengine=libaio --direct=1 --iodepth=16 --numjobs=2 --thread --rw=randwrite \
                 --size=8m --offset_increment=8m --bssplit=512/10:4k/50:12k/10:16k/20:64k/10 --verify=crc32c --verify_backlog=64 \
                 --verify_fatal=1 --do_verify=1 --end_fsync=1 --group_reporting --output-format=terse --terse-version=3"
            ),
            FIO_TIMEOUT,
        )?;
        assert!(output.contains(&format!(";{id};0;0;")), "{output}");
    }

    for (id, node) in NODES {
        host.run(&format!("zfs set volsize=96M tank/{id}"))?;
        volumes.ctl(&format!("resize {id}"))?;
        let sectors = format!("/sys/block/{}/size", &node[5..]);
        let grown = volumes.guest.run(&format!(
            "for n in $(seq 100); do grep -qx 196608 {sectors} && break; sleep 0.2; done; cat {sectors}"
        ))?;
        assert_eq!(grown.trim(), "196608", "{id}");
        volumes.guest.run(&format!(
            "echo behind | dd of={node} bs=1M seek=95 conv=fsync,sync 2>/dev/null && dd if={node} bs=1M skip=95 iflag=direct 2>/dev/null | grep -q behind"
        ))?;
    }
    assert_eq!(volumes.guest.power_off()?, 0);
    Ok(())
}

/// A command that zeroes a range of a disk and may deallocate it: WRITE SAME with UNMAP, or for
/// virtio-blk a discard of a loop device, which Linux turns into a zeroing of the disk below.
fn zero(node: &str, at: u64, len: u64) -> String {
    if node == "/dev/sda" {
        let (lba, blocks) = (at / 512, len / 512);
        return format!("sg_write_same --unmap --16 --lba={lba} --num={blocks} {node}");
    }
    format!(
        "losetup /dev/loop0 {node} && /usr/bin/blkdiscard -o {at} -l {len} /dev/loop0 && losetup -d /dev/loop0"
    )
}

/// The zeroed range: it begins and ends within granules.
const AT: u64 = 5 * 512;
const LEN: u64 = 8 * MIB + 3 * 512;

/// The md5sum of /tmp/noise with that range zeroed.
fn expected(guest: &Guest<'_>) -> Result<String> {
    guest.run(&format!(
        "(head -c {AT} /tmp/noise; head -c {LEN} /dev/zero; tail -c +{} /tmp/noise) | md5sum",
        AT + LEN + 1
    ))
}

#[test]
#[ignore = "long: make guests"]
fn zeroed_range_reads_zero_is_freed_and_survives_pool_crash() -> Result<()> {
    let host = Host::start_with_zfs("zvol-zero")?;
    let volumes = VolumeGuest::start(&host, "64M", "")?;
    volumes.guest.run("head -c 16777216 /dev/urandom >/tmp/noise; modprobe loop")?;
    let expected = expected(&volumes.guest)?;
    let middle = (AT + LEN) / GRANULE * GRANULE - AT.next_multiple_of(GRANULE);
    let sum = |node: &str| {
        volumes
            .guest
            .run(&format!("echo 3 >/proc/sys/vm/drop_caches; head -c 16777216 {node} | md5sum"))
    };
    for (id, node) in NODES {
        volumes.guest.run(&format!("dd if=/tmp/noise of={node} bs=1M conv=fsync 2>/dev/null"))?;
        let (full, freed) = (host.referenced(id)?, volumes.freed(id)?);
        volumes.guest.run(&zero(node, AT, LEN))?;
        assert_eq!(sum(node)?, expected, "{id}: both ends are within granules");
        assert_eq!(volumes.freed(id)? - freed, middle, "{id}: {}", volumes.stats(id)?);
        let after = host.referenced(id)?;
        println!("{id}: {full} bytes, {after} after zeroing {LEN}");
        assert!(after + middle <= full + 64 * KIB, "{id}: {full}, then {after}");
        // A range within one granule frees nothing.
        volumes.guest.run(&zero(node, 12 * MIB + 512, 1024))?;
        assert_eq!(volumes.freed(id)? - freed, middle, "{id}");
        let left = volumes.guest.run(&format!(
            "dd if={node} bs=512 skip=24577 count=2 iflag=direct 2>/dev/null | tr -d '\\0' | wc -c"
        ))?;
        assert_eq!(left.trim(), "0", "{id}");
    }

    // A frozen pool writes intent logs only: its file after the flushes is the state after a power
    // cut. It is copied now, because closing a volume writes more.
    for (_, node) in NODES {
        volumes.guest.run(&format!("dd if=/tmp/noise of={node} bs=1M conv=fsync 2>/dev/null"))?;
    }
    host.run("zpool sync tank && zpool freeze tank")?;
    for (_, node) in NODES {
        volumes.guest.run(&zero(node, AT, LEN))?;
        volumes.guest.run(&format!("dd if=/dev/null of={node} conv=notrunc,fsync 2>/dev/null"))?;
    }
    host.run("cp --sparse=always /scratch/tank /scratch/cut")?;
    volumes.guest.signal("KILL")?;
    volumes.guest.wait_exit(EXIT_TIMEOUT)?;
    host.run("zpool export -f tank; rm /scratch/tank && zpool import -f -d /scratch tank && udevadm settle")?;
    for (id, _) in NODES {
        let kept = host.run(&format!("head -c 16777216 /dev/zvol/tank/{id} | md5sum"))?;
        assert_eq!(kept, expected, "{id}: zeroed and flushed before the crash");
    }
    Ok(())
}

/// Counts the flushes of the pool's disk by ten overwrites in place, with and without a flush each.
#[test]
#[ignore = "long: make guests"]
fn flush_reaches_the_pools_disk() -> Result<()> {
    let host = Host::start_with_zfs("zvol-flush")?;
    let volumes = VolumeGuest::start(&host, "64M", "")?;
    // The pool flushes its disk for each transaction group: make those rare.
    host.run("echo 300 >/sys/module/zfs/parameters/zfs_txg_timeout")?;
    for (id, node) in NODES {
        let flushes = |how: &str| -> Result<u64> {
            let count = || -> Result<u64> {
                let stat = host.run("cat /sys/class/block/$(basename $(readlink -f /dev/disk/by-id/virtio-scratch))/stat")?;
                Ok(stat.split_whitespace().nth(15).context("no count of flushes")?.parse()?)
            };
            host.run("zpool sync tank")?;
            let before = count()?;
            volumes.guest.run(&format!("for n in 0 1 2 3 4 5 6 7 8 9; do dd if=/dev/zero of={node} bs=16k count=1 seek=$n {how} 2>/dev/null || exit 1; done"))?;
            Ok(count()? - before)
        };
        let (flushed, unflushed) = (flushes("oflag=direct conv=fsync")?, flushes("oflag=direct")?);
        println!("{id}: {flushed} flushes with fsync, {unflushed} without");
        assert!(flushed >= 10 && unflushed < 5, "{id}: {flushed}, {unflushed}");
    }
    assert_eq!(volumes.guest.power_off()?, 0);
    Ok(())
}

#[test]
#[ignore = "long: make guests"]
fn space_of_volume_and_pool_is_reported() -> Result<()> {
    let host = Host::start_with_zfs("zvol-space")?;
    let volumes = VolumeGuest::start(&host, "64M", "thin = { soft_limit = \"60%\" }")?;
    volumes.guest.run("head -c 16777216 /dev/urandom | dd of=/dev/vda bs=1M iflag=fullblock conv=fsync 2>/dev/null")?;
    let (bulkhead, path) = (host.path("bulkhead"), "/dev/zvol/tank/blk");

    let referenced = host.referenced("blk")?;
    let inspected: Value =
        serde_json::from_str(&host.run(&format!("{bulkhead} disk inspect --json {path}"))?)?;
    println!(
        "{}",
        host.run(&format!("{bulkhead} disk inspect {path}; {bulkhead} disk map {path}"))?
    );
    assert_eq!(inspected["zfs_volume"], "tank/blk");
    assert_eq!(inspected["allocated_bytes"], referenced);
    assert_eq!(inspected["discard"]["granularity_bytes"], GRANULE);
    assert_eq!((&inspected["data"], &inspected["holes"]), (&Value::Null, &Value::Null));
    let pool = host.run("zfs get -Hpo value used,available tank")?;
    let pool: Vec<u64> = pool.lines().map(str::parse).collect::<Result<_, _>>()?;
    let near =
        |value: &Value, bytes: u64| value.as_u64().is_some_and(|it| it.abs_diff(bytes) < MIB);
    assert!(near(&inspected["backing"]["used_bytes"], pool[0]), "{inspected} {pool:?}");
    assert!(near(&inspected["backing"]["available_bytes"], pool[1]), "{inspected} {pool:?}");
    let map: Value =
        serde_json::from_str(&host.run(&format!("{bulkhead} disk map --json {path}"))?)?;
    assert_eq!(map["extents"], Value::Null);

    // The soft limit is reached when another dataset reserves space of the pool.
    assert_eq!(volumes.stats("blk")?["soft_limit"]["reached"], false);
    let part = (pool[0] + pool[1]) / 10 * 7;
    host.run(&format!("zfs create -o reservation={part} -o mountpoint=none tank/ballast"))?;
    volumes.wait_soft_limit(true)?;
    println!("{}", volumes.ctl("status")?);
    // The first command may end with the unit attention of the soft limit.
    let logged = volumes.guest.run("sg_logs --page=0xc /dev/sda || sg_logs --page=0xc /dev/sda")?;
    assert!(logged.contains("Available LBA mapping"), "{logged}");
    host.run("zfs destroy tank/ballast")?;
    volumes.wait_soft_limit(false)?;
    assert_eq!(volumes.guest.power_off()?, 0);

    check_soft_limit_requires_zfs(&host, path)
}

/// Without the program `zfs`, a soft limit of a volume is refused at the start.
fn check_soft_limit_requires_zfs(host: &Host, path: &str) -> Result<()> {
    let bulkhead = host.path("bulkhead");
    let config = host.write(
        "soft-limit.toml",
        &format!(
            "[machine]\nvcpus = 1\nmemory = \"128MiB\"\n[kernel]\nimage = \"{}\"\n{}",
            host.kit("vmlinux"),
            disk("blk", path, "thin = { soft_limit = \"60%\" }")
        ),
    )?;
    assert_eq!(host.try_run(&format!("{bulkhead} check {config}"))?.status, 0);
    host.run("mv /usr/sbin/zfs /usr/sbin/zfs.away")?;
    let refused = host.try_run(&format!("{bulkhead} check {config}"))?;
    assert!(refused.status != 0 && refused.text.contains("cannot run `zfs`"), "{}", refused.text);
    Ok(())
}

/// A snapshot of a volume as the base of a layer: the guest's changes go to the layer, and those of
/// the volume are not seen.
#[test]
#[ignore = "long: make guests"]
fn a_snapshot_of_a_volume_is_the_base_of_a_layer() -> Result<()> {
    let host = Host::start_with_zfs("zvol-layer")?;
    let volume = host.volume("base", "64M", "-b 16k")?;
    host.run(&format!(
        "mkfs.ext4 -q -F -d /etc {volume} && zfs set snapdev=visible tank/base && zfs snapshot tank/base@clean && udevadm settle"
    ))?;
    let (base, layer) = (format!("{volume}@clean"), "/scratch/vm.layer");
    let sum = host.run(&format!("sha256sum <{base}"))?;
    let keys = format!("base = \"{base}\"\ncreate = true\ncache = \"none\"");
    let config = host.small_guest(1, &disk("data", layer, &keys));
    let guest = host.boot(&config)?;
    // A machine of its own could use the volume meanwhile.
    host.run(&format!("dd if=/dev/urandom of={volume} bs=1M count=64 conv=fsync 2>/dev/null"))?;
    guest.run("mount /dev/vda /mnt && test -e /mnt/passwd && rm -r /mnt/apt && echo new >/mnt/new && fstrim /mnt")?;
    let files = guest
        .run("cd /mnt && find . -type f | sort | xargs cat | sha256sum; cd / && umount /mnt")?;
    assert_eq!(guest.power_off()?, 0);
    drop(guest);

    let guest = host.boot(&config)?;
    let again = guest.run(
        "mount /dev/vda /mnt && cd /mnt && find . -type f | sort | xargs cat | sha256sum; cd /",
    )?;
    assert_eq!(again, files);
    assert_eq!(guest.power_off()?, 0);
    drop(guest);
    assert_eq!(host.run(&format!("sha256sum <{base}"))?, sum);
    host.run(&format!("{} layer check {layer}", host.path("bulkhead")))?;

    // Another snapshot of the same size has other content.
    host.run("zfs destroy tank/base@clean && zfs snapshot tank/base@clean && udevadm settle")?;
    let file = host.write("changed.toml", &config)?;
    let output = host.try_run(&format!("{} check {file}", host.path("bulkhead")))?;
    ensure!(output.status != 0 && output.text.contains("has changed"), "{}", output.text);
    Ok(())
}
