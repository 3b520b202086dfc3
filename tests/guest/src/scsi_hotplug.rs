//! Disks that are attached to a real guest and detached from it while it runs: `bulkhead ctl
//! attach` and `detach`.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests fail by panicking")]

use anyhow::Result;
use lab::{Guest, Host, disk};
use serde_json::Value;

/// The machine's control socket and a host with two images.
struct Rig<'host> {
    host: &'host Host,
    socket: String,
    scratch: String,
}

impl Rig<'_> {
    fn ctl(&self, command: &str) -> Result<String> {
        self.host.run(&format!("{} ctl {} {command}", self.host.path("bulkhead"), self.socket))
    }

    fn image(&self, id: &str) -> String {
        format!("{}/{id}.img", self.scratch)
    }

    fn attach(&self, id: &str, more: &str) -> Result<String> {
        let text = disk(id, &self.image(id), &format!("bus = \"virtio-scsi\"\n{more}"));
        let file = self.host.write(&format!("{id}.toml"), &text)?;
        self.ctl(&format!("attach {file}"))
    }

    /// Who has the image, as another process sees it.
    fn lock(&self, id: &str) -> Result<Value> {
        let bulkhead = self.host.path("bulkhead");
        let shown = self.host.run(&format!("{bulkhead} disk inspect --json {}", self.image(id)))?;
        Ok(serde_json::from_str::<Value>(&shown)?["lock"]["state"].clone())
    }
}

/// What the guest calls the disk at this place, once it has found it by itself.
fn appears(guest: &Guest<'_>, place: &str) -> Result<String> {
    let block = format!("/sys/bus/scsi/devices/{place}/block");
    let name = guest.run(&format!(
        "for i in $(seq 200); do ls {block} 2>/dev/null && exit; sleep 0.1; done; exit 1"
    ))?;
    Ok(name.trim().to_owned())
}

fn disappears(guest: &Guest<'_>, place: &str) -> Result<()> {
    let device = format!("/sys/bus/scsi/devices/{place}");
    guest.run(&format!(
        "for i in $(seq 200); do test -e {device} || exit 0; sleep 0.1; done; exit 1"
    ))?;
    Ok(())
}

#[test]
fn disks_come_and_go_under_a_running_guest() -> Result<()> {
    let host = Host::start("scsi-hotplug")?;
    let rig =
        Rig { host: &host, socket: host.path("control.sock"), scratch: host.scratch("ext4")? };
    host.run(&format!("truncate -s 64M {} {}", rig.image("data"), rig.image("more")))?;
    // A controller, and no disk on it.
    let tables = format!("[[scsi]]\n[control]\nsocket = \"{}\"\n", rig.socket);
    let guest = host.boot(&host.small_guest(2, &tables))?;

    let said = rig.attach("data", "")?;
    assert_eq!(said, "data is attached as LUN 0 of target 0 of controller 0\n");
    let data = appears(&guest, "0:0:0:0")?;
    guest.run(&format!("mke2fs -q /dev/{data} && mount /dev/{data} /mnt"))?;
    let sum = guest.run("dd if=/dev/urandom bs=1M count=4 2>/dev/null | tee /mnt/file | md5sum")?;
    // On a target that was not there when the guest looked for some.
    rig.attach("more", "target = 3\nlun = 2\ncache = \"none\"")?;
    let more = appears(&guest, "0:0:3:2")?;
    guest.run("umount /mnt")?;
    assert_ne!(rig.lock("data")?, "free");

    assert!(rig.ctl("detach data")?.starts_with("data is detached: "));
    disappears(&guest, "0:0:0:0")?;
    assert_eq!(rig.lock("data")?, "free");
    let found = host.run(&format!(
        "modprobe loop; mkdir -p {0}/mnt && mount -o loop {1} {0}/mnt && md5sum <{0}/mnt/file && umount {0}/mnt",
        rig.scratch,
        rig.image("data")
    ))?;
    assert_eq!(found, sum, "what the guest wrote is there for others");

    rig.attach("data", "lun = 1")?;
    let data = appears(&guest, "0:0:0:1")?;
    guest.run(&format!("mount -r /dev/{data} /mnt"))?;
    assert_eq!(guest.run("md5sum </mnt/file")?, sum);
    guest.run("umount /mnt")?;

    // One that is in use goes as well; its user gets an error, and the guest goes on.
    guest.run(&format!(
        "(while dd if=/dev/zero of=/dev/{more} bs=64k oflag=direct seek=8 count=64 conv=notrunc; do :; done; echo >/run/failed) \
         >/dev/null 2>&1 & sleep 1"
    ))?;
    assert!(rig.ctl("detach more")?.starts_with("more is detached: "));
    guest.run("for i in $(seq 200); do test -e /run/failed && exit; sleep 0.1; done; exit 1")?;
    disappears(&guest, "0:0:3:2")?;
    assert_eq!(rig.lock("more")?, "free");
    assert_eq!(guest.power_off()?, 0);
    assert_eq!(guest.vmm_output()?, "");
    Ok(())
}
