//! Commands that depend on the backing store of a disk, while it hangs as on a frozen file system:
//! only what needs its answer waits.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use block::{Backend, BackingSpace, CacheMode};
use devices::virtio::{Address, ScsiBus};
use driver::{Command, Initiator, PendingCommand, Shape, TestDisk, response};
use fixtures::wait_for;
use tempfile::NamedTempFile;

use super::{attach, controller, file_disk, read_10, write_10};

const ABORT_TASK: u32 = 0;
const ABORT_TASK_SET: u32 = 1;
const I_T_NEXUS_RESET: u32 = 4;
const LOGICAL_UNIT_RESET: u32 = 5;
const UNIT: [u8; 8] = [1, 0, 0, 0, 0, 0, 0, 0];
/// LUNs of the disk whose store hangs and of the healthy one.
const HUNG: u8 = 0;
const HEALTHY: u8 = 1;

/// Two disks on one queue; the store of one hangs once `hang_store` is called.
struct Rig {
    /// Dropped first: a failed test must not leave a worker that hangs.
    _thaw: ThawOnDrop,
    initiator: Initiator,
    hung: TestDisk,
    backend: Weak<dyn Backend>,
    bus: ScsiBus,
    _healthy: NamedTempFile,
}

struct ThawOnDrop(TestDisk);

impl Drop for ThawOnDrop {
    fn drop(&mut self) {
        self.0.hang_store(false);
    }
}

impl Rig {
    fn new() -> Self {
        Self::with(TestDisk::new(Shape::default()))
    }

    fn with(hung: TestDisk) -> Self {
        let thaw = ThawOnDrop(hung.clone());
        let (device, bus) = controller(1);
        let backend: Arc<dyn Backend> = Arc::new(hung.clone());
        let weak = Arc::downgrade(&backend);
        attach(&bus, 0, HUNG.into(), backend);
        let (file, disk) = file_disk(1 << 20, CacheMode::WriteBack);
        attach(&bus, 0, HEALTHY.into(), Arc::new(disk));
        let mut initiator = Initiator::start(device, u64::MAX);
        [HUNG, HEALTHY].into_iter().for_each(|lun| initiator.clear_unit_attention(lun));
        Self { _thaw: thaw, initiator, hung, backend: weak, bus, _healthy: file }
    }

    /// Sends GET LBA STATUS to the disk whose store hangs and waits until the host has it.
    fn send_hanging_query(&mut self, id: u64) -> PendingCommand {
        self.hung.hang_store(true);
        let sent = self.initiator.send(0, &get_lba_status(HUNG).with_id(id));
        wait_for(|| (self.hung.hanging_queries() > 0).then_some(())).expect("the host has it");
        sent
    }

    /// All kinds of commands to the healthy disk complete in order, while others hang.
    fn check_healthy_disk(&mut self) {
        let began = Instant::now();
        for byte in 0..20 {
            let write = Command::new(HEALTHY, &write_10(8, 1)).with_data_out(&[byte; 512]);
            self.initiator.succeed(&write);
            let read = Command::new(HEALTHY, &read_10(8, 1)).with_data_in(512);
            assert_eq!(self.initiator.succeed(&read), [byte; 512]);
            self.initiator.succeed(&get_lba_status(HEALTHY));
            self.initiator.succeed(&log_sense(HEALTHY, 0x0c));
        }
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }

    /// Waits until no thread uses the disk.
    fn wait_closed(&self) {
        wait_for(|| self.backend.upgrade().is_none().then_some(())).expect("no thread has it");
        assert_eq!(self.hung.hanging_queries(), 0);
    }
}

fn get_lba_status(lun: u8) -> Command {
    let cdb = [0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0];
    Command::new(lun, &cdb).with_data_in(64)
}

fn log_sense(lun: u8, page: u8) -> Command {
    Command::new(lun, &[0x4d, 0, 0x40 | page, 0, 0, 0, 0, 0, 64, 0]).with_data_in(64)
}

/// VPD page B2h.
fn provisioning_page(lun: u8) -> Command {
    Command::new(lun, &[0x12, 1, 0xb2, 0, 64, 0]).with_data_in(64)
}

/// The one descriptor of a fully mapped disk of 64 KiB.
fn assert_is_mapped(data: &[u8]) {
    assert_eq!(data[..8], [0, 0, 0, 20, 0, 0, 0, 0]);
    assert_eq!(data[16..21], [0, 0, 0, 128, 0], "128 mapped blocks");
}

#[test]
fn hung_get_lba_status_delays_only_itself() {
    let mut rig = Rig::new();
    let sent = rig.send_hanging_query(1);
    rig.check_healthy_disk();
    // The disk itself: no other command needs its store.
    rig.initiator.succeed(&Command::new(HUNG, &write_10(0, 1)).with_data_out(&[1; 512]));
    rig.initiator.succeed(&log_sense(HUNG, 0));
    rig.hung.hang_store(false);
    let answer = rig.initiator.wait(0, &sent);
    assert_eq!((answer.response, answer.status, answer.residual), (response::OK, 0, 40));
    assert_is_mapped(&answer.data);
}

/// The queue sleeps meanwhile.
#[test]
fn completed_query_wakes_queue() {
    let mut rig = Rig::new();
    let sent = rig.send_hanging_query(1);
    std::thread::sleep(Duration::from_millis(50));
    rig.hung.hang_store(false);
    assert_is_mapped(&rig.initiator.wait(0, &sent).data);
}

/// Space that is not known yet is not reported: no page 0Ch and no threshold sets.
#[test]
fn space_commands_do_not_wait_for_store() {
    let hung = TestDisk::new(Shape::default());
    hung.set_space(BackingSpace { used: 3 << 20, available: 5 << 20 });
    hung.hang_store(true);
    let mut rig = Rig::with(hung);
    let began = Instant::now();
    assert_eq!(rig.initiator.succeed(&log_sense(HUNG, 0))[..5], [0, 0, 0, 1, 0]);
    let refused = rig.initiator.run(0, &log_sense(HUNG, 0x0c));
    assert_eq!(refused.sense_triple(), (5, 0x24, 0));
    let mode_sense = Command::new(HUNG, &[0x1a, 8, 0x1c, 2, 64, 0]).with_data_in(64);
    assert_eq!(rig.initiator.run(0, &mode_sense).sense_triple(), (5, 0x24, 0));
    assert_eq!(rig.initiator.succeed(&provisioning_page(HUNG))[4], 0);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(rig.hung.hanging_queries(), 1, "one measurement for all of them");
    rig.hung.hang_store(false);
    wait_for(|| (rig.hung.hanging_queries() == 0).then_some(())).unwrap();
    let page = wait_for(|| {
        let answer = rig.initiator.run(0, &log_sense(HUNG, 0x0c));
        (answer.status == 0).then_some(answer.data)
    });
    assert_eq!(page.expect("the space is known")[8..12], [0, 0, 0, 5], "MiB available");
    assert_ne!(rig.initiator.succeed(&provisioning_page(HUNG))[4], 0);
}

/// Repeated commands use the measured space for a while.
#[test]
fn space_is_not_measured_for_each_command() {
    let mut rig = Rig::new();
    for _ in 0..50 {
        rig.initiator.succeed(&log_sense(HUNG, 0));
        rig.initiator.succeed(&provisioning_page(HUNG));
    }
    assert!(rig.hung.queries() <= 10, "{}", rig.hung.queries());
}

#[test]
fn hung_query_is_aborted_immediately() {
    for (function, expected) in [
        (ABORT_TASK, response::ABORTED),
        (ABORT_TASK_SET, response::ABORTED),
        (LOGICAL_UNIT_RESET, response::RESET),
        (I_T_NEXUS_RESET, response::RESET),
    ] {
        let mut rig = Rig::new();
        let sent = rig.send_hanging_query(7);
        assert_eq!(rig.initiator.task_management(function, UNIT, 7), response::OK);
        let used = rig.initiator.rings[2].take_used().expect("the task is complete");
        let answer = rig.initiator.response(&sent, used);
        assert_eq!((answer.response, answer.residual), (expected, 64), "{function}");
        if expected == response::RESET {
            assert_eq!(rig.initiator.run(0, &Command::new(HUNG, &[0; 6])).sense_triple().1, 0x29);
        }
        if function == I_T_NEXUS_RESET {
            let _ = rig.initiator.run(0, &Command::new(HEALTHY, &[0; 6]));
        }
        // The late answer of the host completes no other command that has its tag.
        rig.hung.pause();
        let read = Command::new(HUNG, &read_10(0, 1)).with_data_in(512);
        let read = rig.initiator.send(0, &read);
        rig.hung.hang_store(false);
        wait_for(|| (rig.hung.hanging_queries() == 0).then_some(())).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert!(rig.initiator.rings[2].take_used().is_none(), "{function}");
        rig.hung.resume();
        assert_eq!(rig.initiator.wait(0, &read).status, 0);
    }
}

/// Aborted queries leave nothing behind, however long the store hangs.
#[test]
fn aborted_queries_do_not_accumulate() {
    let mut rig = Rig::new();
    let before = rig.hung.queries();
    for id in 0..50 {
        let sent = rig.send_hanging_query(id);
        assert_eq!(rig.initiator.task_management(ABORT_TASK, UNIT, id), response::OK);
        assert_eq!(rig.initiator.wait(0, &sent).response, response::ABORTED);
    }
    assert_eq!(rig.hung.hanging_queries(), 1);
    rig.hung.hang_store(false);
    assert_is_mapped(&rig.initiator.succeed(&get_lba_status(HUNG)));
    assert_eq!(rig.hung.queries() - before, 2, "the first one and the last one");
}

#[test]
fn device_reset_does_not_wait_for_hung_query() {
    let mut rig = Rig::new();
    let before = rig.hung.queries();
    rig.send_hanging_query(1);
    // One that the host does not have yet.
    rig.initiator.send(0, &get_lba_status(HUNG).with_id(2));
    rig.initiator.succeed(&log_sense(HEALTHY, 0));
    rig.initiator.device.reset();
    rig.initiator = Initiator::start(rig.initiator.device.clone(), rig.initiator.features);
    [HUNG, HEALTHY].into_iter().for_each(|lun| rig.initiator.clear_unit_attention(lun));
    rig.check_healthy_disk();
    let sent = rig.initiator.send(0, &get_lba_status(HUNG));
    rig.hung.hang_store(false);
    assert_is_mapped(&rig.initiator.wait(0, &sent).data);
    assert_eq!(rig.hung.queries() - before, 2, "the first one and the last one");
}

#[test]
fn end_of_machine_does_not_wait_for_hung_query() {
    let mut rig = Rig::new();
    rig.send_hanging_query(1);
    let Rig { initiator, hung, backend, bus, _thaw, _healthy } = rig;
    initiator.device.machine().root.close().unwrap();
    drop((initiator, bus));
    assert!(backend.upgrade().is_some(), "the host works on the query");
    hung.hang_store(false);
    wait_for(|| backend.upgrade().is_none().then_some(())).expect("the thread has ended");
}

/// A detach waits for the query like for any request on the host, and closes the image.
#[test]
fn detach_waits_for_hung_query() {
    let mut rig = Rig::new();
    let sent = rig.send_hanging_query(1);
    let detached = rig.bus.detach(Address { target: 0, lun: HUNG.into() }).unwrap();
    let waiting = std::thread::spawn(move || {
        detached.drain().unwrap();
        detached.close();
    });
    let changed = rig.initiator.run(0, &Command::new(HEALTHY, &[0; 6]));
    assert_eq!(changed.sense_triple(), (6, 0x3f, 0x0e));
    rig.check_healthy_disk();
    assert!(!waiting.is_finished());
    rig.hung.hang_store(false);
    assert_eq!(rig.initiator.wait(0, &sent).status, 0);
    waiting.join().unwrap();
    assert!(rig.backend.upgrade().is_none(), "the image is closed");
}

/// An aborted query that the host still works on keeps the image open, so a detach waits for it.
#[test]
fn detach_waits_for_aborted_query() {
    let mut rig = Rig::new();
    let sent = rig.send_hanging_query(1);
    assert_eq!(rig.initiator.task_management(ABORT_TASK, UNIT, 1), response::OK);
    assert_eq!(rig.initiator.wait(0, &sent).response, response::ABORTED);
    let detached = rig.bus.detach(Address { target: 0, lun: HUNG.into() }).unwrap();
    detached.drain().unwrap();
    let closing = std::thread::spawn(move || detached.close());
    std::thread::sleep(Duration::from_millis(50));
    assert!(!closing.is_finished());
    rig.hung.hang_store(false);
    closing.join().unwrap();
    rig.wait_closed();
}
