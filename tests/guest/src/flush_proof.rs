//! `bulkhead disk prove` on set-ups of the lab's host: storage that keeps flushes, and storage that
//! does not.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Host;
use serde_json::Value;

/// Storage, made by a script whose last line of output is the command line of the proof.
struct SetUp {
    name: &'static str,
    is_honest: bool,
    /// The record of the kernel shows it, too.
    is_observed: bool,
    script: &'static str,
}

const fn honest(name: &'static str, script: &'static str) -> SetUp {
    SetUp { name, is_honest: true, is_observed: false, script }
}

const fn lying(name: &'static str, script: &'static str) -> SetUp {
    SetUp { name, is_honest: false, is_observed: true, script }
}

/// Flushes arrive, in memory.
const fn in_memory(name: &'static str, script: &'static str) -> SetUp {
    SetUp { name, is_honest: false, is_observed: false, script }
}

/// Functions for the scripts. `new_loop` attaches a new file below `/scratch`, which is an ext4 on
/// a virtio disk.
const FUNCTIONS: &str = r#"
cd /scratch
new_loop() { file=$(mktemp /scratch/disk.XXXX); truncate -s "${1:-300M}" "$file"; losetup --find --show $2 "$file"; }
mounted() { point=$(mktemp -d /scratch/mount.XXXX); mount "$@" "$point"; echo "$point"; }
through() { echo "write through" >"/sys/block/${1#/dev/}/queue/write_cache"; }
"#;

const SET_UPS: [SetUp; 32] = [
    honest("ext4 on a virtio disk", "echo /scratch"),
    honest("ext4, data=journal", "l=$(new_loop); mkfs.ext4 -q $l; mounted -o data=journal $l"),
    honest("XFS", "l=$(new_loop 400M); mkfs.xfs -q $l; mounted $l"),
    honest("btrfs", "l=$(new_loop); mkfs.btrfs -q $l; mounted $l"),
    honest("btrfs, raid1", "a=$(new_loop); b=$(new_loop); mkfs.btrfs -q -d raid1 -m raid1 $a $b; btrfs device scan $a $b >&2; mounted $a"),
    honest("overlay", "mkdir lower upper work; mounted -t overlay -o lowerdir=lower,upperdir=/scratch/upper,workdir=/scratch/work overlay"),
    honest("loop", "echo $(new_loop) --offset 0"),
    honest("loop, direct I/O", "echo $(new_loop 300M --direct-io=on) --offset 65536"),
    honest(
        "partition",
        "truncate -s 300M part; printf '\\0\\0\\0\\0\\203\\0\\0\\0\\0\\010\\0\\0\\100\\015\\003\\0\\0' | dd of=part bs=1 seek=446 conv=notrunc status=none
        printf '\\125\\252' | dd of=part bs=1 seek=510 conv=notrunc status=none; l=$(losetup --find --show --partscan part)
        udevadm settle; echo ${l}p1 --offset 0",
    ),
    honest("md raid0", "mdadm -q -C /dev/md10 --run -l0 -n2 $(new_loop) $(new_loop) >&2; echo /dev/md10 --offset 0"),
    honest("md raid1", "mdadm -q -C /dev/md11 --run -l1 -n2 --assume-clean $(new_loop) $(new_loop) >&2; echo /dev/md11 --offset 0"),
    honest("md raid5", "mdadm -q -C /dev/md15 --run -l5 -n3 --assume-clean $(new_loop) $(new_loop) $(new_loop) >&2; echo /dev/md15 --offset 0"),
    honest("md raid10", "mdadm -q -C /dev/md16 --run -l10 -n4 --assume-clean $(new_loop) $(new_loop) $(new_loop) $(new_loop) >&2; echo /dev/md16 --offset 0"),
    honest("dm linear", "l=$(new_loop); dmsetup create linear --table \"0 204800 linear $l 0\" >&2; echo /dev/mapper/linear --offset 0"),
    honest("dm stripe", "a=$(new_loop); b=$(new_loop); dmsetup create stripe --table \"0 204800 striped 2 128 $a 0 $b 0\" >&2; echo /dev/mapper/stripe --offset 0"),
    honest("dm crypt", "l=$(new_loop); dmsetup create crypt --table \"0 204800 crypt aes-xts-plain64 $(printf '%064d' 7) 0 $l 0\" >&2; echo /dev/mapper/crypt --offset 0"),
    honest("dm thin", "m=$(new_loop 32M); d=$(new_loop); dmsetup create pool --table \"0 204800 thin-pool $m $d 128 0\" >&2
        dmsetup message /dev/mapper/pool 0 'create_thin 0'; dmsetup create thin --table '0 204800 thin /dev/mapper/pool 0' >&2
        echo /dev/mapper/thin --offset 0"),
    honest("ZFS volume", "zfs create -V 64M tank/honest; udevadm settle; echo /dev/zvol/tank/honest --offset 0"),
    honest("file on ZFS", "zfs create -o mountpoint=/scratch/zfs tank/files; echo /scratch/zfs"),
    honest("file on ZFS, sync=always", "zfs create -o mountpoint=/scratch/always -o sync=always tank/always; echo /scratch/always"),
    honest("ext4 on a ZFS volume", "zfs create -V 128M tank/ext4; udevadm settle; mkfs.ext4 -q /dev/zvol/tank/ext4; mounted /dev/zvol/tank/ext4"),
    in_memory("tmpfs", "mounted -t tmpfs tmpfs"),
    in_memory("loop on tmpfs", "p=$(mounted -t tmpfs tmpfs); truncate -s 64M $p/file; echo $(losetup --find --show $p/file) --offset 0"),
    lying("ext4, barrier=0", "l=$(new_loop); mkfs.ext4 -q $l; mounted -o barrier=0 $l"),
    lying("loop set to write through", "l=$(new_loop); through $l; echo $l --offset 0"),
    lying("XFS on a loop set to write through", "l=$(new_loop 400M); mkfs.xfs -q $l; through $l; mounted $l"),
    lying("md raid1 set to write through", "mdadm -q -C /dev/md21 --run -l1 -n2 --assume-clean $(new_loop) $(new_loop) >&2; through /dev/md21; echo /dev/md21 --offset 0"),
    lying("dm linear set to write through", "l=$(new_loop); dmsetup create lying --table \"0 204800 linear $l 0\" >&2
        echo 'write through' >/sys/block/$(basename $(readlink -f /dev/mapper/lying))/queue/write_cache; echo /dev/mapper/lying --offset 0"),
    lying("overlay, volatile", "mkdir lower2 upper2 work2; mounted -t overlay -o volatile,lowerdir=lower2,upperdir=/scratch/upper2,workdir=/scratch/work2 overlay"),
    lying("ZFS volume, sync=disabled", "zfs create -V 64M -o sync=disabled tank/disabled; udevadm settle; echo /dev/zvol/tank/disabled --offset 0"),
    lying("file on ZFS, sync=disabled", "zfs create -o mountpoint=/scratch/nosync -o sync=disabled tank/nosync; echo /scratch/nosync"),
    // Last: it is for the whole module.
    lying("ZFS volume, zfs_nocacheflush", "echo 1 >/sys/module/zfs/parameters/zfs_nocacheflush; echo /dev/zvol/tank/honest --offset 0"),
];

/// Verdict and reason of each cache mode with flushes.
fn verdicts(proof: &Value) -> Result<Vec<(String, String)>> {
    let modes = proof["modes"].as_array().context("no modes")?;
    let with_flushes = modes.iter().filter(|mode| mode["cache"] != "unsafe");
    let texts = with_flushes.map(|mode| {
        let text = |key: &str| mode[key].as_str().unwrap_or_default().to_owned();
        (text("flush"), text("reason"))
    });
    Ok(texts.collect())
}

#[test]
#[ignore = "long: make guests"]
fn every_lie_is_caught_without_a_false_alarm() -> Result<()> {
    let host = Host::start_with_zfs("flush-proof")?;
    let bulkhead = host.put_bulkhead()?;
    host.run(
        "mount -t tracefs tracefs /sys/kernel/tracing
        modprobe -a loop raid0 raid1 raid456 raid10 dm-mod dm-crypt dm-thin-pool btrfs xfs overlay",
    )?;
    let mut wrong = Vec::new();
    for SetUp { name, is_honest, is_observed, script } in SET_UPS {
        let script = host.write("set-up", &format!("set -e; {FUNCTIONS}\n{script}\n"))?;
        let target =
            host.run(&format!("bash {script}")).with_context(|| format!("making {name}"))?;
        let target = target.lines().last().unwrap_or_default();
        let command = format!("{bulkhead} --log-level off disk prove --json {target}");
        let output = host.try_run_for(&command, Duration::from_secs(300))?;
        let proof: Value = serde_json::from_str(&output.text)
            .with_context(|| format!("{name}: {}", output.text))?;
        let verdicts = verdicts(&proof)?;
        ensure!(verdicts.len() == 4, "{name}: {proof}");
        let expected = if is_honest { "kept" } else { "not kept" };
        for (verdict, reason) in &verdicts {
            println!("{name:40} {verdict:10} {reason}");
        }
        let stops = proof["modes"].as_array().into_iter().flatten().map(|mode| &mode["stopped_at"]);
        let stops = stops.take(4).filter(|stop| stop.is_string()).count();
        if stops != if is_observed { 4 } else { 0 } {
            wrong.push(format!("{name}, stops in {stops} modes: {proof:#}"));
        }
        let is_expected = verdicts.iter().all(|(verdict, _)| verdict == expected);
        if !is_expected || output.status != i32::from(!is_honest) {
            wrong.push(format!("{name}, which should be {expected}: {proof:#}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    let left = host.run("ls -A /sys/kernel/tracing/instances; find /scratch -name '.bulkhead*'")?;
    ensure!(left.trim().is_empty(), "left behind: {left}");
    Ok(())
}
