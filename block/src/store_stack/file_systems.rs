//! Identifies the file system of a file, and the devices below it.

use std::path::{Path, PathBuf};

use super::host_view::{FileFacts, HostView, names_in};
use super::mounts::Mount;
use super::storey::{BtrfsFile, FileSystem};
use super::zfs;

/// The storage below a file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Below {
    /// Folders of devices in sysfs.
    Devices(Vec<PathBuf>),
    /// A folder on another file system.
    Folder(PathBuf),
    /// Memory, another host or a program.
    Nothing,
}

/// The file system of a file that is on `mount`, and the storage below it.
pub(super) fn identify(host: &HostView, facts: &FileFacts, mount: &Mount) -> (FileSystem, Below) {
    let mut found = FileSystem {
        fs_type: mount.fs_type.clone(),
        options: mount.options.clone(),
        btrfs: None,
        zfs: None,
    };
    let below = match mount.fs_type.as_str() {
        "btrfs" => {
            let folder = facts.fs_uuid.as_ref().map(|uuid| host.sys.join("fs/btrfs").join(uuid));
            found.btrfs = Some(btrfs_file(folder.as_deref(), facts));
            Below::Devices(folder.map(|folder| btrfs_devices(&folder)).unwrap_or_default())
        }
        "zfs" => {
            let mut dataset = zfs::dataset(host, Some(&mount.source));
            zfs::add_properties(host, &mut dataset, "recordsize");
            found.zfs = Some(dataset);
            Below::Nothing
        }
        // Data is written to the upper directory (Linux's `Documentation/filesystems/overlayfs`).
        "overlay" => {
            let mut options = mount.options.iter();
            let upper = options.find_map(|option| option.strip_prefix("upperdir="));
            upper.map_or(Below::Nothing, |upper| Below::Folder(upper.into()))
        }
        _ if mount.device.major != 0 => {
            Below::Devices(host.device_folder(mount.device).into_iter().collect())
        }
        _ => Below::Nothing,
    };
    (found, below)
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
