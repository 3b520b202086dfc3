//! The virtio PCI transport (Virtio 1.2 §4.1), modern only.
//!
//! Owns the driver's configuration, which one vCPU thread at a time accesses. From DRIVER_OK on,
//! kicks reach the device's workers through doorbells and interrupts leave through MSI-X without
//! this code. A reset asks the workers to stop and reads as incomplete until they have: a slow disk
//! never blocks a vCPU.

mod common;
mod layout;

use std::io;
use std::sync::Arc;

use ::block::LogLimit;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::common::{CommonConfig, Effect};
use self::layout::BarRegion;
use super::device::{Activation, DeviceType, VirtioDevice};
use crate::interrupt::Interrupt;
use crate::pci::{ConfigSpace, FunctionIds, Msix, PciDevice};
use crate::virtqueue::{ActiveQueue, ConfigChange, FaultReporter, Queue, QueueError};
use crate::worker::{StartError, Worker};
use crate::{GuestMemory, Hypervisor};

const VENDOR: u16 = 0x1af4;
/// PCI device ID of device type 0 (§4.1.2).
const DEVICE_BASE: u16 = 0x1040;

/// The state of the device between two resets.
enum State {
    /// The driver has not set DRIVER_OK.
    Idle,
    /// The workers run.
    Active(Vec<Worker>),
    /// The driver requested a reset; the workers are stopping.
    Resetting(Vec<Worker>),
}

/// Why a device could not start after DRIVER_OK.
#[derive(Debug, thiserror::Error)]
enum ActivateError {
    /// The driver configured an invalid queue.
    #[error("queue {index}: {source}")]
    Queue { index: u16, source: QueueError },
    /// A worker could not start.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// A virtio device on the PCI bus.
pub struct PciTransport {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    hypervisor: Arc<dyn Hypervisor>,
    config: ConfigSpace,
    /// Offset of the PCI configuration access capability (§4.1.4.9).
    access: u8,
    msix: Msix,
    common: CommonConfig,
    kicks: Vec<Arc<EventFd>>,
    /// Guest-physical address at which the doorbells are attached.
    doorbells: Option<u64>,
    /// Bounds the log of doorbells that the hypervisor refused.
    no_doorbell: LogLimit,
    state: State,
}

impl PciTransport {
    /// A PCI function for `device`, with one MSI-X vector per queue and one for its configuration.
    ///
    /// # Errors
    ///
    /// The hypervisor has no interrupt left or the host no eventfd.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        hypervisor: Arc<dyn Hypervisor>,
    ) -> io::Result<Self> {
        let mut config = ConfigSpace::new(&function_ids(&*device), layout::BAR_BYTES);
        let queues = u16::try_from(device.queue_sizes().len()).map_err(io::Error::other)?;
        if queues > layout::MAX_QUEUES {
            return Err(io::Error::other(
                "the device has more queues than the MSI-X table has vectors",
            ));
        }
        let access = layout::add_capabilities(&mut config).ok_or_else(|| {
            io::Error::other("the configuration space has no room for the virtio capabilities")
        })?;
        let (table, pending) = (layout::MSIX_TABLE, layout::MSIX_PENDING);
        let msix = Msix::new(&mut config, &*hypervisor, queues + 1, table, pending)?;
        let common = CommonConfig::new(
            device.features() | layout::TRANSPORT_FEATURES,
            device.queue_sizes(),
            msix.len(),
        );
        let kicks = (0..queues)
            .map(|_| EventFd::new(EFD_NONBLOCK).map(Arc::new))
            .collect::<io::Result<_>>()?;
        let mut transport = Self {
            device,
            memory,
            hypervisor,
            config,
            access,
            msix,
            common,
            kicks,
            doorbells: None,
            no_doorbell: LogLimit::default(),
            state: State::Idle,
        };
        transport.device.connect(transport.config_change());
        Ok(transport)
    }

    /// Starts the device as configured; on an error it needs a reset.
    fn activate(&mut self) {
        match self.try_activate() {
            Ok(workers) => {
                self.state = State::Active(workers);
                self.attach_doorbells();
                // A kick before that is pending in its event.
            }
            Err(error) => {
                let reason = format_args!("{}: {error}", self.device.name());
                self.faults().needs_reset(&reason);
            }
        }
    }

    fn try_activate(&mut self) -> Result<Vec<Worker>, ActivateError> {
        let features = self.common.driver_features();
        let events = self.msix.events();
        let mut queues = Vec::new();
        for (index, (setup, kick)) in (0..).zip(self.common.queues().iter().zip(&self.kicks)) {
            if !setup.enabled {
                continue;
            }
            let queue = Queue::new(&self.memory, setup.layout, features)
                .map_err(|source| ActivateError::Queue { index, source })?;
            let interrupt = Interrupt::new(Arc::clone(&events), Arc::clone(&setup.vector));
            let kick = Arc::clone(kick);
            queues.push(ActiveQueue::new(index, queue, kick, interrupt));
        }
        let faults = self.faults();
        Ok(self.device.activate(Activation { features, queues, faults })?)
    }

    fn config_interrupt(&self) -> Interrupt {
        Interrupt::new(self.msix.events(), self.common.config_vector())
    }

    fn config_change(&self) -> ConfigChange {
        ConfigChange::new(self.common.status().clone(), self.config_interrupt())
    }

    fn faults(&self) -> FaultReporter {
        FaultReporter::new(self.common.status().clone(), self.config_interrupt())
    }

    /// Asks the workers to stop. The reset is complete when they have.
    fn begin_reset(&mut self) {
        self.detach_doorbells();
        let State::Active(workers) = std::mem::replace(&mut self.state, State::Idle) else {
            return self.complete_reset();
        };
        workers.iter().for_each(Worker::request_stop);
        self.state = State::Resetting(workers);
    }

    /// Completes a reset if its workers have ended.
    fn poll_reset(&mut self) {
        if let State::Resetting(workers) = &mut self.state
            && workers.iter().all(Worker::is_finished)
        {
            workers.drain(..).for_each(Worker::join);
            self.complete_reset();
        }
    }

    fn complete_reset(&mut self) {
        self.state = State::Idle;
        for kick in &self.kicks {
            // Clears a kick that no worker consumed.
            let _ = kick.read();
        }
        self.device.reset();
        self.common.reset();
    }

    /// Attaches the doorbells, so that kicks need no vCPU exit. If the hypervisor refuses one, the
    /// kicks of its queue arrive at [`PciDevice::bar_write`].
    fn attach_doorbells(&mut self) {
        let (State::Active(_), Some(bar)) = (&self.state, self.config.bar()) else { return };
        let base = u64::from(bar) + u64::from(layout::NOTIFY);
        for (index, kick) in (0..).zip(&self.kicks) {
            let at = base + index * u64::from(layout::NOTIFY_MULTIPLIER);
            if let Err(error) = self.hypervisor.attach_doorbell(at, kick)
                && let Some(suppressed) = self.no_doorbell.check()
            {
                let name = self.device.name();
                tracing::warn!(target: "virtio", suppressed, "{name}: no doorbell: {error}");
            }
        }
        self.doorbells = Some(base);
    }

    fn detach_doorbells(&mut self) {
        let Some(base) = self.doorbells.take() else { return };
        for (index, kick) in (0..).zip(&self.kicks) {
            let at = base + index * u64::from(layout::NOTIFY_MULTIPLIER);
            // Fails for a doorbell that was refused, which is in the log.
            let _ = self.hypervisor.detach_doorbell(at, kick);
        }
    }

    /// Applies the effect of a write to the common configuration.
    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Reset => self.begin_reset(),
            Effect::FeaturesOk { driver_ok } => {
                self.device.negotiated(self.common.driver_features());
                if driver_ok {
                    self.activate();
                }
            }
            Effect::DriverOk => self.activate(),
        }
    }

    /// Offset and length of an access through the PCI configuration access capability, as the
    /// driver configured them; `None` if they are invalid.
    fn window(&self) -> Option<(u32, usize)> {
        let mut capability = [0; 16];
        self.config.read(self.access, &mut capability);
        let (bar, rest) = (capability[4], &capability[8..]);
        let offset = u32::from_le_bytes(*rest.first_chunk()?);
        let len = u32::from_le_bytes(*rest.last_chunk()?) as usize;
        (bar == 0 && matches!(len, 1 | 2 | 4)).then_some((offset, len))
    }

    fn is_window(&self, offset: u8) -> bool {
        offset == self.access + layout::ACCESS_DATA
    }
}

impl PciDevice for PciTransport {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_read(&mut self, offset: u8, data: &mut [u8]) {
        if self.is_window(offset)
            && let Some((at, len)) = self.window()
            && let Some(part) = data.get_mut(..len)
        {
            return self.bar_read(at, part);
        }
        self.config.read(offset, data);
    }

    fn config_write(&mut self, offset: u8, data: &[u8]) {
        if self.is_window(offset)
            && let Some((at, len)) = self.window()
            && let Some(part) = data.get(..len)
        {
            return self.bar_write(at, part);
        }
        let before = self.config.bar();
        self.config.write(offset, data);
        self.msix.update(&self.config);
        if self.config.bar() != before {
            self.detach_doorbells();
            self.attach_doorbells();
        }
    }

    fn place_bar(&mut self, base: u32) {
        self.config.place_bar(base);
    }

    fn bar_read(&mut self, offset: u32, data: &mut [u8]) {
        match layout::region(offset) {
            Some((BarRegion::Common, at)) => {
                self.poll_reset();
                self.common.config_generation = self.device.config_generation();
                self.common.read(at, data);
            }
            Some((BarRegion::Device, at)) => self.device.read_config(u64::from(at), data),
            Some((BarRegion::MsixTable, at)) => self.msix.read_table(at, data),
            Some((BarRegion::MsixPending, at)) => self.msix.read_pending(at, data),
            Some((BarRegion::Isr, at)) => {
                data.fill(0);
                if let (0, Some(isr)) = (at, data.first_mut()) {
                    *isr = self.common.status().take_isr();
                }
            }
            Some((BarRegion::Notify, _)) | None => data.fill(0),
        }
    }

    fn bar_write(&mut self, offset: u32, data: &[u8]) {
        match layout::region(offset) {
            Some((BarRegion::Common, at)) => {
                self.poll_reset();
                if !matches!(self.state, State::Resetting(_)) {
                    let effect = self.common.write(at, data);
                    self.apply(effect);
                }
            }
            Some((BarRegion::Device, at)) => self.device.write_config(u64::from(at), data),
            Some((BarRegion::MsixTable, at)) => self.msix.write_table(&self.config, at, data),
            Some((BarRegion::Notify, at)) => {
                if let Some(kick) = self.kicks.get((at / layout::NOTIFY_MULTIPLIER) as usize) {
                    let _ = kick.write(1);
                }
            }
            Some((BarRegion::Isr | BarRegion::MsixPending, _)) | None => {}
        }
    }

    fn close(&mut self) -> io::Result<()> {
        self.detach_doorbells();
        if let State::Active(workers) | State::Resetting(workers) =
            std::mem::replace(&mut self.state, State::Idle)
        {
            workers.iter().for_each(Worker::request_stop);
            workers.into_iter().for_each(Worker::join);
        }
        self.device.close()
    }
}

fn function_ids(device: &dyn VirtioDevice) -> FunctionIds {
    use DeviceType::{Block, Entropy, Net, Scsi};
    let kind = device.device_type();
    let class = match kind {
        Net => [0x02, 0x00, 0x00],
        Block | Scsi => [0x01, 0x00, 0x00],
        Entropy => [0xff, 0x00, 0x00],
    };
    let number = kind as u16;
    let device = DEVICE_BASE + number;
    FunctionIds { vendor: VENDOR, device, revision: 1, class, subsystem: number }
}
