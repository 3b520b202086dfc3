//! Attaches disks to a running machine and detaches them.
//!
//! A disk is attached on the thread of the request, which waits for the host to open the image;
//! several may be at a time. A detached disk gets its own thread until its image is closed, because
//! the host may take arbitrarily long for its I/O in flight.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use devices::virtio::Detached;

use super::controllers::ScsiControllers;
use super::error::{HotplugError, address_text};
use super::events::{EventKind, EventLog};
use super::open::open_backend;
use super::registry::{DiskRegistry, ManagedDisk};
use crate::config::attached::AttachableDisk;
use crate::config::needs::EnginePolicy;
use crate::config::{DiskConfig, MachineConfig, ScsiAddress, SharedFile, shared_file};
use crate::process_limits::ProcessLimits;

/// The detach thread needs little stack.
const STACK_BYTES: usize = 128 << 10;

/// Attaches and detaches the SCSI disks of one machine.
pub(crate) struct Hotplug {
    disks: Arc<DiskRegistry>,
    controllers: ScsiControllers,
    /// The machine as it started, without its disks.
    machine: MachineConfig,
    events: Arc<EventLog>,
    /// The disks that are being attached.
    attaching: Mutex<Vec<Arc<DiskConfig>>>,
}

impl Hotplug {
    /// For the `disks` of `machine`.
    pub(crate) fn new(
        disks: Arc<DiskRegistry>,
        controllers: ScsiControllers,
        machine: &MachineConfig,
        events: Arc<EventLog>,
    ) -> Self {
        let machine = MachineConfig { disks: Vec::new(), ..machine.clone() };
        Self { disks, controllers, machine, events, attaching: Mutex::default() }
    }

    /// Opens a disk, attaches it, and notifies the guest. Blocks as long as the host takes to open
    /// the image.
    ///
    /// # Errors
    ///
    /// The disk is neither attached nor open.
    pub(crate) fn attach(&self, disk: AttachableDisk) -> Result<Arc<ManagedDisk>, HotplugError> {
        let (others, reservation) = self.reserve(disk)?;
        let config = &*reservation.config;
        let mut shared = others.iter();
        let shared = shared.find_map(|other| Some((other, shared_file(config, &other.config)?)));
        if let Some((other, SharedFile { path: image, role })) = shared {
            let disk = other.config.id().to_owned();
            return Err(conflict(other, || HotplugError::ImageTaken { image, role, disk }));
        }
        drop(others);
        let config = config.clone();
        let address = reservation.address;
        let backend = open_backend(&config)?;
        let control = self.controllers.attach(&config, address, backend)?;
        let id = config.id().to_owned();
        let disk = ManagedDisk::new(config, control).watched(&self.events).map_err(|error| {
            if let Some(leaving) = self.controllers.detach(address) {
                let _ = flush_and_close(&id, leaving, || {});
            }
            HotplugError::Thread(error)
        })?;
        let disk = Arc::new(disk);
        self.disks.insert(Arc::clone(&disk));
        drop(reservation);
        tracing::info!(disk = id, "attached through the control socket");
        let text = format!("at {}", address_text(&address));
        self.events.add(EventKind::DiskAttached, &id, text);
        Ok(disk)
    }

    /// Reserves the id and the address of a disk, and returns the other disks.
    fn reserve(
        &self,
        disk: AttachableDisk,
    ) -> Result<(Vec<Arc<ManagedDisk>>, Reservation<'_>), HotplugError> {
        let mut attaching = self.attaching.lock().unwrap_or_else(PoisonError::into_inner);
        let others = self.disks.all();
        if let Some(other) = others.iter().find(|other| other.config.id() == disk.id()) {
            return Err(conflict(other, || HotplugError::IdTaken(disk.id().to_owned())));
        }
        if attaching.iter().any(|other| other.id() == disk.id()) {
            return Err(HotplugError::Attaching(disk.id().to_owned()));
        }
        let address = self.address_for(&disk, &others, &attaching)?;
        let config = disk.build(self.machine.vcpus.into(), address);
        let config = Arc::new(config.ok_or(HotplugError::AddressTaken(address))?);
        self.check_limits(&others, &attaching, &config)?;
        attaching.push(Arc::clone(&config));
        drop(attaching);
        Ok((others, Reservation { hotplug: self, config, address }))
    }

    /// Compares all disks, those being attached or detached included, with the limits of the
    /// process: the guest must not get EIO because an engine cannot be made.
    fn check_limits(
        &self,
        others: &[Arc<ManagedDisk>],
        attaching: &[Arc<DiskConfig>],
        disk: &DiskConfig,
    ) -> Result<(), HotplugError> {
        let others = others.iter().map(|other| &other.config);
        let disks = others.chain(attaching.iter().map(|other| &**other)).chain([disk]);
        let machine = MachineConfig { disks: disks.cloned().collect(), ..self.machine.clone() };
        let needs = EnginePolicy::probe().machine(&machine);
        let exceeded = needs.exceeded(&ProcessLimits::probe()).into_iter().next();
        exceeded.map_or(Ok(()), |exceeded| Err(HotplugError::Limit(exceeded)))
    }

    fn address_for(
        &self,
        disk: &AttachableDisk,
        others: &[Arc<ManagedDisk>],
        attaching: &[Arc<DiskConfig>],
    ) -> Result<ScsiAddress, HotplugError> {
        let at =
            |address| others.iter().find(move |other| other.config.scsi_address() == Some(address));
        let is_reserved =
            |address| attaching.iter().any(|other| other.scsi_address() == Some(address));
        let address = disk.address(|address| at(address).is_some() || is_reserved(address));
        let number = address.unwrap_or_else(|taken| taken).controller;
        let Some(available) = self.controllers.queues(number) else {
            let existing = self.controllers.numbers().collect();
            return Err(HotplugError::NoController { number, existing });
        };
        if let Some(requested) = disk.queues().filter(|requested| *requested > available) {
            return Err(HotplugError::Queues { requested, available });
        }
        address.map_err(|taken| {
            let error = || HotplugError::AddressTaken(taken);
            at(taken).map_or_else(error, |other| conflict(other, error))
        })
    }

    /// Detaches a disk: the guest no longer finds it. Its image is closed once its I/O in flight
    /// has completed and its data is flushed, which an event reports.
    ///
    /// # Errors
    ///
    /// The disk stays attached.
    pub(crate) fn detach(self: &Arc<Self>, disk: &Arc<ManagedDisk>) -> Result<(), HotplugError> {
        let id = disk.config.id();
        let address = disk.config.scsi_address();
        let address = address.ok_or_else(|| HotplugError::NotScsi(id.to_owned()))?;
        if !disk.begin_detach() {
            return Ok(());
        }
        // A commit looks for a detach after it has begun.
        if disk.is_merging() {
            disk.cancel_detach();
            return Err(HotplugError::Committing(id.to_owned()));
        }
        let (hotplug, detached) = (Arc::clone(self), Arc::clone(disk));
        let builder = thread::Builder::new().name(format!("{id}/detach")).stack_size(STACK_BYTES);
        // Never joined: at the machine's end the controller flushes all of its disks.
        let thread = builder.spawn(move || hotplug.complete_detach(detached, address));
        thread.map(drop).map_err(|error| {
            disk.cancel_detach();
            HotplugError::Thread(error)
        })
    }

    /// Detaches the disk from its controller, flushes it and closes its image. Detach thread.
    fn complete_detach(&self, disk: Arc<ManagedDisk>, address: ScsiAddress) {
        let id = disk.config.id().to_owned();
        let is_ephemeral = disk.config.ephemeral.is_some();
        let recording = disk.recording().cloned();
        let leaving = self.controllers.detach(address);
        tracing::info!(disk = id, "detached through the control socket");
        let flushed = match leaving {
            Some(leaving) => flush_and_close(&id, leaving, || {
                self.disks.remove(&disk);
                drop(disk);
            }),
            // A disk that its controller has lost is flushed nevertheless.
            None => {
                let backend = disk.control.backend();
                let flushed = if backend.read_only() { Ok(()) } else { backend.sync() };
                let flushed = log_failed_flush(&id, flushed);
                self.disks.remove(&disk);
                drop(disk);
                flushed
            }
        };
        if let Some(recording) = recording {
            recording.close();
        }
        match flushed {
            Ok(()) => {
                let text = match is_ephemeral {
                    false => "its data is on stable storage, and its image is closed",
                    true => "its changes are gone",
                };
                self.events.add(EventKind::DiskDetached, &id, text.to_owned());
            }
            Err(error) => {
                let text = format!(
                    "its image is closed, but the last flush failed ({error}): data that the \
                     guest believes written may be lost"
                );
                self.events.add(EventKind::DiskDetachedWithLoss, &id, text);
            }
        }
    }
}

/// The id and the address of a disk that is being attached. Dropping it releases them.
struct Reservation<'h> {
    hotplug: &'h Hotplug,
    config: Arc<DiskConfig>,
    address: ScsiAddress,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let attaching = self.hotplug.attaching.lock();
        let mut attaching = attaching.unwrap_or_else(PoisonError::into_inner);
        attaching.retain(|other| !Arc::ptr_eq(other, &self.config));
    }
}

/// A conflict with `other`, which may already be on its way out.
fn conflict(other: &ManagedDisk, error: impl FnOnce() -> HotplugError) -> HotplugError {
    if other.is_detaching() {
        return HotplugError::Detaching(other.config.id().to_owned());
    }
    error()
}

/// Waits for the I/O in flight of a detached disk, flushes it, and closes its image. `release`
/// drops the last other references to the disk in between: the close waits for them.
fn flush_and_close(id: &str, leaving: Detached, release: impl FnOnce()) -> io::Result<()> {
    let flushed = log_failed_flush(id, leaving.drain());
    release();
    leaving.close();
    flushed
}

fn log_failed_flush(id: &str, flushed: io::Result<()>) -> io::Result<()> {
    flushed.inspect_err(|error| {
        tracing::error!(disk = id, %error, "the last flush failed: data may be lost");
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Mutex;
    use std::time::{Duration, Instant};

    use block::{
        Backend, BackingSpace, ByteOffset, CacheMode, Crossing, DiskStatus, EngineSetup, Extent,
        Geometry, IoEngine, MemoryDisk, OpenError, ResizeError,
    };
    use devices::virtio::VirtioDevice;

    use devices::virtio::Address;

    use super::*;
    use crate::config::attached::AttachRequest;
    use crate::config::{ControllerConfig, DiskBus};
    use crate::disks::EventRecord;

    /// A disk whose flush blocks while the test holds the lock, and then fails.
    struct FailingDisk {
        disk: MemoryDisk,
        flush_lock: Arc<Mutex<()>>,
    }

    impl FailingDisk {
        fn new(flush_lock: Arc<Mutex<()>>) -> Self {
            let (logical_block, physical_block) = (512, 4096);
            let (capacity, optimal_io, discard) = (1 << 20, 0, None);
            let geometry =
                Geometry { capacity, logical_block, physical_block, optimal_io, discard };
            Self { disk: MemoryDisk::new(geometry, CacheMode::WriteBack, false), flush_lock }
        }
    }

    impl Backend for FailingDisk {
        fn geometry(&self) -> Geometry {
            self.disk.geometry()
        }

        fn cache_mode(&self) -> CacheMode {
            self.disk.cache_mode()
        }

        fn read_only(&self) -> bool {
            self.disk.read_only()
        }

        fn engine(&self, setup: &EngineSetup<'_>) -> Result<Box<dyn IoEngine>, OpenError> {
            self.disk.engine(setup)
        }

        fn status(&self) -> DiskStatus {
            self.disk.status()
        }

        fn sync(&self) -> io::Result<()> {
            drop(self.flush_lock.lock());
            Err(io::Error::from_raw_os_error(libc::EIO))
        }

        fn stop_holding(&self) {
            self.disk.stop_holding();
        }

        fn allocation(&self, from: ByteOffset, limit: usize) -> io::Result<Vec<Extent>> {
            self.disk.allocation(from, limit)
        }

        fn backing_space(&self) -> io::Result<Option<BackingSpace>> {
            self.disk.backing_space()
        }

        fn check_soft_limit(&self) -> io::Result<Option<Crossing>> {
            self.disk.check_soft_limit()
        }

        fn resize(&self, size: Option<u64>) -> Result<u64, ResizeError> {
            self.disk.resize(size)
        }

        fn as_any(&self) -> &dyn std::any::Any {
            self
        }
    }

    const ADDRESS: ScsiAddress =
        ScsiAddress { controller: 0, address: Address { target: 0, lun: 0 } };

    /// A machine with one controller and, at [`ADDRESS`], the disk "data".
    struct Fixture {
        hotplug: Arc<Hotplug>,
        events: Arc<EventLog>,
        image: tempfile::NamedTempFile,
        _controller: Box<dyn VirtioDevice>,
    }

    impl Fixture {
        fn new(flush_lock: Arc<Mutex<()>>) -> Self {
            let image = image();
            let mut controllers = ScsiControllers::default();
            let controller = controllers.add(ControllerConfig { number: 0, queues: 1 }).unwrap();
            let config = DiskConfig::minimal(image.path(), DiskBus::VirtioScsi(ADDRESS));
            let backend = Arc::new(FailingDisk::new(flush_lock));
            let control = controllers.attach(&config, ADDRESS, backend).unwrap();
            let events = Arc::new(EventLog::default());
            let disks = Arc::new(DiskRegistry::new([ManagedDisk::new(config, control)]));
            let hotplug =
                Hotplug::new(disks, controllers, &MachineConfig::minimal(), Arc::clone(&events));
            Self { hotplug: Arc::new(hotplug), events, image, _controller: controller.unwrap() }
        }

        fn find(&self, id: &str) -> Option<Arc<ManagedDisk>> {
            self.hotplug.disks.find(id)
        }

        fn disk(id: &str, path: &Path, lun: u16) -> AttachableDisk {
            let keys = serde_json::json!({ "path": path, "bus": "virtio-scsi", "lun": lun });
            AttachableDisk::new(AttachRequest { id: id.into(), keys }).unwrap()
        }

        /// Attaches a disk, and returns the error's message or an empty text.
        fn attach(&self, id: &str, path: &Path, lun: u16) -> String {
            let disk = Self::disk(id, path, lun);
            self.hotplug.attach(disk).err().map_or(String::new(), |error| error.to_string())
        }

        fn wait_for_events(&self, count: usize) -> Vec<EventRecord> {
            let deadline = Instant::now() + Duration::from_secs(20);
            while self.events.all().len() < count && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(1));
            }
            self.events.all()
        }
    }

    fn image() -> tempfile::NamedTempFile {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(1 << 20).unwrap();
        image
    }

    /// The host may take long to open the image.
    #[test]
    fn an_attach_reserves_its_id_and_its_address() {
        let fixture = Fixture::new(Arc::default());
        let (image, other) = (image(), image());
        let opening = Fixture::disk("more", image.path(), 1);
        let (_, reservation) = fixture.hotplug.reserve(opening).unwrap();
        let attaching = "the disk \"more\" is already being attached";
        assert_eq!(fixture.attach("more", other.path(), 2), attaching);
        let taken = "LUN 1 of target 0 of controller 0 is taken";
        assert_eq!(fixture.attach("other", other.path(), 1), taken);
        assert_eq!(fixture.attach("other", other.path(), 2), "");
        drop(reservation);
        assert_eq!(fixture.attach("more", image.path(), 1), "");
    }

    #[test]
    fn a_disk_that_its_controller_lost_can_be_detached() {
        let fixture = Fixture::new(Arc::default());
        drop(fixture.hotplug.controllers.detach(ADDRESS));
        fixture.hotplug.detach(&fixture.find("data").unwrap()).unwrap();
        let lost = fixture.wait_for_events(1).pop().unwrap();
        assert_eq!((lost.kind, &*lost.disk), (EventKind::DiskDetachedWithLoss, "data"));
        assert!(fixture.find("data").is_none());
    }

    /// Id, image and address stay taken until the detach is complete.
    #[test]
    fn a_failed_last_flush_is_reported_as_loss() {
        let flush_lock = Arc::new(Mutex::new(()));
        let fixture = Fixture::new(Arc::clone(&flush_lock));
        let (image, other) = (fixture.image.path(), image());
        let blocked = flush_lock.lock().unwrap();

        let disk = fixture.find("data").unwrap();
        let taken = "there is already a disk \"data\"";
        assert_eq!(fixture.attach("data", other.path(), 1), taken);
        fixture.hotplug.detach(&disk).unwrap();
        fixture.hotplug.detach(&disk).expect("a second detach has no effect");
        assert!(disk.is_detaching() && fixture.hotplug.disks.all().len() == 1);
        drop(disk);
        let detaching = "the disk \"data\" is still being detached";
        assert_eq!(fixture.attach("data", other.path(), 1), detaching);
        assert_eq!(fixture.attach("more", image, 1), detaching);
        assert_eq!(fixture.attach("more", other.path(), 0), detaching);
        assert_eq!(fixture.attach("more", other.path(), 1), "");

        drop(blocked);
        let events = fixture.wait_for_events(2);
        let lost = events.last().unwrap();
        assert_eq!((lost.kind, &*lost.disk), (EventKind::DiskDetachedWithLoss, "data"));
        assert!(lost.text.contains("Input/output error"), "{}", lost.text);
        assert!(fixture.find("data").is_none());
        assert_eq!(fixture.attach("data", image, 0), "");
    }
}
