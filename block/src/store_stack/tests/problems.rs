//! Each liar is found, and its honest twin is not.

use super::fake_host::FakeHost;
use crate::store_stack::FlushPromise::{Kept, NotKept, Unknown};
use crate::store_stack::{FlushPromise, StoreStack};

/// Asserts the promise of a stack, and that a problem contains `part`.
#[track_caller]
fn check(stack: &StoreStack, promise: FlushPromise, part: &str) {
    let problems = stack.problems();
    assert_eq!(stack.flush_promise(), promise, "{problems:#?}");
    if part.is_empty() {
        assert_eq!(problems, []);
    } else {
        let found = problems.iter().any(|problem| {
            problem.what.contains(part)
                || problem.remedy.as_ref().is_some_and(|remedy| remedy.contains(part))
        });
        assert!(found, "{problems:#?}");
    }
}

/// A disk with these attributes.
#[track_caller]
fn check_disk(name: &str, attributes: &[(&str, &str)], promise: FlushPromise, part: &str) {
    let mut host = FakeHost::new();
    let disk = host.disk(name, attributes);
    check(&host.device_stack(disk), promise, part);
}

const THROUGH: (&str, &str) = ("queue/write_cache", "write through");

#[test]
fn honest_disks_have_no_problem() {
    for name in ["sda", "vda", "nvme0n1", "mmcblk0"] {
        check_disk(name, &[], Kept, "");
    }
    check_disk("nvme0n1", &[THROUGH], Kept, "");
    check_disk("vda", &[THROUGH, ("cache_type", "write through")], Kept, "");
    let cache = ("device/scsi_disk/0:0:0:0/cache_type", "write through");
    check_disk("sda", &[THROUGH, cache], Kept, "");
    check_disk("sda", &[THROUGH, (cache.0, "none")], Kept, "");
}

#[test]
fn write_through_over_a_scsi_cache_is_a_lie() {
    let path = "device/scsi_disk/0:0:0:0/cache_type";
    for cache in ["write back", "write back, no read (daft)"] {
        let remedy = "echo \"write back\" >/sys/block/sda/queue/write_cache";
        check_disk("sda", &[THROUGH, (path, cache)], NotKept, remedy);
        check_disk("sda", &[(path, cache)], Kept, "");
    }
    check_disk("sda", &[THROUGH], Unknown, "no type");
}

#[test]
fn write_through_over_a_virtio_cache_is_a_lie() {
    check_disk("vda", &[THROUGH, ("cache_type", "write back")], NotKept, "\"write back\"");
    check_disk("vda", &[("cache_type", "write back")], Kept, "");
}

#[test]
fn write_through_with_fua_is_a_lie() {
    for name in ["nvme0n1", "sda", "zd0", "mmcblk0"] {
        check_disk(name, &[THROUGH, ("queue/fua", "1")], NotKept, "its driver reports");
    }
}

#[test]
fn an_unknown_queue_is_uncertain() {
    check_disk("nvme0n1", &[("queue/write_cache", "?")], Unknown, "does not report");
}

#[test]
fn write_through_over_volatile_members_is_a_lie() {
    for (stacked, attribute) in [("md0", ("md/level", "raid1")), ("dm-0", ("dm/uuid", "LVM-a"))] {
        let mut host = FakeHost::new();
        host.disk("sda", &[]);
        host.disk("sdb", &[]);
        let device = host.disk(stacked, &[THROUGH, attribute]);
        host.stack(stacked, &["sda", "sdb"]);
        check(&host.device_stack(device), NotKept, "a device below it");
        host.set(stacked, "queue/write_cache", "write back");
        check(&host.device_stack(device), Kept, "");
        for member in ["sda", "sdb"] {
            host.set(member, "queue/write_cache", "write through");
            host.set(member, "device/scsi_disk/0:0:0:0/cache_type", "write through");
        }
        host.set(stacked, "queue/write_cache", "write through");
        check(&host.device_stack(device), Kept, "");
    }
}

#[test]
fn the_remedy_names_the_device_of_a_volume() {
    let mut host = FakeHost::new();
    host.disk("sda", &[]);
    let device = host.disk("dm-3", &[THROUGH, ("dm/uuid", "LVM-a"), ("dm/name", "vg-lv")]);
    host.stack("dm-3", &["sda"]);
    check(&host.device_stack(device), NotKept, "/sys/block/dm-3/queue/write_cache");
}

#[test]
fn memory_is_not_kept() {
    for name in ["zram0", "ram1", "nullb0"] {
        check_disk(name, &[], NotKept, "power failure");
    }
    for fs_type in ["tmpfs", "ramfs"] {
        let mut host = FakeHost::new();
        host.mounts(&format!("7 1 0:40 / /m rw - {fs_type} x rw"));
        check(&host.file_stack("mount=7"), NotKept, "power failure");
        let device = host.loop_device("loop0", "0", "mount=7");
        check(&host.device_stack(device), NotKept, "power failure");
    }
}

fn mounted(fs_type: &str, option: &str, attributes: &[(&str, &str)]) -> StoreStack {
    let mut host = FakeHost::new();
    host.disk("nvme0n1", attributes);
    host.partition("nvme0n1", "nvme0n1p2");
    host.btrfs("u", &["single"], &["nvme0n1"]);
    host.mounts(&format!("7 1 240:1 / /srv rw - {fs_type} /dev/nvme0n1p2 rw,{option}"));
    host.file_stack("mount=7 uuid=u")
}

#[test]
fn a_mount_without_barriers_is_a_lie_over_a_volatile_cache() {
    let mounts = [
        ("ext4", "nobarrier"),
        ("ext3", "barrier=0"),
        ("xfs", "nobarrier"),
        ("btrfs", "nobarrier"),
        ("f2fs", "fsync_mode=nobarrier"),
    ];
    for (fs_type, option) in mounts {
        let volatile = mounted(fs_type, option, &[]);
        check(&volatile, NotKept, "mount -o remount,");
        let honest = mounted(fs_type, option, &[THROUGH]);
        check(&honest, Kept, "no volatile cache");
        let lie = mounted(fs_type, option, &[THROUGH, ("queue/fua", "1")]);
        check(&lie, NotKept, "without barriers over a volatile cache");
        let unknown = mounted(fs_type, option, &[("queue/write_cache", "?")]);
        check(&unknown, Unknown, "is not known");
    }
}

#[test]
fn journal_modes_keep_flushed_data() {
    for option in ["data=writeback", "data=ordered", "data=journal", "barrier=1", "noatime"] {
        check(&mounted("ext4", option, &[]), Kept, "");
    }
    check(&mounted("btrfs", "nodatasum,nodatacow", &[]), Kept, "");
}

#[test]
fn a_loop_device_without_flushes_is_a_lie() {
    let mut host = FakeHost::new();
    host.disk("nvme0n1", &[THROUGH]);
    host.mounts("7 1 240:0 / /srv rw - ext4 /dev/nvme0n1 rw");
    let device = host.loop_device("loop0", "1", "mount=7");
    check(&host.device_stack(device), Kept, "");
    host.set("loop0", "queue/write_cache", "write through");
    check(&host.device_stack(device), NotKept, "has to be synced");
    host.set("loop0", "ro", "1");
    check(&host.device_stack(device), Kept, "");
}

#[test]
fn a_volatile_overlay_is_a_lie() {
    for (option, promise) in
        [("volatile", NotKept), ("fsync=volatile", NotKept), ("fsync=auto", Kept)]
    {
        let mut host = FakeHost::new();
        host.disk("nvme0n1", &[]);
        host.mounts("7 1 240:0 / /srv rw - ext4 /dev/nvme0n1 rw");
        host.mounts(&format!("8 1 0:50 / /m rw - overlay overlay rw,upperdir=/up,{option}"));
        host.write("files/up", "mount=7");
        let part = if promise == NotKept { "volatile" } else { "" };
        check(&host.file_stack("mount=8"), promise, part);
    }
}

#[test]
fn bcachefs_without_journal_flushes_is_a_lie() {
    for (option, promise) in [("journal_flush_disabled", NotKept), ("noatime", Kept)] {
        let host = FakeHost::new();
        host.mounts(&format!("8 1 0:50 / /m rw - bcachefs /dev/sda rw,{option}"));
        let part = if promise == NotKept { option } else { "" };
        check(&host.file_stack("mount=8"), promise, part);
    }
}

#[test]
fn remote_storage_is_uncertain() {
    for fs_type in ["nfs4", "cifs", "ceph", "9p", "virtiofs", "fuse.sshfs", "fuseblk", "newfs"] {
        let host = FakeHost::new();
        host.mounts(&format!("8 1 0:50 / /m rw - {fs_type} x rw"));
        check(&host.file_stack("mount=8"), Unknown, "is ");
    }
    check(&mounted("fuseblk", "noatime", &[]), Unknown, "served by a program");
    for name in ["nbd0", "rbd0", "drbd0"] {
        check_disk(name, &[], Unknown, "is ");
    }
}

/// A ZFS volume and a file system with a version of the module and a value of `sync`.
fn zfs(version: &str, sync: &str) -> [StoreStack; 2] {
    let mut host = FakeHost::new();
    host.write("sys/module/zfs/version", version);
    host.write("zfs/tank/a", &format!("sync\t{sync}\nvolblocksize\t16384\n"));
    let volume = host.disk("zd0", &[("queue/fua", "1")]);
    host.mounts("8 1 0:50 / /m rw - zfs tank/a rw,xattr");
    let device = format!("device=240:{} dataset=tank/a", volume.minor);
    [host.file_stack(&device), host.file_stack("mount=8")]
}

#[test]
fn sync_disabled_is_a_lie() {
    for stack in zfs("2.2.6-1", "disabled") {
        check(&stack, NotKept, "zfs set sync=standard tank/a");
    }
    for sync in ["standard", "always"] {
        for stack in zfs("2.2.6-1", sync) {
            check(&stack, Kept, "");
        }
    }
}

#[test]
fn an_unknown_sync_property_is_uncertain() {
    let host = FakeHost::new();
    host.mounts("8 1 0:50 / /m rw - zfs tank/a rw,xattr");
    check(&host.file_stack("mount=8"), Unknown, "`sync`");
}

#[test]
fn volumes_that_ignore_flushes_are_a_lie() {
    for version in ["2.2.7-1", "2.3.0-rc1", "2.3.0-1", "2.3.1", "2.3.2-rc1"] {
        let [volume, files] = zfs(version, "standard");
        check(&volume, NotKept, "2.3.2 or newer");
        check(&files, Kept, "");
    }
    let [volume, _] = zfs("2.2.7-pve2", "standard");
    check(&volume, Unknown, "2.3.2 or newer");
    for version in ["2.1.15", "2.2.6", "2.2.8", "2.2.10", "2.3.2", "2.3.10-1", "2.4.0"] {
        let [volume, _] = zfs(version, "standard");
        check(&volume, Kept, "");
    }
}

#[test]
fn volumes_in_blk_mq_are_a_lie_before_the_fix() {
    let stack = |version: &str, has_queues: bool| {
        let mut host = FakeHost::new();
        host.write("sys/module/zfs/version", version);
        host.write("zfs/tank/a", "sync\tstandard\n");
        // The parameter may have changed since the volume was opened.
        host.write("sys/module/zfs/parameters/zvol_use_blk_mq", "1");
        let volume = host.disk("zd0", &[]);
        if has_queues {
            host.write("sys/block/zd0/mq/0/cpu_list", "0");
        }
        host.file_stack(&format!("device=240:{} dataset=tank/a", volume.minor))
    };
    for version in ["2.2.8", "2.2.99-1", "2.3.4-1", "2.3.99-1", "2.4.0-rc1"] {
        check(&stack(version, true), NotKept, "zvol_use_blk_mq=0");
        check(&stack(version, false), Kept, "");
    }
    check(&stack("?", true), Unknown, "blk-mq");
    for version in ["2.2.9", "2.2.10", "2.3.5", "2.4.0-rc2", "2.4.0-1", "2.4.1"] {
        check(&stack(version, true), Kept, "");
    }
}

#[test]
fn pools_without_flushes_are_uncertain() {
    for parameter in ["zfs_nocacheflush", "zil_nocacheflush"] {
        let host = FakeHost::new();
        host.write("zfs/tank/a", "sync\tstandard\n");
        host.write(&format!("sys/module/zfs/parameters/{parameter}"), "1");
        host.mounts("8 1 0:50 / /m rw - zfs tank/a rw");
        check(&host.file_stack("mount=8"), Unknown, parameter);
    }
}

#[test]
fn a_volume_below_lvm_is_found_by_its_link() {
    let mut host = FakeHost::new();
    host.write("zfs/tank/a", "sync\tdisabled\n");
    host.disk("zd0", &[("dev", "240:0")]);
    let volume = host.disk("dm-0", &[("dm/uuid", "LVM-a"), ("dm/name", "vg-lv")]);
    host.stack("dm-0", &["zd0"]);
    let unknown = host.device_stack(volume);
    check(&unknown, Unknown, "`sync`");
    host.write("run/udev/data/b240:0", "S:disk/by-id/x+y\nS:zvol/tank/a\nE:A=1\n");
    check(&host.device_stack(volume), NotKept, "zfs set sync=standard tank/a");
    host.write("zfs/tank/a+b", "sync\tstandard\n");
    host.write("run/udev/data/b240:0", "S:zvol/tank/a+b\n");
    check(&host.device_stack(volume), Unknown, "`sync`");
}

#[test]
fn the_members_of_a_pool_decide_without_flushes() {
    let stack = |attributes: &[(&str, &str)], parameter: &str| {
        let mut host = FakeHost::new();
        let disk = host.disk("nvme0n1", attributes);
        host.write("files/dev/nvme0n1", &format!("device=240:{}", disk.minor));
        host.write("zfs/tank/a", "sync\tstandard\n");
        host.write("zpool/tank", "tank\t1G\n\t/dev/nvme0n1\t1G\n");
        host.write("sys/module/zfs/parameters/zil_nocacheflush", parameter);
        host.mounts("8 1 0:50 / /m rw - zfs tank/a rw");
        host.file_stack("mount=8")
    };
    check(&stack(&[], "1"), NotKept, "zil_nocacheflush");
    check(&stack(&[THROUGH], "1"), Kept, "zil_nocacheflush");
    check(&stack(&[], "0"), Kept, "");
    check(&stack(&[THROUGH, ("queue/fua", "1")], "0"), NotKept, "its driver reports");
}

#[test]
fn the_log_device_of_an_xfs_counts() {
    let mut host = FakeHost::new();
    host.disk("nvme0n1", &[]);
    let log = host.disk("nvme1n1", &[THROUGH, ("queue/fua", "1")]);
    host.write("files/dev/nvme1n1", &format!("device=240:{}", log.minor));
    host.mounts("8 1 240:0 / /m rw - xfs /dev/nvme0n1 rw,logdev=/dev/nvme1n1");
    check(&host.file_stack("mount=8"), NotKept, "/sys/block/nvme1n1/");
}

#[test]
fn problems_are_listed_from_the_top_down() {
    let mut host = FakeHost::new();
    host.disk("nvme0n1", &[THROUGH, ("queue/fua", "1")]);
    host.mounts("7 1 240:0 / /srv rw - ext4 /dev/nvme0n1 rw,nobarrier");
    let device = host.loop_device("loop0", "1", "mount=7");
    host.set("loop0", "queue/write_cache", "write through");
    let problems = host.device_stack(device).problems();
    let storeys: Vec<_> = problems.iter().map(|problem| problem.storey.as_str()).collect();
    assert_eq!(storeys, ["/dev/loop0", "/srv", "/dev/nvme0n1"]);
}
