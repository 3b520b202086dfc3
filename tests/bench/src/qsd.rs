//! QEMU's storage daemon as a contestant: its vhost-user-blk export under the same load generator.

use std::fs::File;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use devices::GuestMemory;

use vhost::vhost_user::message::VhostUserVirtioFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use super::figures::{Figures, WARM_UP};
use super::host::CpuClock;
use super::load::{self, Events, LoadDriver};
use super::ours;
use super::workload::{Cpus, Direction, Workload};
use fixtures::wait_for;
use fixtures::{OwnedChild, killed_with_parent};

/// The format of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Raw,
    Qcow2,
}

impl Format {
    /// The daemon's block device over the image, with the name `disk`.
    fn node(self, path: &Path) -> String {
        let (path, file) = (path.display(), "aio=io_uring,cache.direct=off,auto-read-only=on");
        match self {
            Self::Raw => format!("file,node-name=disk,filename={path},{file}"),
            Self::Qcow2 => {
                let file: Vec<_> = file.split(',').map(|key| format!("file.{key}")).collect();
                let file = file.join(",");
                format!("qcow2,node-name=disk,file.driver=file,file.filename={path},{file}")
            }
        }
    }
}

/// The daemon and the connection to its export. Dropping it kills the daemon.
struct Daemon {
    child: OwnedChild,
    frontend: Frontend,
}

impl Daemon {
    /// Starts the daemon on the file `path` with io_uring through the page cache. Its I/O thread
    /// polls only with two CPUs, for the default time: on one CPU it would keep the driver from
    /// running.
    fn start(path: &Path, format: Format, workload: &Workload) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("export");
        let writable = if workload.direction == Direction::Write { "on" } else { "off" };
        let poll_ns = if workload.cpus == Cpus::Two { 32768 } else { 0 };
        let child = OwnedChild(
            killed_with_parent("qemu-storage-daemon")
            .args(["--object", &format!("iothread,id=io,poll-max-ns={poll_ns}")])
            .arg("--blockdev")
            .arg(format.node(path))
            .arg("--export")
            .arg(format!(
                "vhost-user-blk,id=export,node-name=disk,iothread=io,writable={writable},num-queues=1,\
                 addr.type=unix,addr.path={}",
                socket.display()
            ))
            .stdin(Stdio::null())
            .spawn()
            .context("starting qemu-storage-daemon (package qemu-utils)")?,
        );
        let frontend = wait_for(|| Frontend::connect(&socket, 1).ok())
            .context("no connection to qemu-storage-daemon")?;
        Ok(Self { child, frontend })
    }

    /// Negotiates features and sends memory and ring.
    fn connect(&mut self, memory: &GuestMemory) -> Result<Events> {
        let frontend = &mut self.frontend;
        frontend.set_owner()?;
        let offered = frontend.get_features()?;
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let wanted = ours::FEATURES | protocol;
        ensure!(offered & wanted == wanted, "qemu-storage-daemon lacks features: {offered:#x}");
        frontend.set_features(wanted)?;
        let supported = frontend.get_protocol_features()?;
        frontend.set_protocol_features(
            supported & vhost::vhost_user::VhostUserProtocolFeatures::REPLY_ACK,
        )?;

        let region = memory.find_region(GuestAddress(0)).context("no guest memory at address 0")?;
        frontend.set_mem_table(&[VhostUserMemoryRegionInfo::from_guest_region(region)?])?;
        let base = region.as_ptr() as u64;
        let layout = load::LAYOUT;
        frontend.set_vring_num(0, layout.size)?;
        frontend.set_vring_base(0, 0)?;
        frontend.set_vring_addr(
            0,
            &VringConfigData {
                queue_max_size: layout.size,
                queue_size: layout.size,
                flags: 0,
                desc_table_addr: base + layout.descriptors,
                used_ring_addr: base + layout.used,
                avail_ring_addr: base + layout.available,
                log_addr: None,
            },
        )?;
        let (kick, interrupt) = (EventFd::new(0)?, EventFd::new(0)?);
        frontend.set_vring_call(0, &interrupt)?;
        frontend.set_vring_kick(0, &kick)?;
        frontend.set_vring_enable(0, true)?;
        // It answers in order. Both sides share the event's flags, and it makes its own not to
        // block.
        frontend.get_features()?;
        ours::make_blocking(&interrupt)?;
        Ok(Events { kick: ours::own(&kick)?, interrupt: ours::own(&interrupt)? })
    }
}

/// Runs a workload on the raw image `path`.
///
/// # Errors
///
/// If the daemon does not start or a request fails.
pub(super) fn run(path: &Path, workload: &Workload, duration: Duration) -> Result<Figures> {
    let capacity = File::open(path)?.metadata()?.len();
    run_format(path, Format::Raw, capacity, workload, duration)
}

/// As [`run`], on an image of `capacity` bytes with this format.
///
/// # Errors
///
/// As [`run`].
pub(super) fn run_format(
    path: &Path,
    format: Format,
    capacity: u64,
    workload: &Workload,
    duration: Duration,
) -> Result<Figures> {
    let memory = load::shared_guest_memory()?;
    let mut daemon = Daemon::start(path, format, workload)?;
    // The driver lays out the ring before the daemon maps it.
    let _elsewhere = workload.move_driver()?;
    let mut driver = LoadDriver::new(&memory, daemon.connect(&memory)?, workload, capacity)?;
    driver.run(WARM_UP)?;
    let cpu = CpuClock::of_process(daemon.child.0.id())?;
    let run = driver.run(duration)?;
    Ok(Figures::of(run, cpu.elapsed()?))
}
