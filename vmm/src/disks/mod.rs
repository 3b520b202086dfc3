//! The disks of a machine: those it started with, and those that are attached and detached while it runs.
//!
//! Disks are attached by the thread that asks, which waits for the host to open them. Each that is detached has a thread
//! of its own until its image is closed, because nobody knows how long the host works on what is in flight.

pub(crate) mod events;
pub(crate) mod space_watch;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use devices::virtio::{Address, DiskControl};
use thiserror::Error;

use crate::config::attached::Attachable;
use crate::config::{Bus, DiskConfig, ScsiPlace, same_image};
use crate::machine::pci::{self, Controllers};
use events::{Events, Happening};
use space_watch::SpaceWatch;

/// The threads do little.
const STACK_BYTES: usize = 128 << 10;

/// One disk: what was configured, and its controls.
pub(crate) struct DiskView {
    pub(crate) config: DiskConfig,
    pub(crate) control: DiskControl,
    detaching: AtomicBool,
    _watch: Option<SpaceWatch>,
}

impl DiskView {
    /// A disk the space of whose store nobody watches.
    pub(crate) fn new(config: DiskConfig, control: DiskControl) -> Self {
        Self { config, control, detaching: AtomicBool::new(false), _watch: None }
    }

    /// The same, watched if it has a soft limit.
    ///
    /// # Errors
    ///
    /// The host gives no thread.
    pub(crate) fn watched(self, events: &Arc<Events>) -> io::Result<Self> {
        let watch = SpaceWatch::start(&self.control, Arc::clone(events))?;
        Ok(Self { _watch: watch, ..self })
    }

    /// Whether it is on its way out: the guest does not find it any more.
    pub(crate) fn is_detaching(&self) -> bool {
        self.detaching.load(Ordering::Acquire)
    }

    /// Why another disk cannot have what this one has.
    fn refusal(&self, stays: impl FnOnce() -> Refusal) -> Refusal {
        if self.is_detaching() { Refusal::Detaching(self.config.id.clone()) } else { stays() }
    }

    fn place(&self) -> Option<ScsiPlace> {
        match self.config.bus {
            Bus::VirtioScsi(place) => Some(place),
            Bus::VirtioBlk => None,
        }
    }
}

/// Why a disk is not attached, or not detached.
#[derive(Debug, Error)]
pub(crate) enum Refusal {
    /// Another disk has the name.
    #[error("there is a disk {0:?} already")]
    IdTaken(String),
    /// A disk that is on its way out has the name, the image or the place.
    #[error("the disk {0:?} is still being detached")]
    Detaching(String),
    /// Another disk of this machine has the image.
    #[error("{image} is the image of this machine's disk {disk:?}", image = .image.display())]
    ImageTaken { image: PathBuf, disk: String },
    /// Nothing to attach it to.
    #[error("the machine has no SCSI controller {number}")]
    NoController { number: u8, there_are: Vec<u8> },
    /// A controller's queues are made when the machine starts.
    #[error("{asked} queues are more than the {has} of its controller")]
    Queues { asked: u16, has: u16 },
    /// Another disk is there.
    #[error("{} is taken", place(.0))]
    PlaceTaken(ScsiPlace),
    /// The host refuses.
    #[error("{}", chain(.0))]
    Device(#[from] pci::Error),
    /// The host gives no thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
    /// It is a device of its own.
    #[error("the disk {0:?} is on virtio-blk")]
    NotScsi(String),
}

fn place(place: &ScsiPlace) -> String {
    let ScsiPlace { controller, address: Address { target, lun } } = place;
    format!("LUN {lun} of target {target} of controller {controller}")
}

/// An error and what it comes from. The host's refusal of a file says all by itself.
fn chain(error: &pci::Error) -> String {
    match error {
        pci::Error::Disk(_, source) => source.to_string(),
        pci::Error::Place(_, source) => source.to_string(),
        error => error.to_string(),
    }
}

/// See the module's documentation.
pub(crate) struct Disks {
    list: Mutex<Vec<Arc<DiskView>>>,
    controllers: Controllers,
    vcpus: u16,
    events: Arc<Events>,
}

impl Disks {
    /// `disks` and what more can be attached to, of a guest with so many processors.
    pub(crate) fn new(
        disks: Vec<DiskView>,
        controllers: Controllers,
        vcpus: u16,
        events: Arc<Events>,
    ) -> Self {
        let list = Mutex::new(disks.into_iter().map(Arc::new).collect());
        Self { list, controllers, vcpus, events }
    }

    /// All there are now, also those on their way out. Whoever keeps one keeps its image open.
    pub(crate) fn all(&self) -> Vec<Arc<DiskView>> {
        self.lock().clone()
    }

    /// The disk of this name.
    pub(crate) fn find(&self, id: &str) -> Option<Arc<DiskView>> {
        self.lock().iter().find(|disk| disk.config.id == id).cloned()
    }

    /// Opens a disk, attaches it, and tells the guest. To be asked by one thread at a time.
    ///
    /// # Errors
    ///
    /// Why it is not attached. Nothing of it is left.
    pub(crate) fn attach(&self, id: &str, disk: Attachable) -> Result<Arc<DiskView>, Refusal> {
        let others = self.all();
        if let Some(other) = others.iter().find(|other| other.config.id == id) {
            return Err(other.refusal(|| Refusal::IdTaken(id.to_owned())));
        }
        let place = self.place_for(&disk, &others)?;
        let config = disk.build(self.vcpus, place);
        let Some(config) = config else { return Err(Refusal::PlaceTaken(place)) };
        if let Some(other) = others.iter().find(|other| same_image(&other.config, &config)) {
            let disk = other.config.id.clone();
            return Err(other.refusal(|| Refusal::ImageTaken { image: config.path, disk }));
        }
        drop(others);
        let control = self.controllers.attach(&config, place)?;
        let watched = DiskView::new(config, control).watched(&self.events);
        let disk = Arc::new(watched.map_err(|error| {
            if let Some(leaving) = self.controllers.detach(place) {
                if let Err(error) = leaving.settle() {
                    tracing::error!(disk = id, %error, "the last flush failed: data may be lost");
                }
                leaving.close();
            }
            Refusal::Thread(error)
        })?);
        self.lock().push(Arc::clone(&disk));
        tracing::info!(disk = id, "attached through the control socket");
        self.events.add(Happening::DiskAttached, id, format!("at {}", self::place(&place)));
        Ok(disk)
    }

    fn place_for(&self, disk: &Attachable, others: &[Arc<DiskView>]) -> Result<ScsiPlace, Refusal> {
        let is_taken = |place| others.iter().any(|other| other.place() == Some(place));
        let place = disk.place(is_taken);
        let number = place.unwrap_or_else(|taken| taken).controller;
        let Some(has) = self.controllers.queues(number) else {
            let there_are = self.controllers.numbers().collect();
            return Err(Refusal::NoController { number, there_are });
        };
        if let Some(asked) = disk.queues().filter(|asked| *asked > has) {
            return Err(Refusal::Queues { asked, has });
        }
        place.map_err(|taken| {
            let there = others.iter().find(|other| other.place() == Some(taken));
            let refusal = || Refusal::PlaceTaken(taken);
            there.map_or_else(refusal, |there| there.refusal(refusal))
        })
    }

    /// Detaches a disk: from now on the guest does not find it. Its image is closed when what is in flight has ended and what
    /// was written is durable, which is an event.
    ///
    /// # Errors
    ///
    /// Why it stays attached.
    pub(crate) fn detach(self: &Arc<Self>, disk: &Arc<DiskView>) -> Result<(), Refusal> {
        let id = &disk.config.id;
        let place = disk.place().ok_or_else(|| Refusal::NotScsi(id.clone()))?;
        if disk.detaching.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let (disks, leaver) = (Arc::clone(self), Arc::clone(disk));
        let builder = thread::Builder::new().name(format!("{id}/detach")).stack_size(STACK_BYTES);
        // Not joined: at the machine's end its device flushes all disks, and there is nobody left to close them for.
        let thread = builder.spawn(move || disks.leave(leaver, place));
        thread.map(drop).map_err(|error| {
            disk.detaching.store(false, Ordering::Release);
            Refusal::Thread(error)
        })
    }

    /// Sees a disk out, on a thread of its own.
    fn leave(&self, disk: Arc<DiskView>, place: ScsiPlace) {
        let id = disk.config.id.clone();
        let leaving = self.controllers.detach(place);
        tracing::info!(disk = id, "detached through the control socket");
        // Where the controller has it no more, it is flushed and let go all the same.
        let flushed = match &leaving {
            Some(leaving) => leaving.settle(),
            None => disk.control.backend().sync(),
        };
        self.lock().retain(|other| !Arc::ptr_eq(other, &disk));
        drop(disk);
        if let Some(leaving) = leaving {
            leaving.close();
        }
        match flushed {
            Ok(()) => {
                let text = "all that was written is on stable storage, and its image is closed";
                self.events.add(Happening::DiskDetached, &id, text.to_owned());
            }
            Err(error) => {
                tracing::error!(disk = id, %error, "the last flush failed: data may be lost");
                let text = format!(
                    "its image is closed, but the last flush failed ({error}): data the guest believes written may be lost"
                );
                self.events.add(Happening::DiskDetachedWithLoss, &id, text);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<DiskView>>> {
        // The list is whole between any two changes.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::{Duration, Instant};

    use block::{
        Backend, BackingSpace, ByteOffset, CacheMode, Crossing, DiskStatus, EngineSetup, Extent,
        Geometry, IoEngine, MemoryDisk, OpenError, ResizeError,
    };

    use super::events::Event;
    use super::*;
    use crate::config::{ControllerConfig, attached};

    /// A disk whose flush waits for the test, then fails.
    struct Failing {
        disk: MemoryDisk,
        gate: Arc<Mutex<()>>,
    }

    impl Failing {
        fn new(gate: Arc<Mutex<()>>) -> Self {
            let (logical_block, physical_block) = (512, 4096);
            let (capacity, optimal_io, discard) = (1 << 20, 0, None);
            let geometry =
                Geometry { capacity, logical_block, physical_block, optimal_io, discard };
            Self { disk: MemoryDisk::new(geometry, CacheMode::WriteBack, false), gate }
        }
    }

    impl Backend for Failing {
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
            drop(self.gate.lock());
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
    }

    fn config(path: &Path, place: ScsiPlace) -> DiskConfig {
        DiskConfig::plain(path, Bus::VirtioScsi(place))
    }

    fn attach(disks: &Disks, id: &str, path: &Path, lun: u16) -> String {
        let keys = serde_json::json!({ "path": path, "bus": "virtio-scsi", "lun": lun });
        let disk = Attachable::new(attached::Request { id: id.into(), keys }).unwrap();
        disks.attach(id, disk).err().map_or(String::new(), |refusal| refusal.to_string())
    }

    /// Waits for so many events, and returns them.
    fn wait_for(events: &Events, count: usize) -> Vec<Event> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while events.all().len() < count && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        events.all()
    }

    #[test]
    fn a_disk_that_its_controller_has_no_more_is_let_go() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(1 << 20).unwrap();
        let mut controllers = Controllers::default();
        controllers.add(ControllerConfig { number: 0, queues: 1 }).unwrap();
        let place = ScsiPlace { controller: 0, address: Address { target: 0, lun: 0 } };
        let config = config(image.path(), place);
        let control =
            controllers.put(&config, place, Arc::new(Failing::new(Arc::default()))).unwrap();
        drop(controllers.detach(place));
        let events = Arc::new(Events::default());
        let disks = vec![DiskView::new(config, control)];
        let disks = Arc::new(Disks::new(disks, controllers, 1, Arc::clone(&events)));
        disks.detach(&disks.find("data").unwrap()).unwrap();
        let lost = wait_for(&events, 1).pop().unwrap();
        assert_eq!((lost.what, &*lost.disk), (Happening::DiskDetachedWithLoss, "data"));
        assert!(disks.find("data").is_none());
    }

    /// Until it is gone it keeps what is its own, and a flush that fails is told.
    #[test]
    fn a_disk_that_loses_data_on_its_way_out_says_so() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(1 << 20).unwrap();
        let other = tempfile::NamedTempFile::new().unwrap();
        other.as_file().set_len(1 << 20).unwrap();
        let mut controllers = Controllers::default();
        let device = controllers.add(ControllerConfig { number: 0, queues: 1 }).unwrap();
        let place = ScsiPlace { controller: 0, address: Address { target: 0, lun: 0 } };
        let config = config(image.path(), place);
        let gate = Arc::new(Mutex::new(()));
        let backend = Arc::new(Failing::new(Arc::clone(&gate)));
        let control = controllers.put(&config, place, backend).unwrap();
        let events = Arc::new(Events::default());
        let disks = vec![DiskView::new(config, control)];
        let disks = Arc::new(Disks::new(disks, controllers, 1, Arc::clone(&events)));
        let waits = gate.lock().unwrap();

        let disk = disks.find("data").unwrap();
        assert_eq!(attach(&disks, "data", other.path(), 1), "there is a disk \"data\" already");
        disks.detach(&disk).unwrap();
        disks.detach(&disk).expect("once more changes nothing");
        assert!(disk.is_detaching() && disks.all().len() == 1);
        drop(disk);
        let leaving = "the disk \"data\" is still being detached";
        assert_eq!(attach(&disks, "data", other.path(), 1), leaving);
        assert_eq!(attach(&disks, "more", image.path(), 1), leaving);
        assert_eq!(attach(&disks, "more", other.path(), 0), leaving);
        assert_eq!(attach(&disks, "more", other.path(), 1), "");

        drop(waits);
        let events = wait_for(&events, 2);
        let lost = events.last().unwrap();
        assert_eq!((lost.what, &*lost.disk), (Happening::DiskDetachedWithLoss, "data"));
        assert!(lost.text.contains("Input/output error"), "{}", lost.text);
        assert!(disks.find("data").is_none());
        assert_eq!(attach(&disks, "data", image.path(), 0), "");
        drop(device);
    }
}
