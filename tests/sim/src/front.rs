//! The device in front of the simulated disks: virtio-blk with one, or a virtio-scsi controller.

use std::io;
use std::sync::Arc;

use block::Backend;
use devices::scsi::Identity;
use devices::storage::{Protocol, QueueWorker};
use devices::virtio::{ActiveQueue, Address, Block, FaultReporter, Scsi, VirtioDevice};

use super::plan::Plan;
use super::sleep::QueueSleep;

/// Serial number of the device.
pub(super) const SERIAL: &str = "simulated";
/// Number of a controller's queues before the request queues.
const OTHER_QUEUES: u16 = 2;

/// See the module's documentation.
pub(super) enum Front {
    Block(Block),
    Scsi(Controller),
}

/// A controller. Its disks are detached and closed when it is dropped: a query of a disk may still
/// run on a thread.
pub(super) struct Controller {
    scsi: Scsi,
    attached: Vec<Address>,
}

/// A worker of any protocol. See [`QueueWorker`].
pub(super) trait Rounds {
    fn round(&mut self) -> bool;
    fn wait(&mut self) -> io::Result<()>;
}

impl<P: Protocol> Rounds for QueueWorker<P> {
    fn round(&mut self) -> bool {
        Self::round(self)
    }

    fn wait(&mut self) -> io::Result<()> {
        Self::wait(self)
    }
}

impl Front {
    /// The device without disks, or the whole virtio-blk device.
    pub(super) fn new(plan: &Plan, disk: Arc<dyn Backend>) -> Result<Self, String> {
        if !plan.uses_scsi {
            return Ok(Self::Block(Block::new("sim", SERIAL, plan.queues, disk)));
        }
        let scsi = Scsi::new("sim", plan.queues).map_err(|error| error.to_string())?;
        Ok(Self::Scsi(Controller { scsi, attached: Vec::new() }))
    }

    /// Attaches a disk to a controller.
    pub(super) fn attach(
        &mut self,
        address: Address,
        disk: Arc<dyn Backend>,
    ) -> Result<(), String> {
        let Self::Scsi(Controller { scsi, attached }) = self else { return Ok(()) };
        let identity = Identity::new(SERIAL, "/simulated");
        let control = scsi.bus().attach(address, "sim", identity, disk);
        control.map_err(|error| format!("cannot attach the disk: {error}"))?;
        attached.push(address);
        Ok(())
    }

    /// Detaches a disk from a controller, which does not wait for it.
    pub(super) fn detach(&mut self, address: Address) {
        if let Self::Scsi(Controller { scsi, attached }) = self {
            attached.retain(|other| *other != address);
            drop(scsi.bus().detach(address));
        }
    }

    pub(super) fn device(&mut self) -> &mut dyn VirtioDevice {
        match self {
            Self::Block(block) => block,
            Self::Scsi(controller) => &mut controller.scsi,
        }
    }

    /// Index of the first queue of requests.
    pub(super) fn first_queue(&self) -> u16 {
        match self {
            Self::Block(_) => 0,
            Self::Scsi(_) => OTHER_QUEUES,
        }
    }

    /// The loop of the control queue of a controller: a call is a round, and returns whether the
    /// loop would sleep after it.
    pub(super) fn control_rounds(
        &self,
        active: ActiveQueue,
        faults: FaultReporter,
    ) -> Option<Box<dyn FnMut() -> bool>> {
        match self {
            Self::Block(_) => None,
            Self::Scsi(controller) => {
                Some(Box::new(controller.scsi.control_rounds(active, faults)))
            }
        }
    }

    pub(super) fn worker(
        &self,
        active: ActiveQueue,
        faults: FaultReporter,
        sleep: QueueSleep,
    ) -> Result<Box<dyn Rounds>, String> {
        let refused = |error| format!("no worker: {error}");
        Ok(match self {
            Self::Block(block) => Box::new(block.worker(active, faults).map_err(refused)?),
            Self::Scsi(controller) => {
                Box::new(controller.scsi.worker(active, faults, sleep).map_err(refused)?)
            }
        })
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        for address in self.attached.drain(..) {
            if let Some(detached) = self.scsi.bus().detach(address) {
                detached.close();
            }
        }
    }
}
