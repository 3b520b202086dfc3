//! Hotplug of disks over image files: at a detach requests in flight complete, writes become
//! durable, and the file is closed.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use block::{
    Backend, BackingSpace, ByteOffset, CacheMode, Crossing, DiskOptions, DiskStatus, EngineKind,
    EngineSetup, Extent, Geometry, IoEngine, OnEnospc, OpenError, RawFile, ResizeError,
};
use devices::scsi::Identity;
use devices::storage::DiskControl;
use devices::virtio::{Address, AttachError, ScsiBus};
use driver::{Command, Initiator, Response, Shape, TestDisk, response};
use fixtures::host::Mount;
use fixtures::{needs, scratch, wait_for};
use rustix::fs::{FlockOperation, fcntl_lock};
use tempfile::NamedTempFile;

use super::{attach, controller, file_disk, read_10, start, write_10};

const SECOND: Address = Address { target: 0, lun: 1 };
const ENGINES: [EngineKind; 2] = [EngineKind::IoUring, EngineKind::Threads];

/// Number of this process' descriptors of the file.
fn descriptors(path: &Path) -> usize {
    let all = fs::read_dir("/proc/self/fd").unwrap();
    all.filter(|fd| fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(|to| to == path)).count()
}

/// Whether the file is unlocked: a process-associated lock conflicts with locks of open files.
fn is_free(path: &Path) -> bool {
    let file = File::options().read(true).write(true).open(path).unwrap();
    fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

fn open(path: &Path, engine: EngineKind) -> Arc<RawFile> {
    let options = DiskOptions { engine, ..DiskOptions::new(CacheMode::WriteBack) };
    Arc::new(RawFile::open(path, &options).unwrap())
}

/// Detaches a disk and waits until its file is closed.
fn detach(bus: &ScsiBus, address: Address, control: DiskControl) {
    let detaching = bus.detach(address).expect("the address has a disk");
    detaching.drain().unwrap();
    drop(control);
    detaching.close();
}

/// Runs `command` until the unit has no unit attention left, and returns the response.
fn run_past_attention(initiator: &mut Initiator, queue: u16, command: &Command) -> Response {
    for _ in 0..3 {
        let answer = initiator.run(queue, command);
        if answer.sense.is_empty() || answer.sense_triple().0 != 6 {
            return answer;
        }
    }
    panic!("the unit attentions do not end");
}

/// With one and two disks per queue, so that workers sleep in an engine or in poll.
#[test]
fn detach_closes_and_unlocks_file() {
    for engine in ENGINES {
        let (device, bus) = controller(2);
        let (_root, disk) = file_disk(1 << 20, CacheMode::WriteBack);
        attach(&bus, 0, 0, Arc::new(disk));
        let mut initiator = Initiator::start(device, u64::MAX);
        initiator.clear_unit_attention(0);
        let file = NamedTempFile::new_in(scratch()).unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let (_, path) = file.into_parts();
        assert_eq!(descriptors(&path), 0);
        for turn in 0..40_u8 {
            let control = attach(&bus, 0, 1, open(&path, engine));
            assert!(descriptors(&path) > 0 && !is_free(&path));
            let response = initiator.run(0, &Command::new(0, &[0; 6]));
            assert_eq!(
                response.sense_triple(),
                (6, 0x3f, 0xe),
                "the other unit of the target reports the change"
            );
            initiator.clear_unit_attention(1);
            for queue in 0..2 {
                let lba = u32::from(queue) * 8;
                let write = Command::new(1, &write_10(lba, 8)).with_data_out(&[turn; 4096]);
                assert_eq!(initiator.run(queue, &write).status, 0);
            }
            let last =
                initiator.send(1, &Command::new(1, &write_10(16, 8)).with_data_out(&[turn; 4096]));
            detach(&bus, SECOND, control);
            assert_eq!((descriptors(&path), is_free(&path)), (0, true), "{engine}, turn {turn}");
            let answer = initiator.wait(1, &last);
            let blocks = match answer.status {
                0 => 24,
                // A command after the detach.
                _ => {
                    assert_eq!(answer.sense_triple(), (5, 0x25, 0));
                    16
                }
            };
            assert!(fs::read(&path).unwrap()[..blocks * 512].iter().all(|byte| *byte == turn));
            let response = initiator.run(0, &Command::new(0, &[0; 6]));
            assert_eq!(response.sense_triple(), (6, 0x3f, 0xe));
        }
        // The other disk is unaffected.
        assert_eq!(
            initiator.run(1, &Command::new(0, &read_10(0, 8)).with_data_in(4096)).data,
            [0; 4096]
        );
    }
}

/// SAM-5 §4.7, SPC-4 §6.6.1: a detached LUN responds as one that never existed.
#[test]
fn detached_lun_responds_as_nonexistent() {
    let (mut initiator, _, bus) = start(1);
    attach(&bus, 0, 1, Arc::new(TestDisk::new(Shape::default())));
    let inquiry = |lun| Command::new(lun, &[0x12, 0, 0, 0, 36, 0]).with_data_in(36);
    assert_eq!(initiator.succeed(&inquiry(1))[0], 0, "a disk");
    bus.detach(SECOND).unwrap().drain().unwrap();
    assert_eq!(initiator.succeed(&inquiry(1)), initiator.succeed(&inquiry(9)));
    assert_eq!(initiator.succeed(&inquiry(1))[0], 0x7f);
    for command in [Command::new(1, &[0; 6]), Command::new(1, &read_10(0, 1)).with_data_in(512)] {
        assert_eq!(initiator.run(0, &command).sense_triple(), (5, 0x25, 0));
    }
    // A target without units does not exist.
    bus.detach(Address { target: 0, lun: 0 }).unwrap().drain().unwrap();
    assert_eq!(initiator.run(0, &inquiry(0)).response, response::BAD_TARGET);
}

/// Continuous requests to two disks, one of which is attached and detached repeatedly.
#[test]
fn hotplug_under_load() {
    for engine in ENGINES {
        let (device, bus) = controller(2);
        let (_root, disk) = file_disk(1 << 20, CacheMode::WriteBack);
        attach(&bus, 0, 0, Arc::new(disk));
        let mut initiator = Initiator::start(device, u64::MAX);
        let file = NamedTempFile::new_in(scratch()).unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let (_, path) = file.into_parts();
        let done = AtomicBool::new(false);
        let (mut served, mut missed) = (0, 0);
        thread::scope(|scope| {
            let operator = scope.spawn(|| {
                for turn in 0..60 {
                    let control = attach(&bus, 0, 1, open(&path, engine));
                    thread::sleep(Duration::from_micros(400 * (turn % 4)));
                    detach(&bus, SECOND, control);
                    assert_eq!(descriptors(&path), 0, "turn {turn}");
                    // The kernel ends a ring, which holds the lock, after its descriptor is closed.
                    assert!(wait_for(|| is_free(&path).then_some(())).is_some(), "turn {turn}");
                }
                done.store(true, Ordering::Release);
            });
            while !operator.is_finished() {
                let command = |lun, n: u32| match n % 3 {
                    0 => Command::new(lun, &write_10(n * 8, 8)).with_data_out(&[1; 4096]),
                    1 => Command::new(lun, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
                    _ => Command::new(lun, &read_10(n * 8, 8)).with_data_in(4096),
                };
                let pending: Vec<_> =
                    (0..12).map(|n| initiator.send(1, &command(u8::from(n % 2 == 1), n))).collect();
                for _ in &pending {
                    let used = initiator.rings[3].wait_used();
                    let pending =
                        pending.iter().find(|pending| pending.head_id() == u64::from(used.id));
                    let answer = initiator.response(pending.unwrap(), used);
                    assert_eq!(answer.response, response::OK);
                    match answer.status {
                        0 => served += 1,
                        _ if answer.sense_triple() == (5, 0x25, 0) => missed += 1,
                        _ => assert_eq!(answer.sense_triple().0, 6, "{answer:02x?}"),
                    }
                }
            }
        });
        assert!(done.into_inner() && served > 0 && missed > 0, "{served} served, {missed} missed");
        assert_eq!(run_past_attention(&mut initiator, 0, &Command::new(0, &[0; 6])).status, 0);
    }
}

/// A detach completes requests, then flushes, then closes the file.
#[test]
fn detach_completes_requests_before_flush() {
    let (mut initiator, _, bus) = start(1);
    let disk = TestDisk::new(Shape::default());
    let control = attach(&bus, 0, 1, Arc::new(disk.clone()));
    initiator.clear_unit_attention(1);
    disk.pause();
    let pending = initiator.send(0, &Command::new(1, &write_10(0, 1)).with_data_out(&[7; 512]));
    wait_for(|| (disk.pushed() > 0).then_some(())).unwrap();
    let detaching = bus.detach(SECOND).unwrap();
    thread::scope(|scope| {
        let end = scope.spawn(move || detaching.drain().map(|()| detaching));
        // The other disk keeps working while the flush waits.
        for _ in 0..20 {
            assert_eq!(run_past_attention(&mut initiator, 0, &Command::new(0, &[0; 6])).status, 0);
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!((disk.syncs(), end.is_finished()), (0, false));
        disk.resume();
        assert_eq!(initiator.wait(0, &pending).status, 0);
        let detaching = end.join().unwrap().unwrap();
        assert_eq!((disk.syncs(), disk.engines()), (1, 0));
        assert_eq!(disk.content()[..512], [7; 512]);
        drop(control);
        detaching.close();
    });
}

/// A command whose disk has no engine: LOGICAL UNIT NOT SUPPORTED if the disk is detached, an error
/// if its host device is gone.
#[test]
fn detached_disk_is_distinct_from_failed_disk() {
    for (detaches, sense) in [(false, (3, 0x11, 0)), (true, (5, 0x25, 0))] {
        let (mut initiator, _, bus) = start(1);
        let disk = TestDisk::new(Shape::default());
        attach(&bus, 0, 1, Arc::new(disk.clone()));
        initiator.clear_unit_attention(1);
        disk.pause();
        disk.fail_next(libc::ENODEV);
        let pending = initiator.send(0, &Command::new(1, &read_10(0, 1)).with_data_in(512));
        wait_for(|| (disk.pushed() > 0).then_some(())).unwrap();
        let detaching = detaches.then(|| bus.detach(SECOND).unwrap());
        disk.resume();
        assert_eq!(initiator.wait(0, &pending).sense_triple(), sense);
        detaching.map_or(Ok(()), |detaching| detaching.drain()).unwrap();
    }
}

/// The file stays open while the control plane uses the disk.
#[test]
fn file_is_closed_after_last_user() {
    let (_host, _, bus) = start(1);
    let (file, disk) = file_disk(1 << 20, CacheMode::WriteBack);
    let control = attach(&bus, 0, 1, Arc::new(disk));
    let detaching = bus.detach(SECOND).unwrap();
    detaching.drain().unwrap();
    thread::scope(|scope| {
        let end = scope.spawn(|| detaching.close());
        thread::sleep(Duration::from_millis(20));
        assert!(!end.is_finished() && !is_free(file.path()));
        assert_eq!(control.geometry().capacity, 1 << 20);
        drop(control);
        end.join().unwrap();
        assert!(is_free(file.path()));
    });
}

/// Reset or close of the device while requests of a detached disk are in flight.
#[test]
fn reset_releases_detached_disk() {
    let (mut initiator, _, bus) = start(1);
    let disk = TestDisk::new(Shape::default());
    attach(&bus, 0, 1, Arc::new(disk.clone()));
    initiator.clear_unit_attention(1);
    disk.pause();
    initiator.send(0, &Command::new(1, &read_10(0, 1)).with_data_in(512));
    wait_for(|| (disk.pushed() > 0).then_some(())).unwrap();
    let detaching = bus.detach(SECOND).unwrap();
    initiator.device.set_status(0);
    disk.resume();
    detaching.drain().unwrap();
    detaching.close();
    wait_for(|| (initiator.device.status() == 0).then_some(())).expect("the reset completes");
    let mut initiator = Initiator::start(initiator.device.clone(), u64::MAX);
    initiator.clear_unit_attention(0);
    let gone = initiator.run(0, &Command::new(1, &[0; 6]));
    assert_eq!(gone.sense_triple(), (5, 0x25, 0));
}

/// Closing the device flushes a detached disk whose detach is not complete.
#[test]
fn close_flushes_detached_disk() {
    let (initiator, disk, bus) = start(1);
    let other = TestDisk::new(Shape::default());
    attach(&bus, 0, 1, Arc::new(other.clone()));
    let detaching = bus.detach(SECOND).unwrap();
    initiator.device.machine().root.close().unwrap();
    assert_eq!((disk.syncs(), other.syncs()), (1, 1));
    detaching.drain().unwrap();
}

/// A disk with slow flushes.
struct SlowFlush(TestDisk, AtomicUsize);

impl Backend for SlowFlush {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn cache_mode(&self) -> CacheMode {
        self.0.cache_mode()
    }

    fn read_only(&self) -> bool {
        self.0.read_only()
    }

    fn engine(&self, setup: &EngineSetup<'_>) -> Result<Box<dyn IoEngine>, OpenError> {
        self.0.engine(setup)
    }

    fn sync(&self) -> io::Result<()> {
        assert_eq!(
            self.1.fetch_add(1, Ordering::AcqRel),
            0,
            "concurrent syncs would share one error report"
        );
        thread::sleep(Duration::from_millis(30));
        self.1.fetch_sub(1, Ordering::AcqRel);
        self.0.sync()
    }

    fn status(&self) -> DiskStatus {
        self.0.status()
    }

    fn stop_holding(&self) {
        self.0.stop_holding();
    }

    fn allocation(&self, from: ByteOffset, limit: usize) -> io::Result<Vec<Extent>> {
        self.0.allocation(from, limit)
    }

    fn backing_space(&self) -> io::Result<Option<BackingSpace>> {
        self.0.backing_space()
    }

    fn check_soft_limit(&self) -> io::Result<Option<Crossing>> {
        self.0.check_soft_limit()
    }

    fn resize(&self, size: Option<u64>) -> Result<u64, ResizeError> {
        self.0.resize(size)
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// Flushes of one disk are serialized: the kernel reports a lost write once.
#[test]
fn flushes_are_serialized() {
    let (initiator, _, bus) = start(1);
    let disk = TestDisk::new(Shape::default());
    attach(&bus, 0, 1, Arc::new(SlowFlush(disk.clone(), AtomicUsize::new(0))));
    let detaching = bus.detach(SECOND).unwrap();
    thread::scope(|scope| {
        let end = scope.spawn(move || detaching.drain());
        initiator.device.machine().root.close().unwrap();
        end.join().unwrap().unwrap();
    });
    assert_eq!(disk.syncs(), 2);
}

/// More attaches than LUNs, without a driver or with one that never kicks.
#[test]
fn luns_are_reused() {
    let (device, bus) = controller(1);
    let disk = TestDisk::new(Shape::default());
    for _ in 0..=u16::MAX {
        attach(&bus, 3, 1, Arc::new(disk.clone()));
        bus.detach(Address { target: 3, lun: 1 }).unwrap().drain().unwrap();
    }
    attach(&bus, 0, 0, Arc::new(disk));
    let mut initiator = Initiator::start(device, u64::MAX);
    initiator.clear_unit_attention(0);
    let command = Command::new(0, &read_10(0, 1)).with_data_in(512);
    assert_eq!(initiator.run(0, &command).status, 0);
}

#[test]
fn refused_attach_releases_disk() {
    let (mut initiator, _, bus) = start(1);
    let (file, disk) = file_disk(1 << 20, CacheMode::WriteBack);
    let (_, path) = file.into_parts();
    let disk: Arc<dyn Backend> = Arc::new(disk);
    let buffer = initiator.offer_event_buffer();
    for (address, why) in [
        (Address { target: 0, lun: 0 }, AttachError::Taken(0, 0)),
        (Address { target: 0, lun: 0x4000 }, AttachError::LunTooHigh(0x4000)),
    ] {
        let refused =
            bus.attach(address, "disk", Identity::new("disk", "/"), Arc::clone(&disk)).map(drop);
        assert_eq!(refused, Err(why));
    }
    drop(disk);
    assert_eq!((descriptors(&path), is_free(&path)), (0, true));
    assert!(initiator.has_no_event());
    assert_eq!(initiator.run(0, &Command::new(0, &[0; 6])).status, 0, "no unit attention");
    attach(&bus, 0, 1, open(&path, EngineKind::Auto));
    assert_eq!(initiator.wait_event(buffer)[..8], [1, 0, 0, 0, 1, 0, 0, 1]);
}

/// A detach ends an ENOSPC hold: the write is retried once and fails with 27h/07h.
#[test]
fn detach_ends_enospc_hold() {
    if !needs::root() {
        return;
    }
    let mount = Mount::new("tmpfs", "size=1M");
    let path = mount.file(8 << 20);
    for engine in ENGINES {
        let (mut initiator, _, bus) = start(1);
        let deadline = Duration::from_secs(600);
        let options = DiskOptions {
            engine,
            on_enospc: OnEnospc::Hold { deadline },
            ..DiskOptions::new(CacheMode::WriteBack)
        };
        let disk = RawFile::open(&path, &options).unwrap();
        let control = attach(&bus, 0, 1, Arc::new(disk));
        initiator.clear_unit_attention(1);
        let write = Command::new(1, &write_10(0, 4096)).with_data_out(&vec![1; 2 << 20]);
        let pending = initiator.send(0, &write);
        wait_for(|| control.backend().status().enospc_hold).expect("the write is held");
        detach(&bus, SECOND, control);
        assert_eq!(initiator.wait(0, &pending).sense_triple(), (7, 0x27, 7));
        assert!(is_free(&path));
    }
}
