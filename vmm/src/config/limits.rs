//! Limits of numbers in the configuration, for readers and checks.

use devices::virtio::Address;

/// APIC ids have eight bits: 255 is the broadcast id, and one is left for the I/O APIC.
pub(super) const VCPUS_MAX: u16 = 254;
/// The highest number of a SCSI controller.
pub(super) const CONTROLLER_MAX: u16 = 15;
/// The highest SCSI target.
pub(super) const TARGET_MAX: u16 = 255;
/// The highest LUN.
pub(super) const LUN_MAX: u16 = Address::MAX_LUN;

/// Default limit of a console file, in bytes.
pub(super) const CONSOLE_FILE_BYTES: u64 = 16 << 20;
/// Smallest limit of a console file, in bytes.
pub(super) const CONSOLE_FILE_MIN: u64 = 64 << 10;
/// Largest limit of a console file, in bytes.
pub(super) const CONSOLE_FILE_MAX: u64 = 1 << 40;

/// Default limit of the changes of an ephemeral disk in memory, in bytes.
pub(super) const EPHEMERAL_MEMORY_BYTES: u64 = 1 << 30;
/// Smallest limit, in bytes.
pub(super) const EPHEMERAL_MIN: u64 = 1 << 20;
/// Largest limit, in bytes: that of a layer.
pub(super) const EPHEMERAL_MAX: u64 = 1 << 46;

/// Smallest limit of the log of a recorded disk, in bytes.
pub(super) const RECORD_MIN: u64 = 1 << 20;
/// Largest limit, in bytes.
pub(super) const RECORD_MAX: u64 = 1 << 46;

/// Default number of queues of a disk or a controller.
pub(super) fn default_queues(vcpus: u16) -> u16 {
    const QUEUES: u16 = 4;
    vcpus.min(QUEUES)
}
