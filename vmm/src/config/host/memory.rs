//! Guest memory, and the memory that the host and the cgroups of this process can give.

use std::ops::Range;

use block::{EphemeralPlace, MapMemory, RECORD_LOG_BYTES, RECORD_QUEUE_BYTES};

use super::layer::is_to_be_made;
use super::purpose::Purpose;
use crate::config::limits::default_queues;
use crate::config::report::Diagnostic;
use crate::config::size::{MEMORY_STEP, exact_size, human_size};
use crate::config::source::{DiskTable, MachineSource};
use crate::host_query::HostQuery;
use crate::memory::{AvailableMemory, CgroupMemory, LimitEffect};

/// Memory of this program in its cgroup: data, stacks, and page cache that it has mapped.
const PROGRAM_BYTES: u64 = 8 << 20;
/// Guest memory that one page of a page table maps, for the process and for KVM's tables.
const MAPPED_BY_PAGE: u64 = 512;

/// Memory that disks need beside that of the guest, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct DiskMemory {
    /// Copies of the guest's data, and data that is not in the log of a disk yet.
    copies: u64,
    /// Changes of ephemeral disks in memory.
    ephemeral: u64,
    /// The maps of layers.
    maps: MapMemory,
}

impl DiskMemory {
    fn of(disks: &[DiskTable], vcpus: u16, purpose: Purpose) -> Self {
        let in_memory = disks.iter().filter(|disk| disk.ephemeral == Some(EphemeralPlace::Memory));
        Self {
            copies: disks.iter().map(|disk| copies_of(disk, vcpus)).sum(),
            ephemeral: in_memory.filter_map(DiskTable::changes_limit).fold(0, u64::saturating_add),
            maps: disks.iter().map(|disk| maps_of(disk, purpose)).sum(),
        }
    }
}

fn copies_of(disk: &DiskTable, vcpus: u16) -> u64 {
    let queues = u64::from(disk.queues.unwrap_or(default_queues(vcpus)));
    let record =
        if disk.record.is_some() { RECORD_LOG_BYTES + queues * RECORD_QUEUE_BYTES } else { 0 };
    disk.options.copy_memory.saturating_add(record)
}

/// The memory of the maps of a disk. A start waits for the host as long as it takes.
fn maps_of(disk: &DiskTable, purpose: Purpose) -> MapMemory {
    let Some(base) = disk.base.clone() else { return MapMemory::default() };
    let (path, limit) = (disk.path.clone(), disk.changes_limit());
    let is_new = disk.ephemeral.is_some() || is_to_be_made(disk);
    let query = move || match is_new {
        true => MapMemory::over_base(&base, limit),
        false => MapMemory::of_layer(&path),
    };
    match purpose {
        Purpose::Start => query(),
        // Another check reports the host that does not answer.
        Purpose::Report => HostQuery::start(query).answer().unwrap_or_default(),
    }
}

/// An error if guest memory exceeds the memory of the host, and for the lowest limit of a cgroup. A
/// warning if only the maps of its layers can exceed that, once they are written.
pub(super) fn check_memory(
    source: &MachineSource,
    available: &AvailableMemory,
    purpose: Purpose,
) -> Vec<Diagnostic> {
    let Some(memory) = source.machine.memory.as_ref() else { return Vec::new() };
    let (bytes, span) = (*memory.get_ref(), memory.span());
    let vcpus = source.machine.vcpus.as_ref().map_or(1, |vcpus| *vcpus.get_ref());
    let disks = DiskMemory::of(&source.disks, vcpus, purpose);
    let host = available.host_bytes.and_then(|host| check_host(bytes, &span, disks, host));
    let lowest = available.cgroups.iter().min_by_key(|limit| limit.available_bytes);
    let cgroup = lowest.and_then(|limit| check_cgroup(bytes, &span, disks, limit));
    host.into_iter().chain(cgroup).collect()
}

fn check_host(
    bytes: u64,
    span: &Range<usize>,
    disks: DiskMemory,
    available: u64,
) -> Option<Diagnostic> {
    let DiskMemory { ephemeral, maps, .. } = disks;
    let other = ephemeral.saturating_add(maps.now);
    let most = available.saturating_sub(other) / MEMORY_STEP * MEMORY_STEP;
    (bytes.saturating_add(other) > available).then(|| {
        let (requested, available) = (bytes >> 20, available >> 20);
        let disks = match other {
            0 => String::new(),
            other => format!("{} MiB more for its disks, ", other.div_ceil(1 << 20)),
        };
        let label = format!("{requested} MiB requested, {disks}{available} MiB available");
        let lower = match (most, ephemeral) {
            (0, _) => "lower `ephemeral_limit`".to_owned(),
            (_, 0) => format!("write at most \"{}\"", exact_size(most)),
            _ => format!("write at most \"{}\", lower `ephemeral_limit`", exact_size(most)),
        };
        Diagnostic::error("`memory` exceeds the available memory of the host")
            .at(span.clone(), label)
            .help(format!("{lower}, or free memory on the host"))
    })
}

/// The cgroup is charged for page tables, for this program, and for what the disks need.
fn check_cgroup(
    bytes: u64,
    span: &Range<usize>,
    DiskMemory { copies, ephemeral, maps }: DiskMemory,
    limit: &CgroupMemory,
) -> Option<Diagnostic> {
    let tables = 2 * (bytes / MAPPED_BY_PAGE);
    let other = [tables, PROGRAM_BYTES, copies, ephemeral, maps.now];
    let other = other.into_iter().fold(0, u64::saturating_add);
    let needed = bytes.saturating_add(other);
    let growth = maps.most.saturating_sub(maps.now);
    let CgroupMemory { file, limit_bytes, available_bytes, effect } = limit;
    let (file, limit) = (file.display(), human_size(*limit_bytes));
    let consequence = match effect {
        LimitEffect::Kill => "the kernel would kill the machine",
        LimitEffect::Throttle => "the kernel would throttle the machine",
    };
    let setting = match effect {
        LimitEffect::Kill => "MemoryMax=",
        LimitEffect::Throttle => "MemoryHigh=",
    };
    let (requested, available) = (bytes >> 20, available_bytes >> 20);
    let other = other.div_ceil(1 << 20);
    let more = format!("{requested} MiB requested, {other} MiB more for this program");
    let diagnostic = if needed > *available_bytes {
        Diagnostic::error(format!("`memory` exceeds the limit of the cgroup, {limit} in {file}"))
            .at(span.clone(), format!("{more}, {available} MiB available: {consequence}"))
    } else if needed.saturating_add(growth) > *available_bytes {
        let growth = growth.div_ceil(1 << 20);
        let message = format!(
            "`memory` and the maps of layers may exceed the limit of the cgroup, {limit} in {file}"
        );
        let label = format!(
            "{more}, and {growth} MiB once its layers are written, {available} MiB available: \
             {consequence}"
        );
        Diagnostic::warning(message).at(span.clone(), label)
    } else {
        return None;
    };
    let remedy = format!("raise the limit (`{setting}` of a systemd unit), or lower `memory`");
    let ephemeral = if ephemeral > 0 { " or `ephemeral_limit`" } else { "" };
    Some(diagnostic.help(remedy + ephemeral))
}
