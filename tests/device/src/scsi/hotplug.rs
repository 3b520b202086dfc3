//! Disks that are attached to a running controller and detached from it, with files behind them:
//! what is in flight ends, what was written is durable, and nobody holds the file afterwards.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::Command as Program;
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
use fixtures::{scratch, wait_for};
use rustix::fs::{FlockOperation, fcntl_lock};
use tempfile::{NamedTempFile, TempDir};

use super::{attach, controller, file_disk, read_10, start, write_10};

const SECOND: Address = Address { target: 0, lun: 1 };
const ENGINES: [EngineKind; 2] = [EngineKind::IoUring, EngineKind::Threads];

/// How many descriptors of this process are the file.
fn descriptors(path: &Path) -> usize {
    let all = fs::read_dir("/proc/self/fd").unwrap();
    all.filter(|fd| fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(|to| to == path)).count()
}

/// Whether somebody else could lock the file now. A lock of the process is another owner's than
/// those of its open files.
fn is_free(path: &Path) -> bool {
    let file = File::options().read(true).write(true).open(path).unwrap();
    fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

fn open(path: &Path, engine: EngineKind) -> Arc<RawFile> {
    let options = DiskOptions { engine, ..DiskOptions::new(CacheMode::WriteBack) };
    Arc::new(RawFile::open(path, &options).unwrap())
}

/// Detaches a disk, and waits until its file is closed.
fn detach(bus: &ScsiBus, address: Address, control: DiskControl) {
    let leaving = bus.detach(address).expect("there is a disk");
    leaving.drain().unwrap();
    drop(control);
    leaving.close();
}

/// The answer of a unit's first command after what it has to tell.
fn first(host: &mut Initiator, queue: u16, command: &Command) -> Response {
    for _ in 0..3 {
        let answer = host.run(queue, command);
        if answer.sense.is_empty() || answer.sense_triple().0 != 6 {
            return answer;
        }
    }
    panic!("a unit has more to tell than it can");
}

/// Two disks on each queue, so that workers sleep in the one way and in the other.
#[test]
fn a_file_comes_and_goes_and_nothing_of_it_stays() {
    for engine in ENGINES {
        let (device, bus) = controller(2);
        let (_root, disk) = file_disk(1 << 20, CacheMode::WriteBack);
        attach(&bus, 0, 0, Arc::new(disk));
        let mut host = Initiator::start(device, u64::MAX);
        host.clear_unit_attention(0);
        let file = NamedTempFile::new_in(scratch()).unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let (_, path) = file.into_parts();
        assert_eq!(descriptors(&path), 0);
        for turn in 0..40_u8 {
            let control = attach(&bus, 0, 1, open(&path, engine));
            assert!(descriptors(&path) > 0 && !is_free(&path));
            let tells = host.run(0, &Command::new(0, &[0; 6]));
            assert_eq!(tells.sense_triple(), (6, 0x3f, 0xe), "to the other unit of the target");
            host.clear_unit_attention(1);
            for queue in 0..2 {
                let lba = u32::from(queue) * 8;
                let write = Command::new(1, &write_10(lba, 8)).with_data_out(&[turn; 4096]);
                assert_eq!(host.run(queue, &write).status, 0);
            }
            let last =
                host.send(1, &Command::new(1, &write_10(16, 8)).with_data_out(&[turn; 4096]));
            detach(&bus, SECOND, control);
            assert_eq!((descriptors(&path), is_free(&path)), (0, true), "{engine}, turn {turn}");
            let answer = host.wait(1, &last);
            let blocks = match answer.status {
                0 => 24,
                // It came too late.
                _ => {
                    assert_eq!(answer.sense_triple(), (5, 0x25, 0));
                    16
                }
            };
            assert!(fs::read(&path).unwrap()[..blocks * 512].iter().all(|byte| *byte == turn));
            let tells = host.run(0, &Command::new(0, &[0; 6]));
            assert_eq!(tells.sense_triple(), (6, 0x3f, 0xe));
        }
        // The other disk has noticed nothing.
        assert_eq!(
            host.run(1, &Command::new(0, &read_10(0, 8)).with_data_in(4096)).data,
            [0; 4096]
        );
    }
}

/// As SAM-5 §4.7 and SPC-4 §6.6.1 want it of a number that no unit has.
#[test]
fn a_unit_that_is_gone_answers_as_one_that_never_was() {
    let (mut host, _, bus) = start(1);
    attach(&bus, 0, 1, Arc::new(TestDisk::new(Shape::default())));
    let inquiry = |lun| Command::new(lun, &[0x12, 0, 0, 0, 36, 0]).with_data_in(36);
    assert_eq!(host.succeed(&inquiry(1))[0], 0, "a disk");
    bus.detach(SECOND).unwrap().drain().unwrap();
    assert_eq!(host.succeed(&inquiry(1)), host.succeed(&inquiry(9)));
    assert_eq!(host.succeed(&inquiry(1))[0], 0x7f);
    for command in [Command::new(1, &[0; 6]), Command::new(1, &read_10(0, 1)).with_data_in(512)] {
        assert_eq!(host.run(0, &command).sense_triple(), (5, 0x25, 0));
    }
    // A target without units is none.
    bus.detach(Address { target: 0, lun: 0 }).unwrap().drain().unwrap();
    assert_eq!(host.run(0, &inquiry(0)).response, response::BAD_TARGET);
}

/// Requests to both disks without end, while one of them comes and goes.
#[test]
fn disks_come_and_go_under_load() {
    for engine in ENGINES {
        let (device, bus) = controller(2);
        let (_root, disk) = file_disk(1 << 20, CacheMode::WriteBack);
        attach(&bus, 0, 0, Arc::new(disk));
        let mut host = Initiator::start(device, u64::MAX);
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
                    assert_eq!((descriptors(&path), is_free(&path)), (0, true), "turn {turn}");
                }
                done.store(true, Ordering::Release);
            });
            while !operator.is_finished() {
                let command = |lun, n: u32| match n % 3 {
                    0 => Command::new(lun, &write_10(n * 8, 8)).with_data_out(&[1; 4096]),
                    1 => Command::new(lun, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
                    _ => Command::new(lun, &read_10(n * 8, 8)).with_data_in(4096),
                };
                let sent: Vec<_> =
                    (0..12).map(|n| host.send(1, &command(u8::from(n % 2 == 1), n))).collect();
                for _ in &sent {
                    let used = host.rings[3].wait_used();
                    let sent = sent.iter().find(|sent| sent.head_id() == u64::from(used.id));
                    let answer = host.response(sent.unwrap(), used);
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
        assert_eq!(first(&mut host, 0, &Command::new(0, &[0; 6])).status, 0);
    }
}

/// The driver has its answer before the flush, and the flush comes before the file is closed.
#[test]
fn what_is_in_flight_ends_before_the_flush() {
    let (mut host, _, bus) = start(1);
    let disk = TestDisk::new(Shape::default());
    let control = attach(&bus, 0, 1, Arc::new(disk.clone()));
    host.clear_unit_attention(1);
    disk.pause();
    let sent = host.send(0, &Command::new(1, &write_10(0, 1)).with_data_out(&[7; 512]));
    wait_for(|| (disk.pushed() > 0).then_some(())).unwrap();
    let leaving = bus.detach(SECOND).unwrap();
    thread::scope(|scope| {
        let end = scope.spawn(move || leaving.drain().map(|()| leaving));
        // The other disk goes on, and the flush waits.
        for _ in 0..20 {
            assert_eq!(first(&mut host, 0, &Command::new(0, &[0; 6])).status, 0);
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!((disk.syncs(), end.is_finished()), (0, false));
        disk.resume();
        assert_eq!(host.wait(0, &sent).status, 0);
        let leaving = end.join().unwrap().unwrap();
        assert_eq!((disk.syncs(), disk.engines()), (1, 0));
        assert_eq!(disk.content()[..512], [7; 512]);
        drop(control);
        leaving.close();
    });
}

/// A host device may go before its disk is detached, and a command may find the disk and no engine
/// for it.
#[test]
fn a_disk_that_went_under_a_command_is_told_from_one_that_fails() {
    for (detaches, sense) in [(false, (3, 0x11, 0)), (true, (5, 0x25, 0))] {
        let (mut host, _, bus) = start(1);
        let disk = TestDisk::new(Shape::default());
        attach(&bus, 0, 1, Arc::new(disk.clone()));
        host.clear_unit_attention(1);
        disk.pause();
        disk.fail_next(libc::ENODEV);
        let sent = host.send(0, &Command::new(1, &read_10(0, 1)).with_data_in(512));
        wait_for(|| (disk.pushed() > 0).then_some(())).unwrap();
        let leaving = detaches.then(|| bus.detach(SECOND).unwrap());
        disk.resume();
        assert_eq!(host.wait(0, &sent).sense_triple(), sense);
        leaving.map_or(Ok(()), |leaving| leaving.drain()).unwrap();
    }
}

/// Somebody looks at the disk meanwhile: its file is open until he has.
#[test]
fn a_file_is_closed_when_nobody_looks_at_its_disk() {
    let (_host, _, bus) = start(1);
    let (file, disk) = file_disk(1 << 20, CacheMode::WriteBack);
    let control = attach(&bus, 0, 1, Arc::new(disk));
    let leaving = bus.detach(SECOND).unwrap();
    leaving.drain().unwrap();
    thread::scope(|scope| {
        let end = scope.spawn(|| leaving.close());
        thread::sleep(Duration::from_millis(20));
        assert!(!end.is_finished() && !is_free(file.path()));
        assert_eq!(control.geometry().capacity, 1 << 20);
        drop(control);
        end.join().unwrap();
        assert!(is_free(file.path()));
    });
}

/// A reset of the device, or the end of the machine, while requests of a disk that was detached are
/// in flight.
#[test]
fn a_reset_lets_go_of_a_disk_that_leaves() {
    let (mut host, _, bus) = start(1);
    let disk = TestDisk::new(Shape::default());
    attach(&bus, 0, 1, Arc::new(disk.clone()));
    host.clear_unit_attention(1);
    disk.pause();
    host.send(0, &Command::new(1, &read_10(0, 1)).with_data_in(512));
    wait_for(|| (disk.pushed() > 0).then_some(())).unwrap();
    let leaving = bus.detach(SECOND).unwrap();
    host.device.set_status(0);
    disk.resume();
    leaving.drain().unwrap();
    leaving.close();
    wait_for(|| (host.device.status() == 0).then_some(())).expect("the reset ends");
    let mut host = Initiator::start(host.device.clone(), u64::MAX);
    host.clear_unit_attention(0);
    let gone = host.run(0, &Command::new(1, &[0; 6]));
    assert_eq!(gone.sense_triple(), (5, 0x25, 0));
}

/// A disk that nobody has waited for yet is made durable at the machine's end.
#[test]
fn the_end_of_the_machine_flushes_what_leaves() {
    let (host, disk, bus) = start(1);
    let other = TestDisk::new(Shape::default());
    attach(&bus, 0, 1, Arc::new(other.clone()));
    let leaving = bus.detach(SECOND).unwrap();
    host.device.machine().root.close().unwrap();
    assert_eq!((disk.syncs(), other.syncs()), (1, 1));
    leaving.drain().unwrap();
}

/// A disk that takes its time to flush.
struct Slow(TestDisk, AtomicUsize);

impl Backend for Slow {
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
        assert_eq!(self.1.fetch_add(1, Ordering::AcqRel), 0, "two would share one report");
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
}

/// The kernel reports a lost write once.
#[test]
fn one_flush_runs_at_a_time() {
    let (host, _, bus) = start(1);
    let disk = TestDisk::new(Shape::default());
    attach(&bus, 0, 1, Arc::new(Slow(disk.clone(), AtomicUsize::new(0))));
    let leaving = bus.detach(SECOND).unwrap();
    thread::scope(|scope| {
        let end = scope.spawn(move || leaving.drain());
        host.device.machine().root.close().unwrap();
        end.join().unwrap().unwrap();
    });
    assert_eq!(disk.syncs(), 2);
}

/// Disks whose controller no driver has started, or whose driver never kicks: more of them than
/// there are numbers.
#[test]
fn numbers_are_used_again() {
    let (device, bus) = controller(1);
    let disk = TestDisk::new(Shape::default());
    for _ in 0..=u16::MAX {
        attach(&bus, 3, 1, Arc::new(disk.clone()));
        bus.detach(Address { target: 3, lun: 1 }).unwrap().drain().unwrap();
    }
    attach(&bus, 0, 0, Arc::new(disk));
    let mut host = Initiator::start(device, u64::MAX);
    host.clear_unit_attention(0);
    let command = Command::new(0, &read_10(0, 1)).with_data_in(512);
    assert_eq!(host.run(0, &command).status, 0);
}

#[test]
fn an_attach_that_is_refused_holds_nothing() {
    let (mut host, _, bus) = start(1);
    let (file, disk) = file_disk(1 << 20, CacheMode::WriteBack);
    let (_, path) = file.into_parts();
    let disk: Arc<dyn Backend> = Arc::new(disk);
    let buffer = host.offer_event_buffer();
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
    assert!(host.has_no_event());
    assert_eq!(host.run(0, &Command::new(0, &[0; 6])).status, 0, "there is nothing to tell");
    attach(&bus, 0, 1, open(&path, EngineKind::Auto));
    assert_eq!(host.wait_event(buffer)[..8], [1, 0, 0, 0, 1, 0, 0, 1]);
}

/// A file system of 1 MiB.
struct Small(TempDir);

impl Small {
    fn mount() -> Self {
        let folder = TempDir::new().unwrap();
        let mounted = Program::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1M", "bulkhead-test"])
            .arg(folder.path())
            .status();
        assert!(mounted.unwrap().success());
        Self(folder)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Program::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

/// What waits for space on the host waits no more: it is asked once more, and reported (27h/07h).
#[test]
fn nothing_is_held_for_want_of_space() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIPPED: mounting a file system needs root");
    }
    let small = Small::mount();
    let path = small.0.path().join("disk");
    File::create(&path).unwrap().set_len(8 << 20).unwrap();
    for engine in ENGINES {
        let (mut host, _, bus) = start(1);
        let deadline = Duration::from_secs(600);
        let options = DiskOptions {
            engine,
            on_enospc: OnEnospc::Hold { deadline },
            ..DiskOptions::new(CacheMode::WriteBack)
        };
        let disk = RawFile::open(&path, &options).unwrap();
        let control = attach(&bus, 0, 1, Arc::new(disk));
        host.clear_unit_attention(1);
        let write = Command::new(1, &write_10(0, 4096)).with_data_out(&vec![1; 2 << 20]);
        let sent = host.send(0, &write);
        wait_for(|| control.backend().status().enospc_hold).expect("it is held");
        detach(&bus, SECOND, control);
        assert_eq!(host.wait(0, &sent).sense_triple(), (7, 0x27, 7));
        assert!(is_free(&path));
    }
}
