//! When a protocol looks at the requests in flight: task management ends those that the driver made
//! available before.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use block::{Backend, EngineSetup, IoEngine, Operation, Segments};
use devices::GuestMemory;
use devices::storage::{Completed, Parsed, Protocol, QueueWorker};
use devices::virtio::{
    ActiveQueue, Chain, DeviceStatus, FaultReporter, GuestMap, Interrupt, Queue, QueueLayout,
};
use driver::{Descriptor, Ring, Shape, TestDisk};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Each request is a flush. The driver offers one at the last moment before somebody wants an end
/// of it.
struct LastMoment {
    driver: Ring,
    seen: Arc<AtomicUsize>,
}

impl Protocol for LastMoment {
    type Pending = ();
    type Engines = Box<dyn IoEngine>;

    fn parse(&mut self, _: &Chain, _: &GuestMap, _: &mut Segments) -> Parsed<()> {
        Parsed::Io { unit: 0, op: Operation::Flush, pending: () }
    }

    fn complete(
        &mut self,
        (): &mut (),
        _: &GuestMap,
        _: io::Result<()>,
        _: &mut Segments,
    ) -> Completed {
        Completed::Done { written: 0 }
    }

    fn wants_review(&mut self) -> bool {
        self.driver.offer(&[Descriptor::writable(0x8000, 1)]);
        let _ = self.driver.publish();
        true
    }

    fn review(&mut self, (): &mut ()) -> Option<u16> {
        self.seen.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[test]
fn what_was_made_available_before_is_looked_at() {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
    let layout = QueueLayout { size: 16, descriptors: 0, available: 0x1000, used: 0x2000 };
    let disk = TestDisk::new(Shape::default());
    disk.pause();
    let queue = Queue::new(&memory, layout, 0).unwrap();
    let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let active = ActiveQueue::new(0, queue, kick, Interrupt::unassigned());
    let faults = FaultReporter::new(DeviceStatus::default(), Interrupt::unassigned());
    let seen = Arc::new(AtomicUsize::new(0));
    let protocol = LastMoment { driver: Ring::new(memory, layout, 0), seen: Arc::clone(&seen) };
    let engine = |setup: &EngineSetup<'_>| disk.engine(setup);
    let mut worker = QueueWorker::new(active, faults, engine, Arc::default(), protocol).unwrap();
    let _ = worker.round();
    assert_eq!(seen.load(Ordering::Relaxed), 1);
    disk.resume();
}
