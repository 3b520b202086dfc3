//! A host that is saved with its guest up: each cut of a row starts from it.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use lab::{Guest, Host, disk};

use super::rows::{Backing, Bus, Monitor, Row, Workload};
use super::server::{EXPORT, Server};
use super::store::Store;

/// Records that the guest's disk has place for: 16 MiB.
pub(crate) const SLOTS: u64 = 4096;
/// Bytes of the host's scratch disk.
const SCRATCH: u64 = 8 << 30;
/// The scratch disk on the host.
pub(crate) const DEVICE: &str = "/dev/disk/by-id/virtio-scratch";
/// The first sector of a layer's map.
const MAP_AT: u64 = 16;
/// Path of the writer in the guest.
pub(crate) const WRITER: &str = "/tmp/writer";

/// A saved host.
pub(crate) struct Saved {
    /// The folder of its logs.
    name: String,
    folder: tempfile::TempDir,
    /// Sectors of the scratch disk with the map of the guest's layer.
    pub(crate) map: Range<u64>,
}

impl Saved {
    /// Starts a host with the row's guest and saves it.
    pub(crate) fn make(row: &Row, worker: usize) -> Result<Self> {
        let mut map = 0..0;
        let saved = Self::make_with(format!("power-cut-{worker}"), |host| {
            if row.backing == Backing::Zvol {
                host.load_zfs()?;
            }
            host.run(&storage(row))?;
            let guest = match row.monitor {
                Monitor::Bulkhead => start_bulkhead(host, row)?,
                Monitor::Qemu => start_qemu(host, row)?,
            };
            let device = if row.bus == Bus::Block { "vdb" } else { "vda" };
            guest.run(&format!(
                "dd if=/dev/{device} of={WRITER} bs=1M && chmod +x {WRITER} && sync"
            ))?;
            host.run("sync")?;
            if has_layer(row) && row.workload == Workload::Settle {
                map = map_of_layer(host)?;
            }
            guest.leave_stopped()
        })?;
        Ok(Self { map, ..saved })
    }

    /// Saves a host on which `prepare` was done.
    pub(crate) fn make_with(
        name: String,
        prepare: impl FnOnce(&Host) -> Result<()>,
    ) -> Result<Self> {
        let saved = Self { name, folder: tempfile::tempdir_in(fixtures::scratch())?, map: 0..0 };
        let file = File::options().create_new(true).read(true).write(true).open(saved.disk())?;
        file.set_len(SCRATCH)?;
        let socket = saved.folder.path().join("nbd.sock");
        let server = Server::start(Store::new(file, None)?, &socket)?;
        let host = Host::start_served(&saved.name, &socket, EXPORT, None)?;
        prepare(&host)?;
        host.save(&saved.state())?;
        host.cut_power()?;
        let left = server.cut()?;
        ensure!(left.unflushed.is_empty(), "the saved host left unflushed writes");
        Ok(saved)
    }

    /// The file of the host's scratch disk.
    pub(crate) fn disk(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Starts the host, as it was saved, on a copy of its scratch disk that a server has on
    /// `socket`.
    pub(crate) fn restore(&self, socket: &Path) -> Result<Host> {
        Host::start_served(&self.name, socket, EXPORT, Some(&self.state()))
    }
}

/// Shell commands that make a pool on a partition of 1 GiB: zpool itself would partition a disk.
const POOL: &str = r"printf '\0\0\0\0\203\0\0\0\0\010\0\0\0\0\040\0' | dd of=$disk bs=1 seek=446 conv=notrunc status=none
printf '\125\252' | dd of=$disk bs=1 seek=510 conv=notrunc status=none
sync $disk && blockdev --rereadpt $disk && udevadm settle && \
zpool create -O compression=off -O mountpoint=none tank $disk-part1 && zfs create -s -V $bytes tank/disk && \
udevadm settle && test -b /dev/zvol/tank/disk && zpool sync tank && sync";

/// Shell commands that make the row's storage on the host's scratch disk.
fn storage(row: &Row) -> String {
    let bytes = SLOTS * writer::RECORD as u64;
    let format = match row.backing {
        Backing::Zvol => return format!("disk={DEVICE} bytes={bytes}\n{POOL}"),
        Backing::Ext4 | Backing::Layer => format!("mkfs.ext4 -q -F {DEVICE} 512M"),
        Backing::Xfs => format!("mkfs.xfs -q -f -d size=512m {DEVICE}"),
        Backing::Btrfs => format!("mkfs.btrfs -q -f -b 512M {DEVICE}"),
    };
    let image = match (row.backing, row.workload) {
        (Backing::Layer, _) => format!("head -c {bytes} /dev/zero >base.img"),
        (_, Workload::Overwrite) => format!("head -c {bytes} /dev/zero >disk.img"),
        _ => format!("truncate -s {bytes} disk.img"),
    };
    format!("{format} && mount {DEVICE} /scratch && cd /scratch && {image} && sync")
}

/// Builds the writer, once, and puts it on the host; returns its path there.
fn put_writer(host: &Host) -> Result<String> {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let program = match BUILT.get() {
        Some(program) => program,
        None => &build_writer()?,
    };
    let path = host.put(program, "writer")?;
    host.run(&format!("truncate -s %4096 {path}"))?;
    BUILT.get_or_init(|| program.clone());
    Ok(path)
}

fn build_writer() -> Result<PathBuf> {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let status = Command::new("cargo")
        .args(["rustc", "--quiet", "--release", "--package", "writer", "--bin", "writer"])
        .args(["--", "-C", "target-feature=+crt-static"])
        .current_dir(&tree)
        .status()
        .context("running cargo")?;
    ensure!(status.success(), "building the writer failed");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(tree.join("target"), PathBuf::from);
    Ok(target.join("release/writer"))
}

fn start_bulkhead<'host>(host: &'host Host, row: &Row) -> Result<Guest<'host>> {
    let bus = if row.bus == Bus::Block { "virtio-blk" } else { "virtio-scsi" };
    let keys = format!("cache = \"{}\"\nbus = \"{bus}\"\n", row.cache);
    let data = if has_layer(row) {
        let program = host.put_bulkhead()?;
        let place_map = match row.workload {
            // Its place must be known, as that of a layer in use is.
            Workload::Settle => "dd if=/dev/zero of=disk.layer bs=4k seek=2 count=1 conv=notrunc",
            _ => "true",
        };
        host.run(&format!(
            "cd /scratch && {program} layer create --base base.img disk.layer && {place_map} && sync"
        ))?;
        disk("data", "/scratch/disk.layer", &format!("base = \"/scratch/base.img\"\n{keys}"))
    } else {
        disk("data", image(row), &keys)
    };
    let writer = disk("writer", &put_writer(host)?, "readonly = true");
    host.boot(&host.small_guest(1, &(data + &writer)))
}

fn has_layer(row: &Row) -> bool {
    row.backing == Backing::Layer && row.monitor == Monitor::Bulkhead
}

/// The sectors of the scratch disk that have the map of the layer, which is a page
/// (docs/layer-format.md).
fn map_of_layer(host: &Host) -> Result<Range<u64>> {
    let text = host.run("filefrag -b512 -e /scratch/disk.layer")?;
    // " EXT: FIRST.. LAST: FIRST.. LAST: LENGTH: FLAGS", in units of 512 bytes.
    let extents = text.lines().filter_map(|line| {
        let mut numbers = line.split([':', '.', ' ']).filter_map(|word| word.parse::<u64>().ok());
        let [_, first, last, at] = [(); 4].map(|()| numbers.next());
        Some((first?..=last?, at?))
    });
    let mut holding = extents.filter(|(sectors, _)| sectors.contains(&MAP_AT));
    let (sectors, at) = holding.next().with_context(|| format!("no extent in {text}"))?;
    let first = at + MAP_AT - sectors.start();
    Ok(first..first + 8)
}

/// The guest's disk on the host.
fn image(row: &Row) -> &'static str {
    match row.backing {
        Backing::Zvol => "/dev/zvol/tank/disk",
        Backing::Layer => "/scratch/disk.qcow2",
        Backing::Ext4 | Backing::Xfs | Backing::Btrfs => "/scratch/disk.img",
    }
}

/// Puts a qcow2 image over the base on the scratch disk. The host has no qemu-img.
fn put_overlay(host: &Host) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("disk.qcow2");
    let status = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-u", "-b", "base.img", "-F", "raw"])
        .arg(&file)
        .arg((SLOTS * writer::RECORD as u64).to_string())
        .status()
        .context("running qemu-img")?;
    ensure!(status.success(), "qemu-img failed");
    let file = host.put(&file, "disk.qcow2")?;
    host.run(&format!("cp {file} /scratch/disk.qcow2 && sync"))?;
    Ok(())
}

fn start_qemu<'host>(host: &'host Host, row: &Row) -> Result<Guest<'host>> {
    let format = if row.backing == Backing::Layer {
        put_overlay(host)?;
        "qcow2"
    } else {
        "raw"
    };
    let device = match row.bus {
        Bus::Block => "-device virtio-blk-pci,drive=data",
        Bus::Scsi => "-device virtio-scsi-pci -device scsi-hd,drive=data",
    };
    let guest = host.spawn_vmm(&format!(
        "qemu-system-x86_64 -accel kvm -cpu host -M q35 -m 256M -nodefaults -display none -no-reboot \
         -kernel {} -initrd {} -append '{}' -serial unix:$CONSOLE,server=on,wait=off \
         -drive if=none,id=data,file={},format={format},cache={} {device} \
         -drive if=none,id=writer,file={},format=raw,readonly=on -device virtio-blk-pci,drive=writer",
        host.kit("vmlinuz"),
        host.kit("initramfs"),
        lab::CMDLINE,
        image(row),
        row.cache,
        put_writer(host)?,
    ))?;
    guest.wait_up()?;
    Ok(guest)
}
