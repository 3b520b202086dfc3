//! A layer that is served: a guest that outlives a killed service misses no completed write.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use driver::vhost_user::Monitor;
use fixtures::Random;
use fixtures::host::Mount;
use lab::ServeProcess;
use tempfile::TempDir;

const BLOCK: usize = 4096;
const SECTOR: usize = 512;
const BLOCKS: usize = 512;
const SECTORS: usize = BLOCKS * BLOCK / SECTOR;
/// Most sectors of a write.
const LONGEST: usize = 16;

/// A base, and a layer over it that is served.
struct Fixture {
    folder: TempDir,
    served: ServeProcess,
    monitor: Monitor,
    /// The disk as the guest has it.
    disk: Vec<u8>,
    random: Random,
}

impl Fixture {
    fn new(keys: &str) -> Self {
        let folder = TempDir::new_in(fixtures::scratch()).unwrap();
        let base = folder.path().join("base.img");
        let mut random = Random::new(7);
        let disk: Vec<u8> = (0..BLOCKS).flat_map(|_| [byte(&mut random); BLOCK]).collect();
        fs::write(&base, &disk).unwrap();
        let keys = format!("base = \"{}\"\ncreate = true\n{keys}", base.display());
        let served = ServeProcess::start_at(&folder.path().join("top.layer"), &keys);
        let monitor = Monitor::start(&served.socket(), 2, 0, true);
        Self { folder, served, monitor, disk, random }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a few sectors anywhere, and waits for the completion.
    fn write(&mut self) {
        let (queue, first) = (self.random.below(2), self.random.below(SECTORS - LONGEST));
        let data = self.change(first);
        self.monitor.write(queue, first as u64, &data);
    }

    /// The data of a write from the sector `first` on that the guest is about to make.
    fn change(&mut self, first: usize) -> Vec<u8> {
        let count = 1 + self.random.below(LONGEST);
        let data = vec![byte(&mut self.random); count * SECTOR];
        self.disk[first * SECTOR..][..data.len()].copy_from_slice(&data);
        data
    }

    fn kill(&mut self) {
        self.served.kill();
        self.restart();
    }

    fn restart(&mut self) {
        self.served.restart();
        self.monitor.reconnect(&self.served.socket());
    }

    fn check(&mut self, when: &str) {
        let step = 32 * BLOCK;
        for (index, expected) in self.disk.chunks(step).enumerate() {
            let sector = (index * step / SECTOR) as u64;
            let found = self.monitor.read(0, sector, step.try_into().unwrap());
            let other = (0..step).find(|at| found[*at] != expected[*at]);
            assert!(other.is_none(), "{when}: other content in piece {index} at {other:?}");
        }
    }
}

fn byte(random: &mut Random) -> u8 {
    u8::try_from(random.below(255)).unwrap()
}

/// No write is flushed, and none is in flight at the kill.
#[test]
fn completed_writes_survive_a_kill() {
    for keys in ["", "cache = \"none\"\nengine = \"io_uring\"\n", "cache = \"unsafe\"\n"] {
        let mut fixture = Fixture::new(keys);
        for round in 0..6 {
            for _ in 0..fixture.random.below(30) {
                fixture.write();
            }
            fixture.kill();
            fixture.check(&format!("{keys} round {round}"));
        }
    }
}

/// Requests in flight complete after the restart. Each block has a write of each queue, of which
/// one may complete before the kill.
#[test]
fn writes_in_flight_at_a_kill_complete() {
    const DEPTH: usize = 18;
    for engine in ["io_uring", "threads"] {
        let mut fixture = Fixture::new(&format!("engine = \"{engine}\"\n"));
        let mut in_flight = 0;
        for round in 0..14_usize {
            let mut offered = [Vec::new(), Vec::new()];
            for index in 0..2 * DEPTH {
                // Neighbours in one block, of different queues.
                let first = (round * 2 * DEPTH + index / 2 * 2) * 8 + index % 2 * 4;
                let data = vec![byte(&mut fixture.random); 4 * SECTOR];
                fixture.disk[first * SECTOR..][..data.len()].copy_from_slice(&data);
                let queue = index % 2;
                let request = fixture.monitor.offer_write(queue, 1, first as u64, &data);
                offered[queue].push(request);
            }
            let used = |monitor: &Monitor| {
                let queues = monitor.queues.iter();
                queues.map(|queue| usize::from(queue.ring.used_index())).sum::<usize>()
            };
            let before = used(&fixture.monitor);
            (0..2).for_each(|queue| fixture.monitor.publish(queue));
            std::thread::sleep(Duration::from_micros(150 * round as u64));
            fixture.served.kill();
            let completed = used(&fixture.monitor) - before;
            in_flight += 2 * DEPTH - completed;
            fixture.restart();
            for (queue, offered) in offered.iter().enumerate() {
                offered.iter().for_each(|_| _ = fixture.monitor.wait_used(queue));
                assert!(offered.iter().all(|request| fixture.monitor.status(request) == 0));
            }
            fixture.check(&format!("{engine} round {round}"));
        }
        println!("{engine}: {in_flight} requests in flight at the kills");
        assert!(in_flight > 0, "no request was in flight at a kill: the test is void");
    }
}

/// A flush or an end of the service leaves a layer that needs no unflushed map.
#[test]
fn a_layer_that_was_served_is_one_as_any_other() {
    let mut fixture = Fixture::new("");
    for _ in 0..20 {
        fixture.write();
    }
    fixture.kill();
    fixture.write();
    fixture.served.terminate();
    let run = |arguments: &[&str]| {
        let run = fixture.served.command(arguments).output().unwrap();
        assert!(run.status.success(), "{run:?}");
    };
    let [top, flat] = ["top.layer", "flat.img"].map(|name| fixture.at(name));
    let [top, flat] = [&top, &flat].map(|path| path.to_str().unwrap());
    run(&["layer", "check", top]);
    run(&["layer", "flatten", top, flat]);
    assert!(fs::read(flat).unwrap() == fixture.disk);
    run(&["layer", "commit", top]);
    assert!(fs::read(fixture.at("base.img")).unwrap() == fixture.disk);
    fixture.restart();
    fixture.check("after the commit");
}

/// The top that a snapshot puts in place notes first writes too.
#[test]
fn writes_after_a_snapshot_survive_a_kill() {
    let mut fixture = Fixture::new("[control]\nsocket = \"c.sock\"\n");
    for round in 0..3 {
        (0..10).for_each(|_| fixture.write());
        let before = fixture.disk.clone();
        let name = format!("s{round}");
        let run = fixture.served.command(&["ctl", "disk.toml", "snapshot", &name]).output();
        let run = run.unwrap();
        assert!(run.status.success(), "{run:?}");
        (0..10).for_each(|_| fixture.write());
        fixture.kill();
        fixture.check(&name);
        let frozen = fixture.at(&format!("top.{name}.layer"));
        let flat = fixture.at(&format!("{name}.img"));
        let paths = [&frozen, &flat].map(|path| path.to_str().unwrap());
        let run = fixture.served.command(&["layer", "flatten", paths[0], paths[1]]).output();
        assert!(run.unwrap().status.success());
        assert!(fs::read(flat).unwrap() == before, "the snapshot {name}");
    }
}

/// A full store holds a write at its data, or at the note of its block. Either stays in flight over
/// a stop of the ring and a kill, and the next service starts on the full store.
#[test]
fn held_first_writes_survive_a_kill() {
    const PAGE: u64 = 4096;
    const FAR: u64 = (256 << 20) / 512;
    let base = tempfile::NamedTempFile::new_in(fixtures::scratch()).unwrap();
    base.as_file().set_len(512 << 20).unwrap();
    for free_pages in [0, 1] {
        let small = Mount::new("tmpfs", "size=256k");
        let keys =
            format!("base = \"{}\"\ncreate = true\non_enospc = \"hold\"\n", base.path().display());
        let mut served = ServeProcess::start_at(&small.path().join("top.layer"), &keys);
        let mut monitor = Monitor::start(&served.socket(), 1, 0, true);
        monitor.write(0, 0, &[1; BLOCK]);
        let ballast = small.path().join("ballast");
        let _ = fs::write(&ballast, vec![1; 1 << 20]);
        let length = ballast.metadata().unwrap().len() - free_pages * PAGE;
        fs::File::options().write(true).open(&ballast).unwrap().set_len(length).unwrap();
        let blocks = || small.path().join("top.layer").metadata().unwrap().blocks();
        let before = blocks();
        let request = monitor.offer_write(0, 1, FAR, &[2; BLOCK]);
        monitor.publish(0);
        served.wait_log("no space on the host", 1);
        assert_eq!(blocks() - before, free_pages * PAGE / 512, "the data is there, or not");
        assert_eq!(monitor.stop(0), 2, "consumed, and not waited for");
        assert_eq!(monitor.queues[0].ring.used_index(), 1, "and not complete");
        monitor.set_up(0, 2);
        served.wait_log("no space on the host", 2);
        served.kill();
        served.restart();
        monitor.reconnect(&served.socket());
        served.wait_log("no space on the host", 3);
        fs::remove_file(&ballast).unwrap();
        assert_eq!(monitor.wait_used(0).id, u32::from(request.head));
        assert_eq!(monitor.status(&request), 0);
        served.kill();
        served.restart();
        monitor.reconnect(&served.socket());
        assert_eq!(monitor.read(0, FAR, 4096), [2; BLOCK], "{free_pages} pages");
        assert_eq!(monitor.read(0, 0, 4096), [1; BLOCK]);
    }
}

/// A disk whose changes end with the service is refused.
#[test]
fn an_ephemeral_disk_is_not_served() {
    let fixture = Fixture::new("");
    let base = fixture.at("base.img");
    let config = format!("[disk]\nid = \"a\"\nbase = \"{}\"\nephemeral = true\n", base.display());
    fs::write(fixture.served.folder().join("other.toml"), config).unwrap();
    let arguments = ["serve", "--socket", "other.sock", "other.toml"];
    let run = fixture.served.command(&arguments).output().unwrap();
    let log = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(2), "{log}");
    assert!(log.contains("an ephemeral disk cannot be served to other monitors"), "{log}");
}
