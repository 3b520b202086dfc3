//! Identifies the file system of a file, and the devices below it.

use std::path::{Path, PathBuf};

use super::host_view::{FileFacts, HostView, names_in};
use super::mounts::Mount;
use super::storey::{BtrfsFile, FileSystem};
use super::zfs;

/// The storage below a file system or device. Empty for memory, another host or a program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Below {
    /// Folders of devices in sysfs.
    pub(super) folders: Vec<PathBuf>,
    /// Paths of files, devices and folders.
    pub(super) paths: Vec<PathBuf>,
}

/// The file system of a file that is on `mount`, and the storage below it.
pub(super) fn identify(host: &HostView, facts: &FileFacts, mount: &Mount) -> (FileSystem, Below) {
    let mut found = FileSystem {
        fs_type: mount.fs_type.clone(),
        options: mount.options.clone(),
        btrfs: None,
        zfs: None,
    };
    let mut below = Below::default();
    match mount.fs_type.as_str() {
        "btrfs" => {
            let folder = facts.fs_uuid.as_ref().map(|uuid| host.sys.join("fs/btrfs").join(uuid));
            found.btrfs = Some(btrfs_file(folder.as_deref(), facts));
            below.folders = folder.map(|folder| btrfs_devices(&folder)).unwrap_or_default();
        }
        "zfs" => {
            let mut dataset = zfs::dataset(host, Some(&mount.source));
            zfs::add_properties(host, &mut dataset, "recordsize");
            below.paths = zfs::members(host, &dataset);
            found.zfs = Some(dataset);
        }
        // Data is written to the upper directory (Linux's `Documentation/filesystems/overlayfs`).
        "overlay" => below.paths = option_paths(mount, &["upperdir="]),
        _ if mount.device.major != 0 => {
            below.folders = host.device_folder(mount.device).into_iter().collect();
            // XFS keeps its log, and the data of some files, on further devices (xfs(5)).
            below.paths = option_paths(mount, &["logdev=", "rtdev="]);
        }
        _ => {}
    }
    (found, below)
}

/// The values of these mount options.
fn option_paths(mount: &Mount, names: &[&str]) -> Vec<PathBuf> {
    let value = |option: &String| {
        names.iter().find_map(|name| option.strip_prefix(name)).map(PathBuf::from)
    };
    mount.options.iter().filter_map(value).collect()
}

fn btrfs_file(folder: Option<&Path>, facts: &FileFacts) -> BtrfsFile {
    let profiles = folder.map(|folder| {
        let allocation = folder.join("allocation");
        let kinds = ["data", "mixed"].map(|kind| allocation.join(kind));
        let entries = kinds
            .iter()
            .flat_map(|kind| names_in(kind).into_iter().filter(|name| kind.join(name).is_dir()));
        entries.collect::<Vec<_>>()
    });
    BtrfsFile {
        no_cow: facts.no_cow,
        data_profiles: profiles.filter(|profiles| !profiles.is_empty()),
    }
}

fn btrfs_devices(folder: &Path) -> Vec<PathBuf> {
    let devices = folder.join("devices");
    let paths = names_in(&devices).into_iter().map(|name| devices.join(name));
    paths.map(|path| path.canonicalize().unwrap_or(path)).collect()
}
