//! Duration of `fstrim` of a fragmented ext4, idle and beside fio, and the reads' 99th percentile.
//!
//! Prints figures and fails only on errors: durations in L1 are noisy.

use anyhow::{Context, Result};
use lab::{Guest, Host, disk};

/// Pairs of an idle and a busy trim.
const PAIRS: usize = 2;
/// Files of 4 KiB; every second one is deleted.
const FILES: u32 = 1000;

/// Fragments the file system and trims it; returns the seconds that took.
fn trim(guest: &Guest<'_>) -> Result<f64> {
    guest.run(&format!(
        "mkdir -p /mnt/d && for n in $(seq {FILES}); do echo $n >/mnt/d/$n; done; sync; \
         for n in $(seq 1 2 {FILES}); do rm /mnt/d/$n; done; sync; sleep 1; sync"
    ))?;
    let text = guest.run(
        "set -- $(cat /sys/block/vda/stat); n=${12}; read a _ </proc/uptime; fstrim /mnt; read b _ </proc/uptime; set -- $(cat /sys/block/vda/stat); rm -r /mnt/d; sync; echo $a $b $((${12} - n))",
    )?;
    let mut times = text.split_whitespace().map(str::parse::<f64>);
    let mut number = || times.next().context("three numbers")?.context("a number");
    let (start, end, discards) = (number()?, number()?, number()?);
    println!("{discards} discards");
    Ok(end - start)
}

/// Starts fio at a moderate rate.
fn start_fio(guest: &Guest<'_>) -> Result<()> {
    guest.run(
        "rm -f /tmp/stop; fio --name=load --filename=/mnt/load --size=16m --rw=randrw --rwmixread=70 \
         --bs=4k --direct=1 --ioengine=libaio --iodepth=4 --rate_iops=40,20 --time_based --runtime=600 \
         --output-format=json --output=/tmp/fio.json >/dev/null 2>&1 & echo $! >/tmp/fio.pid; sleep 4",
    )?;
    Ok(())
}

/// Stops fio; returns the 99th percentile of its reads in milliseconds.
fn stop_fio(guest: &Guest<'_>) -> Result<f64> {
    let text = guest.run(
        "kill -INT $(cat /tmp/fio.pid); while test -e /proc/$(cat /tmp/fio.pid); do sleep 0.1; done; \
         grep -m1 -A30 '\"clat_ns\"' /tmp/fio.json | grep -m1 '99.000000' | tr -dc '0-9. :'",
    )?;
    let nanos = text.split(':').nth(1).context("a percentile")?.trim();
    Ok(nanos.parse::<f64>().with_context(|| format!("reading {text:?}"))? / 1e6)
}

#[test]
#[ignore = "a measurement"]
fn fstrim_of_fragmented_ext4_beside_fio() -> Result<()> {
    let host = Host::start("small-trims")?;
    let scratch = host.scratch("xfs")?;
    host.run(&format!("fallocate -l 192M {scratch}/data.img"))?;
    let data = disk("data", &format!("{scratch}/data.img"), "cache = \"none\"");
    let config = host.guest_config(2, "512MiB", "initramfs-tools", "", &data);
    let guest = host.boot(&config)?;
    guest.run(
        "mkfs.ext4 -q -b 4096 -E nodiscard,lazy_itable_init=0 /dev/vda && mount /dev/vda /mnt",
    )?;
    guest.run("fstrim /mnt; dd if=/dev/zero of=/mnt/load bs=1M count=16 2>/dev/null; sync")?;
    for _ in 0..PAIRS {
        let idle = trim(&guest)?;
        start_fio(&guest)?;
        guest.run("sleep 10")?;
        let p99_without = stop_fio(&guest)?;
        start_fio(&guest)?;
        let busy = trim(&guest)?;
        let p99_with = stop_fio(&guest)?;
        println!(
            "fstrim {idle:.2} s idle, {busy:.2} s busy ({:.2}); p99 {p99_without:.1} ms without, {p99_with:.1} ms with ({:.2})",
            busy / idle,
            p99_with / p99_without
        );
    }
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}
