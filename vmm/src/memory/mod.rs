//! Guest memory: mapped and allocated completely before the guest starts.
//!
//! Runs on the control thread before any vCPU exists.

mod anonymous;
mod arc;
mod available;
mod cgroup;
mod error;
mod meminfo;
mod populate;

use devices::GuestMemory;

pub(crate) use available::AvailableMemory;
pub(crate) use cgroup::{CgroupMemory, LimitEffect};
pub(crate) use error::MemoryError;

/// Guest memory of the given size, every page of it allocated.
///
/// # Errors
///
/// The host lacks the memory, or `interrupted` returned true.
pub(crate) fn claim(
    memory_bytes: u64,
    interrupted: impl FnMut() -> bool,
) -> Result<GuestMemory, MemoryError> {
    let memory = anonymous::map(memory_bytes)?;
    populate::populate(&memory, memory_bytes, interrupted)?;
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use vm_memory::GuestMemoryBackend;

    use super::*;
    use crate::layout::MIB;

    /// Bit 63 of an entry of `/proc/PID/pagemap`: the page is present.
    const PRESENT: u64 = 1 << 63;
    const PAGE: u64 = 4096;

    #[test]
    fn claimed_memory_is_present() {
        let memory = claim(16 * MIB, || false).unwrap();
        let region = memory.iter().next().unwrap();
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let mut entries = vec![0; region.size() / 4096 * 8];
        pagemap.read_exact_at(&mut entries, region.as_ptr() as u64 / PAGE * 8).unwrap();
        let mut entries =
            entries.chunks_exact(8).map(|entry| u64::from_ne_bytes(entry.try_into().unwrap()));
        assert!(entries.all(|entry| entry & PRESENT != 0));
    }

    /// The flags of the mapping with `address` in `/proc/self/smaps` (proc_pid_smaps(5)). It may
    /// begin before: the kernel merges neighbours, as other tests have.
    fn flags_at(address: *const u8) -> String {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let has_address = |line: &&str| {
            let range = line.split(' ').next().and_then(|word| word.split_once('-'));
            let bounds = range.map(|(start, end)| {
                [start, end].map(|bound| usize::from_str_radix(bound, 16).unwrap_or(0))
            });
            bounds.is_some_and(|[start, end]| (start..end).contains(&(address as usize)))
        };
        let mut lines = smaps.lines();
        lines.find(has_address).expect("the mapping");
        lines.find_map(|line| line.strip_prefix("VmFlags:")).unwrap().to_owned()
    }

    #[test]
    fn claimed_memory_is_neither_dumped_nor_inherited() {
        let memory = claim(16 * MIB, || false).unwrap();
        let flags = flags_at(memory.iter().next().unwrap().as_ptr());
        for flag in ["dd", "dc"] {
            assert!(flags.split_whitespace().any(|one| one == flag), "{flag}: {flags}");
        }
    }

    #[test]
    fn a_signal_ends_the_claim() {
        assert!(matches!(claim(16 * MIB, || true), Err(MemoryError::Interrupted)));
    }

    #[test]
    fn an_impossible_size_is_named() {
        let error = claim(1 << 50, || false).unwrap_err();
        assert!(error.to_string().contains("1073741824 MiB"), "{error}");
    }
}
