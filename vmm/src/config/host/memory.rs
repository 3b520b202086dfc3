//! Guest memory, and the memory that the host and the cgroups of this process can give.

use std::ops::Range;

use crate::config::report::Diagnostic;
use crate::config::size::{MEMORY_STEP, exact_size, human_size};
use crate::config::source::MachineSource;
use crate::memory::{AvailableMemory, CgroupMemory, LimitEffect};

/// Memory of this program in its cgroup: data, stacks, and page cache that it has mapped.
const PROGRAM_BYTES: u64 = 8 << 20;
/// Guest memory that one page of a page table maps, for the process and for KVM's tables.
const MAPPED_BY_PAGE: u64 = 512;

/// An error if guest memory exceeds the memory of the host, and for the lowest limit of a cgroup.
pub(super) fn check_memory(source: &MachineSource, available: &AvailableMemory) -> Vec<Diagnostic> {
    let Some(memory) = source.machine.memory.as_ref() else { return Vec::new() };
    let (bytes, span) = (*memory.get_ref(), memory.span());
    let host = available.host_bytes.and_then(|host| check_host(bytes, span.clone(), host));
    let lowest = available.cgroups.iter().min_by_key(|limit| limit.available_bytes);
    let copies = source.disks.iter().map(|disk| disk.options.copy_memory).sum::<u64>();
    let cgroup = lowest.and_then(|limit| check_cgroup(bytes, span, copies, limit));
    host.into_iter().chain(cgroup).collect()
}

fn check_host(bytes: u64, span: Range<usize>, available: u64) -> Option<Diagnostic> {
    let most = available / MEMORY_STEP * MEMORY_STEP;
    (bytes > available).then(|| {
        let (requested, available) = (bytes >> 20, available >> 20);
        let label = format!("{requested} MiB requested, {available} MiB available");
        Diagnostic::error("`memory` exceeds the available memory of the host")
            .at(span, label)
            .help(format!("write at most \"{}\", or free memory on the host", exact_size(most)))
    })
}

/// The cgroup is charged for page tables, for this program, and for copies of the disks' data.
fn check_cgroup(
    bytes: u64,
    span: Range<usize>,
    copies: u64,
    limit: &CgroupMemory,
) -> Option<Diagnostic> {
    let tables = 2 * (bytes / MAPPED_BY_PAGE);
    let other = tables.saturating_add(PROGRAM_BYTES).saturating_add(copies);
    let needed = bytes.saturating_add(other);
    let CgroupMemory { file, limit_bytes, available_bytes, effect } = limit;
    (needed > *available_bytes).then(|| {
        let file = file.display();
        let consequence = match effect {
            LimitEffect::Kill => "the kernel would kill the machine",
            LimitEffect::Throttle => "the kernel would throttle the machine",
        };
        let (requested, other) = (bytes >> 20, other.div_ceil(1 << 20));
        let available = available_bytes >> 20;
        let label = format!(
            "{requested} MiB requested, {other} MiB more for this program, {available} MiB \
             available: {consequence}"
        );
        let limit = human_size(*limit_bytes);
        let setting = match effect {
            LimitEffect::Kill => "MemoryMax=",
            LimitEffect::Throttle => "MemoryHigh=",
        };
        Diagnostic::error(format!("`memory` exceeds the limit of the cgroup, {limit} in {file}"))
            .at(span, label)
            .help(format!("raise the limit (`{setting}` of a systemd unit), or lower `memory`"))
    })
}
