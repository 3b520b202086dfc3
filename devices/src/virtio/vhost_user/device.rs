//! The state of a block device that serves vhost-user frontends.
//!
//! Used by one connection at a time, on its thread. The end of a connection restores the initial
//! state.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserInflight;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::fault::Fault;
use super::inflight_memory::{InflightMemory, MAX_RING_SIZE, WritebackSetting};
use super::memory_table::MemoryTable;
use super::ring::{Ring, RingContext};
use crate::interrupt::Interrupt;
use crate::virtio::block::{Block, WRITEBACK_OFFSET, feature as block_feature};
use crate::virtio::device::VirtioDevice;
use crate::virtqueue::{ConfigChange, DeviceStatus, feature};

/// `VHOST_USER_F_PROTOCOL_FEATURES`: protocol features can be negotiated.
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// A block device for vhost-user frontends, one at a time.
pub struct VhostUserBlock {
    pub(super) device: Block,
    pub(super) rings: Vec<Ring>,
    pub(super) table: MemoryTable,
    /// Features that the frontend selected; `None` before SET_FEATURES.
    features: Option<u64>,
    inflight: Option<InflightMemory>,
    /// The guest's write cache setting, as far as this frontend reported it.
    writeback: WritebackSetting,
    /// Whether `writeback` is the guest's last setting: the guest started under this frontend, or
    /// the inflight memory has it.
    writeback_is_known: bool,
    /// Whether the frontend resumes the rings of a guest whose setting is not known.
    resumes_unknown: bool,
    /// Signalled when the device changes its configuration.
    config_changed: Arc<EventFd>,
}

impl VhostUserBlock {
    /// Makes `device` available to frontends.
    ///
    /// # Errors
    ///
    /// The host refuses an eventfd.
    pub fn new(mut device: Block) -> io::Result<Self> {
        let rings = rings(&device)?;
        let config_changed = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let config = Interrupt::fixed(Arc::clone(&config_changed));
        device.connect(ConfigChange::new(DeviceStatus::driver_ok(), config));
        Ok(Self {
            device,
            rings,
            table: MemoryTable::default(),
            features: None,
            inflight: None,
            writeback: WritebackSetting::Unset,
            writeback_is_known: false,
            resumes_unknown: false,
            config_changed,
        })
    }

    /// Makes data durable at the end of the program. No frontend is connected.
    ///
    /// # Errors
    ///
    /// The host's error; data may be lost.
    pub fn close(&mut self) -> io::Result<()> {
        self.device.close()
    }

    /// Readable when the frontend must be notified of a configuration change.
    pub(super) fn config_changed(&self) -> Arc<EventFd> {
        Arc::clone(&self.config_changed)
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

    /// Adopts the features that the frontend selected.
    ///
    /// # Errors
    ///
    /// Some were not offered, or a ring cannot resume with them.
    pub(super) fn accept_features(&mut self, features: u64) -> Result<(), Fault> {
        let unknown = features & !self.offered();
        if unknown != 0 {
            return Err(Fault::Features(unknown));
        }
        // Frontends repeat them at each start of the rings.
        if self.features == Some(features) {
            return Ok(());
        }
        self.while_stopped(|this| {
            this.features = Some(features);
            this.device.reset();
            this.device.negotiated(features & !PROTOCOL_FEATURES);
            // Without protocol features no message enables a ring.
            if features & PROTOCOL_FEATURES == 0 {
                this.rings.iter_mut().for_each(|ring| ring.enabled = true);
            }
        })
    }

    /// Makes a change that requires stopped workers. The rings resume afterwards.
    ///
    /// # Errors
    ///
    /// A ring cannot resume.
    pub(super) fn while_stopped(&mut self, change: impl FnOnce(&mut Self)) -> Result<(), Fault> {
        self.rings.iter_mut().for_each(|ring| ring.stop(false));
        change(self);
        self.start_ready()
    }

    /// Starts the rings whose configuration is complete.
    pub(super) fn start_ready(&mut self) -> Result<(), Fault> {
        let Some(features) = self.features else {
            return match self.rings.iter().position(Ring::is_ready) {
                Some(ring) => Err(Fault::Order { ring, what: "it cannot run before SET_FEATURES" }),
                None => Ok(()),
            };
        };
        for index in 0..self.rings.len() {
            if self.rings.get(index).is_some_and(Ring::is_ready) {
                self.restore_write_cache(features);
                let Self { device, rings, table, inflight, .. } = self;
                let Some(ring) = rings.get_mut(index) else { continue };
                ring.start(RingContext { device, table, inflight: inflight.as_ref(), features })?;
            }
        }
        Ok(())
    }

    /// Before a ring runs, sets the write cache to the state that the guest assumes.
    fn restore_write_cache(&mut self, features: u64) {
        let is_running = self.rings.iter().any(Ring::is_running);
        if !can_switch_cache(features) || is_running && !self.resumes_unknown {
            return;
        }
        if std::mem::take(&mut self.resumes_unknown) && self.writeback == WritebackSetting::Unset {
            tracing::warn!(
                target: "vhost-user",
                "the frontend resumes a guest without its write cache setting: \
                 all writes are durable until the guest switches the cache on"
            );
            self.writeback = WritebackSetting::Off;
        }
        match self.writeback {
            WritebackSetting::Unset => {}
            WritebackSetting::Off => self.device.restore_write_cache(false, is_running),
            WritebackSetting::On => self.device.restore_write_cache(true, is_running),
        }
    }

    /// Adopts where a ring starts. A guest that resumes does not read its write cache again.
    pub(super) fn set_base(&mut self, index: u32, base: u16) -> Result<(), Fault> {
        let ring = self.ring(index)?;
        ring.check_stopped()?;
        ring.position.next_available = base;
        ring.position.owed.clear();
        self.resumes_unknown |= base != 0 && !self.writeback_is_known;
        Ok(())
    }

    /// Writes the configuration, in which only the write cache is writable. A failed flush does not
    /// leave the cache on: frontends do not read the field back, so the guest will not flush. Its
    /// next durable write reports the loss.
    pub(super) fn write_config(&mut self, offset: u32, data: &[u8]) {
        self.device.write_config(offset.into(), data);
        if let (WRITEBACK_OFFSET, &[on]) = (u64::from(offset), data) {
            if on == 0 && self.features.is_some_and(can_switch_cache) {
                self.device.restore_write_cache(false, false);
            }
            self.writeback = if on == 0 { WritebackSetting::Off } else { WritebackSetting::On };
            if let Some(inflight) = &self.inflight {
                inflight.store_writeback(self.writeback);
            }
        }
    }

    /// Creates inflight memory for the frontend to keep.
    pub(super) fn create_inflight(
        &self,
        queues: u16,
        queue_size: u16,
    ) -> Result<(VhostUserInflight, File), Fault> {
        if usize::from(queues) > self.rings.len() {
            return Err(Fault::Value { what: "the number of rings", value: queues.into() });
        }
        check_ring_size(queue_size.into())?;
        InflightMemory::create(queues, queue_size, self.writeback)
    }

    /// Adopts the inflight memory that the frontend kept.
    pub(super) fn set_inflight(&mut self, inflight: InflightMemory) -> Result<(), Fault> {
        for ring in &self.rings {
            ring.check_stopped()?;
        }
        if let Some(writeback) = inflight.writeback() {
            self.writeback = writeback;
            (self.writeback_is_known, self.resumes_unknown) = (true, false);
        }
        self.inflight = Some(inflight);
        Ok(())
    }

    /// Whether a ring that ends fails the requests held for ENOSPC. With inflight memory another
    /// back end can find and repeat them.
    pub(super) fn fails_held(&self) -> bool {
        self.inflight.is_none()
    }

    /// Ends a ring. Returns the next entry of its available ring.
    pub(super) fn end_ring(&mut self, index: u32) -> Result<u16, Fault> {
        let fail_held = self.fails_held();
        let ring = self.ring(index)?;
        ring.stop(fail_held);
        ring.kick = None;
        ring.position.owed.clear();
        let reached = ring.position.next_available;
        self.writeback_is_known = true;
        Ok(reached)
    }

    /// Restores the initial state after the frontend disconnected. Requests in flight have been
    /// returned when this returns, and the frontend's memory is unmapped.
    pub(super) fn disconnect(&mut self) {
        self.rings.iter_mut().for_each(|ring| ring.stop(false));
        self.table = MemoryTable::default();
        self.inflight = None;
        self.features = None;
        // The device keeps a write cache off that a guest switched off, and the inflight memory of
        // the next frontend must have that.
        if self.writeback == WritebackSetting::On {
            self.writeback = WritebackSetting::Unset;
        }
        (self.writeback_is_known, self.resumes_unknown) = (false, false);
        self.device.reset();
        match rings(&self.device) {
            Ok(rings) => self.rings = rings,
            Err(error) => {
                tracing::error!(
                    target: "vhost-user", %error,
                    "cannot create rings: the next frontend will find none"
                );
                self.rings.clear();
            }
        }
    }
}

/// Whether a driver with these features can switch the write cache.
fn can_switch_cache(features: u64) -> bool {
    let switchable = block_feature::FLUSH | block_feature::CONFIG_WCE;
    features & switchable == switchable
}

/// Sizes of rings are powers of two (Virtio 1.2 §2.7).
pub(super) fn check_ring_size(size: u32) -> Result<u16, Fault> {
    u16::try_from(size)
        .ok()
        .filter(|size| size.is_power_of_two() && *size <= MAX_RING_SIZE)
        .ok_or(Fault::Value { what: "the size of a ring", value: size.into() })
}

fn rings(device: &Block) -> io::Result<Vec<Ring>> {
    (0..device.queue_sizes().len()).map(Ring::new).collect()
}
