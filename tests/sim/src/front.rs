//! The device in front of the simulated disk: virtio-blk, or a virtio-scsi controller with one
//! disk.

use std::io;
use std::sync::Arc;

use block::Backend;
use devices::scsi::Identity;
use devices::storage::{Protocol, QueueWorker};
use devices::virtio::{ActiveQueue, Address, Block, FaultReporter, Scsi, VirtioDevice};

use super::plan::Plan;

/// Serial number of the device.
pub(super) const SERIAL: &str = "simulated";
const ADDRESS: Address = Address { target: 0, lun: 0 };
/// Number of a controller's queues before the request queues.
const OTHER_QUEUES: u16 = 2;

/// See the module's documentation.
pub(super) enum Front {
    Block(Block),
    Scsi(Controller),
}

/// A controller. Its disk is detached and closed when it is dropped: a query of the disk may still
/// run on a thread.
pub(super) struct Controller(Scsi);

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
    pub(super) fn new(plan: &Plan, disk: Arc<dyn Backend>) -> Result<Self, String> {
        if !plan.uses_scsi {
            return Ok(Self::Block(Block::new("sim", SERIAL, plan.queues, disk)));
        }
        let scsi = Scsi::new("sim", plan.queues).map_err(|error| error.to_string())?;
        let identity = Identity::new(SERIAL, "/simulated");
        let attached = scsi.bus().attach(ADDRESS, "sim", identity, disk);
        attached.map_err(|error| format!("cannot attach the disk: {error}"))?;
        Ok(Self::Scsi(Controller(scsi)))
    }

    pub(super) fn device(&mut self) -> &mut dyn VirtioDevice {
        match self {
            Self::Block(block) => block,
            Self::Scsi(controller) => &mut controller.0,
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
            Self::Scsi(controller) => Some(Box::new(controller.0.control_rounds(active, faults))),
        }
    }

    pub(super) fn worker(
        &self,
        active: ActiveQueue,
        faults: FaultReporter,
    ) -> Result<Box<dyn Rounds>, String> {
        let refused = |error| format!("no worker: {error}");
        Ok(match self {
            Self::Block(block) => Box::new(block.worker(active, faults).map_err(refused)?),
            Self::Scsi(controller) => {
                Box::new(controller.0.worker(active, faults).map_err(refused)?)
            }
        })
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if let Some(detached) = self.0.bus().detach(ADDRESS) {
            detached.close();
        }
    }
}
