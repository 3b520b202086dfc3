//! The rows of the matrix: who runs the guest, on which storage, and what is expected.

use std::fmt;

use super::store::Lie;

/// The program that runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Monitor {
    /// The program under test.
    Bulkhead,
    /// QEMU of the same host, with the same kernel and disk.
    Qemu,
}

/// The store of the guest's disk, on the host's scratch disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// A file on ext4.
    Ext4,
    /// A file on XFS.
    Xfs,
    /// A file on btrfs.
    Btrfs,
    /// A layer over a base, on ext4; for QEMU a qcow2 image.
    Layer,
    /// A ZFS volume of a pool on a partition.
    Zvol,
}

/// The bus of the guest's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// virtio-blk.
    Block,
    /// virtio-scsi.
    Scsi,
}

/// The guest's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Writes to space that the image has, and flushes.
    Overwrite,
    /// First writes to a sparse image, and flushes.
    FirstWrites,
    /// First writes, a flush, and a pause in which nothing else makes them durable.
    Settle,
    /// Writes with `O_DSYNC`.
    Dsync,
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The program that runs the guest.
    pub monitor: Monitor,
    /// The cache mode, by its name.
    pub cache: &'static str,
    /// The disk.
    pub backing: Backing,
    /// Its bus.
    pub bus: Bus,
    /// The guest's requests.
    pub workload: Workload,
    /// The host's kernel writes through: it sends FUA instead of flushes.
    pub is_host_fua: bool,
    /// A promise that the disk below breaks.
    pub lie: Option<Lie>,
}

const BASIC: Row = Row {
    monitor: Monitor::Bulkhead,
    cache: "none",
    backing: Backing::Ext4,
    bus: Bus::Block,
    workload: Workload::FirstWrites,
    is_host_fua: false,
    lie: None,
};

/// The matrix. Rows that differ in the lie only follow each other: they share a saved host.
pub const ROWS: [Row; 36] = [
    BASIC,
    Row { lie: Some(Lie::DropFlush), ..BASIC },
    Row { lie: Some(Lie::ReportEarly), ..BASIC },
    Row { is_host_fua: true, ..BASIC },
    Row { is_host_fua: true, lie: Some(Lie::IgnoreFua), ..BASIC },
    Row { workload: Workload::Overwrite, ..BASIC },
    Row { workload: Workload::Overwrite, cache: "writeback", ..BASIC },
    Row { workload: Workload::Dsync, ..BASIC },
    Row { cache: "writeback", ..BASIC },
    Row { cache: "writethrough", ..BASIC },
    Row { cache: "directsync", ..BASIC },
    Row { cache: "unsafe", ..BASIC },
    Row { bus: Bus::Scsi, ..BASIC },
    Row { bus: Bus::Scsi, cache: "writeback", workload: Workload::Dsync, ..BASIC },
    Row { backing: Backing::Xfs, ..BASIC },
    Row { backing: Backing::Xfs, lie: Some(Lie::DropFlush), ..BASIC },
    Row { backing: Backing::Xfs, workload: Workload::Overwrite, ..BASIC },
    Row { backing: Backing::Xfs, cache: "writeback", ..BASIC },
    Row { backing: Backing::Btrfs, ..BASIC },
    Row { backing: Backing::Layer, ..BASIC },
    Row { backing: Backing::Layer, lie: Some(Lie::DropFlush), ..BASIC },
    Row { backing: Backing::Layer, workload: Workload::Settle, ..BASIC },
    Row {
        backing: Backing::Layer,
        workload: Workload::Settle,
        lie: Some(Lie::DropMapFlush),
        ..BASIC
    },
    Row { backing: Backing::Layer, cache: "writeback", ..BASIC },
    Row { backing: Backing::Layer, bus: Bus::Scsi, ..BASIC },
    Row { backing: Backing::Zvol, ..BASIC },
    Row { backing: Backing::Zvol, lie: Some(Lie::DropFlush), ..BASIC },
    Row { backing: Backing::Zvol, cache: "writeback", ..BASIC },
    Row { monitor: Monitor::Qemu, ..BASIC },
    Row { monitor: Monitor::Qemu, workload: Workload::Overwrite, ..BASIC },
    Row { monitor: Monitor::Qemu, cache: "writeback", ..BASIC },
    Row { monitor: Monitor::Qemu, cache: "unsafe", ..BASIC },
    Row { monitor: Monitor::Qemu, bus: Bus::Scsi, ..BASIC },
    Row { monitor: Monitor::Qemu, backing: Backing::Btrfs, ..BASIC },
    Row { monitor: Monitor::Qemu, backing: Backing::Layer, ..BASIC },
    Row { monitor: Monitor::Qemu, backing: Backing::Zvol, ..BASIC },
];

impl Row {
    /// Whether the row is a negative control: flushed data must be lost.
    #[must_use]
    pub fn is_control(&self) -> bool {
        self.lie.is_some() || self.cache == "unsafe"
    }

    /// Whether both rows run in the same saved host.
    #[must_use]
    pub fn shares_host(&self, other: &Self) -> bool {
        let honest = |row: &Self| Self { lie: None, ..*row }.to_string();
        honest(self) == honest(other)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let monitor = match self.monitor {
            Monitor::Bulkhead => "bulkhead",
            Monitor::Qemu => "qemu",
        };
        let backing = match self.backing {
            Backing::Ext4 => "ext4",
            Backing::Xfs => "xfs",
            Backing::Btrfs => "btrfs",
            Backing::Layer => "layer",
            Backing::Zvol => "zvol",
        };
        let bus = match self.bus {
            Bus::Block => "blk",
            Bus::Scsi => "scsi",
        };
        let workload = match self.workload {
            Workload::Overwrite => "overwrite",
            Workload::FirstWrites => "first-writes",
            Workload::Settle => "settle",
            Workload::Dsync => "dsync",
        };
        write!(f, "{monitor}/{}/{backing}/{bus}/{workload}", self.cache)?;
        if self.is_host_fua {
            f.write_str("/host-fua")?;
        }
        f.write_str(match self.lie {
            None => "",
            Some(Lie::DropFlush) => "/drops-flush",
            Some(Lie::IgnoreFua) => "/ignores-fua",
            Some(Lie::ReportEarly) => "/reports-early",
            Some(Lie::DropMapFlush) => "/drops-map-flush",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::ROWS;

    #[test]
    fn rows_have_different_names_and_neighbours_share_hosts() {
        let names: std::collections::BTreeSet<_> = ROWS.iter().map(ToString::to_string).collect();
        assert_eq!(names.len(), ROWS.len());
        let hosts = ROWS.chunk_by(super::Row::shares_host).count();
        assert_eq!(hosts, ROWS.iter().filter(|row| row.lie.is_none()).count());
    }
}
