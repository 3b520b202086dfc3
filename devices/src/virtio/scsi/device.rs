//! The device: configuration, and the workers of its queues.

use std::io;
use std::sync::Arc;

use ::block::{EngineSetup, OpenError};
use zerocopy::IntoBytes;

use super::bus::ScsiBus;
use super::config::{
    CDB_SIZE_OFFSET, FEATURE_INOUT, OTHER_QUEUES, QUEUE_SIZE, SENSE_SIZE_OFFSET, SMALL_QUEUE_SIZE,
    ScsiConfig,
};
use super::control_queue::ControlQueue;
use super::controller::Controller;
use super::engines::UnitEngines;
use super::event_queue::{EventQueue, FEATURE_CHANGE, FEATURE_HOTPLUG};
use super::protocol::ScsiProtocol;
use super::sleep::{HostSleep, Sleep};
use crate::storage::{Protocol, QueueWorker};
use crate::virtio::chain_worker;
use crate::virtio::device::{Activation, DeviceType, VirtioDevice, read_config_bytes};
use crate::virtqueue::{ActiveQueue, FaultReporter};
use crate::worker::{StartError, Worker};

/// A SCSI controller.
pub struct Scsi {
    controller: Arc<Controller>,
    queue_sizes: Vec<u16>,
}

impl Scsi {
    /// A controller called `name` in the log with `queues` request queues and no disks.
    ///
    /// # Errors
    ///
    /// The host refuses an eventfd.
    pub fn new(name: &str, queues: u16) -> io::Result<Self> {
        let queues = usize::from(queues.max(1));
        let mut queue_sizes = vec![SMALL_QUEUE_SIZE; usize::from(OTHER_QUEUES)];
        queue_sizes.resize(queue_sizes.len() + queues, QUEUE_SIZE);
        Ok(Self { controller: Arc::new(Controller::new(name, queues)?), queue_sizes })
    }

    /// Hotplug of disks.
    #[must_use]
    pub fn bus(&self) -> ScsiBus {
        ScsiBus(Arc::clone(&self.controller))
    }

    fn config(&self) -> ScsiConfig {
        let queues = self.queue_sizes.len() - usize::from(OTHER_QUEUES);
        let (sense_size, cdb_size) = (self.controller.sense_size(), self.controller.cdb_size());
        ScsiConfig::new(queues, sense_size, cdb_size, self.controller.map().highest_target())
    }

    fn start_worker(
        &self,
        active: ActiveQueue,
        features: u64,
        faults: FaultReporter,
    ) -> Result<Worker, StartError> {
        let (name, controller) = (&self.controller.name, Arc::clone(&self.controller));
        match active.index {
            0 => {
                let handler = ControlQueue::new(controller);
                chain_worker::spawn(format!("{name}/control"), active, faults, handler)
            }
            1 => {
                let handler = EventQueue::new(Arc::clone(&controller.events));
                chain_worker::spawn(format!("{name}/events"), active, faults, handler)
            }
            _ => self.start_request_worker(active, features & FEATURE_INOUT != 0, faults),
        }
    }

    fn start_request_worker(
        &self,
        active: ActiveQueue,
        inout: bool,
        faults: FaultReporter,
    ) -> Result<Worker, StartError> {
        let protocol = self.protocol(&active, inout)?;
        let name = format!("{}/q{}", self.controller.name, active.index - OTHER_QUEUES);
        let engines = self.engines(&active, HostSleep);
        QueueWorker::spawn(name, active, faults, engines, Arc::default(), protocol)
    }

    fn protocol<S: Sleep>(
        &self,
        active: &ActiveQueue,
        inout: bool,
    ) -> Result<ScsiProtocol<S>, StartError> {
        let queue = active.index.saturating_sub(OTHER_QUEUES);
        let controller = Arc::clone(&self.controller);
        ScsiProtocol::new(controller, queue, &active.kick, inout).ok_or_else(|| {
            let source = io::Error::other("the request queue does not exist");
            StartError::Host { what: "serve a queue", source }
        })
    }

    /// Makes the engines of a queue on its worker's thread.
    fn engines<S: Sleep>(
        &self,
        active: &ActiveQueue,
        sleep: S,
    ) -> impl FnOnce(&EngineSetup<'_>) -> Result<UnitEngines<S>, OpenError> + use<S> {
        let (controller, kick) = (Arc::clone(&self.controller), Arc::clone(&active.kick));
        move |setup| Ok(UnitEngines::new(controller, setup, kick, sleep))
    }

    /// Makes the worker of a request queue without a thread, for the simulator. `sleep` is used
    /// while the queue has several engines.
    ///
    /// # Errors
    ///
    /// The request queue does not exist.
    pub fn worker<S: Sleep>(
        &self,
        active: ActiveQueue,
        faults: FaultReporter,
        sleep: S,
    ) -> Result<QueueWorker<impl Protocol + use<S>>, StartError> {
        let (protocol, engines) = (self.protocol(&active, false)?, self.engines(&active, sleep));
        QueueWorker::new(active, faults, engines, Arc::default(), protocol)
    }

    /// Makes the loop of the control queue without a thread, for the simulator. Each call is a
    /// round of the loop. It returns whether the loop would sleep after it.
    pub fn control_rounds(
        &self,
        active: ActiveQueue,
        faults: FaultReporter,
    ) -> impl FnMut() -> bool + use<> {
        chain_worker::rounds(active, faults, ControlQueue::new(Arc::clone(&self.controller)))
    }
}

impl VirtioDevice for Scsi {
    fn device_type(&self) -> DeviceType {
        DeviceType::Scsi
    }

    fn name(&self) -> &str {
        &self.controller.name
    }

    fn features(&self) -> u64 {
        FEATURE_INOUT | FEATURE_HOTPLUG | FEATURE_CHANGE
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(self.config().as_bytes(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let &[a, b, c, d] = data else { return };
        let value = u32::from_le_bytes([a, b, c, d]);
        match offset {
            SENSE_SIZE_OFFSET => self.controller.set_sense_size(value),
            CDB_SIZE_OFFSET => self.controller.set_cdb_size(value),
            _ => {}
        }
    }

    fn negotiated(&mut self, features: u64) {
        self.controller.events.set_features(features);
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<Worker>, StartError> {
        let (features, faults) = (activation.features, activation.faults.clone());
        activation.start_workers(|active| self.start_worker(active, features, faults.clone()))
    }

    fn reset(&mut self) {
        self.controller.reset();
    }

    fn close(&mut self) -> io::Result<()> {
        self.controller.sync_all()
    }
}
