//! A task abort covers all requests that the driver made available before it.

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

/// A protocol of flushes. The driver makes one available just before the abort is processed.
struct LateRequest {
    driver: Ring,
    reviewed: Arc<AtomicUsize>,
}

impl Protocol for LateRequest {
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
        self.reviewed.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[test]
fn request_available_before_abort_is_aborted() {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
    let layout = QueueLayout { size: 16, descriptors: 0, available: 0x1000, used: 0x2000 };
    let disk = TestDisk::new(Shape::default());
    disk.pause();
    let queue = Queue::new(&memory, layout, 0).unwrap();
    let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let active = ActiveQueue::new(0, queue, kick, Interrupt::unassigned());
    let faults = FaultReporter::new(DeviceStatus::default(), Interrupt::unassigned());
    let reviewed = Arc::new(AtomicUsize::new(0));
    let protocol =
        LateRequest { driver: Ring::new(memory, layout, 0), reviewed: Arc::clone(&reviewed) };
    let engine = |setup: &EngineSetup<'_>| disk.engine(setup);
    let mut worker = QueueWorker::new(active, faults, engine, Arc::default(), protocol).unwrap();
    let _ = worker.round();
    assert_eq!(reviewed.load(Ordering::Relaxed), 1);
    disk.resume();
}
