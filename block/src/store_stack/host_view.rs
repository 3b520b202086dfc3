//! The files of the host that the walk reads, below roots that tests can replace, and the
//! attributes of an open file. Reads are bounded, and a file that cannot be read has no value.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{IFlags, Mode, OFlags};

use super::device_number::DeviceNumber;
use super::mounts::{self, Mount};
use crate::space::{is_zvol_driver, zfs_properties, zpool_members};
use crate::sys::{btrfs_fsid, zvol_name};

/// Longest attribute in sysfs: a page.
const ATTRIBUTE_BYTES: u64 = 4096;
/// Longest entry of udev's database that is read.
const UDEV_BYTES: u64 = 1 << 16;
/// Longest table of mounts that is read.
const MOUNTS_BYTES: u64 = 16 << 20;

/// The attributes of a disk's file, or of the file of a loop device, on which the stack depends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FileFacts {
    /// The device that the file is.
    pub(super) device: Option<DeviceNumber>,
    /// The name of the ZFS volume that the file is.
    pub(super) dataset: Option<String>,
    /// The mount that it is on, if it is in the table.
    pub(super) mount: Option<Mount>,
    /// `FS_NOCOW_FL`, on btrfs.
    pub(super) no_cow: Option<bool>,
    /// The UUID of a btrfs.
    pub(super) fs_uuid: Option<String>,
    /// A regular file has holes.
    pub(super) has_holes: Option<bool>,
}

/// Paths of the host's files.
#[derive(Clone, Debug)]
pub(super) struct HostView {
    pub(super) sys: PathBuf,
    pub(super) proc: PathBuf,
    pub(super) run: PathBuf,
    /// Reads the facts of a file by its path.
    pub(super) probe: fn(&HostView, &Path) -> io::Result<FileFacts>,
    /// `None` to run no program.
    pub(super) zfs: Option<ZfsQueries>,
}

/// Queries of ZFS.
#[derive(Clone, Copy, Debug)]
pub(super) struct ZfsQueries {
    /// The properties of a dataset, as `space::zfs_properties`.
    pub(super) properties: fn(&HostView, &str, &str) -> io::Result<String>,
    /// The members of a pool, as `space::zpool_members`.
    pub(super) members: fn(&HostView, &str) -> io::Result<String>,
}

impl HostView {
    /// The host of this process, without its programs.
    pub(super) fn without_programs() -> Self {
        let [sys, proc, run] = ["/sys", "/proc", "/run"].map(PathBuf::from);
        Self { sys, proc, run, probe: Self::probe_path, zfs: None }
    }

    /// The host of this process.
    pub(super) fn real() -> Self {
        let zfs = ZfsQueries {
            properties: |_, dataset, properties| zfs_properties(dataset, properties),
            members: |_, pool| zpool_members(pool),
        };
        Self { zfs: Some(zfs), ..Self::without_programs() }
    }

    /// The facts of an open file.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(super) fn facts_of(&self, file: &File) -> io::Result<FileFacts> {
        let metadata = file.metadata()?;
        if metadata.file_type().is_block_device() {
            let device = DeviceNumber::from(metadata.rdev());
            let dataset = if is_zvol_driver(device.major) { zvol_name(file).ok() } else { None };
            return Ok(FileFacts { device: Some(device), dataset, ..FileFacts::default() });
        }
        let mount = self.mount_of(file)?;
        let mut facts = FileFacts { mount, ..FileFacts::default() };
        if facts.mount.as_ref().is_some_and(|mount| mount.fs_type == "btrfs") {
            facts.add_btrfs(file);
        }
        Ok(facts)
    }

    /// Opens no device, and no file on a file system that another host serves.
    fn probe_path(&self, path: &Path) -> io::Result<FileFacts> {
        let found =
            File::from(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?);
        let metadata = found.metadata()?;
        if metadata.file_type().is_block_device() {
            let device = Some(metadata.rdev().into());
            return Ok(FileFacts { device, ..FileFacts::default() });
        }
        let mount = self.mount_of(&found)?;
        let is_btrfs = mount.as_ref().is_some_and(|mount| mount.fs_type == "btrfs");
        let has_holes = metadata.is_file().then(|| has_holes(&metadata));
        let mut facts = FileFacts { mount, has_holes, ..FileFacts::default() };
        if is_btrfs && metadata.is_file() {
            let path = format!("/proc/self/fd/{}", found.as_raw_fd());
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
            facts.add_btrfs(rustix::fs::open(path, flags, Mode::empty())?);
        }
        Ok(facts)
    }

    /// The mount that an open file is on, by the mount ID of proc_pid_fdinfo(5), which contacts no
    /// server of the file system. `None` if it is not in this mount namespace.
    fn mount_of(&self, file: impl AsFd) -> io::Result<Option<Mount>> {
        let info = self.proc.join(format!("self/fdinfo/{}", file.as_fd().as_raw_fd()));
        let info = read_bounded(&info, ATTRIBUTE_BYTES)?;
        let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
        Ok(id.and_then(|id| self.mount(id)))
    }

    /// The mount with this ID.
    pub(super) fn mount(&self, id: u64) -> Option<Mount> {
        let table = read_bounded(&self.proc.join("self/mountinfo"), MOUNTS_BYTES).ok()?;
        mounts::find(&table, id)
    }

    /// The entry of udev's database for the number of a device, empty if there is none. An entry
    /// may outlive its device, whose number another one has then.
    pub(super) fn udev_entry(&self, device: DeviceNumber) -> String {
        let DeviceNumber { major, minor } = device;
        let path = self.run.join(format!("udev/data/b{major}:{minor}"));
        read_bounded(&path, UDEV_BYTES).unwrap_or_default()
    }

    /// The links to a device below `/dev`, as the database of udev has them.
    pub(super) fn links(&self, device: DeviceNumber) -> Vec<String> {
        let entry = self.udev_entry(device);
        entry.lines().filter_map(|line| line.strip_prefix("S:")).map(str::to_owned).collect()
    }

    /// The folder of a device in sysfs.
    pub(super) fn device_folder(&self, device: DeviceNumber) -> io::Result<PathBuf> {
        let DeviceNumber { major, minor } = device;
        self.sys.join(format!("dev/block/{major}:{minor}")).canonicalize()
    }
}

impl FileFacts {
    fn add_btrfs(&mut self, file: impl AsFd) {
        let flags = rustix::fs::ioctl_getflags(&file);
        self.no_cow = flags.ok().map(|flags| flags.contains(IFlags::NOCOW));
        self.fs_uuid = btrfs_fsid(&file).ok().map(uuid);
    }
}

/// Whether fewer blocks are allocated than the file has (stat(2) counts them in 512 bytes).
fn has_holes(metadata: &Metadata) -> bool {
    metadata.blocks().saturating_mul(512) < metadata.len()
}

/// A UUID in its usual form.
fn uuid(bytes: [u8; 16]) -> String {
    let mut text = String::new();
    for (index, byte) in bytes.into_iter().enumerate() {
        let dash = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
        text += &format!("{dash}{byte:02x}");
    }
    text
}

fn read_bounded(path: &Path, limit: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The trimmed content of an attribute, if it has one.
pub(super) fn read_word(path: &Path) -> Option<String> {
    let text = read_bounded(path, ATTRIBUTE_BYTES).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// The number in an attribute.
pub(super) fn read_number(path: &Path) -> Option<u64> {
    read_word(path)?.parse().ok()
}

/// The names in a folder, sorted; empty if it cannot be read.
pub(super) fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let mut names: Vec<_> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
