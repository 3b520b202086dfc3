//! The walk ends and does not panic, whatever sysfs holds.

use super::fake_host::FakeHost;
use crate::store_stack::{Storey, StoreyKind};

fn depth(storey: &Storey) -> usize {
    1 + storey.below.iter().map(depth).max().unwrap_or(0)
}

fn count(storey: &Storey) -> usize {
    1 + storey.below.iter().map(count).sum::<usize>()
}

fn has_unknown(storey: &Storey, part: &str) -> bool {
    let this = matches!(&storey.kind, StoreyKind::Unknown(reason) if reason.contains(part));
    this || storey.below.iter().any(|below| has_unknown(below, part))
}

#[test]
fn a_cycle_of_devices_ends() {
    let mut host = FakeHost::new();
    let first = host.disk("dm-0", &[("dm/uuid", "LVM-a"), ("dm/name", "a")]);
    host.disk("dm-1", &[("dm/uuid", "LVM-b"), ("dm/name", "b")]);
    host.stack("dm-0", &["dm-1"]);
    host.stack("dm-1", &["dm-0"]);
    let stack = host.device_stack(first);
    assert_eq!(depth(&stack.root), 25);
    assert!(has_unknown(&stack.root, "deeper than 24"), "{stack:?}");
    assert!(stack.stable_copies().writes.is_some());
}

#[test]
fn a_loop_device_on_itself_ends() {
    let mut host = FakeHost::new();
    let device = host.loop_device("loop0", "1", "device=240:0");
    let stack = host.device_stack(device);
    assert!(has_unknown(&stack.root, "deeper than 24"), "{stack:?}");
}

#[test]
fn a_wide_stack_ends() {
    let mut host = FakeHost::new();
    let names: Vec<_> = (0..6).map(|index| format!("dm-{index}")).collect();
    let numbers: Vec<_> =
        names.iter().map(|name| host.disk(name, &[("dm/uuid", "LVM-a")])).collect();
    for name in &names {
        host.stack(name, &names.iter().map(String::as_str).collect::<Vec<_>>());
    }
    let stack = host.device_stack(numbers[0]);
    assert!(count(&stack.root) <= 256 + 24, "{}", count(&stack.root));
    assert!(has_unknown(&stack.root, "more than 256"));
}

#[test]
fn garbage_is_unknown() {
    let mut host = FakeHost::new();
    let disk = host.disk("sda", &[]);
    let unreadable = host.path("sys/block/sda/queue/fua");
    std::fs::remove_file(&unreadable).unwrap();
    std::fs::create_dir(&unreadable).unwrap();
    std::fs::write(host.path("sys/block/sda/queue/write_cache"), [0xff, 0, 0x80]).unwrap();
    std::fs::write(host.path("sys/block/sda/queue/logical_block_size"), "-1").unwrap();
    std::fs::write(host.path("sys/block/sda/queue/discard_max_bytes"), "9".repeat(9999)).unwrap();
    let queue = host.device_stack(disk).root.queue.unwrap();
    assert_eq!((queue.cache, queue.fua, queue.logical_block_bytes), (None, None, None));
    assert_eq!(queue.discard_max_bytes, None);
    let md = host.disk("md0", &[("md/level", "\u{0}")]);
    std::os::unix::fs::symlink("nowhere", host.path("sys/block/md0/slaves")).unwrap();
    let copies = host.device_stack(md).stable_copies();
    assert!(copies.writes.unwrap().starts_with("md "));
}

#[test]
fn a_missing_slave_is_unknown() {
    let mut host = FakeHost::new();
    let md = host.disk("md0", &[("md/level", "raid0")]);
    host.stack("md0", &["sdz"]);
    let stack = host.device_stack(md);
    assert!(has_unknown(&stack.root, "does not describe"), "{stack:?}");
    assert!(stack.stable_copies().writes.unwrap().contains("sdz"));
}

#[test]
fn nested_loop_devices_show_each_file_system() {
    let mut host = FakeHost::new();
    host.disk("sda", &[]);
    host.partition("sda", "sda2");
    host.mounts("7 1 240:1 / /srv rw,noatime - xfs /dev/sda2 rw,attr2");
    let device = host.loop_device("loop0", "1", "mount=7");
    let stack = host.device_stack(device);
    let mut storeys = vec![&stack.root];
    while let Some(below) = storeys.last().and_then(|storey| storey.below.first()) {
        storeys.push(below);
    }
    let names: Vec<_> = storeys.iter().map(|storey| storey.name.as_str()).collect();
    assert_eq!(names, ["/dev/loop0", "/srv", "/dev/sda2", "/dev/sda"]);
}
