//! The processor model of vCPUs: CPUID and MSRs.

mod cpuid;
mod msr;

pub(crate) use cpuid::Cpuid;
pub(crate) use msr::set_boot_msrs;
