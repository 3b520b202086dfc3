//! Snapshots of the disks of a running machine. May block.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use block::{LayeredDisk, MadeSnapshot, SnapshotError};
use thiserror::Error;

use super::events::{EventKind, EventLog};
use super::registry::{DiskRegistry, ManagedDisk};

/// Longest time for the requests in flight and the flush. Guests report a hung disk after 30 s.
const LIMIT: Duration = Duration::from_secs(5);
/// Longest name.
const NAME_MAX: usize = 64;

/// A snapshot that was made.
pub(crate) struct DiskSnapshots {
    /// The disks, and the frozen layer of each.
    pub(crate) disks: Vec<(Arc<ManagedDisk>, PathBuf)>,
    /// For how long requests were held, without the flush.
    pub(crate) held: Duration,
    /// How long the flush took meanwhile.
    pub(crate) flush: Duration,
}

/// Why no disk has a snapshot.
#[derive(Debug, Error)]
pub(crate) enum SnapshotFailure {
    /// The name cannot be a part of a file name.
    #[error(
        "{0:?} is no name of a snapshot: it has 1 to {NAME_MAX} letters, digits, `-`, `_` and `.`, \
         and starts with none of `-` and `.`"
    )]
    Name(String),
    /// There is no such disk.
    #[error("there is no disk {0:?}")]
    Unknown(String),
    /// The guest can write a disk that has no layers.
    #[error("{0} is no layer, and a snapshot of all disks would lack it")]
    NoLayer(String),
    /// No disk is a layer.
    #[error("the machine has no disk that is a layer")]
    NoDisks,
    /// No part of the disk is kept.
    #[error("{0} is ephemeral, and has no layer that is kept")]
    Ephemeral(String),
    /// The disk is being detached.
    #[error("{0} is being detached")]
    Detaching(String),
    /// A disk refuses, or the host.
    #[error(transparent)]
    Disk(#[from] SnapshotError),
}

/// Freezes the layers of all disks, or of those with these ids, at one moment.
///
/// # Errors
///
/// See [`SnapshotFailure`]. All disks are as before.
pub(crate) fn snapshot(
    disks: &DiskRegistry,
    events: &EventLog,
    name: &str,
    ids: &[String],
) -> Result<DiskSnapshots, SnapshotFailure> {
    if !is_name(name) {
        return Err(SnapshotFailure::Name(name.to_owned()));
    }
    let disks = if ids.is_empty() {
        all(disks)?
    } else {
        disks.named(ids).map_err(SnapshotFailure::Unknown)?
    };
    let mut members: Vec<(&LayeredDisk, OsString)> = Vec::new();
    for disk in &disks {
        let id = || disk.config.id().to_owned();
        if disk.is_detaching() {
            return Err(SnapshotFailure::Detaching(id()));
        }
        if disk.config.ephemeral.is_some() {
            return Err(SnapshotFailure::Ephemeral(id()));
        }
        let layers = disk.layers().ok_or_else(|| SnapshotFailure::NoLayer(id()))?;
        members.push((layers, frozen_name(layers.path(), name)));
    }
    let MadeSnapshot { frozen, held, flush } = block::snapshot(&members, LIMIT)?;
    drop(members);
    let disks: Vec<_> = disks.into_iter().zip(frozen).collect();
    for (disk, path) in &disks {
        let path = path.display();
        tracing::info!(disk = disk.config.id(), %path, "snapshot made");
        events.add(EventKind::SnapshotMade, disk.config.id(), format!("{name}: {path} is frozen"));
    }
    Ok(DiskSnapshots { disks, held, flush })
}

/// All disks that the guest can write and that are kept.
fn all(disks: &DiskRegistry) -> Result<Vec<Arc<ManagedDisk>>, SnapshotFailure> {
    let mut disks = disks.all();
    disks.retain(|disk| !disk.config.options.read_only && disk.config.ephemeral.is_none());
    if disks.is_empty() {
        return Err(SnapshotFailure::NoDisks);
    }
    Ok(disks)
}

fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let starts = |prefix: char| name.starts_with(prefix);
    (1..=NAME_MAX).contains(&name.len())
        && name.bytes().all(is_plain)
        && !starts('-')
        && !starts('.')
}

/// The file name of the frozen layer of a disk: `vm1.NAME.layer` for `vm1.layer`.
fn frozen_name(path: &Path, name: &str) -> OsString {
    let mut frozen = path.file_stem().unwrap_or_default().to_owned();
    frozen.push(format!(".{name}"));
    if let Some(extension) = path.extension() {
        frozen.push(".");
        frozen.push(extension);
    }
    frozen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_part_of_a_file_name() {
        for name in ["a", "monday-1", "2026.11.29", "a_b", &"x".repeat(64)] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", ".", "..", "-x", ".x", "a/b", "a b", "ä", "a\0", &"x".repeat(65)] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn the_frozen_layer_is_named_after_the_disk() {
        for (path, expected) in
            [("/a/vm1.layer", "vm1.x.layer"), ("vm1", "vm1.x"), ("/a/.b", ".b.x")]
        {
            assert_eq!(frozen_name(Path::new(path), "x"), expected);
        }
    }
}
