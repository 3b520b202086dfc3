//! Snapshots of a guest under `fio --verify`, and a second guest from the frozen disks.

use anyhow::{Context, Result};
use lab::{Host, disk};
use std::time::Duration;

use crate::control_socket::{ctl, table};

const LIMIT: Duration = Duration::from_secs(300);

/// Writes each number to both file systems, one after the other.
const COUNTERS: &str = "(n=0; while [ ! -e /run/stop ]; do n=$((n + 1)); \
    echo $n >/a/new && sync /a/new && mv /a/new /a/count && sync /a; \
    echo $n >/b/new && sync /b/new && mv /b/new /b/count && sync /b; done) >/dev/null 2>&1 &";

/// Boots a guest from the snapshot of Tuesday, before which the other one has synced this count.
/// Its file systems are of one moment, and sound. Returns its count.
fn check_copy(host: &Host, scratch: &str, synced: u64) -> Result<u64> {
    let (bulkhead, path) = (host.path("bulkhead"), |name: &str| format!("{scratch}/{name}"));
    let mut tables = String::new();
    for name in ["a", "b"] {
        let (frozen, copy) =
            (path(&format!("{name}.tuesday.layer")), path(&format!("{name}-copy.layer")));
        host.run(&format!("{bulkhead} layer create --base {frozen} {copy}"))?;
        tables += &disk(name, &copy, &format!("base = \"{frozen}\""));
    }
    let guest = host.boot(&host.small_guest(1, &tables))?;
    let counts = guest
        .run("mkdir -p /a /b && mount /dev/vda /a && mount /dev/vdb /b && cat /a/count /b/count")?;
    let counts: Vec<u64> =
        counts.lines().map(|line| line.trim().parse()).collect::<Result<_, _>>()?;
    let [a, b] = counts.try_into().ok().context("two counts")?;
    assert!(a == b || a == b + 1, "the disks are not of one moment: {a} and {b}");
    assert!(synced > 0 && b >= synced, "{synced} was synced before the snapshot, but {b} is there");
    guest.run("echo copy >/a/copy && sync && fstrim /a && umount /a /b")?;
    assert_eq!(guest.power_off()?, 0);
    drop(guest);
    // The journals were replayed.
    for name in ["a", "b"] {
        let (layer, image) = (path(&format!("{name}-copy.layer")), path(&format!("{name}.img")));
        host.run(&format!("{bulkhead} layer flatten {layer} {image} && e2fsck -fn {image}"))?;
    }
    Ok(a)
}

/// Both disks are of one moment, down to what the guest has synced; the guest notices nothing, and
/// finds everything when it starts again.
#[test]
#[ignore = "long: make guests"]
fn snapshots_under_load_are_of_one_moment() -> Result<()> {
    let host = Host::start("snapshots")?;
    let scratch = host.scratch("ext4")?;
    let base = format!("{scratch}/base.img");
    host.run(&format!("truncate -s 64M {base} && mkfs.ext4 -q -F {base}"))?;
    let keys = format!("base = \"{base}\"\ncreate = true\n");
    let path = |name: &str| format!("{scratch}/{name}.layer");
    let mut tables = table(&host);
    tables += &disk("a", &path("a"), &keys);
    tables += &disk("b", &path("b"), &format!("{keys}cache = \"none\"\nbus = \"virtio-scsi\""));
    tables += &disk("c", &path("c"), &format!("{keys}queues = 2"));
    let config = host.guest_config(2, "512MiB", "initramfs-tools", "", &tables);
    let guest = host.boot(&config)?;
    guest.run("mkdir -p /a /b && mount /dev/vda /a && mount /dev/sda /b")?;
    guest.run(COUNTERS)?;
    guest.run(
        "(while [ ! -e /run/stop ]; do \
         fio --name=verify --filename=/dev/vdb --ioengine=libaio --direct=1 --iodepth=8 --thread \
         --rw=randwrite --bsrange=512-32k --size=8m --verify=crc32c --verify_fatal=1 \
         --output-format=terse --terse-version=3 >>/run/fio.out 2>>/run/fio.err || break; \
         done; echo $? >/run/fio.rc) &",
    )?;
    let mut synced = 0;
    for name in ["monday", "tuesday", "wednesday"] {
        host.run("sleep 2")?;
        if name == "tuesday" {
            synced = guest.run("cat /b/count")?.trim().parse()?;
        }
        println!("{}", ctl(&host, &format!("snapshot {name}"))?);
    }

    // While the first guest writes.
    let copied = check_copy(&host, &scratch, synced)?;
    let later: u64 = guest.run("test ! -e /run/fio.rc && cat /a/count")?.trim().parse()?;
    assert!(later > copied, "the first guest did not write while the second one ran: {later}");
    guest.run_for("touch /run/stop; while [ ! -e /run/fio.rc ]; do sleep 1; done", LIMIT)?;
    let output = guest.run("cat /run/fio.rc /run/fio.out /run/fio.err")?;
    let jobs = output.matches(";verify;").count();
    let verified = output.matches(";verify;0;0;").count();
    assert!(output.starts_with('0') && jobs > 0 && verified == jobs, "fio failed: {output}");
    let counts = guest.run("cat /a/count /b/count; test ! -e /a/copy")?;
    guest.run("umount /a /b")?;
    assert_eq!(guest.power_off()?, 0);
    drop(guest);
    let guest = host.boot(&config)?;
    guest.run("mkdir -p /a /b && mount /dev/vda /a && mount /dev/sda /b")?;
    assert_eq!(guest.run("cat /a/count /b/count; test ! -e /a/copy")?, counts);
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}
