//! Memory of the host that disks need beside that of the guest.

use block::MapMemory;

use super::*;
use crate::memory::{CgroupMemory, LimitEffect};

/// Guest memory, page tables, this program, and the copies of one disk's data.
const NEEDED: u64 = (64 << 20) + (256 << 10) + (8 << 20) + (4 << 20);
/// The pages of the map of 10 GiB.
const MAP: u64 = 320 << 10;

/// A folder with an image "base" of 10 GiB and a layer "a" over it, and memory for the maps that
/// the layer has.
fn host() -> (HostFixture, u64) {
    let host = HostFixture::new();
    host.file("base", 10 << 30);
    let path = |name: &str| host.folder.path().join(name);
    block::create_layer(&path("a"), &path("base"), None).unwrap();
    let maps = MapMemory::of_layer(&path("a"));
    assert_eq!((maps.most - maps.now, maps.now < 1 << 20), (MAP, true));
    (host, maps.now)
}

/// The report on a disk with these keys in a cgroup, or on a host, with so much memory.
fn report(host: &mut HostFixture, keys: &str, cgroup: u64, of_host: u64) -> String {
    let (file, effect) = ("/sys/fs/cgroup/vm".into(), LimitEffect::Kill);
    host.facts.memory.cgroups =
        vec![CgroupMemory { file, limit_bytes: 100 << 20, available_bytes: cgroup, effect }];
    host.facts.memory.host_bytes = Some(of_host);
    host.report_with_base(&format!("[[disk]]\nid='a'\n{keys}"))
}

#[test]
fn the_maps_of_layers_need_memory() {
    let (mut host, maps) = host();
    let layer = "path='a'\nbase='base'\n";
    let mut report = |cgroup, of_host| report(&mut host, layer, cgroup, of_host);
    assert_eq!(report(NEEDED + maps + MAP, (64 << 20) + maps), "");
    let reports = [
        report(NEEDED + maps + MAP - 1, 1 << 40),
        report(NEEDED + maps - 1, 1 << 40),
        report(1 << 40, (64 << 20) + maps - 1),
    ];
    assert_data_eq!(
        reports.concat(),
        str![[r#"
warning: `memory` and the maps of layers may exceed the limit of the cgroup, 100 MiB in /sys/fs/cgroup/vm
  '64MiB'  <- 64 MiB requested, 13 MiB more for this program, and 1 MiB once its layers are written, 76 MiB available: the kernel would kill the machine
  raise the limit (`MemoryMax=` of a systemd unit), or lower `memory`
`memory` exceeds the limit of the cgroup, 100 MiB in /sys/fs/cgroup/vm
  '64MiB'  <- 64 MiB requested, 13 MiB more for this program, 76 MiB available: the kernel would kill the machine
  raise the limit (`MemoryMax=` of a systemd unit), or lower `memory`
`memory` exceeds the available memory of the host
  '64MiB'  <- 64 MiB requested, 1 MiB more for its disks, 64 MiB available
  write at most "62MiB", or free memory on the host

"#]]
    );
}

#[test]
fn changes_in_memory_need_memory() {
    let (mut host, map) = host();
    let keys = "base='base'\nephemeral=true\nephemeral_limit='16MiB'\n";
    let (cgroup, of_host) = (NEEDED + map + (16 << 20), (80 << 20) + map);
    let mut changes = |cgroup, of_host| report(&mut host, keys, cgroup, of_host);
    assert_eq!(changes(cgroup + MAP, of_host), "");
    let reports = [
        changes(cgroup + MAP - 1, of_host),
        changes(cgroup - 1, 1 << 40),
        changes(1 << 40, of_host - 1),
        changes(1 << 40, 10 << 20),
    ];
    assert_data_eq!(
        reports.concat(),
        str![[r#"
warning: `memory` and the maps of layers may exceed the limit of the cgroup, 100 MiB in /sys/fs/cgroup/vm
  '64MiB'  <- 64 MiB requested, 29 MiB more for this program, and 1 MiB once its layers are written, 92 MiB available: the kernel would kill the machine
  raise the limit (`MemoryMax=` of a systemd unit), or lower `memory` or `ephemeral_limit`
`memory` exceeds the limit of the cgroup, 100 MiB in /sys/fs/cgroup/vm
  '64MiB'  <- 64 MiB requested, 29 MiB more for this program, 92 MiB available: the kernel would kill the machine
  raise the limit (`MemoryMax=` of a systemd unit), or lower `memory` or `ephemeral_limit`
`memory` exceeds the available memory of the host
  '64MiB'  <- 64 MiB requested, 17 MiB more for its disks, 80 MiB available
  write at most "62MiB", lower `ephemeral_limit`, or free memory on the host
`memory` exceeds the available memory of the host
  '64MiB'  <- 64 MiB requested, 17 MiB more for its disks, 10 MiB available
  lower `ephemeral_limit`, or free memory on the host

"#]]
    );
    // Those in a folder need none.
    let folder = "base='base'\nephemeral='.'\n";
    assert_eq!(report(&mut host, folder, NEEDED + map + MAP, (64 << 20) + map), "");
}
