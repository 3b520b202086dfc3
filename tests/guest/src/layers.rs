//! Layers: guests that share a base, a kill, and a layer over a layer.

use anyhow::Result;
use lab::{EXIT_TIMEOUT, Host, disk};

/// The sum of all files in a mounted file system.
const SUM: &str = "cd /mnt && find . -type f | sort | xargs cat | sha256sum; cd /";

fn layer(host: &Host, folder: &str, name: &str, base: &str, more: &str) -> String {
    let path = format!("{folder}/{name}.layer");
    host.small_guest(1, &disk("data", &path, &format!("base = \"{base}\"\n{more}")))
}

/// Each guest sees the base and its own changes, which survive a kill as far as they were flushed.
#[test]
fn guests_share_a_base_and_keep_their_changes() -> Result<()> {
    let host = Host::start("layers")?;
    let scratch = host.scratch("ext4")?;
    let base = format!("{scratch}/base.img");
    host.run(&format!("truncate -s 1G {base} && mkfs.ext4 -q -F -d /etc {base} && sync"))?;
    let sum_of_base = host.run(&format!("sha256sum <{base}"))?;

    let blk = layer(&host, &scratch, "one", &base, "create = true");
    let scsi = layer(
        &host,
        &scratch,
        "two",
        &base,
        "create = true\nbus = \"virtio-scsi\"\ncache = \"none\"",
    );
    let (one, two) = (host.boot(&blk)?, host.boot(&scsi)?);
    for (guest, device) in [(&one, "/dev/vda"), (&two, "/dev/sda")] {
        guest.run(&format!("mount {device} /mnt && test -e /mnt/passwd"))?;
        guest.run(&format!("echo {device} >/mnt/name && rm -r /mnt/apt && fstrim /mnt; sync"))?;
    }
    // A writer cannot have the base meanwhile.
    let writer = host.small_guest(1, &disk("data", &base, ""));
    let file = host.write("writer.toml", &writer)?;
    let output = host.try_run(&format!("{} run {file}", host.path("bulkhead")))?;
    assert!(output.status != 0 && output.text.contains("in use"), "{}", output.text);

    let sum = one.run(SUM)?;
    one.signal("KILL")?;
    one.wait_exit(EXIT_TIMEOUT)?;
    two.run("echo more >/mnt/more")?;
    assert_eq!(two.power_off()?, 0);
    drop((one, two));

    let one = host.boot(&blk)?;
    one.run("mount /dev/vda /mnt && test ! -e /mnt/more && test ! -e /mnt/apt")?;
    assert_eq!(one.run(SUM)?, sum, "what was flushed is there after the kill");
    assert_eq!(one.run("cat /mnt/name")?.trim(), "/dev/vda");
    assert_eq!(one.power_off()?, 0);
    drop(one);
    let two = host.boot(&scsi)?;
    two.run("mount /dev/sda /mnt && grep -q more /mnt/more && grep -q sda /mnt/name")?;
    assert_eq!(two.power_off()?, 0);
    drop(two);

    // A layer over a layer, which is frozen.
    let upper = layer(&host, &scratch, "three", &format!("{scratch}/one.layer"), "create = true");
    let three = host.boot(&upper)?;
    three.run("mount /dev/vda /mnt && grep -q vda /mnt/name && echo three >/mnt/name && sync")?;
    assert_eq!(three.power_off()?, 0);
    let file = host.write("frozen.toml", &blk)?;
    let output = host.try_run(&format!("{} run {file}", host.path("bulkhead")))?;
    assert!(output.status != 0 && output.text.contains("frozen"), "{}", output.text);
    assert_eq!(host.run(&format!("sha256sum <{base}"))?, sum_of_base);
    host.run(&format!("{} layer info {scratch}/three.layer", host.path("bulkhead")))?;
    Ok(())
}

/// The base is a block device.
#[test]
#[ignore = "long: make guests"]
fn debian_boots_from_layers_over_one_base() -> Result<()> {
    let host = Host::start("layers-debian")?;
    let (scratch, debian) = (host.scratch("ext4")?, host.debian()?);
    let root = "root=/dev/vda systemd.default_timeout_start_sec=900";
    let keys = format!("base = \"{debian}\"\ncreate = true\ncache = \"none\"");
    let config = |name: &str| {
        let tables = disk("root", &format!("{scratch}/{name}.layer"), &keys);
        host.guest_config(1, "384MiB", "initramfs", root, &tables)
    };
    let (one, two) = (host.boot(&config("one"))?, host.boot(&config("two"))?);
    for (guest, name) in [(&one, "one"), (&two, "two")] {
        assert_eq!(guest.run("systemctl is-system-running --wait")?.trim(), "running", "{name}");
        guest.run(&format!("echo {name} >/root/name && sync /root/name"))?;
    }
    for (guest, name) in [(&one, "one"), (&two, "two")] {
        guest.run("echo 3 >/proc/sys/vm/drop_caches")?;
        assert_eq!(guest.run("cat /root/name")?.trim(), name);
        guest.signal("TERM")?;
        assert_eq!(guest.wait_exit(EXIT_TIMEOUT)?, 0);
        let check = format!("{} layer check {scratch}/{name}.layer", host.path("bulkhead"));
        host.run(&check)?;
    }
    Ok(())
}
