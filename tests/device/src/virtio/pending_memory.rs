//! Memory of a pending request outlives the engine's work on it.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};

use block::{ByteOffset, Completion, EngineSetup, Operation, Request, Segment, Segments};
use devices::GuestMemory;
use devices::storage::{Completed, Engines, Parsed, Protocol, QueueWorker};
use devices::virtio::{
    ActiveQueue, Chain, DeviceStatus, FaultReporter, GuestMap, Interrupt, Queue, QueueLayout,
};
use driver::{Descriptor, Ring};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

type Order = Arc<Mutex<Vec<&'static str>>>;

/// The memory into which a request reads, as that of a SCSI VERIFY.
struct CommandMemory(Box<[u8; 4096]>, Order);

impl Drop for CommandMemory {
    fn drop(&mut self) {
        self.1.lock().unwrap().push("memory freed");
    }
}

/// Each chain is a read into the command's own memory.
struct ReadIntoOwnMemory(Order);

impl Protocol for ReadIntoOwnMemory {
    type Pending = CommandMemory;
    type Engines = SlowEngine;

    fn parse(&mut self, _: &Chain, _: &GuestMap, segments: &mut Segments) -> Parsed<CommandMemory> {
        let mut pending = CommandMemory(Box::new([0; 4096]), Arc::clone(&self.0));
        // SAFETY: the engine never accesses the memory.
        segments.push(unsafe { Segment::new(pending.0.as_mut_ptr(), 4096) });
        Parsed::Io { unit: 0, op: Operation::Read { at: ByteOffset(0) }, pending }
    }

    fn complete(
        &mut self,
        _: &mut CommandMemory,
        _: &GuestMap,
        _: io::Result<()>,
        _: &mut Segments,
    ) -> Completed {
        Completed::Done { written: 0 }
    }
}

/// An engine whose host completes its reads only when the engine is dropped.
struct SlowEngine {
    order: Order,
    wait_fails: bool,
}

impl Engines for SlowEngine {
    type Query = Infallible;

    const HAS_QUERIES: bool = false;

    fn query(&mut self, _: u16, query: Infallible) {
        match query {}
    }

    fn take_answered(&mut self) -> Vec<u16> {
        Vec::new()
    }

    fn push(&mut self, _: u16, _: Request<'_>) {}

    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn reap(&mut self, _: &mut Vec<Completion>) {}

    fn parked(&self) -> usize {
        usize::from(!self.wait_fails)
    }

    fn cancel(&mut self, _: u16, _: u16) -> bool {
        false
    }

    fn wait(&mut self) -> io::Result<()> {
        Err(io::Error::other("the host refuses"))
    }
}

impl Drop for SlowEngine {
    fn drop(&mut self) {
        self.order.lock().unwrap().push("engine drained");
    }
}

/// The order of events after `end`, with one request in flight.
fn order_after(
    wait_fails: bool,
    end: impl FnOnce(QueueWorker<ReadIntoOwnMemory>),
) -> Vec<&'static str> {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
    let layout = QueueLayout { size: 16, descriptors: 0, available: 0x1000, used: 0x2000 };
    let queue = Queue::new(&memory, layout, 0).unwrap();
    let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let active = ActiveQueue::new(0, queue, kick, Interrupt::unassigned());
    let faults = FaultReporter::new(DeviceStatus::default(), Interrupt::unassigned());
    let mut driver = Ring::new(memory, layout, 0);
    driver.offer(&[Descriptor::writable(0x8000, 1)]);
    let _ = driver.publish();
    let order = Order::default();
    let protocol = ReadIntoOwnMemory(Arc::clone(&order));
    let engine = SlowEngine { order: Arc::clone(&order), wait_fails };
    let engines = |_: &EngineSetup<'_>| Ok(engine);
    let mut worker = QueueWorker::new(active, faults, engines, Arc::default(), protocol).unwrap();
    let _ = worker.round();
    end(worker);
    let order = order.lock().unwrap();
    order.clone()
}

const RIGHT: [&str; 2] = ["engine drained", "memory freed"];

#[test]
fn memory_is_freed_after_the_engine_at_a_reset() {
    assert_eq!(order_after(false, drop), RIGHT);
}

#[test]
fn memory_is_freed_after_the_engine_when_a_queue_is_handed_over() {
    for fail_held in [false, true] {
        assert_eq!(order_after(false, |mut worker| drop(worker.drain(fail_held))), RIGHT);
    }
}

#[test]
fn memory_is_freed_after_the_engine_when_draining_fails() {
    assert_eq!(order_after(true, |mut worker| drop(worker.drain(false))), RIGHT);
}
