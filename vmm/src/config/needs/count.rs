//! Counts descriptors and threads from the configuration.
//!
//! The numbers follow the code that opens and starts them; `vmm/tests/run/limits` compares them
//! with running machines.

use block::EngineKind;

use super::{ResourceNeeds, Usage};
use crate::config::model::{ConsoleConfig, DiskBus, DiskConfig, MachineConfig};

/// Descriptors that exist for a moment: a disk that is being opened, files of /proc and /sys, a
/// client that is refused.
const TRANSIENT: u64 = 8;
/// Clients of the control socket at a time, the listener, and the notifiers of the end and of jobs;
/// the thread, and those of jobs.
const CONTROL_SOCKET: Usage = Usage { descriptors: 8 + 3, threads: 1 + 4 };
/// Threads of a pool; see the thread-pool engine.
const POOL_THREADS: u64 = 4;
/// Threads of the kernel for calls of a queue's rings that block. It starts more if it can, and
/// without any it fails the calls.
const KERNEL_WORKERS: u64 = 1;
/// A program that measures the space of a ZFS volume: pipes for its output and its start.
const SPACE_WATCH: Usage = Usage { descriptors: 4, threads: 1 };
/// Memory regions of a vhost-user frontend, and their successors while the table is replaced.
const FRONTEND_REGIONS: u64 = 2 * 64;

/// How `engine = "auto"` is resolved on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EnginePolicy {
    pub(crate) refuses_io_uring: bool,
}

impl EnginePolicy {
    /// The policy of this host.
    pub(crate) fn probe() -> Self {
        Self { refuses_io_uring: block::refuses_io_uring() }
    }

    fn has_pool(self, kind: EngineKind) -> bool {
        match kind {
            EngineKind::Auto => self.refuses_io_uring,
            EngineKind::IoUring => false,
            EngineKind::Threads => true,
        }
    }

    /// The needs of `machine`.
    pub(crate) fn machine(self, machine: &MachineConfig) -> ResourceNeeds {
        let disks = machine.disks.iter().map(|disk| self.disk_of_machine(disk, machine)).sum();
        let blk = machine.disks.iter().filter(|disk| disk.bus == DiskBus::VirtioBlk);
        let blk = blk.map(|disk| pci_device(u64::from(disk.queues)));
        let scsi = machine.controllers.iter().map(|scsi| scsi_controller(scsi.queues.into()));
        // A tap device, and a queue in each direction.
        let net = Usage { descriptors: 1, threads: 0 } + pci_device(2);
        let nets = machine.nets.iter().map(|_| net);
        let entropy = pci_device(1);
        let devices = blk.chain(scsi).chain(nets).sum::<Usage>() + entropy;
        ResourceNeeds { disks, devices, program: program(machine) }
    }

    /// The needs of `bulkhead serve`, with or without a control socket.
    pub(crate) fn served_disk(self, disk: &DiskConfig, has_control: bool) -> ResourceNeeds {
        let queues = u64::from(disk.queues);
        // The kick, and two events with a spare each: twice while a connection is reset.
        let rings = Usage { descriptors: 9 * queues, threads: queues };
        // The connection three times, the channel for requests of the back end, inflight memory
        // and its successor, notifiers of a disconnect and of a configuration change.
        let frontend = Usage { descriptors: 8 + FRONTEND_REGIONS, threads: 1 };
        // Signals, their watch at the end, log, event loop, listener. The control thread, the log,
        // the watch of signals, the watch of stalls.
        let program = Usage { descriptors: 5 + TRANSIENT, threads: 4 };
        let control = if has_control { CONTROL_SOCKET } else { Usage::default() };
        let disks = image(disk) + self.engines_of(disk);
        ResourceNeeds { disks, devices: rings + frontend, program: program + control }
    }

    fn disk_of_machine(self, disk: &DiskConfig, machine: &MachineConfig) -> Usage {
        let engines = match disk.bus {
            DiskBus::VirtioBlk => self.engines_of(disk),
            // Besides its engines a thread for queries of the store.
            DiskBus::VirtioScsi(address) => {
                let mut controllers = machine.controllers.iter();
                let controller = controllers.find(|scsi| scsi.number == address.controller);
                let queues = controller.map_or(disk.queues, |scsi| scsi.queues);
                let query = Usage { descriptors: 0, threads: 1 };
                let engines = self.scsi_engines(disk.options.engine, queues.into());
                layered(disk, queues.into(), engines) + query
            }
        };
        image(disk) + engines
    }

    /// The engines of a disk with its own device.
    fn engines_of(self, disk: &DiskConfig) -> Usage {
        layered(disk, disk.queues.into(), self.blk_engines(disk))
    }

    /// The engines of a file of such a disk, made one after the other.
    fn blk_engines(self, disk: &DiskConfig) -> Usage {
        let queues = u64::from(disk.queues);
        if self.has_pool(disk.options.engine) {
            // The image twice, the event of results, epoll, the kick.
            return Usage { descriptors: 5 * queues, threads: POOL_THREADS * queues };
        }
        // The ring, and the kick for its poll and for the disk. While an engine is being made also
        // the image twice, which the ring then holds.
        Usage { descriptors: 3 * queues + 2, threads: KERNEL_WORKERS * queues }
    }

    /// The engines of a disk on a controller with `queues` request queues, which make them at any
    /// time: as above, and a kick of its own for each but the first one of a queue. A ring has an
    /// event and an epoll descriptor as well, once its queue has several engines; the image is
    /// closed by then.
    fn scsi_engines(self, kind: EngineKind, queues: u64) -> Usage {
        if self.has_pool(kind) {
            return Usage { descriptors: 6 * queues, threads: POOL_THREADS * queues };
        }
        Usage { descriptors: 6 * queues, threads: 0 }
    }
}

/// The files of the image, the thread that flushes it at the end, the watch of a soft limit, and
/// the recording.
fn image(disk: &DiskConfig) -> Usage {
    let watch = disk.options.soft_limit.map(|_| SPACE_WATCH).unwrap_or_default();
    // The log, and the thread that writes it.
    let record = u64::from(disk.record.is_some());
    let record = Usage { descriptors: record, threads: record };
    Usage { descriptors: disk.levels() as u64, threads: 1 } + watch + record
}

/// The engines of a disk whose files need `engines` each. A recorded disk has a kick for each queue
/// as well. A layer has for each queue a kick, an epoll descriptor, and an event and an epoll
/// descriptor for each of its rings.
fn layered(disk: &DiskConfig, queues: u64, engines: Usage) -> Usage {
    let levels = disk.levels() as u64;
    let record = if disk.record.is_some() { queues } else { 0 };
    let record = Usage { descriptors: record, threads: 0 };
    if levels == 1 {
        return engines + record;
    }
    let own = Usage { descriptors: queues * (2 + 2 * levels), threads: 0 };
    std::iter::repeat_n(engines, disk.levels()).sum::<Usage>() + own + record
}

/// A kick and an interrupt for each queue, an interrupt for the configuration; a worker for each
/// queue, and the thread that closes the device at the end.
fn pci_device(queues: u64) -> Usage {
    Usage { descriptors: 2 * queues + 1, threads: queues + 1 }
}

/// Request queues, control queue and event queue; the signals of waiting events and of a task
/// management function. A queue's worker runs the rings of all disks.
fn scsi_controller(queues: u64) -> Usage {
    Usage { descriptors: 2, threads: KERNEL_WORKERS * queues } + pci_device(queues + 2)
}

fn program(machine: &MachineConfig) -> Usage {
    // /dev/kvm, the VM, the interrupts of serial port and power button, the notifiers of console
    // input, of the machine's end and of commands, signals, their watch at start and end, log,
    // event loop.
    let base = Usage { descriptors: 11 + TRANSIENT, threads: 0 };
    // The control thread, the console, the log, the watch of signals and that of stalls, a disk
    // that is being detached, and KVM's thread that recovers huge pages (Linux 6.13).
    let base = base + Usage { descriptors: 0, threads: 7 };
    let vcpus = u64::from(machine.vcpus);
    let vcpus = Usage { descriptors: vcpus, threads: vcpus };
    let console = match machine.console {
        ConsoleConfig::Off => 0,
        ConsoleConfig::Stdio | ConsoleConfig::File { .. } => 1,
        // The listener, a client for input and for output, and the output of the one before.
        ConsoleConfig::Socket(_) => 4,
    };
    let console = Usage { descriptors: console, threads: 0 };
    let control = machine.control.as_ref().map(|_| CONTROL_SOCKET).unwrap_or_default();
    base + vcpus + console + control
}
