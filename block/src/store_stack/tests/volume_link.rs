//! Links that lead to another volume than the one that they name.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use fixtures::host::Loop;
use fixtures::needs;

use super::fake_host::FakeHost;
use crate::store_stack::device_number::DeviceNumber;
use crate::store_stack::host_view::FileFacts;
use crate::store_stack::volume_link::{find, wrong_link};

/// The names in a wrong link and of the device.
fn compare(host: &FakeHost, link: &str, facts: &FileFacts) -> Option<(String, String)> {
    let way = ["/vm/link", link, "/dev/dm-7"].map(PathBuf::from);
    let wrong = find(&host.view(), &way, facts)?;
    assert_eq!(wrong.link, Path::new(link));
    Some((wrong.named, wrong.found))
}

/// The entry of udev's database for a mapped device with these links.
fn entry(links: &[&str], name: &str, uuid: &str) -> String {
    let links: String = links.iter().map(|link| format!("S:{link}\n")).collect();
    format!("{links}I:1\nE:DM_NAME={name}\nE:DM_UUID={uuid}\nG:systemd\n")
}

/// Records a link below `/dev` as udev does, with `/` escaped.
fn record(host: &FakeHost, escaped: &str) {
    host.write(&format!("run/udev/links/{escaped}/b240:0"), "0:/sys/dm-0");
}

fn facts(device: DeviceNumber) -> FileFacts {
    FileFacts { device: Some(device), ..FileFacts::default() }
}

#[test]
fn a_mapped_device_is_known_by_its_name() {
    let mut host = FakeHost::new();
    let volume = facts(host.disk("dm-0", &[("dm/name", "vg0-data"), ("dm/uuid", "LVM-abc")]));
    let links = ["vg0/data", "mapper/vg0-data", "oracle/asm1"];
    host.write("run/udev/data/b240:0", &entry(&links, "vg0-data", "LVM-abc"));
    // Older versions of udev escape the first `/` as well.
    for link in [r"vg0\x2fother", r"\x2fvg-0\x2fdata", r"disk\x2fweb"] {
        record(&host, link);
    }
    for right in [
        "/dev/vg0/data",
        "/dev/mapper/vg0-data",
        "/dev/disk/by-id/dm-name-vg0-data",
        "/dev/disk/by-id/dm-uuid-LVM-abc",
        "/dev/block/240:0",
        // Made by a rule of the owner.
        "/dev/oracle/asm1",
        // Not comparable.
        "/dev/mapper/vg0\\x20data",
        "/dev/disk/by-id/wwn-0x5000",
        "/dev/disk/by-path/pci-0",
        "/dev/dm-0",
        "/vm/vg0/other",
        // Made by the owner, without udev.
        "/dev/vms/web1",
        "/dev/shm/disk",
        "/dev/disk/web",
        "/dev/vg0/mine",
    ] {
        assert_eq!(compare(&host, right, &volume), None, "{right}");
    }
    let own = "vg0-data";
    for (wrong, named, found) in [
        ("/dev/vg0/other", "vg0-other", own),
        ("/dev/vg-0/data", "vg--0-data", own),
        ("/dev/mapper/vg0-other", "vg0-other", own),
        ("/dev/disk/by-id/dm-name-vg0-other", "vg0-other", own),
        ("/dev/disk/by-id/dm-uuid-LVM-xyz", "LVM-xyz", "LVM-abc"),
        ("/dev/block/240:1", "240:1", "240:0"),
    ] {
        let names = Some((named.to_owned(), found.to_owned()));
        assert_eq!(compare(&host, wrong, &volume), names, "{wrong}");
    }
}

#[test]
fn hyphens_of_lvm_are_doubled() {
    let mut host = FakeHost::new();
    let volume = facts(host.disk("dm-0", &[("dm/name", "a--b-c--d"), ("dm/uuid", "LVM-abc")]));
    record(&host, r"a-b\x2fc-d");
    record(&host, r"a\x2fb-c-d");
    assert_eq!(compare(&host, "/dev/a-b/c-d", &volume), None);
    assert!(compare(&host, "/dev/a/b-c-d", &volume).is_some());
}

/// udev missed that a volume was removed, and its number is that of another guest's volume.
#[test]
fn an_entry_of_an_earlier_volume_proves_nothing() {
    let links = ["vg0/old", "mapper/vg0-old", "oracle/asm1"];
    let entries = [
        "S:vg0/old\nS:mapper/vg0-old\nS:oracle/asm1\nE:DM_NAME=vg0-old\n".to_owned(),
        entry(&links, "vg0-old", "LVM-x"),
        entry(&links, "vg0-new", "LVM-earlier"),
        "S:vg0/old\nS:mapper/vg0-old\nS:oracle/asm1\n".to_owned(),
    ];
    for stale in entries {
        let mut host = FakeHost::new();
        let volume = facts(host.disk("dm-0", &[("dm/name", "vg0-new"), ("dm/uuid", "LVM-x")]));
        host.write("run/udev/data/b240:0", &stale);
        for (link, named) in [
            ("/dev/vg0/old", "vg0-old"),
            ("/dev/mapper/vg0-old", "vg0-old"),
            ("/dev/oracle/asm1", "oracle-asm1"),
        ] {
            let names = Some((named.to_owned(), "vg0-new".to_owned()));
            assert_eq!(compare(&host, link, &volume), names, "{link} with {stale}");
        }
        assert_eq!(compare(&host, "/dev/vg0/new", &volume), None, "{stale}");
    }
}

/// Without names there is no verdict.
#[test]
fn unknown_names_are_not_judged() {
    let mut host = FakeHost::new();
    let no_udev = facts(host.disk("dm-0", &[("dm/name", "vg0-data"), ("dm/uuid", "LVM-abc")]));
    assert_eq!(compare(&host, "/dev/vg0/other", &no_udev), None);
    let crypt = facts(host.disk("dm-1", &[("dm/name", "secret"), ("dm/uuid", "CRYPT-LUKS2")]));
    host.write("run/udev/data/b240:1", &entry(&["mapper/secret"], "secret", "CRYPT-LUKS2"));
    record(&host, r"my\x2fdisk");
    assert_eq!(compare(&host, "/dev/my/disk", &crypt), None);
    let disk = facts(host.disk("sda", &[]));
    for link in ["/dev/mapper/a", "/dev/vg0/a", "/dev/zvol/tank/a", "/dev/disk/by-id/dm-name-a"] {
        assert_eq!(compare(&host, link, &disk), None, "{link}");
    }
    let absent = facts(DeviceNumber { major: 9, minor: 9 });
    assert_eq!(compare(&host, "/dev/block/1:1", &absent), None);
}

#[test]
fn a_zfs_volume_is_known_by_its_dataset() {
    let mut host = FakeHost::new();
    let (disk, part) = (host.disk("zd0", &[]), host.partition("zd0", "zd0p1"));
    let volume =
        |device, dataset: &str| FileFacts { dataset: Some(dataset.to_owned()), ..facts(device) };
    let right = [
        ("/dev/zvol/tank/a", disk, "tank/a"),
        ("/dev/zvol/tank/a+b", disk, "tank/a b"),
        ("/dev/zvol/tank/a@s", disk, "tank/a@s"),
        ("/dev/zvol/tank/a-part1", disk, "tank/a-part1"),
        ("/dev/zvol/tank/a-part1", part, "tank/a"),
        ("/dev/zvol/tank/a-part1-part1", part, "tank/a-part1"),
    ];
    for (link, device, dataset) in right {
        assert_eq!(compare(&host, link, &volume(device, dataset)), None, "{link}");
    }
    for (link, device) in [("/dev/zvol/tank/b", disk), ("/dev/zvol/tank/b-part1", part)] {
        let names = Some(("tank/b".to_owned(), "tank/a".to_owned()));
        assert_eq!(compare(&host, link, &volume(device, "tank/a")), names, "{link}");
    }
    assert_eq!(compare(&host, "/dev/zvol/tank/b", &facts(disk)), None, "its name is not known");
}

/// On this host, links of udev and other paths of a device are right.
#[test]
fn paths_of_this_host_are_right() {
    if !needs::root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let device = Loop::new(&image);
    let file = File::open(&device.0).unwrap();
    let link = folder.path().join("link");
    symlink(&device.0, &link).unwrap();
    for path in [&device.0, &link, &image] {
        assert_eq!(wrong_link(path, &file), None);
    }
    assert_eq!(wrong_link(&image, &File::open(&image).unwrap()), None);
    // A link over two hops whose second one names another device.
    let number = file.metadata().unwrap().rdev();
    let own = format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
    assert_eq!(wrong_link(Path::new(&format!("/dev/block/{own}")), &file), None);
    let other = folder.path().join("other");
    symlink("/dev/block/240:77", &other).unwrap();
    let wrong = wrong_link(&other, &file).unwrap();
    assert_eq!((wrong.named.as_str(), wrong.found), ("240:77", own));
}
