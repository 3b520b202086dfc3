//! The workloads of docs/performance.md.

use anyhow::Result;

use super::host::OtherCpu;

/// Direction of the transfers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
}

/// Order of the offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Random,
    Sequential,
    /// Each block once, and none behind the one before, if their number is a power of two.
    Scattered,
}

/// File system of the disk image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Store {
    /// A file below `target/`, in the page cache: ext4 on most machines.
    Disk,
    /// XFS on a loop device over tmpfs: buffered writes of a file system without the variance of a
    /// disk.
    XfsOnMemory,
}

/// CPUs of driver and backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cpus {
    /// Both on one CPU.
    One,
    /// One each. The driver polls for its interrupt as KVM does for a halted vCPU; a backend polls
    /// if it can.
    Two,
}

/// A workload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Workload {
    pub(super) name: &'static str,
    pub(super) direction: Direction,
    pub(super) order: Order,
    pub(super) store: Store,
    pub(super) block_bytes: u32,
    pub(super) depth: u16,
    pub(super) cpus: Cpus,
}

/// All workloads.
pub(super) const ALL: [Workload; 6] = [
    Workload {
        name: "randread-4k-qd1",
        direction: Direction::Read,
        order: Order::Random,
        store: Store::Disk,
        block_bytes: 4 << 10,
        depth: 1,
        cpus: Cpus::One,
    },
    Workload {
        name: "randread-4k-qd1-2cpu",
        direction: Direction::Read,
        order: Order::Random,
        store: Store::Disk,
        block_bytes: 4 << 10,
        depth: 1,
        cpus: Cpus::Two,
    },
    RANDOM_READS,
    Workload {
        name: "randwrite-4k-qd32",
        direction: Direction::Write,
        order: Order::Random,
        store: Store::XfsOnMemory,
        block_bytes: 4 << 10,
        depth: 32,
        cpus: Cpus::One,
    },
    Workload {
        name: "read-256k-qd8",
        direction: Direction::Read,
        order: Order::Sequential,
        store: Store::Disk,
        block_bytes: 256 << 10,
        depth: 8,
        cpus: Cpus::One,
    },
    Workload {
        name: "write-256k-qd8",
        direction: Direction::Write,
        order: Order::Sequential,
        store: Store::XfsOnMemory,
        block_bytes: 256 << 10,
        depth: 8,
        cpus: Cpus::One,
    },
];

/// The workload of the gate.
pub(super) const RANDOM_READS: Workload = Workload {
    name: "randread-4k-qd32",
    direction: Direction::Read,
    order: Order::Random,
    store: Store::Disk,
    block_bytes: 4 << 10,
    depth: 32,
    cpus: Cpus::One,
};

impl Workload {
    /// Moves the calling thread, the driver, off the backend's CPU if the workload is for two.
    pub(super) fn move_driver(&self) -> Result<Option<OtherCpu>> {
        (self.cpus == Cpus::Two).then(OtherCpu::move_to).transpose()
    }

    /// The value of fio's `--rw`.
    pub(super) fn fio_name(&self) -> &'static str {
        match (self.order, self.direction) {
            (Order::Random | Order::Scattered, Direction::Read) => "randread",
            (Order::Random | Order::Scattered, Direction::Write) => "randwrite",
            (Order::Sequential, Direction::Read) => "read",
            (Order::Sequential, Direction::Write) => "write",
        }
    }
}
