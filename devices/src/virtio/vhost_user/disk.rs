//! What a vhost-user frontend set up of a disk, and what follows from it.
//!
//! Used by one connection at a time, on its thread. A connection that ends leaves the disk as it was before it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::inflight::{Inflight, WriteCache};
use super::memory::MemoryTable;
use super::ring::{Ring, Surroundings};
use super::{Fault, host};
use crate::virtio::block::{WRITEBACK_OFFSET, feature as block_feature};
use crate::virtio::transport::status;
use crate::virtio::{Block, ConfigChange, Interrupt, VirtioDevice, feature};

/// `VHOST_USER_F_PROTOCOL_FEATURES`: the rest of the protocol can be negotiated.
pub(super) const PROTOCOL_FEATURES: u64 = 1 << 30;
/// The largest ring; each entry may be a request in flight.
pub(super) const MAX_RING_SIZE: u16 = 1024;

/// A block device for vhost-user frontends, one after the other.
pub struct Disk {
    pub(super) device: Block,
    pub(super) rings: Vec<Ring>,
    pub(super) table: MemoryTable,
    /// As accepted; nothing until then.
    pub(super) features: Option<u64>,
    pub(super) inflight: Option<Inflight>,
    /// What the guest asked of the write cache, as far as this frontend tells.
    asked: WriteCache,
    /// Whether `asked` is all that the guest ever asked: the frontend does not come in the middle of things.
    knows_guest: bool,
    /// Signalled when the configuration changed by itself.
    changed: Arc<EventFd>,
}

impl Disk {
    /// Makes a device available to frontends.
    ///
    /// # Errors
    ///
    /// The host gives no events.
    pub fn new(mut device: Block) -> io::Result<Self> {
        let rings = rings(&device)?;
        let changed = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let config = Interrupt::new(Arc::from([Arc::clone(&changed)]), Arc::new(AtomicU16::new(0)));
        let ready = Arc::new(AtomicU8::new(status::DRIVER_OK));
        device.connect(ConfigChange::new(ready, Arc::default(), config));
        Ok(Self {
            device,
            rings,
            table: MemoryTable::default(),
            features: None,
            inflight: None,
            asked: WriteCache::Unasked,
            knows_guest: false,
            changed,
        })
    }

    /// The program ends, and no frontend is left: makes data durable.
    ///
    /// # Errors
    ///
    /// The host's error; data may be lost.
    pub fn close(&mut self) -> io::Result<()> {
        self.device.close()
    }

    /// Readable when the frontend is to be told of a change of the configuration.
    pub(super) fn changed(&self) -> Arc<EventFd> {
        Arc::clone(&self.changed)
    }

    /// Features of the device, the ring and the protocol.
    pub(super) fn offered(&self) -> u64 {
        let ring = feature::RING_INDIRECT_DESC | feature::RING_EVENT_IDX | feature::VERSION_1;
        self.device.features() | ring | PROTOCOL_FEATURES
    }

    pub(super) fn ring(&mut self, index: u32) -> Result<&mut Ring, Fault> {
        let found = usize::try_from(index).ok().and_then(|index| self.rings.get_mut(index));
        found.ok_or(Fault::NoRing(index))
    }

    /// Takes the frontend's choice of features.
    ///
    /// # Errors
    ///
    /// Some were not offered, or a ring cannot go on with them.
    pub(super) fn accept_features(&mut self, features: u64) -> Result<(), Fault> {
        let unknown = features & !self.offered();
        if unknown != 0 {
            return Err(Fault::Features(unknown));
        }
        // A frontend repeats them whenever it starts the rings.
        if self.features == Some(features) {
            return Ok(());
        }
        self.while_stopped(|disk| {
            disk.features = Some(features);
            disk.device.reset();
            disk.device.negotiated(features & !PROTOCOL_FEATURES);
            // Without the protocol there is no message that enables a ring.
            if features & PROTOCOL_FEATURES == 0 {
                disk.rings.iter_mut().for_each(|ring| ring.enabled = true);
            }
        })
    }

    /// Makes a change that must not happen while workers run. They go on afterwards where they were.
    ///
    /// # Errors
    ///
    /// A ring cannot go on.
    pub(super) fn while_stopped(&mut self, change: impl FnOnce(&mut Self)) -> Result<(), Fault> {
        // All are asked before any is waited for.
        self.rings.iter_mut().for_each(|ring| ring.stop(false));
        change(self);
        self.start_ready()
    }

    /// Starts the rings of which everything is known.
    pub(super) fn start_ready(&mut self) -> Result<(), Fault> {
        let Some(features) = self.features else {
            return match self.rings.iter().position(Ring::is_ready) {
                Some(ring) => Err(Fault::Order { ring, what: "it cannot run before SET_FEATURES" }),
                None => Ok(()),
            };
        };
        for index in 0..self.rings.len() {
            if self.rings.get(index).is_some_and(Ring::is_ready) {
                self.settle_write_cache(features, index);
                let Self { device, rings, table, inflight, .. } = self;
                let Some(ring) = rings.get_mut(index) else { continue };
                ring.start(Surroundings { device, table, inflight: inflight.as_ref(), features })?;
            }
        }
        Ok(())
    }

    /// Before the first ring runs, the write cache is as the guest believes it to be.
    fn settle_write_cache(&mut self, features: u64, index: usize) {
        let switchable = block_feature::FLUSH | block_feature::CONFIG_WCE;
        if features & switchable != switchable || self.rings.iter().any(Ring::is_running) {
            return;
        }
        let comes_late =
            self.rings.get(index).is_some_and(|ring| ring.position.next_available != 0);
        if comes_late && !self.knows_guest && self.asked == WriteCache::Unasked {
            tracing::warn!(
                target: "vhost-user",
                "the frontend resumes a guest and does not tell whether that switched the write cache off: \
                 all writes are durable until it asks for the cache"
            );
            self.asked = WriteCache::Off;
        }
        match self.asked {
            WriteCache::Unasked => {}
            WriteCache::Off => self.device.write_config(WRITEBACK_OFFSET, &[0]),
            WriteCache::On => self.device.write_config(WRITEBACK_OFFSET, &[1]),
        }
    }

    /// The frontend writes the configuration, of which only the write cache can be written.
    pub(super) fn write_config(&mut self, offset: u32, data: &[u8]) {
        self.device.write_config(offset.into(), data);
        if let (WRITEBACK_OFFSET, &[on]) = (u64::from(offset), data) {
            self.asked = if on == 0 { WriteCache::Off } else { WriteCache::On };
            if let Some(inflight) = &self.inflight {
                inflight.remember(self.asked);
            }
        }
    }

    /// New memory for requests in flight, for the frontend to keep.
    pub(super) fn create_inflight(
        &self,
        queues: u16,
        queue_size: u16,
    ) -> Result<(vhost::vhost_user::message::VhostUserInflight, std::fs::File), Fault> {
        if usize::from(queues) > self.rings.len() {
            return Err(Fault::Value { what: "the number of rings", value: queues.into() });
        }
        check_ring_size(queue_size.into())?;
        Inflight::create(queues, queue_size, self.asked)
    }

    /// The frontend brings the memory it kept.
    pub(super) fn take_inflight(&mut self, inflight: Inflight) -> Result<(), Fault> {
        for ring in &self.rings {
            ring.check_stopped()?;
        }
        if let Some(asked) = inflight.write_cache() {
            self.asked = asked;
            self.knows_guest = true;
        }
        self.inflight = Some(inflight);
        Ok(())
    }

    /// Whether what waits for space when a ring ends is reported as failed: what is owed can be found again only in the memory
    /// that the frontend keeps.
    pub(super) fn reports_held(&self) -> bool {
        self.inflight.is_none()
    }

    /// Stops a ring for good, and says which entry of its available ring comes next.
    pub(super) fn stop_ring(&mut self, index: u32) -> Result<u16, Fault> {
        let report_held = self.reports_held();
        let ring = self.ring(index)?;
        ring.stop(report_held);
        ring.kick = None;
        ring.position.owed.clear();
        let reached = ring.position.next_available;
        self.knows_guest = true;
        Ok(reached)
    }

    /// The frontend is gone. What is in flight has been given back when this returns, and its memory is no longer mapped.
    pub(super) fn leave(&mut self) {
        self.rings.iter_mut().for_each(|ring| ring.stop(false));
        self.table = MemoryTable::default();
        self.inflight = None;
        self.features = None;
        (self.asked, self.knows_guest) = (WriteCache::Unasked, false);
        self.device.reset();
        match rings(&self.device) {
            Ok(rings) => self.rings = rings,
            Err(error) => {
                tracing::error!(target: "vhost-user", %error, "no rings for the next frontend");
                self.rings.clear();
            }
        }
    }
}

/// Sizes of rings are powers of two (Virtio 1.2 §2.7).
pub(super) fn check_ring_size(size: u32) -> Result<u16, Fault> {
    u16::try_from(size)
        .ok()
        .filter(|size| size.is_power_of_two() && *size <= MAX_RING_SIZE)
        .ok_or(Fault::Value { what: "a ring's size", value: size.into() })
}

fn rings(device: &Block) -> io::Result<Vec<Ring>> {
    (0..device.queue_sizes().len()).map(Ring::new).collect()
}

/// As [`host`], for what makes events.
pub(super) fn bad_event(error: io::Error) -> Fault {
    host("use an event")(error)
}
