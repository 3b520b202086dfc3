//! The record of each storey: the numbers of its devices in block events, and the counters of its
//! dataset.

use std::path::PathBuf;

use super::block_trace::{BlockEvent, Device};
use super::zil;
use crate::{StoreStack, Storey, StoreyKind};

/// The requests at a storey in one window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sight {
    pub(super) written: bool,
    pub(super) flushed: bool,
}

/// The requests at a storey: numbers of windows out of [`ROUNDS`](super::ROUNDS).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreySeen {
    /// The storey has a record of its own. A file system other than ZFS has none.
    pub is_observed: bool,
    /// Windows with a write to it.
    pub written: u32,
    /// Windows with a flush, a durable write (FUA), or a commit of the ZIL.
    pub flushed: u32,
    /// The same in windows in which the proof was idle: flushes of others.
    pub stray: u32,
    /// Idle windows with a write: writes of others.
    pub stray_writes: u32,
}

/// The record of one storey.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Witness {
    /// The device, and its partitions in the stack: a request is recorded at the partition.
    devices: Vec<Device>,
    /// It is a dataset, whose record are its counters.
    is_dataset: bool,
    /// The file with the counters of the dataset.
    counters: Option<PathBuf>,
}

/// The witnesses of a stack, in the order of [`StoreStack::storeys`].
pub(super) fn all(stack: &StoreStack) -> Vec<Witness> {
    let mut found = Vec::new();
    // The partition above the next storey, which is its disk.
    let mut partition = None;
    for storey in stack.storeys() {
        let own = storey.number();
        let devices = own.into_iter().chain(partition).collect();
        partition = own.filter(|_| storey.kind == StoreyKind::Partition);
        let is_dataset = storey.is_zfs();
        let counters = storey.dataset_name().and_then(zil::find);
        found.push(Witness { devices, is_dataset, counters });
    }
    found
}

impl Witness {
    pub(super) fn devices(&self) -> impl Iterator<Item = Device> {
        self.devices.iter().copied()
    }

    pub(super) fn is_observed(&self) -> bool {
        if self.is_dataset { self.counters.is_some() } else { !self.devices.is_empty() }
    }

    pub(super) fn is_dataset(&self) -> bool {
        self.is_dataset
    }

    /// Commits of the dataset so far.
    pub(super) fn commits(&self) -> Option<u64> {
        zil::commits(self.counters.as_ref()?)
    }

    /// The requests at the storey, by the events of a window and the commits before it. A durable
    /// write (FUA) counts as a flush only if `durable`, where each write is to be durable.
    pub(super) fn sight(
        &self,
        events: &[BlockEvent],
        commits_before: Option<u64>,
        durable: bool,
    ) -> Sight {
        if self.is_dataset {
            let counts = commits_before.zip(self.commits());
            let flushed = counts.is_some_and(|(before, after)| after > before);
            return Sight { written: self.counters.is_some(), flushed };
        }
        let own = events.iter().filter(|event| self.devices.contains(&event.device));
        let mut sight = Sight::default();
        let mut early = false;
        for event in own {
            // A flush does not make data durable that comes later.
            sight.flushed |= event.flushes && (sight.written || event.writes && event.is_durable);
            sight.flushed |= event.is_durable && durable;
            early |= event.flushes;
            sight.written |= event.writes;
        }
        sight.flushed |= early && !sight.written;
        sight
    }
}

impl Storey {
    /// The number of its device.
    fn number(&self) -> Option<Device> {
        let name = self.device.as_ref()?;
        let text = std::fs::read_to_string(format!("/sys/class/block/{name}/dev")).ok()?;
        let (major, minor) = text.trim().split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    }

    /// The name of its dataset.
    fn dataset_name(&self) -> Option<&str> {
        match &self.kind {
            StoreyKind::FileSystem(found) => found.zfs.as_ref()?.name.as_deref(),
            StoreyKind::Volume(volume) => volume.name.as_deref(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(device: Device, writes: bool, flushes: bool, is_durable: bool) -> BlockEvent {
        BlockEvent { device, writes, flushes, is_durable }
    }

    fn sight(devices: &[Device], events: &[BlockEvent], durable: bool) -> (bool, bool) {
        let witness = Witness { devices: devices.to_vec(), ..Witness::default() };
        let Sight { written, flushed } = witness.sight(events, None, durable);
        (written, flushed)
    }

    #[test]
    fn a_storey_sees_the_events_of_its_devices() {
        let events = [event((8, 1), true, false, false), event((7, 0), false, true, false)];
        assert_eq!(sight(&[(8, 0), (8, 1)], &events, false), (true, false));
        assert_eq!(sight(&[(7, 0)], &events, false), (false, true));
        assert_eq!(sight(&[(9, 0)], &events, false), (false, false));
        assert_eq!(sight(&[], &events, false), (false, false));
    }

    #[test]
    fn a_flush_covers_the_data_before_it() {
        let disk = (8, 0);
        let flushed = |events: &[BlockEvent]| sight(&[disk], events, false).1;
        let (write, flush) = (event(disk, true, false, false), event(disk, false, true, false));
        assert!(flushed(&[write, flush]));
        assert!(flushed(&[flush, write, flush]));
        assert!(!flushed(&[flush, write]));
        // The superblock of md or btrfs: durable, with or without a flush before it.
        let (alone, both) = (event(disk, true, false, true), event(disk, true, true, true));
        assert!(!flushed(&[write, alone]));
        assert!(flushed(&[write, both]));
        assert!(flushed(&[both]));
        assert!(!flushed(&[event(disk, true, true, false)]));
    }

    #[test]
    fn a_durable_write_needs_no_flush_in_modes_with_durable_writes() {
        let disk = (8, 0);
        let durable = [event(disk, true, false, true)];
        assert_eq!(sight(&[disk], &durable, true), (true, true));
        assert_eq!(sight(&[disk], &durable, false), (true, false));
        assert_eq!(sight(&[disk], &[event(disk, true, false, false)], true), (true, false));
    }

    #[test]
    fn a_dataset_is_observed_by_its_counters_alone() {
        let counters = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(counters.path(), "zil_commit_count    4    3\n").unwrap();
        let path = Some(counters.path().to_path_buf());
        let witness = |counters| Witness { devices: vec![(230, 0)], is_dataset: true, counters };
        let flush = [event((230, 0), false, true, false)];
        let seen = witness(path.clone()).sight(&flush, Some(3), false);
        assert_eq!(seen, Sight { written: true, flushed: false });
        let seen = witness(path.clone()).sight(&flush, Some(2), false);
        assert_eq!(seen, Sight { written: true, flushed: true });
        assert!(witness(path).is_observed());
        assert!(!witness(None).is_observed());
        assert_eq!(witness(None).sight(&flush, None, false), Sight::default());
    }
}
