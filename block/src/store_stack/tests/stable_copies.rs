//! The rules for stable copies, storey by storey.

use super::fake_host::FakeHost;
use crate::store_stack::StableCopies;
use crate::store_stack::device_number::DeviceNumber;

fn copies(writes: Option<&str>, reads: Option<&str>) -> StableCopies {
    StableCopies { writes: writes.map(str::to_owned), reads: reads.map(str::to_owned) }
}

fn none() -> StableCopies {
    StableCopies::default()
}

/// A reason in both directions.
fn both(reason: &str) -> StableCopies {
    copies(Some(reason), Some(reason))
}

fn md(host: &mut FakeHost, level: &str) -> DeviceNumber {
    host.disk("sda", &[]);
    host.disk("sdb", &[]);
    let md = host.disk("md0", &[("md/level", level)]);
    host.stack("md0", &["sda", "sdb"]);
    md
}

#[test]
fn plain_disks_need_no_copy() {
    for name in ["sda", "vda", "nvme0n1", "nbd0", "rbd0", "mmcblk0", "xvda", "pmem0"] {
        let mut host = FakeHost::new();
        let disk = host.disk(name, &[]);
        assert_eq!(host.device_stack(disk).stable_copies(), none(), "{name}");
        let partition = host.partition(name, "p1");
        assert_eq!(host.device_stack(partition).stable_copies(), none(), "{name}");
    }
}

#[test]
fn stable_writes_need_a_copy() {
    for name in ["sda", "vda", "nvme0n1", "nbd0", "rbd0"] {
        let mut host = FakeHost::new();
        host.disk(name, &[("queue/stable_writes", "1")]);
        let partition = host.partition(name, "p1");
        let expected = copies(Some(&format!("stable_writes of /dev/{name}")), None);
        assert_eq!(host.device_stack(partition).stable_copies(), expected);
    }
}

#[test]
fn stable_pages_of_old_kernels_need_a_copy() {
    let mut host = FakeHost::new();
    let disk = host.disk("sda", &[("queue/stable_writes", "garbage")]);
    let unknown = copies(Some("unknown stable_writes of /dev/sda"), None);
    assert_eq!(host.device_stack(disk).stable_copies(), unknown);
    host.set("sda", "bdi/stable_pages_required", "1");
    let needed = copies(Some("stable_writes of /dev/sda"), None);
    assert_eq!(host.device_stack(disk).stable_copies(), needed);
    host.set("sda", "bdi/stable_pages_required", "0");
    assert_eq!(host.device_stack(disk).stable_copies(), none());
}

#[test]
fn verified_reads_need_a_copy() {
    let mut host = FakeHost::new();
    let disk = host.disk("sda", &[("integrity/format", "T10-DIF-TYPE1-CRC")]);
    host.set("sda", "integrity/read_verify", "1");
    let verified = copies(None, Some("integrity checks of /dev/sda"));
    assert_eq!(host.device_stack(disk).stable_copies(), verified);
    host.set("sda", "integrity/format", "none");
    assert_eq!(host.device_stack(disk).stable_copies(), none());
}

#[test]
fn redundant_md_needs_a_copy() {
    for level in ["raid1", "raid4", "raid5", "raid6", "raid10"] {
        let mut host = FakeHost::new();
        let md = md(&mut host, level);
        let expected = copies(Some(&format!("md {level} /dev/md0")), None);
        assert_eq!(host.device_stack(md).stable_copies(), expected);
    }
    for level in ["raid0", "linear"] {
        let mut host = FakeHost::new();
        let md = md(&mut host, level);
        assert_eq!(host.device_stack(md).stable_copies(), none(), "{level}");
    }
}

#[test]
fn a_file_system_passes_pages_to_md() {
    let mut host = FakeHost::new();
    let DeviceNumber { major, minor } = md(&mut host, "raid1");
    host.mounts(&format!("7 1 {major}:{minor} / /srv rw - ext4 /dev/md0 rw"));
    let expected = copies(Some("md raid1 /dev/md0"), None);
    assert_eq!(host.file_stack("mount=7").stable_copies(), expected);
}

#[test]
fn crypt_copies_writes_above_md() {
    let mut host = FakeHost::new();
    md(&mut host, "raid5");
    let uuid = ("dm/uuid", "CRYPT-LUKS2-0123-luks");
    // dm inherits the attribute from the array.
    let stable = ("queue/stable_writes", "1");
    let crypt = host.disk("dm-0", &[uuid, stable, ("dm/name", "luks")]);
    host.stack("dm-0", &["md0"]);
    assert_eq!(host.device_stack(crypt).stable_copies(), none());
}

#[test]
fn authenticated_crypt_verifies_reads() {
    let mut host = FakeHost::new();
    host.disk("sda", &[]);
    host.disk("dm-0", &[("dm/uuid", "CRYPT-SUBDEV-12-luks_dif"), ("dm/name", "luks_dif")]);
    let crypt = host.disk("dm-1", &[("dm/uuid", "CRYPT-LUKS2-12-luks"), ("dm/name", "luks")]);
    host.stack("dm-0", &["sda"]);
    host.stack("dm-1", &["dm-0"]);
    let expected = copies(None, Some("dm integrity /dev/mapper/luks_dif"));
    assert_eq!(host.device_stack(crypt).stable_copies(), expected);
}

#[test]
fn lvm_passes_pages_unless_it_is_redundant() {
    let cases = [
        ("vg-pool-tpool", None),
        ("vg-base-real", None),
        ("vg-lv_rimage_0", Some("dm raid /dev/mapper/vg-lv")),
        ("vg-lv_mimage_1", Some("dm mirror /dev/mapper/vg-lv")),
        ("vg-lv_rimage_0_iorig", Some("dm integrity /dev/mapper/vg-lv")),
        ("vg-lv_cvol", Some("dm cache /dev/mapper/vg-lv")),
        ("vg-vpool0-vpool", Some("dm vdo /dev/mapper/vg-lv")),
    ];
    for (slave, expected) in cases {
        let mut host = FakeHost::new();
        host.disk("sda", &[]);
        host.disk("dm-0", &[("dm/uuid", "LVM-a1"), ("dm/name", slave)]);
        let volume = host.disk("dm-1", &[("dm/uuid", "LVM-a2"), ("dm/name", "vg-lv")]);
        host.stack("dm-0", &["sda"]);
        host.stack("dm-1", &["dm-0"]);
        assert_eq!(host.device_stack(volume).stable_copies().writes.as_deref(), expected);
    }
}

/// A container without the part of sysfs that names the devices.
#[test]
fn storage_that_sysfs_does_not_name_needs_a_copy() {
    let mut host = FakeHost::new();
    host.mounts("8 1 240:77 / /m rw - ext4 /dev/x rw");
    let below = |name: &str| both(&format!("unknown storage below {name}"));
    assert_eq!(host.file_stack("mount=8").stable_copies(), below("/m"));
    let linear = host.disk("dm-0", &[("dm/uuid", "LVM-a1"), ("dm/name", "vg-lv")]);
    assert_eq!(host.device_stack(linear).stable_copies(), below("/dev/mapper/vg-lv"));
    let stripe = host.disk("md0", &[("md/level", "raid0")]);
    assert_eq!(host.device_stack(stripe).stable_copies(), below("/dev/md0"));
}

#[test]
fn lvm_on_md_needs_a_copy() {
    let mut host = FakeHost::new();
    md(&mut host, "raid10");
    let volume = host.disk("dm-0", &[("dm/uuid", "LVM-a1"), ("dm/name", "vg-lv")]);
    host.stack("dm-0", &["md0"]);
    let expected = copies(Some("md raid10 /dev/md0"), None);
    assert_eq!(host.device_stack(volume).stable_copies(), expected);
}

#[test]
fn unknown_dm_needs_a_copy() {
    for uuid in ["", "DMRAID-x", "stratis-1-private-x", "CRYPT-VERITY-x"] {
        let mut host = FakeHost::new();
        host.disk("sda", &[]);
        let device = host.disk("dm-0", &[("dm/uuid", uuid), ("dm/name", "x")]);
        host.stack("dm-0", &["sda"]);
        assert!(host.device_stack(device).stable_copies().writes.is_some(), "{uuid}");
    }
    for uuid in ["mpath-36001", "part1-mpath-36001"] {
        let mut host = FakeHost::new();
        host.disk("sda", &[]);
        let device = host.disk("dm-0", &[("dm/uuid", uuid), ("dm/name", "x")]);
        host.stack("dm-0", &["sda"]);
        assert_eq!(host.device_stack(device).stable_copies(), none(), "{uuid}");
    }
}

#[test]
fn drbd_and_unknown_drivers_need_a_copy() {
    let mut host = FakeHost::new();
    let drbd = host.disk("drbd1", &[]);
    let other = host.disk("bcache0", &[]);
    assert_eq!(host.device_stack(drbd).stable_copies(), copies(Some("DRBD /dev/drbd1"), None));
    let unknown = both("unknown driver of /dev/bcache0");
    assert_eq!(host.device_stack(other).stable_copies(), unknown);
}

fn btrfs(profiles: &[&str]) -> FakeHost {
    let mut host = FakeHost::new();
    host.disk("sda", &[]);
    host.btrfs("u", profiles, &["sda"]);
    host.mounts("7 1 0:40 / /srv rw - btrfs /dev/sda rw,nodatasum,nodatacow");
    host
}

#[test]
fn btrfs_needs_copies_whatever_its_mount_options() {
    let host = btrfs(&["single"]);
    let checksums = both("btrfs checksums on /srv");
    for facts in ["mount=7 uuid=u nocow=0", "mount=7 uuid=u", "mount=7"] {
        assert_eq!(host.file_stack(facts).stable_copies(), checksums, "{facts}");
    }
}

#[test]
fn a_no_cow_file_needs_copies_on_a_redundant_profile() {
    let no_cow = |profiles: &[&str]| {
        let stack = btrfs(profiles).file_stack("mount=7 uuid=u nocow=1");
        stack.stable_copies()
    };
    assert_eq!(no_cow(&["single"]), none());
    assert_eq!(no_cow(&["raid0"]), none());
    assert_eq!(no_cow(&["single", "raid1"]), copies(Some("btrfs raid1 on /srv"), None));
    assert_eq!(no_cow(&["dup"]), copies(Some("btrfs dup on /srv"), None));
    assert_eq!(no_cow(&[]), copies(Some("unknown btrfs profile on /srv"), None));
}

#[test]
fn a_no_cow_file_passes_pages_to_md() {
    let mut host = FakeHost::new();
    md(&mut host, "raid1");
    host.btrfs("u", &["single"], &["md0"]);
    host.mounts("7 1 0:40 / /srv rw - btrfs /dev/md0 rw");
    let copied = host.file_stack("mount=7 uuid=u nocow=1").stable_copies();
    assert_eq!(copied, copies(Some("md raid1 /dev/md0"), None));
}

#[test]
fn a_loop_device_copies_unless_it_is_direct() {
    let mut host = btrfs(&["single"]);
    let buffered = host.loop_device("loop0", "0", "mount=7 uuid=u nocow=0");
    let direct = host.loop_device("loop1", "1", "mount=7 uuid=u nocow=0");
    let unknown = host.loop_device("loop2", "x", "mount=7 uuid=u nocow=0");
    let checksums = both("btrfs checksums on /srv");
    assert_eq!(host.device_stack(buffered).stable_copies(), none());
    assert_eq!(host.device_stack(direct).stable_copies(), checksums);
    assert_eq!(host.device_stack(unknown).stable_copies(), checksums);
}

#[test]
fn file_systems_need_copies_by_their_type() {
    let cases = [
        ("zfs tank/a rw", both("ZFS checksums on /m")),
        ("bcachefs /dev/sda rw", both("bcachefs checksums on /m")),
        ("ceph mon:/ rw", both("unknown file system ceph on /m")),
        ("virtiofs tag rw", both("unknown file system virtiofs on /m")),
        ("overlay overlay rw,lowerdir=/l", both("unknown file system overlay on /m")),
        ("nfs4 host:/x rw,sec=krb5i", both("NFS signatures on /m")),
        ("nfs4 host:/x rw,sec=sys", none()),
        ("fuse.sshfs x rw", none()),
        ("tmpfs tmpfs rw", none()),
        ("ramfs ramfs rw", none()),
    ];
    for (mount, expected) in cases {
        let host = FakeHost::new();
        host.mounts(&format!("7 1 0:40 / /m rw - {mount}"));
        assert_eq!(host.file_stack("mount=7").stable_copies(), expected, "{mount}");
    }
}

#[test]
fn a_volume_copies() {
    let mut host = FakeHost::new();
    let md = md(&mut host, "raid1");
    let volume = host.disk("zd16", &[]);
    host.write("files/dev/md0", &format!("device=240:{}", md.minor));
    host.write("zpool/tank", "tank\t1G\n\t/dev/md0\t1G\n");
    let stack = host.file_stack(&format!("device=240:{} dataset=tank/a", volume.minor));
    assert_eq!(stack.root.below[0].name, "/dev/md0");
    assert_eq!(stack.stable_copies(), none());
}

#[test]
fn an_overlay_passes_pages_to_its_upper_directory() {
    let host = btrfs(&["single"]);
    host.mounts("8 1 0:50 / /m rw - overlay overlay rw,lowerdir=/l,upperdir=/up,workdir=/w");
    assert_eq!(host.file_stack("mount=8").stable_copies(), both("unknown storage /up"));
    std::fs::write(host.path("files/up"), "mount=7 uuid=u nocow=0").unwrap();
    assert_eq!(host.file_stack("mount=8").stable_copies(), both("btrfs checksums on /srv"));
}

#[test]
fn a_relative_upper_directory_is_unknown() {
    let host = btrfs(&["single"]);
    host.mounts("8 1 0:50 / /m rw - overlay overlay rw,upperdir=up,workdir=w");
    std::fs::write(host.path("files/up"), "mount=7 uuid=u nocow=1").unwrap();
    assert_eq!(host.file_stack("mount=8").stable_copies(), both("unknown storage up"));
}

#[test]
fn storage_outside_of_the_table_needs_copies() {
    let host = FakeHost::new();
    assert_eq!(host.file_stack("mount=7").stable_copies(), both("unknown storage a file system"));
    let missing = host.file_stack("device=8:99").stable_copies();
    assert_eq!(missing, both("unknown storage device 8:99"));
}
