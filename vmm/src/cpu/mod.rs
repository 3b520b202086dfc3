//! What kind of processor a vCPU is.

mod cpuid;
mod msr;

pub(crate) use cpuid::Cpuid;
pub(crate) use msr::set_boot_msrs;
