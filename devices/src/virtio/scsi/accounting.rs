//! Per-disk accounting of one request queue: requests in flight and statistics.
//!
//! A detached disk stays here until none of its requests is in flight.

use std::sync::Arc;

use super::disk::AttachedDisk;
use super::disk_map::DiskMap;
use crate::storage::{OperationKind, QueueStats, Round};

/// The accounts of one queue.
pub(super) struct DiskAccounting {
    queue: usize,
    /// By number of the disk.
    accounts: Vec<DiskAccount>,
    /// Numbers of the disks with requests in this round.
    touched: Vec<u16>,
    /// Whether a detached disk has requests in flight.
    has_detached: bool,
}

#[derive(Default)]
struct DiskAccount {
    disk: Option<Arc<AttachedDisk>>,
    in_flight: u16,
    /// Age of the oldest request in the current scan.
    oldest_ns: Option<u64>,
    /// Requests started and completed in this round.
    started: u64,
    completed: u64,
    touched: bool,
}

impl DiskAccounting {
    pub(super) fn new(queue: u16) -> Self {
        let queue = queue.into();
        Self { queue, accounts: Vec::new(), touched: Vec::new(), has_detached: false }
    }

    /// The disk with a number, if it has or had requests in flight.
    pub(super) fn disk(&self, number: u16) -> Option<&Arc<AttachedDisk>> {
        self.accounts.get(usize::from(number))?.disk.as_ref()
    }

    /// Releases the disks that are not in `map`, except those with requests in flight.
    pub(super) fn release_detached(&mut self, map: &DiskMap) {
        self.has_detached = false;
        for (number, account) in (0..).zip(&mut self.accounts) {
            if map.disk(number).is_some() {
                continue;
            }
            if account.in_flight == 0 {
                account.disk = None;
            }
            self.has_detached |= account.disk.is_some();
        }
    }

    /// Whether [`Self::release_detached`] must be called again after this round.
    pub(super) fn has_detached(&self) -> bool {
        self.has_detached
    }

    /// Counts a request pushed to an engine.
    pub(super) fn start(&mut self, number: u16, map: &DiskMap) {
        let Some(account) = self.touch(number, map) else { return };
        account.started += 1;
        account.in_flight = account.in_flight.saturating_add(1);
    }

    /// Counts the completion of a request that was in flight.
    pub(super) fn complete(&mut self, number: u16, map: &DiskMap) {
        let Some(account) = self.touch(number, map) else { return };
        account.completed += 1;
        account.in_flight = account.in_flight.saturating_sub(1);
    }

    /// Counts a request answered without the medium.
    pub(super) fn count_answered(&mut self, number: u16, map: &DiskMap) {
        self.touch(number, map);
        if let Some(stats) = self.stats(number) {
            stats.count_answered();
        }
    }

    /// Counts a completion of the engine; `bytes` is `None` if the operation failed.
    pub(super) fn count_operation(
        &mut self,
        number: u16,
        kind: OperationKind,
        bytes: Option<u64>,
        took_ns: u64,
    ) {
        if let Some(stats) = self.stats(number) {
            stats.count_completion(kind, bytes, took_ns);
        }
    }

    /// Begins a scan of the requests in flight.
    pub(super) fn begin_scan(&mut self) {
        for account in &mut self.accounts {
            account.oldest_ns = None;
            if let Some(stats) = account.disk.as_ref().and_then(|disk| disk.stats.get(self.queue)) {
                stats.set_oldest(None);
            }
        }
    }

    /// Records the age of a request in flight.
    pub(super) fn record_age(&mut self, number: u16, age_ns: u64) {
        let Some(account) = self.accounts.get_mut(usize::from(number)) else { return };
        if account.oldest_ns >= Some(age_ns) {
            return;
        }
        account.oldest_ns = Some(age_ns);
        if let Some(stats) = self.stats(number) {
            stats.set_oldest(Some(age_ns));
        }
    }

    /// Counts a round for each disk with requests in it.
    pub(super) fn count_round(&mut self, round: &Round) {
        for number in self.touched.drain(..) {
            let Some(account) = self.accounts.get_mut(usize::from(number)) else { continue };
            let started = std::mem::take(&mut account.started);
            let completed = std::mem::take(&mut account.completed);
            account.touched = false;
            let Some(disk) = &account.disk else { continue };
            if let Some(stats) = disk.stats.get(self.queue) {
                stats.set_in_flight(account.in_flight);
                stats.count_round(&round.share(started, completed));
            }
        }
    }

    /// Statistics of a disk on this queue.
    pub(super) fn stats(&self, number: u16) -> Option<&QueueStats> {
        self.disk(number)?.stats.get(self.queue).map(|stats| &**stats)
    }

    fn touch(&mut self, number: u16, map: &DiskMap) -> Option<&mut DiskAccount> {
        let index = usize::from(number);
        if self.accounts.len() <= index {
            self.accounts.resize_with(index + 1, DiskAccount::default);
        }
        let account = self.accounts.get_mut(index)?;
        if account.disk.is_none() {
            account.disk = map.disk(number).cloned();
        }
        if !account.touched {
            account.touched = true;
            self.touched.push(number);
        }
        Some(account)
    }
}

impl Drop for DiskAccounting {
    /// Requests in flight end with their engines, uncounted.
    fn drop(&mut self) {
        for disk in self.accounts.iter().filter_map(|account| account.disk.as_ref()) {
            if let Some(stats) = disk.stats.get(self.queue) {
                stats.set_in_flight(0);
            }
        }
    }
}
