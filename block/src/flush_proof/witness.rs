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
}

/// The record of one storey.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Witness {
    /// The device, and its partitions in the stack: a request is recorded at the partition.
    devices: Vec<Device>,
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
        found.push(Witness { devices, counters: storey.dataset_name().and_then(zil::find) });
    }
    found
}

impl Witness {
    pub(super) fn devices(&self) -> impl Iterator<Item = Device> {
        self.devices.iter().copied()
    }

    pub(super) fn is_observed(&self) -> bool {
        !self.devices.is_empty() || self.counters.is_some()
    }

    /// Commits of the dataset so far.
    pub(super) fn commits(&self) -> Option<u64> {
        zil::commits(self.counters.as_ref()?)
    }

    /// The requests at the storey, by the events of a window and the commits before it.
    pub(super) fn sight(&self, events: &[BlockEvent], commits_before: Option<u64>) -> Sight {
        if let (Some(before), Some(after)) = (commits_before, self.commits()) {
            return Sight { written: true, flushed: after > before };
        }
        let own = || events.iter().filter(|event| self.devices.contains(&event.device));
        Sight {
            written: own().any(|event| event.writes),
            flushed: own().any(|event| event.flushes),
        }
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

    #[test]
    fn a_storey_sees_the_events_of_its_devices() {
        let event = |device, writes, flushes| BlockEvent { device, writes, flushes };
        let events = [event((8, 1), true, false), event((7, 0), false, true)];
        let sight = |devices: &[Device]| {
            let witness = Witness { devices: devices.to_vec(), counters: None };
            let Sight { written, flushed } = witness.sight(&events, None);
            (written, flushed)
        };
        assert_eq!(sight(&[(8, 0), (8, 1)]), (true, false));
        assert_eq!(sight(&[(7, 0)]), (false, true));
        assert_eq!(sight(&[(9, 0)]), (false, false));
        assert_eq!(sight(&[]), (false, false));
    }
}
