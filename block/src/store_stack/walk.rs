//! Builds the stack from its top to the devices. The depth and the number of storeys are bounded,
//! so that the walk of any sysfs ends.

use std::path::{Path, PathBuf};

use super::device_number::DeviceNumber;
use super::devices;
use super::file_systems::{self, Below};
use super::host_view::{FileFacts, HostView};
use super::queue::QueueAttributes;
use super::storey::{FileSystem, Storey, StoreyKind, ZfsDataset};
use super::zfs;

/// Deepest stack. The deepest that occurs in practice, files on loop devices on files, has about
/// ten storeys.
const DEPTH_MAX: u32 = 24;
/// Most storeys.
const STOREYS_MAX: u32 = 256;

/// One walk.
#[derive(Debug)]
pub(super) struct Walk<'h> {
    host: &'h HostView,
    depth: u32,
    storeys: u32,
}

impl<'h> Walk<'h> {
    pub(super) fn new(host: &'h HostView) -> Self {
        Self { host, depth: 0, storeys: 0 }
    }

    /// The storeys below a file.
    pub(super) fn file(&mut self, facts: &FileFacts) -> Storey {
        match (facts.device, &facts.mount) {
            (Some(device), _) => self.number(device, facts.dataset.as_deref()),
            (None, Some(mount)) => {
                let (found, below) = file_systems::identify(self.host, facts, mount);
                self.file_system(mount.point.clone(), found, &below)
            }
            (None, None) => {
                let reason = "the file is on a file system outside of this mount namespace";
                Storey::unknown("a file system".to_owned(), reason)
            }
        }
    }

    fn file_system(&mut self, name: String, found: FileSystem, below: &Below) -> Storey {
        let mut storeys = self.devices(&below.folders);
        storeys.extend(self.paths(&below.paths));
        let below = storeys;
        Storey { kind: StoreyKind::FileSystem(found), name, device: None, queue: None, below }
    }

    fn paths(&mut self, paths: &[PathBuf]) -> Vec<Storey> {
        let mut found = Vec::new();
        for path in paths {
            let is_full = self.storeys >= STOREYS_MAX;
            found.push(self.path(path));
            if is_full {
                break;
            }
        }
        found
    }

    /// The storeys below the file with this path.
    fn path(&mut self, path: &Path) -> Storey {
        self.probed(path).0
    }

    /// The storeys below the file with this path, and whether the file has holes, if this is known.
    fn probed(&mut self, path: &Path) -> (Storey, Option<bool>) {
        let unknown = |reason: String| (Storey::unknown(path.display().to_string(), reason), None);
        if !path.is_absolute() {
            return unknown("its path depends on the process that mounted it".to_owned());
        }
        if let Err(reason) = self.descend() {
            return unknown(reason);
        }
        let probed = match (self.host.probe)(self.host, path) {
            Ok(facts) => (self.file(&facts), facts.has_holes),
            Err(error) => unknown(format!("it cannot be opened: {error}")),
        };
        self.ascend();
        probed
    }

    fn number(&mut self, device: DeviceNumber, dataset: Option<&str>) -> Storey {
        match self.host.device_folder(device) {
            Ok(folder) => self.device(&folder, dataset),
            Err(error) => {
                let name = format!("device {}:{}", device.major, device.minor);
                Storey::unknown(name, format!("it is not in sysfs: {error}"))
            }
        }
    }

    fn devices(&mut self, folders: &[PathBuf]) -> Vec<Storey> {
        let mut found = Vec::new();
        for folder in folders {
            let is_full = self.storeys >= STOREYS_MAX;
            found.push(self.device(folder, None));
            if is_full {
                break;
            }
        }
        found
    }

    /// The device with this folder in sysfs, and the storeys below it.
    fn device(&mut self, folder: &Path, dataset: Option<&str>) -> Storey {
        let name = devices::node(folder);
        if let Err(reason) = self.descend() {
            return Storey::unknown(name, reason);
        }
        let storey = self.known_device(name, folder, dataset);
        self.ascend();
        storey
    }

    fn known_device(&mut self, name: String, folder: &Path, dataset: Option<&str>) -> Storey {
        let device = folder.file_name().map(|name| name.to_string_lossy().into_owned());
        if let Some(disk) = devices::disk_of_partition(folder) {
            let below = vec![self.device(&disk, dataset)];
            return Storey { kind: StoreyKind::Partition, name, device, queue: None, below };
        }
        if !folder.join("queue").is_dir() {
            return Storey::unknown(name, "sysfs does not describe it");
        }
        let mut kind = devices::kind(folder);
        let below = match &mut kind {
            StoreyKind::Loop { file, has_holes, .. } => {
                let (storey, holes) = self.probed(Path::new(file.as_str()));
                *has_holes = holes;
                vec![storey]
            }
            StoreyKind::Volume(volume) => {
                let by_link = || zfs::volume_name(self.host, devices::number(folder)?);
                let name = dataset.map(str::to_owned).or_else(by_link);
                *volume = ZfsDataset {
                    blk_mq: volume.blk_mq,
                    ..zfs::dataset(self.host, name.as_deref())
                };
                zfs::add_properties(self.host, volume, "volblocksize,volsize,refreservation");
                volume.quota_of = zfs::quota_above(self.host, volume);
                self.paths(&zfs::members(self.host, volume))
            }
            _ => self.devices(&devices::slaves(folder)),
        };
        Storey { kind, name, device, queue: Some(QueueAttributes::read(folder)), below }
    }

    /// Counts a storey below the current one; the reason if there are too many.
    fn descend(&mut self) -> Result<(), String> {
        if self.storeys >= STOREYS_MAX {
            return Err(format!("the stack has more than {STOREYS_MAX} storeys"));
        }
        self.storeys += 1;
        if self.depth >= DEPTH_MAX {
            return Err(format!("the stack is deeper than {DEPTH_MAX} storeys"));
        }
        self.depth += 1;
        Ok(())
    }

    fn ascend(&mut self) {
        self.depth -= 1;
    }
}
