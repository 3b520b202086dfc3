//! The guest's CPUID: all features that KVM supports, in one package of single-threaded cores.

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};

const FEATURES: u32 = 0x1;
const CACHES: u32 = 0x4;
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
const ADDRESS_SIZES: u32 = 0x8000_0008;
const AMD_TOPOLOGY: u32 = 0x8000_001e;

/// Leaf 1, EBX: the CLFLUSH line size; this module sets the other fields.
const CLFLUSH_MASK: u32 = 0x0000_ff00;
/// Leaf 1, ECX: TSC deadline timer; hypervisor present.
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: more than one logical processor.
const HYPERTHREADING: u32 = 1 << 28;

/// Leaf 0Bh, ECX: the type of a level.
const LEVEL_THREAD: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;

/// The processor model of all vCPUs.
pub(crate) struct Cpuid {
    host: CpuId,
    vcpus: u8,
    tsc_deadline: bool,
}

impl Cpuid {
    /// The features that KVM supports.
    ///
    /// # Errors
    ///
    /// KVM does not report them.
    pub(crate) fn new(kvm: &Kvm, vcpus: u8) -> Result<Self, kvm_ioctls::Error> {
        Ok(Self {
            host: kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?,
            vcpus,
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
        })
    }

    /// Sets the CPUID of the vCPU with this index.
    ///
    /// # Errors
    ///
    /// KVM refuses it.
    pub(crate) fn apply(&self, vcpu: &VcpuFd, index: u8) -> Result<(), kvm_ioctls::Error> {
        let entries = self.entries(index);
        let cpuid =
            CpuId::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
        vcpu.set_cpuid2(&cpuid)
    }

    fn entries(&self, index: u8) -> Vec<kvm_cpuid_entry2> {
        let own_topology = |function| matches!(function, TOPOLOGY | TOPOLOGY_V2);
        let mut entries: Vec<_> = self.host.as_slice().to_vec();
        entries.retain(|entry| !own_topology(entry.function));
        for entry in &mut entries {
            self.adapt(entry, index);
        }
        entries.extend(self.topology(index));
        entries
    }

    fn adapt(&self, entry: &mut kvm_cpuid_entry2, index: u8) {
        let (vcpus, apic_id) = (u32::from(self.vcpus), u32::from(index));
        match entry.function {
            FEATURES => {
                entry.ebx = entry.ebx & CLFLUSH_MASK | vcpus << 16 | apic_id << 24;
                entry.ecx |= HYPERVISOR;
                set(&mut entry.ecx, TSC_DEADLINE, self.tsc_deadline);
                set(&mut entry.edx, HYPERTHREADING, self.vcpus > 1);
            }
            // Cores in the package, and cores that share the third level cache.
            CACHES if entry.eax != 0 => {
                let sharing = if entry.eax >> 5 & 0b111 >= 3 { vcpus - 1 } else { 0 };
                entry.eax = entry.eax & 0x3fff | sharing << 14 | (vcpus - 1).min(63) << 26;
            }
            ADDRESS_SIZES => {
                entry.ecx = entry.ecx & !0xf0ff | self.core_bits() << 12 | (vcpus - 1);
            }
            AMD_TOPOLOGY => {
                entry.eax = apic_id;
                entry.ebx = apic_id;
                entry.ecx = 0;
            }
            _ => {}
        }
    }

    /// Leaf 0Bh: one thread per core, and all cores in one package.
    fn topology(&self, index: u8) -> [kvm_cpuid_entry2; 3] {
        let level = |level: u32, shift: u32, processors: u32, kind: u32| kvm_cpuid_entry2 {
            function: TOPOLOGY,
            index: level,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: processors,
            ecx: kind | level,
            edx: index.into(),
            ..kvm_cpuid_entry2::default()
        };
        [
            level(0, 0, 1, LEVEL_THREAD),
            level(1, self.core_bits(), self.vcpus.into(), LEVEL_CORE),
            level(2, 0, 0, 0),
        ]
    }

    /// Bits of the APIC id that select the core.
    fn core_bits(&self) -> u32 {
        u32::from(self.vcpus).next_power_of_two().trailing_zeros()
    }
}

fn set(register: &mut u32, bits: u32, on: bool) {
    if on {
        *register |= bits;
    } else {
        *register &= !bits;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpuid(vcpus: u8, tsc_deadline: bool) -> Cpuid {
        let leaf = |function, ecx| kvm_cpuid_entry2 {
            function,
            ebx: 0x0102_0800,
            ecx,
            ..kvm_cpuid_entry2::default()
        };
        let host = CpuId::from_entries(&[
            leaf(FEATURES, TSC_DEADLINE),
            leaf(TOPOLOGY, 0),
            leaf(TOPOLOGY_V2, 0),
            kvm_cpuid_entry2 { eax: 0x3028, ..leaf(ADDRESS_SIZES, 0) },
        ]);
        Cpuid { host: host.unwrap(), vcpus, tsc_deadline }
    }

    fn leaf(cpuid: &Cpuid, vcpu: u8, function: u32, index: u32) -> kvm_cpuid_entry2 {
        let matches = |entry: &kvm_cpuid_entry2| entry.function == function && entry.index == index;
        cpuid.entries(vcpu).into_iter().find(matches).unwrap()
    }

    #[test]
    fn each_vcpu_has_its_own_apic_id() {
        let cpuid = cpuid(4, true);
        for vcpu in 0..4 {
            let features = leaf(&cpuid, vcpu, FEATURES, 0);
            assert_eq!(features.ebx, u32::from(vcpu) << 24 | 4 << 16 | 0x0800);
            assert_eq!(leaf(&cpuid, vcpu, TOPOLOGY, 1).edx, u32::from(vcpu));
        }
    }

    #[test]
    fn the_topology_is_one_package_of_cores() {
        let cpuid = cpuid(6, true);
        let (threads, cores) = (leaf(&cpuid, 0, TOPOLOGY, 0), leaf(&cpuid, 0, TOPOLOGY, 1));
        assert_eq!((threads.eax, threads.ebx, threads.ecx), (0, 1, LEVEL_THREAD));
        assert_eq!((cores.eax, cores.ebx, cores.ecx), (3, 6, LEVEL_CORE | 1));
        let entries = cpuid.entries(0);
        assert_eq!(entries.iter().filter(|entry| entry.function == TOPOLOGY_V2).count(), 0);
        assert_eq!(entries.iter().filter(|entry| entry.function == TOPOLOGY).count(), 3);
    }

    #[test]
    fn the_deadline_timer_depends_on_kvm() {
        assert_ne!(leaf(&cpuid(1, true), 0, FEATURES, 0).ecx & TSC_DEADLINE, 0);
        assert_eq!(leaf(&cpuid(1, false), 0, FEATURES, 0).ecx & TSC_DEADLINE, 0);
    }
}
