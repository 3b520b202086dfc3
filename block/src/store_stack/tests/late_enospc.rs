//! Stores that may report ENOSPC only at write-back.

use super::fake_host::FakeHost;
use crate::store_stack::{LateEnospc, StoreStack};

fn certain(storey: &str) -> Option<LateEnospc> {
    Some(LateEnospc { is_certain: true, storey: storey.to_owned() })
}

fn uncertain(storey: &str) -> Option<LateEnospc> {
    Some(LateEnospc { is_certain: false, storey: storey.to_owned() })
}

/// An LVM volume `/dev/mapper/vg-data` over a device with this name.
fn volume_over(host: &mut FakeHost, slave: &str) -> StoreStack {
    let device = host.disk("dm-1", &[("dm/uuid", "LVM-b"), ("dm/name", "vg-data")]);
    host.disk("dm-0", &[("dm/uuid", "LVM-a"), ("dm/name", slave)]);
    host.stack("dm-1", &["dm-0"]);
    host.mounts("7 1 240:0 / /srv rw,noatime - xfs /dev/mapper/vg-data rw");
    host.device_stack(device)
}

#[test]
fn thin_volumes_allocate_at_write_back() {
    for (slave, target) in [("vg-pool-tpool", "thin"), ("vg-pool-vpool", "vdo")] {
        let mut host = FakeHost::new();
        let found = volume_over(&mut host, slave).late_enospc();
        let expected = certain(&format!("dm {target} /dev/mapper/vg-data"));
        assert_eq!(found, expected, "the device");
        assert_eq!(host.file_stack("mount=7").late_enospc(), expected, "a file on it");
        let crypt = host.disk("dm-2", &[("dm/uuid", "CRYPT-LUKS2-x"), ("dm/name", "crypt")]);
        host.stack("dm-2", &["dm-1"]);
        assert_eq!(host.device_stack(crypt).late_enospc(), expected, "a device over it");
    }
}

#[test]
fn a_file_system_on_other_volumes_refuses_writes_in_time() {
    let mut host = FakeHost::new();
    let device = volume_over(&mut host, "vg-plain").late_enospc();
    assert_eq!(device, uncertain("block device /dev/mapper/vg-data"));
    assert_eq!(host.file_stack("mount=7").late_enospc(), None);
}

#[test]
fn servers_decide_themselves() {
    for (mount, expected) in [
        ("nfs4 host:/x rw", uncertain("nfs4 /m")),
        ("fuse.sshfs x rw", uncertain("fuse.sshfs /m")),
        ("virtiofs tag rw", uncertain("virtiofs /m")),
        ("tmpfs tmpfs rw", None),
        ("zfs tank/a rw", None),
    ] {
        let host = FakeHost::new();
        host.mounts(&format!("7 1 0:40 / /m rw - {mount}"));
        assert_eq!(host.file_stack("mount=7").late_enospc(), expected, "{mount}");
    }
}

#[test]
fn a_loop_device_is_thin_if_its_file_has_holes() {
    let mut host = FakeHost::new();
    host.disk("sda", &[]);
    host.mounts("7 1 240:0 / /srv rw - ext4 /dev/sda rw\n8 1 0:40 / /z rw - zfs tank/a rw");
    let cases = [
        ("mount=7 holes=1", certain("loop device /dev/loop0 of the sparse file /loop0.img")),
        ("mount=7 holes=0", uncertain("block device /dev/loop1")),
        ("mount=7", uncertain("block device /dev/loop2")),
        ("mount=8 holes=0", certain("loop device /dev/loop3 of a file on zfs")),
    ];
    for (index, (facts, expected)) in cases.into_iter().enumerate() {
        let device = host.loop_device(&format!("loop{index}"), "1", facts);
        assert_eq!(host.device_stack(device).late_enospc(), expected, "{facts}");
    }
}

#[test]
fn a_loop_device_on_btrfs_is_thin_unless_its_file_has_no_cow() {
    for (facts, is_certain) in
        [("nocow=0", true), ("nocow=1", false), ("holes=0", false), ("nocow=1 holes=1", true)]
    {
        let mut host = FakeHost::new();
        host.disk("sda", &[]);
        host.mounts("7 1 0:40 / /srv rw - btrfs /dev/sda rw");
        let device = host.loop_device("loop0", "0", &format!("mount=7 uuid=u {facts}"));
        let found = host.device_stack(device).late_enospc().unwrap();
        assert_eq!(found.is_certain, is_certain, "{facts}: {found:?}");
    }
}

#[test]
fn a_volume_is_sparse_if_less_than_its_size_is_reserved() {
    let sparse = certain("sparse ZFS volume /dev/zd16");
    for (properties, expected) in [
        ("volsize\t1048576\nrefreservation\t0\n", sparse.clone()),
        ("volsize\t1048576\nrefreservation\t1048575\n", sparse),
        ("volsize\t1048576\nrefreservation\t1081344\n", uncertain("block device /dev/zd16")),
        ("volsize\t1048576\nrefreservation\tnone\n", uncertain("block device /dev/zd16")),
        ("", uncertain("block device /dev/zd16")),
    ] {
        let mut host = FakeHost::new();
        let volume = host.disk("zd16", &[]);
        host.write("zfs/tank/a", properties);
        let facts = format!("device=240:{} dataset=tank/a", volume.minor);
        assert_eq!(host.file_stack(&facts).late_enospc(), expected, "{properties}");
    }
}

#[test]
fn storage_that_cannot_be_learned_is_uncertain() {
    let host = FakeHost::new();
    assert_eq!(host.file_stack("device=8:99").late_enospc(), uncertain("block device device 8:99"));
}

/// The space of a volume that is not sparse is reserved within the quota.
#[test]
fn the_nearest_quota_above_a_sparse_volume_limits_it() {
    for (reserved, quotas, expected) in [
        (0, [("tank/a/b", 0), ("tank/a", 1_u64 << 30), ("tank", 1 << 40)], Some("tank/a")),
        (0, [("tank/a/b", 0), ("tank/a", 0), ("tank", 0)], None),
        (1 << 20, [("tank/a/b", 1 << 30), ("tank/a", 0), ("tank", 0)], None),
    ] {
        let mut host = FakeHost::new();
        let volume = host.disk("zd16", &[]);
        for (name, quota) in quotas {
            host.write(&format!("zfs/{name}/quota"), &format!("quota\t{quota}\n"));
        }
        let properties = format!("volsize\t1048576\nrefreservation\t{reserved}\n");
        host.write("zfs/tank/a/b/c/own", &properties);
        let facts = format!("device=240:{} dataset=tank/a/b/c", volume.minor);
        assert_eq!(host.file_stack(&facts).volume_quota(), expected, "{quotas:?}");
    }
}
