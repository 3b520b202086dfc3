//! Examines a state of the host's scratch disk on this machine: mounts its file system, which
//! replays the journal, and reads the guest's disk. Needs root. A pool is imported by an emulated
//! host.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use writer::{Findings, RECORD, Records, examine};

use super::prepare::{DEVICE, SLOTS, Saved};
use super::rows::{Backing, Monitor, Row};
use super::server::Server;
use super::store::Store;

/// The guest's reports: the records up to `flushed` are durable, and those up to `issued` were
/// written.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Acknowledged {
    pub(crate) flushed: u64,
    pub(crate) issued: u64,
}

/// A state, examined.
pub(crate) enum Examined {
    /// The guest's disk was read.
    Disk(Findings),
    /// The host's file system, or the layer on it, is damaged.
    Unreadable(String),
}

/// A mounted file system, unmounted when dropped.
struct Mounted<'path>(&'path Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        Command::new("umount").arg(self.0).status().ok();
    }
}

/// The end of a command: what it said if it failed.
type Done = std::result::Result<(), String>;

fn run(command: &mut Command) -> Result<Done> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    if output.status.success() {
        return Ok(Ok(()));
    }
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Ok(Err(text.trim().to_owned()))
}

/// Examines the scratch disk in the file `state`. `folder` is for this check only, `zfs_host` for
/// volumes.
pub(crate) fn check(
    row: &Row,
    zfs_host: Option<&Saved>,
    state: &Path,
    folder: &Path,
    records: &Records,
    acknowledged: Acknowledged,
) -> Result<Examined> {
    let (kind, options) = match row.backing {
        Backing::Zvol => return check_zvol(zfs_host, state, folder, records, acknowledged),
        Backing::Ext4 | Backing::Layer => ("ext4", "loop"),
        Backing::Xfs => ("xfs", "loop,nouuid"),
        Backing::Btrfs => ("btrfs", "loop"),
    };
    let point = folder.join("mount");
    std::fs::create_dir_all(&point)?;
    let mount =
        run(Command::new("mount").args(["-t", kind, "-o", options]).arg(state).arg(&point))?;
    if let Err(error) = mount {
        return Ok(Examined::Unreadable(error));
    }
    let _mounted = Mounted(&point);
    let mut image = point.join("disk.img");
    if row.backing == Backing::Layer {
        image = folder.join("flat.img");
        if image.exists() {
            std::fs::remove_file(&image)?;
        }
        if let Err(error) = flatten(row.monitor, &point, &image)? {
            return Ok(Examined::Unreadable(error));
        }
    }
    read(&image, records, acknowledged)
}

/// Checks the layer in a folder and copies its disk to `image`.
fn flatten(monitor: Monitor, folder: &Path, image: &Path) -> Result<Done> {
    if monitor == Monitor::Qemu {
        let overlay = folder.join("disk.qcow2");
        let output = Command::new("qemu-img").args(["check", "-q"]).arg(&overlay).output()?;
        // Status 3: clusters that are not in use, which a power cut may leave.
        if !matches!(output.status.code(), Some(0 | 3)) {
            return Ok(Err(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        return run(Command::new("qemu-img")
            .args(["convert", "-O", "raw"])
            .args([&overlay, image]));
    }
    let (program, layer) = (lab::bulkhead_binary()?, folder.join("disk.layer"));
    match run(Command::new(&program).args(["layer", "check"]).arg(&layer))? {
        Ok(()) => run(Command::new(&program).args(["layer", "flatten"]).args([&layer, image])),
        Err(error) => Ok(Err(error)),
    }
}

/// A host that imports pools, as this machine may have no ZFS.
pub(crate) fn zfs_host(worker: usize) -> Result<Saved> {
    Saved::make_with(format!("power-zfs-{worker}"), |host| {
        host.load_zfs()?;
        host.run(&format!("sync && blockdev --flushbufs {DEVICE}"))?;
        Ok(())
    })
}

fn check_zvol(
    zfs_host: Option<&Saved>,
    state: &Path,
    folder: &Path,
    records: &Records,
    acknowledged: Acknowledged,
) -> Result<Examined> {
    let saved = zfs_host.context("a host with ZFS")?;
    let socket = folder.join("zfs.sock");
    let file = File::options().read(true).write(true).open(state)?;
    let _server = Server::start(Store::new(file, None)?, &socket)?;
    let host = saved.restore(&socket)?;
    let (flat, local) = (host.path("flat.img"), folder.join("flat.img"));
    let output = host.try_run(&format!(
        "blockdev --flushbufs {DEVICE} && blockdev --rereadpt {DEVICE} && udevadm settle && \
         zpool import -f -d {DEVICE}-part1 tank && udevadm settle && \
         dd if=/dev/zvol/tank/disk of={flat} bs=1M status=none"
    ))?;
    if output.status != 0 {
        return Ok(Examined::Unreadable(output.text.trim().to_owned()));
    }
    host.get(&flat, &local)?;
    read(&local, records, acknowledged)
}

fn read(image: &Path, records: &Records, acknowledged: Acknowledged) -> Result<Examined> {
    let Acknowledged { flushed, issued } = acknowledged;
    ensure!(records.slots() == SLOTS, "{} slots", records.slots());
    let mut file = match File::open(image) {
        Ok(file) => file,
        Err(error) => return Ok(Examined::Unreadable(format!("{}: {error}", image.display()))),
    };
    let mut content = Vec::new();
    match file.read_to_end(&mut content) {
        Ok(len) if len as u64 == SLOTS * RECORD as u64 => {}
        Ok(len) => return Ok(Examined::Unreadable(format!("the image has {len} bytes"))),
        Err(error) => return Ok(Examined::Unreadable(format!("{}: {error}", image.display()))),
    }
    Ok(Examined::Disk(examine(&mut &content[..], records, flushed, issued)?))
}
