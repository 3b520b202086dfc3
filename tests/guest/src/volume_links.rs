//! Links to volumes: those that udev has made, and those that lead to another volume because udev
//! has not handled its events.

use anyhow::{Result, ensure};
use lab::{Host, disk};

/// Links to the logical volume `links/data` and the ZFS volume `tank/data`.
const LOGICAL: [&str; 3] =
    ["/dev/links/data", "/dev/mapper/links-data", "/dev/disk/by-id/dm-name-links-data"];
const ZFS: &str = "/dev/zvol/tank/data";
/// A link that the owner of the host made.
const OWN: &str = "/dev/links/own";

fn make_volumes(host: &Host) -> Result<()> {
    host.volume("data", "64M", "-b 16k")?;
    host.run(&format!(
        "modprobe -a loop dm_mod && truncate -s 200M /scratch/pv && device=$(losetup --find --show /scratch/pv) && \
         pvcreate -q $device && vgcreate -q links $device && lvcreate -q -L 64M -n data links && udevadm settle && \
         ln -s $(readlink -f /dev/links/data) {OWN}"
    ))?;
    Ok(())
}

fn config(host: &Host, path: &str) -> String {
    host.small_guest(1, &disk("data", path, ""))
}

/// The report of `command` about the disk if it refuses the link, else nothing.
fn refusal(host: &Host, command: &str, path: &str) -> Result<Option<String>> {
    let file = host.write("vm.toml", &config(host, path))?;
    let command = format!("timeout 60 {} {command} {file} 2>&1", host.path("bulkhead"));
    let output = host.try_run(&command)?;
    println!("{path}: {}\n{}", output.status, output.text);
    if output.status == 0 {
        return Ok(None);
    }
    ensure!(output.text.contains("names "), "{path}: {}", output.text);
    Ok(Some(output.text))
}

#[test]
#[ignore = "long: make guests"]
fn a_link_to_another_volume_than_it_names_is_refused() -> Result<()> {
    let host = Host::start_with_zfs("volume-links")?;
    make_volumes(&host)?;
    host.put_bulkhead()?;
    for path in LOGICAL.into_iter().chain([ZFS, OWN]) {
        assert_eq!(refusal(&host, "check", path)?, None, "{path}");
    }
    let guest = host.boot(&config(&host, "/dev/links/data"))?;
    assert_eq!(guest.power_off()?, 0);

    // udev does not learn that one volume has another name, and the other's number another volume.
    let number = host.run(&format!("readlink -f {ZFS}"))?;
    host.run(
        "udevadm control --stop-exec-queue && lvrename -q --noudevsync links/data links/moved && \
         zfs destroy tank/data && zfs create -s -V 64M -b 16k tank/other",
    )?;
    host.run(&format!("until test -b {ZFS}; do sleep 0.1; done"))?;
    assert_eq!(host.run(&format!("readlink -f {ZFS}"))?, number);
    let wrong = |path, named: &str, found: &str| -> Result<()> {
        for command in ["check", "run"] {
            let report = refusal(&host, command, path)?.unwrap_or_default();
            let text = format!("names {named}, but leads to {found}");
            assert!(report.contains(&text), "{command} {path}: {report}");
        }
        Ok(())
    };
    for path in LOGICAL {
        wrong(path, "links-data", "links-moved")?;
    }
    wrong(ZFS, "tank/data", "tank/other")?;
    assert_eq!(refusal(&host, "check", OWN)?, None, "its owner may give a volume any name");

    host.run("udevadm control --start-exec-queue && udevadm settle")?;
    for path in ["/dev/links/moved", "/dev/mapper/links-moved", "/dev/zvol/tank/other", OWN] {
        assert_eq!(refusal(&host, "check", path)?, None, "{path}");
    }
    Ok(())
}
