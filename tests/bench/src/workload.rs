//! What is measured: the workloads of docs/performance.md.

use anyhow::Result;

use super::host::Elsewhere;

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
}

/// Where the next request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Random,
    Sequential,
}

/// Which file system holds the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A file below `target/`, in the page cache: ext4 on most machines.
    Disk,
    /// XFS on a loop device over tmpfs: buffered writes as a file system does them, without a
    /// disk's drift.
    XfsOnMemory,
}

/// Where driver and backend run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cpus {
    /// Both on one CPU.
    One,
    /// Each on one of its own. The driver polls for its interrupt as KVM does for a vCPU that
    /// halts; a backend polls, too, if it can.
    Two,
}

/// One workload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Workload {
    pub(super) name: &'static str,
    pub(super) direction: Direction,
    pub(super) order: Order,
    pub(super) place: Place,
    pub(super) block_bytes: u32,
    pub(super) depth: u16,
    pub(super) cpus: Cpus,
}

/// All of them.
pub(super) const ALL: [Workload; 6] = [
    Workload {
        name: "randread-4k-qd1",
        direction: Direction::Read,
        order: Order::Random,
        place: Place::Disk,
        block_bytes: 4 << 10,
        depth: 1,
        cpus: Cpus::One,
    },
    Workload {
        name: "randread-4k-qd1-2cpu",
        direction: Direction::Read,
        order: Order::Random,
        place: Place::Disk,
        block_bytes: 4 << 10,
        depth: 1,
        cpus: Cpus::Two,
    },
    RANDOM_READS,
    Workload {
        name: "randwrite-4k-qd32",
        direction: Direction::Write,
        order: Order::Random,
        place: Place::XfsOnMemory,
        block_bytes: 4 << 10,
        depth: 32,
        cpus: Cpus::One,
    },
    Workload {
        name: "read-256k-qd8",
        direction: Direction::Read,
        order: Order::Sequential,
        place: Place::Disk,
        block_bytes: 256 << 10,
        depth: 8,
        cpus: Cpus::One,
    },
    Workload {
        name: "write-256k-qd8",
        direction: Direction::Write,
        order: Order::Sequential,
        place: Place::XfsOnMemory,
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
    place: Place::Disk,
    block_bytes: 4 << 10,
    depth: 32,
    cpus: Cpus::One,
};

impl Workload {
    /// Moves the calling thread, which is the driver, to another CPU than its backend's, if the
    /// workload is for two.
    pub(super) fn driver_moves(&self) -> Result<Option<Elsewhere>> {
        (self.cpus == Cpus::Two).then(Elsewhere::move_to).transpose()
    }

    /// Its name to fio's `--rw`.
    pub(super) fn fio_name(&self) -> &'static str {
        match (self.order, self.direction) {
            (Order::Random, Direction::Read) => "randread",
            (Order::Random, Direction::Write) => "randwrite",
            (Order::Sequential, Direction::Read) => "read",
            (Order::Sequential, Direction::Write) => "write",
        }
    }
}
