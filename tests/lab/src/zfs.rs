//! A host with ZFS: a restored L1 to which an archive adds the modules and programs. Other
//! scenarios do not pay for them.

use anyhow::{Context, Result};

use super::host::{Host, HostKind};
use super::logs::fresh_logs;
use super::products::Lab;
use super::qemu::Variant;

impl Host {
    /// Starts a host for the scenario `name` with the ZFS pool `tank` in a file on the scratch
    /// disk. Builds ZFS if it is missing. Always an emulated host: the modules are built for its
    /// kernel.
    pub fn start_with_zfs(name: &str) -> Result<Self> {
        let lab = Lab::find()?;
        let logs = fresh_logs(name)?;
        let host = Self::with_kind(HostKind::nested(&lab, &logs, Variant::default())?, lab, logs)?;
        host.load_zfs()?;
        // In a file: zpool would partition a disk, and udev removes the device nodes for a moment.
        let pool = format!("{}/tank", host.scratch("ext4")?);
        host.run(&format!(
            "truncate -s 7G {pool} && zpool create -O compression=off -O mountpoint=none tank {pool}"
        ))?;
        Ok(host)
    }

    /// Loads ZFS in an emulated host. Builds it if it is missing.
    pub fn load_zfs(&self) -> Result<()> {
        let archive = self.put(&self.lab.zfs()?, "zfs.tar")?;
        // By default the ARC would take half of the memory.
        self.run(&format!(
            "tar -xf {archive} -C / && rm {archive} && ldconfig && udevadm control --reload && cd /usr/lib/modules/$(uname -r)/extra && \
             insmod ./spl.ko && insmod ./zfs.ko zfs_arc_max=536870912 && udevadm settle"
        ))?;
        Ok(())
    }

    /// Makes a sparse volume in the pool and returns the path of its device.
    pub fn volume(&self, name: &str, size: &str, options: &str) -> Result<String> {
        let path = format!("/dev/zvol/tank/{name}");
        self.run(&format!(
            "zfs create -s -V {size} {options} tank/{name} && udevadm settle && test -b {path}"
        ))?;
        Ok(path)
    }

    /// Bytes that a volume references in the pool.
    pub fn referenced(&self, name: &str) -> Result<u64> {
        let bytes =
            self.run(&format!("zpool sync tank && zfs get -Hpo value referenced tank/{name}"))?;
        bytes.trim().parse().with_context(|| format!("reading {bytes:?}"))
    }
}
