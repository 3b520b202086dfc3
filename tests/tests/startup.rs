//! What a machine costs its host before it does anything: memory beside the guest's, and time to its first instruction and
//! to its first process, beside QEMU's microvm.

use anyhow::{Context, Result};
use tests::lab::{Host, disk};

const GUEST_KIB: u64 = 128 << 10;
/// What the program may hold beside the guest's memory, with one disk.
const MOST_KIB: u64 = 5 << 10;

/// Resident memory of the program that runs guest 0, without the guest's memory: the latter is all resident from the start.
fn resident_kib(host: &Host) -> Result<u64> {
    let rollup = host.run(&format!("cat /proc/$(cat {})/smaps_rollup", host.path("guest0.pid")))?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).context("no Rss")?;
    let resident: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(resident - GUEST_KIB)
}

#[test]
fn little_memory_beside_the_guests() -> Result<()> {
    let host = Host::start("startup-memory")?;
    host.put_bulkhead()?;
    let mut resident = Vec::new();
    for count in [1, 24] {
        let image = |n: u32| host.path(&format!("{n}.img"));
        let tables: String =
            (1..=count).map(|n| disk(&format!("disk{n}"), &image(n), "")).collect();
        for n in 1..=count {
            host.run(&format!("truncate -s 16M {}", image(n)))?;
        }
        let guest = host.spawn_guest(&host.small_guest(1, &tables))?;
        guest.wait_up()?;
        guest.run(
            "for disk in /dev/vd*; do dd if=/dev/zero of=$disk bs=1M count=4 oflag=direct 2>/dev/null || exit 1; \
             dd if=$disk of=/dev/null bs=1M iflag=direct 2>/dev/null || exit 1; done",
        )?;
        resident.push(resident_kib(&host)?);
        println!("{count} disks: {} KiB beside the guest's memory", resident_kib(&host)?);
        assert_eq!(guest.power_off()?, 0);
    }
    assert!(resident.first().is_some_and(|one| *one <= MOST_KIB), "{resident:?} KiB");
    Ok(())
}
