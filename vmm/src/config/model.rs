//! The configuration after every check, as the rest of the program reads it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use block::{DiskOptions, EphemeralPlace, RecordOptions};
use devices::virtio::Address;

/// A machine that this host can run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MachineConfig {
    /// Virtual processors, 1 to 254.
    pub(crate) vcpus: u8,
    /// Guest memory, a multiple of 2 MiB.
    pub(crate) memory_bytes: u64,
    /// Time between the power button and a forced stop.
    pub(crate) shutdown_grace: Duration,
    /// The kernel to boot.
    pub(crate) kernel: KernelConfig,
    /// Disks in file order.
    pub(crate) disks: Vec<DiskConfig>,
    /// SCSI controllers in ascending order, with and without disks.
    pub(crate) controllers: Vec<ControllerConfig>,
    /// Network devices in file order.
    pub(crate) nets: Vec<NetConfig>,
    /// The other end of the serial console.
    pub(crate) console: ConsoleConfig,
    /// Path of the control socket.
    pub(crate) control: Option<PathBuf>,
}

#[cfg(test)]
impl MachineConfig {
    /// A machine with one vCPU and the entropy device.
    pub(crate) fn minimal() -> Self {
        Self {
            vcpus: 1,
            memory_bytes: 32 << 20,
            shutdown_grace: Duration::from_secs(1),
            kernel: KernelConfig {
                image: "vmlinuz".into(),
                initramfs: None,
                cmdline: "console=ttyS0".into(),
            },
            disks: vec![],
            controllers: vec![],
            nets: vec![],
            console: ConsoleConfig::Off,
            control: None,
        }
    }
}

/// The kernel to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KernelConfig {
    /// A bzImage or an x86-64 ELF file.
    pub(crate) image: PathBuf,
    /// The initial RAM disk.
    pub(crate) initramfs: Option<PathBuf>,
    /// The command line, at most 2047 bytes and without NUL.
    pub(crate) cmdline: String,
}

/// One disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskConfig {
    /// The image file or block device, or the layer over `base`. Empty for an ephemeral disk.
    pub(crate) path: PathBuf,
    /// The base of the layer; `None` if `path` is the disk itself.
    pub(crate) base: Option<PathBuf>,
    /// The layer is made if it does not exist.
    pub(crate) create: bool,
    /// The changes over `base` if they are gone at the end; `None` if `path` keeps the disk.
    pub(crate) ephemeral: Option<EphemeralChanges>,
    /// The guest's interface to the disk.
    pub(crate) bus: DiskBus,
    /// Request queues, at least 1 and at most one per vCPU.
    pub(crate) queues: u16,
    /// The log of what passes the disk; `None` if it is not recorded.
    pub(crate) record: Option<RecordOptions>,
    /// Serial number that the guest reads, at most 20 bytes of ASCII.
    pub(crate) serial: String,
    /// How `block` opens the disk. `options.id` is the disk's name, unique in the machine.
    pub(crate) options: DiskOptions,
}

/// The changes of an ephemeral disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EphemeralChanges {
    /// Where they are.
    pub(crate) place: EphemeralPlace,
    /// Most bytes of them; `None` without a limit.
    pub(crate) limit: Option<u64>,
}

impl DiskConfig {
    /// The disk's name.
    pub(crate) fn id(&self) -> &str {
        &self.options.id
    }

    /// The file that the disk is known by: that of the disk, or the base of an ephemeral one.
    pub(crate) fn file(&self) -> &Path {
        match (&self.ephemeral, &self.base) {
            (Some(_), Some(base)) => base,
            _ => &self.path,
        }
    }

    /// Number of files that it is stored in: those of a layer and everything below it.
    pub(crate) fn levels(&self) -> usize {
        match &self.base {
            None => 1,
            Some(base) if self.ephemeral.is_some() => 1 + block::level_paths(base).len(),
            Some(base) if self.create && !self.path.exists() => 1 + block::level_paths(base).len(),
            Some(_) => block::level_paths(&self.path).len(),
        }
    }

    /// The address of a SCSI disk; `None` for a virtio-blk disk.
    pub(crate) fn scsi_address(&self) -> Option<ScsiAddress> {
        match self.bus {
            DiskBus::VirtioScsi(address) => Some(address),
            DiskBus::VirtioBlk => None,
        }
    }

    /// A disk "data" with one queue and defaults for everything else.
    #[cfg(test)]
    pub(crate) fn minimal(path: &std::path::Path, bus: DiskBus) -> Self {
        let options =
            DiskOptions { id: "data".into(), ..DiskOptions::new(block::CacheMode::WriteBack) };
        let (path, serial) = (path.into(), "data".into());
        let (base, create, ephemeral, record) = (None, false, None, None);
        Self { path, base, create, ephemeral, bus, queues: 1, record, serial, options }
    }
}

/// The guest's interface to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskBus {
    /// A virtio-blk device on PCI.
    VirtioBlk,
    /// A logical unit on a virtio-scsi controller.
    VirtioScsi(ScsiAddress),
}

/// Address of a SCSI disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ScsiAddress {
    /// Controller number, from 0.
    pub(crate) controller: u8,
    /// Target and LUN on the controller.
    pub(crate) address: Address,
}

/// One SCSI controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ControllerConfig {
    /// Controller number, from 0.
    pub(crate) number: u8,
    /// Request queues.
    pub(crate) queues: u16,
}

/// One network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NetConfig {
    /// The host's TAP device.
    pub(crate) tap: String,
    /// The guest's Ethernet address.
    pub(crate) mac: [u8; 6],
}

/// The other end of the serial console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ConsoleConfig {
    /// Standard input and output.
    Stdio,
    /// A file that output is appended to; no input. It is rotated when it would exceed `limit`
    /// bytes.
    File { path: PathBuf, limit: u64 },
    /// A Unix socket that `bulkhead` listens on.
    Socket(PathBuf),
    /// No input, and output is discarded.
    Off,
}
