//! Hotplug of disks under a running guest: `bulkhead ctl attach` and `detach`.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests fail by panicking")]

use anyhow::Result;
use lab::{Guest, Host, disk};

use crate::control_socket::{self, ctl};
use serde_json::Value;

/// A host with the images of the disks.
struct Images<'host> {
    host: &'host Host,
    scratch: String,
}

impl Images<'_> {
    fn image(&self, id: &str) -> String {
        format!("{}/{id}.img", self.scratch)
    }

    fn attach(&self, id: &str, more: &str) -> Result<String> {
        let text = disk(id, &self.image(id), &format!("bus = \"virtio-scsi\"\n{more}"));
        let file = self.host.write(&format!("{id}.toml"), &text)?;
        ctl(self.host, &format!("attach {file}"))
    }

    /// State of the image's lock, as another process sees it.
    fn lock(&self, id: &str) -> Result<Value> {
        let bulkhead = self.host.path("bulkhead");
        let shown = self.host.run(&format!("{bulkhead} disk inspect --json {}", self.image(id)))?;
        Ok(serde_json::from_str::<Value>(&shown)?["lock"]["state"].clone())
    }
}

/// Waits until the guest has found the disk at `address` and returns its name.
fn wait_attached(guest: &Guest<'_>, address: &str) -> Result<String> {
    let block = format!("/sys/bus/scsi/devices/{address}/block");
    let name = guest.run(&format!(
        "for i in $(seq 200); do ls {block} 2>/dev/null && exit; sleep 0.1; done; exit 1"
    ))?;
    Ok(name.trim().to_owned())
}

/// Waits until the guest has removed the disk at `address`.
fn wait_detached(guest: &Guest<'_>, address: &str) -> Result<()> {
    let device = format!("/sys/bus/scsi/devices/{address}");
    guest.run(&format!(
        "for i in $(seq 200); do test -e {device} || exit 0; sleep 0.1; done; exit 1"
    ))?;
    Ok(())
}

#[test]
fn disks_are_attached_and_detached_under_a_running_guest() -> Result<()> {
    let host = Host::start("scsi-hotplug")?;
    let images = Images { host: &host, scratch: host.scratch("ext4")? };
    host.run(&format!("truncate -s 64M {} {}", images.image("data"), images.image("more")))?;
    // A controller without disks.
    let tables = format!("[[scsi]]\n{}", control_socket::table(&host));
    let guest = host.boot(&host.small_guest(2, &tables))?;

    let output = images.attach("data", "")?;
    assert_eq!(output, "data is attached as LUN 0 of target 0 of controller 0\n");
    let data = wait_attached(&guest, "0:0:0:0")?;
    guest.run(&format!("mke2fs -q /dev/{data} && mount /dev/{data} /mnt"))?;
    let sum = guest.run("dd if=/dev/urandom bs=1M count=4 2>/dev/null | tee /mnt/file | md5sum")?;
    // On a target without a LUN at the guest's scan.
    images.attach("more", "target = 3\nlun = 2\ncache = \"none\"")?;
    let more = wait_attached(&guest, "0:0:3:2")?;
    guest.run("umount /mnt")?;
    assert_ne!(images.lock("data")?, "free");

    assert!(ctl(&host, "detach data")?.starts_with("data is detached: "));
    wait_detached(&guest, "0:0:0:0")?;
    assert_eq!(images.lock("data")?, "free");
    let found = host.run(&format!(
        "modprobe loop; mkdir -p {0}/mnt && mount -o loop {1} {0}/mnt && md5sum <{0}/mnt/file && umount {0}/mnt",
        images.scratch,
        images.image("data")
    ))?;
    assert_eq!(found, sum, "the host reads the guest's data");

    images.attach("data", "lun = 1")?;
    let data = wait_attached(&guest, "0:0:0:1")?;
    guest.run(&format!("mount -r /dev/{data} /mnt"))?;
    assert_eq!(guest.run("md5sum </mnt/file")?, sum);
    guest.run("umount /mnt")?;

    // A disk in use is detached as well: its user gets an error, and the guest runs on.
    guest.run(&format!(
        "(while dd if=/dev/zero of=/dev/{more} bs=64k oflag=direct seek=8 count=64 conv=notrunc; do :; done; echo >/run/failed) \
         >/dev/null 2>&1 & sleep 1"
    ))?;
    assert!(ctl(&host, "detach more")?.starts_with("more is detached: "));
    guest.run("for i in $(seq 200); do test -e /run/failed && exit; sleep 0.1; done; exit 1")?;
    wait_detached(&guest, "0:0:3:2")?;
    assert_eq!(images.lock("more")?, "free");
    assert_eq!(guest.power_off()?, 0);
    assert_eq!(guest.vmm_output()?, "");
    Ok(())
}
