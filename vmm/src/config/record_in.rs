//! A machine that is recorded as a whole: its disks become layers over their images.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use block::RecordOptions;

use super::model::MachineConfig;

/// Most bytes of the path of a socket (unix(7)).
const SOCKET_PATH_MAX: usize = 107;

/// The control socket of a machine that is recorded in the folder and has none by itself; `None` if
/// its path would be too long.
pub(crate) fn control_socket_in(folder: &Path) -> Option<PathBuf> {
    let path = folder.join("control.sock");
    (path.as_os_str().len() <= SOCKET_PATH_MAX).then_some(path)
}

impl MachineConfig {
    /// Records all disks that are written to `ID.log` in the folder, which is made if it does not
    /// exist. The changes of those that are images are layers there, `ID.layer`. A machine without
    /// a control socket gets one there, to make marks.
    ///
    /// # Errors
    ///
    /// The folder cannot be made, or a disk is a layer already.
    pub(crate) fn record_in(&mut self, folder: &Path) -> anyhow::Result<()> {
        let make = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        make.with_context(|| format!("cannot make the folder {}", folder.display()))?;
        self.control = self.control.take().or_else(|| control_socket_in(folder));
        for disk in self.disks.iter_mut().filter(|disk| !disk.options.read_only) {
            let id = disk.id().to_owned();
            let limit = disk.record.as_ref().and_then(|log| log.limit);
            disk.record = Some(RecordOptions { path: folder.join(format!("{id}.log")), limit });
            if disk.ephemeral.is_some() {
                continue;
            }
            if disk.base.is_some() {
                bail!(
                    "disk {id} is a layer, which would be frozen; make an image of it with \
                     `bulkhead layer flatten`, or let it be `ephemeral`"
                );
            }
            let layer = folder.join(format!("{id}.layer"));
            disk.base = Some(std::mem::replace(&mut disk.path, layer));
            disk.create = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DiskBus, DiskConfig};
    use super::*;

    #[test]
    fn images_become_bases_and_layers_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("new");
        let mut machine = MachineConfig::minimal();
        machine.disks = vec![DiskConfig::minimal(Path::new("/a.img"), DiskBus::VirtioBlk)];
        let limit = Some(1 << 20);
        machine.disks[0].record = Some(RecordOptions { path: "/a.log".into(), limit });
        let mut read_only = machine.disks[0].clone();
        read_only.options.read_only = true;
        machine.disks.push(read_only.clone());
        machine.record_in(&folder).unwrap();
        let [disk, untouched] = machine.disks.as_slice() else { panic!("two disks") };
        assert_eq!(disk.base.as_deref(), Some(Path::new("/a.img")));
        assert_eq!(disk.path, folder.join("data.layer"));
        assert_eq!(disk.record, Some(RecordOptions { path: folder.join("data.log"), limit }));
        assert!(disk.create && folder.is_dir());
        assert_eq!(machine.control, Some(folder.join("control.sock")));
        assert_eq!(untouched, &read_only);
        let error = machine.record_in(&folder).unwrap_err().to_string();
        assert!(error.starts_with("disk data is a layer"), "{error}");
    }
}
