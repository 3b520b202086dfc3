//! The virtio PCI transport (Virtio 1.2 §4.1), modern only.
//!
//! Everything the driver configures is here, reached by one vCPU thread at a time. Once the driver
//! sets DRIVER_OK the device's workers take over: kicks reach them through doorbells and interrupts
//! leave through MSI-X without this code. A reset asks the workers to end and reads as incomplete
//! until they have, so that a slow disk never holds up a vCPU.

mod common;
mod layout;

use std::io;
use std::sync::Arc;

use ::block::LogLimit;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::common::{Common, Effect};
use self::layout::Region;
use super::{
    ActivateError, Activation, ActiveQueue, ConfigChange, FaultReporter, Interrupt, Queue,
    VirtioDevice, Worker,
};
use crate::pci::{ConfigSpace, Identity, Msix, PciDevice};
use crate::{GuestMemory, Hypervisor};

pub(crate) use self::common::status;

const VENDOR: u16 = 0x1af4;
/// Device IDs count from here by device type (§4.1.2).
const DEVICE_BASE: u16 = 0x1040;

/// Where the device is between reset and reset.
enum State {
    /// The driver is still setting up.
    Idle,
    /// The workers run.
    Active(Vec<Worker>),
    /// The driver asked for a reset; the workers are ending.
    Resetting(Vec<Worker>),
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
    common: Common,
    kicks: Vec<Arc<EventFd>>,
    /// Base address at which the doorbells are attached.
    doorbells: Option<u64>,
    no_doorbell: LogLimit,
    state: State,
}

impl PciTransport {
    /// Gives `device` a place on the bus, with one vector per queue and one for its configuration.
    ///
    /// # Errors
    ///
    /// When the hypervisor has no interrupts left or the host no eventfd.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        hypervisor: Arc<dyn Hypervisor>,
    ) -> io::Result<Self> {
        let mut config = ConfigSpace::new(&identity(&*device), layout::BAR_BYTES);
        let queues = u16::try_from(device.queue_sizes().len()).map_err(io::Error::other)?;
        if queues > layout::MAX_QUEUES {
            return Err(io::Error::other("more queues than the MSI-X table has vectors for"));
        }
        let access = layout::add_capabilities(&mut config)
            .ok_or_else(|| io::Error::other("no room for the virtio capabilities"))?;
        let (table, pending) = (layout::MSIX_TABLE, layout::MSIX_PENDING);
        let msix = Msix::new(&mut config, &*hypervisor, queues + 1, table, pending)?;
        let common = Common::new(
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

    /// Starts the device as the driver set it up, or asks for a reset if that cannot be.
    fn activate(&mut self) {
        match self.try_activate() {
            Ok(workers) => {
                self.state = State::Active(workers);
                self.attach_doorbells();
                // A kick that came before the doorbells did is in its event already.
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
            queues.push(ActiveQueue { index, queue, kick, interrupt, hand_over: None });
        }
        let faults = self.faults();
        self.device.activate(Activation { features, queues, faults })
    }

    fn config_change(&self) -> ConfigChange {
        let config = Interrupt::new(self.msix.events(), self.common.config_vector());
        ConfigChange::new(self.common.shared_status(), self.common.shared_isr(), config)
    }

    fn faults(&self) -> FaultReporter {
        let config = Interrupt::new(self.msix.events(), self.common.config_vector());
        FaultReporter::new(self.common.shared_status(), self.common.shared_isr(), config)
    }

    /// Asks the workers to end. The reset is complete when they have.
    fn begin_reset(&mut self) {
        self.detach_doorbells();
        let State::Active(workers) = std::mem::replace(&mut self.state, State::Idle) else {
            return self.finish_reset();
        };
        workers.iter().for_each(Worker::request_stop);
        self.state = State::Resetting(workers);
    }

    /// Completes a reset whose workers have ended meanwhile.
    fn poll_reset(&mut self) {
        if let State::Resetting(workers) = &mut self.state
            && workers.iter().all(Worker::is_finished)
        {
            workers.drain(..).for_each(Worker::join);
            self.finish_reset();
        }
    }

    fn finish_reset(&mut self) {
        self.state = State::Idle;
        for kick in &self.kicks {
            // Empty unless a kick was left over.
            let _ = kick.read();
        }
        self.device.reset();
        self.common.reset();
    }

    /// Lets kicks reach the workers without leaving the vCPU. Where the hypervisor refuses one, kicks
    /// of that queue take the way through [`PciDevice::bar_write`].
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
            // Fails for one that could not be attached, which was said then.
            let _ = self.hypervisor.detach_doorbell(at, kick);
        }
    }

    /// Does what a write to the common configuration asks for beyond its register.
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

    /// An access through the PCI configuration access capability: BAR, offset and length as the driver
    /// set them, data through its last four bytes.
    fn window(&self) -> Option<(u32, usize)> {
        let mut capability = [0; 16];
        self.config.read(self.access, &mut capability);
        let (bar, place) = (capability[4], &capability[8..]);
        let offset = u32::from_le_bytes(*place.first_chunk()?);
        let len = u32::from_le_bytes(*place.last_chunk()?) as usize;
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

    fn place(&mut self, base: u32) {
        self.config.place_bar(base);
    }

    fn bar_read(&mut self, offset: u32, data: &mut [u8]) {
        match layout::region(offset) {
            Some((Region::Common, at)) => {
                self.poll_reset();
                self.common.config_generation = self.device.config_generation();
                self.common.read(at, data);
            }
            Some((Region::Device, at)) => self.device.read_config(u64::from(at), data),
            Some((Region::MsixTable, at)) => self.msix.read_table(at, data),
            Some((Region::MsixPending, at)) => self.msix.read_pending(at, data),
            Some((Region::Isr, at)) => {
                data.fill(0);
                if let (0, Some(isr)) = (at, data.first_mut()) {
                    *isr = self.common.take_isr();
                }
            }
            Some((Region::Notify, _)) | None => data.fill(0),
        }
    }

    fn bar_write(&mut self, offset: u32, data: &[u8]) {
        match layout::region(offset) {
            Some((Region::Common, at)) => {
                self.poll_reset();
                if !matches!(self.state, State::Resetting(_)) {
                    let effect = self.common.write(at, data);
                    self.apply(effect);
                }
            }
            Some((Region::Device, at)) => self.device.write_config(u64::from(at), data),
            Some((Region::MsixTable, at)) => self.msix.write_table(&self.config, at, data),
            Some((Region::Notify, at)) => {
                if let Some(kick) = self.kicks.get((at / layout::NOTIFY_MULTIPLIER) as usize) {
                    let _ = kick.write(1);
                }
            }
            Some((Region::Isr | Region::MsixPending, _)) | None => {}
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

fn identity(device: &dyn VirtioDevice) -> Identity {
    use super::DeviceType::{Block, Entropy, Net, Scsi};
    let kind = device.device_type();
    let class = match kind {
        Net => [0x02, 0x00, 0x00],
        Block | Scsi => [0x01, 0x00, 0x00],
        Entropy => [0xff, 0x00, 0x00],
    };
    let number = kind as u16;
    Identity { vendor: VENDOR, device: DEVICE_BASE + number, revision: 1, class, subsystem: number }
}
