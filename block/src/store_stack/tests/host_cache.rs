//! The storeys that serve direct I/O from memory of the host, each with its honest twin.

use super::fake_host::FakeHost;
use crate::store_stack::StoreStack;

fn check(stack: &StoreStack, expected: Option<(&str, &str, bool)>) {
    let found = stack.host_cache();
    let found = found.as_ref().map(|found| (found.storey.as_str(), found.cache, found.is_certain));
    assert_eq!(found, expected, "{stack:?}");
}

/// A file on a file system of this type on a disk.
fn file_on(fs_type: &str, options: &str, facts: &str) -> StoreStack {
    let mut host = FakeHost::new();
    let disk = host.disk("sda", &[]);
    host.btrfs("u", &["single"], &["sda"]);
    let number = format!("{}:{}", disk.major, disk.minor);
    host.mounts(&format!("7 1 {number} / /m rw - {fs_type} /dev/sda rw{options}"));
    host.file_stack(&format!("mount=7 {facts}"))
}

#[test]
fn file_systems() {
    for fs_type in ["ext4", "xfs", "ext2", "f2fs", "nfs4"] {
        check(&file_on(fs_type, "", ""), None);
    }
    for fs_type in ["tmpfs", "ramfs"] {
        let expected = format!("{fs_type} on /m");
        check(&file_on(fs_type, "", ""), Some((&expected, "page cache", true)));
    }
    check(&file_on("ext4", ",data=journal", ""), Some(("ext4 on /m", "page cache", true)));
    for fs_type in ["fuse", "fuse.sshfs", "fuseblk"] {
        let expected = format!("{fs_type} on /m");
        check(&file_on(fs_type, "", ""), Some((&expected, "page cache", false)));
    }
    check(&file_on("btrfs", "", "nocow=0 uuid=u"), Some(("btrfs on /m", "page cache", false)));
    check(&file_on("btrfs", "", "nocow=1 uuid=u"), None);
}

#[test]
fn loop_devices() {
    for (direct, is_cached) in [("0", true), ("1", false)] {
        let mut host = FakeHost::new();
        host.disk("sda", &[]);
        host.mounts("7 1 240:0 / /m rw - ext4 /dev/sda rw");
        let device = host.loop_device("loop0", direct, "mount=7");
        let expected = ("loop device /dev/loop0", "page cache", true);
        check(&host.device_stack(device), is_cached.then_some(expected));
        // Below what may be one, a certain one counts.
        host.btrfs("v", &["single"], &["loop0"]);
        host.mounts("8 1 0:50 / /b rw - btrfs /dev/loop0 rw");
        let perhaps = ("btrfs on /b", "page cache", false);
        let file = host.file_stack("mount=8 nocow=0 uuid=v");
        check(&file, Some(if is_cached { expected } else { perhaps }));
    }
}

#[test]
fn zfs() {
    for (version, direct, is_certain) in [
        ("2.2.9-1", "", true),
        ("2.3.0-rc1", "direct\tstandard\n", true),
        ("2.3.9-1", "direct\tdisabled\n", true),
        ("2.3.9-1", "direct\tstandard\n", false),
        ("2.3.9-1", "direct\talways\n", false),
        ("garbage", "", false),
    ] {
        let mut host = FakeHost::new();
        host.write("sys/module/zfs/version", version);
        host.write("zfs/tank/a", &format!("sync\tstandard\n{direct}"));
        host.mounts("8 1 0:50 / /m rw - zfs tank/a rw,xattr");
        check(&host.file_stack("mount=8"), Some(("zfs on /m", "ARC", is_certain)));
        let volume = host.disk("zd0", &[]);
        check(&host.device_stack(volume), Some(("ZFS volume /dev/zd0", "ARC", true)));
    }
}

/// Nothing is promised of storage that is not known.
#[test]
fn unknown_storage() {
    let unknown = Some(("unknown storage a file system", "page cache", false));
    check(&FakeHost::new().file_stack(""), unknown);
    let mut host = FakeHost::new();
    let disk = host.disk("sda", &[]);
    check(&host.device_stack(disk), None);
}
