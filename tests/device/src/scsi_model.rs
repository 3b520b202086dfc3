//! A SCSI disk compared with a model in memory under random reads, writes, unmaps, fills, verifies
//! and compares, over image files, a loop device and a ZFS volume, in both block sizes.
//!
//! `BULKHEAD_STEPS` sets the number of steps, `BULKHEAD_SEED` the seed. A process of its own: it
//! runs itself in the lab.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests fail by panicking")]

use std::path::Path;
use std::sync::Arc;

use block::{Backend, CacheMode, DiskOptions, EngineKind, LayeredDisk, RawFile, create_layer};
use devices::scsi::Identity;
use devices::virtio::{Address, Scsi};
use driver::{Command, Device, Initiator, Machine, Response};
use fixtures::host::Loop;
use fixtures::{needs, scratch};
use tempfile::{NamedTempFile, TempDir};

/// Bytes of the disks: small, so that ranges overlap.
const CAPACITY: u64 = 2 << 20;
/// Limit of blocks per request.
const MAX_BLOCKS: u64 = 64;
/// Default number of steps.
const STEPS: u64 = 500;

/// A deterministic random generator (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A range of at least one block of a disk of `disk` blocks.
    fn blocks(&mut self, disk: u64) -> (u64, u64) {
        let first = self.below(disk);
        (first, 1 + self.below(MAX_BLOCKS.min(disk - first)))
    }
}

struct Model {
    initiator: Initiator,
    content: Vec<u8>,
    /// Blocks unmapped since their last write: their content is unspecified, but stable once read.
    unspecified: Vec<bool>,
    block: u64,
    /// LBPRZ: unmapped blocks read zero.
    reads_zero: bool,
    random: Random,
    /// Number of steps of each kind.
    steps: [u64; 9],
}

impl Model {
    /// A model of a disk with this content.
    fn new(disk: Arc<dyn Backend>, content: Vec<u8>, seed: u64) -> Self {
        let block = disk.geometry().logical_block;
        let scsi = Scsi::new("scsi", 2).unwrap();
        let address = Address { target: 0, lun: 0 };
        let identity = Identity::new("model", "model");
        scsi.bus().attach(address, "disk", identity, disk).unwrap();
        let device = Device::find(&Machine::new(vec![Box::new(scsi)]), 1);
        let mut initiator = Initiator::start(device, u64::MAX);
        initiator.clear_unit_attention(0);
        let capacity = initiator.succeed(
            &Command::new(0, &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0])
                .with_data_in(32),
        );
        let blocks = CAPACITY / u64::from(block);
        assert_eq!(u64::from_be_bytes(*capacity.first_chunk().unwrap()), blocks - 1);
        let reads_zero = capacity[14] & 0x40 != 0;
        let unspecified = vec![false; usize::try_from(blocks).unwrap()];
        let (block, random) = (block.into(), Random(seed));
        Self { initiator, content, unspecified, block, reads_zero, random, steps: [0; 9] }
    }

    fn blocks(&self) -> u64 {
        CAPACITY / self.block
    }

    fn bytes(&self, first: u64, count: u64) -> std::ops::Range<usize> {
        let at = |block: u64| usize::try_from(block * self.block).unwrap();
        at(first)..at(first + count)
    }

    /// Runs a 16-byte command on a random queue.
    fn run(
        &mut self,
        opcode: u8,
        flags: u8,
        lba: u64,
        count: u64,
        out: &[u8],
        room: u64,
    ) -> Response {
        let mut cdb = vec![opcode, flags];
        cdb.extend(lba.to_be_bytes());
        cdb.extend(u32::try_from(count).unwrap().to_be_bytes());
        cdb.extend([0, 0]);
        if opcode == 0x89 {
            cdb[10..14].copy_from_slice(&[0, 0, 0, u8::try_from(count).unwrap()]);
        }
        let queue = u16::try_from(self.random.below(2)).unwrap();
        let room = u32::try_from(room).unwrap();
        self.initiator.run(queue, &Command::new(0, &cdb).with_data_out(out).with_data_in(room))
    }

    /// Runs a command that must end with GOOD status.
    fn run_good(&mut self, opcode: u8, flags: u8, lba: u64, count: u64, out: &[u8]) {
        let response = self.run(opcode, flags, lba, count, out, 0);
        assert_eq!((response.response, response.status), (0, 0), "{opcode:#x}: {response:02x?}");
    }

    /// Random bytes, zeroes, or one byte repeated.
    fn data(&mut self, len: u64) -> Vec<u8> {
        let seed = self.random.next();
        let byte = |at: u64| match seed % 4 {
            0 => 0,
            1 => seed.to_le_bytes()[1],
            _ => seed.wrapping_mul(at + 1).to_le_bytes()[5],
        };
        (0..len).map(byte).collect()
    }

    /// Marks blocks as specified.
    fn specify(&mut self, first: u64, count: u64) {
        let range = usize::try_from(first).unwrap()..usize::try_from(first + count).unwrap();
        self.unspecified[range].fill(false);
    }

    /// Updates the model with the content read from unspecified blocks.
    fn update_unspecified(&mut self, first: u64, count: u64, found: &[u8]) {
        for block in first..first + count {
            let index = usize::try_from(block).unwrap();
            if std::mem::take(&mut self.unspecified[index]) {
                let from = usize::try_from((block - first) * self.block).unwrap();
                let range = self.bytes(block, 1);
                let len = range.len();
                let found = &found[from..from + len];
                let before = self.content[range.clone()] == *found;
                let zero = found.iter().all(|byte| *byte == 0);
                assert!(
                    before || zero || !self.reads_zero,
                    "block {block} holds neither its old content nor zeroes"
                );
                self.content[range].copy_from_slice(found);
            }
        }
    }

    fn read(&mut self, first: u64, count: u64, flags: u8) {
        let len = count * self.block;
        let response = self.run(0x88, flags, first, count, &[], len);
        assert_eq!((response.response, response.status), (0, 0));
        self.update_unspecified(first, count, &response.data);
        let expected = &self.content[self.bytes(first, count)];
        let differs = response.data.iter().zip(expected).position(|(found, is)| found != is);
        assert_eq!(differs, None, "differing byte of a read of {count} blocks at {first}");
    }

    fn step(&mut self) {
        let (first, count) = {
            let blocks = self.blocks();
            self.random.blocks(blocks)
        };
        let range = self.bytes(first, count);
        let kind = self.random.below(9);
        self.steps[usize::try_from(kind).unwrap()] += 1;
        let fua = if self.random.below(8) == 0 { 8 } else { 0 };
        match kind {
            0 => self.read(first, count, fua),
            1 | 2 => {
                let data = self.data(count * self.block);
                self.run_good(0x8a, fua, first, count, &data);
                self.content[range].copy_from_slice(&data);
                self.specify(first, count);
            }
            3 => self.unmap(),
            // WRITE SAME: zeroes or a pattern, with and without UNMAP, and with NDOB.
            4 => {
                let unmap = if self.random.below(2) == 0 { 8 } else { 0 };
                let data = self.data(self.block);
                self.run_good(0x93, unmap, first, count, &data);
                let repeated = data.repeat(usize::try_from(count).unwrap());
                self.content[range].copy_from_slice(&repeated);
                self.specify(first, count);
            }
            5 => {
                let unmap = if self.random.below(2) == 0 { 8 } else { 0 };
                self.run_good(0x93, unmap | 1, first, count, &[]);
                self.content[range].fill(0);
                self.specify(first, count);
            }
            6 => self.compare_and_write(first, count.min(16)),
            7 => self.verify(first, count),
            _ => self.write_and_verify(first, count),
        }
    }

    fn unmap(&mut self) {
        let mut descriptors = Vec::new();
        for _ in 0..1 + self.random.below(4) {
            let (first, count) = {
                let blocks = self.blocks();
                self.random.blocks(blocks)
            };
            descriptors.extend(first.to_be_bytes());
            descriptors.extend(u32::try_from(count).unwrap().to_be_bytes());
            descriptors.extend([0; 4]);
            let range = usize::try_from(first).unwrap()..usize::try_from(first + count).unwrap();
            self.unspecified[range].fill(true);
        }
        let len = u16::try_from(descriptors.len()).unwrap();
        let mut list = [(len + 6).to_be_bytes(), len.to_be_bytes(), [0; 2], [0; 2]].concat();
        list.extend(descriptors);
        let [high, low] = (len + 8).to_be_bytes();
        self.initiator.succeed(
            &Command::new(0, &[0x42, 0, 0, 0, 0, 0, 0, high, low, 0]).with_data_out(&list),
        );
    }

    fn compare_and_write(&mut self, first: u64, count: u64) {
        self.read(first, count, 0);
        let range = self.bytes(first, count);
        let mut expected = self.content[range.clone()].to_vec();
        let new = self.data(count * self.block);
        let wrong = (self.random.below(3) == 0).then(|| self.random.below(count * self.block));
        if let Some(at) = wrong {
            expected[usize::try_from(at).unwrap()] ^= 1;
        }
        let response = self.run(0x89, 0, first, count, &[expected, new.clone()].concat(), 0);
        match wrong {
            None => {
                assert_eq!((response.response, response.status), (0, 0));
                self.content[range].copy_from_slice(&new);
            }
            Some(at) => self.check_miscompare(&response, at),
        }
    }

    /// Checks a miscompare at byte `at`.
    fn check_miscompare(&self, response: &Response, at: u64) {
        assert_eq!((response.response, response.status), (0, 2));
        assert_eq!(response.sense_triple(), (0xe, 0x1d, 0));
        let information = u32::from_be_bytes(*response.sense[3..].first_chunk().unwrap());
        assert_eq!(u64::from(information), at);
    }

    fn verify(&mut self, first: u64, count: u64) {
        self.run_good(0x8f, 0, first, count, &[]);
        self.read(first, count, 0);
        let mut expected = self.content[self.bytes(first, count)].to_vec();
        self.run_good(0x8f, 2, first, count, &expected);
        let at = self.random.below(count * self.block);
        expected[usize::try_from(at).unwrap()] ^= 0x80;
        let response = self.run(0x8f, 2, first, count, &expected, 0);
        self.check_miscompare(&response, at);
    }

    fn write_and_verify(&mut self, first: u64, count: u64) {
        let data = self.data(count * self.block);
        self.run_good(0x8e, 2, first, count, &data);
        let range = self.bytes(first, count);
        self.content[range].copy_from_slice(&data);
        self.specify(first, count);
    }

    /// Checks GET LBA STATUS: contiguous descriptors, and zeroes in deallocated blocks.
    fn check_lba_status(&mut self) {
        let mut lba = 0;
        while lba < self.blocks() {
            let response = self.run(0x9e, 0x12, lba, 4096, &[], 4096);
            assert_eq!((response.response, response.status), (0, 0));
            let len = u32::from_be_bytes(*response.data.first_chunk().unwrap()) as usize + 4;
            assert!(len > 8);
            for descriptor in response.data[8..len].chunks(16) {
                let first = u64::from_be_bytes(*descriptor.first_chunk().unwrap());
                let count = u32::from_be_bytes(*descriptor[8..].first_chunk().unwrap());
                assert_eq!(first, lba, "descriptors are contiguous");
                if descriptor[12] == 1 {
                    for block in first..first + u64::from(count) {
                        let specified = !self.unspecified[usize::try_from(block).unwrap()];
                        let content = &self.content[self.bytes(block, 1)];
                        assert!(
                            !specified || content.iter().all(|byte| *byte == 0),
                            "block {block}"
                        );
                    }
                }
                lba = first + u64::from(count);
            }
        }
    }

    /// Plays, and returns the content of the disk after the device was reset.
    fn play(mut self, steps: u64) -> Vec<u8> {
        for step in 0..steps {
            self.step();
            if step % 1000 == 999 {
                self.check_lba_status();
            }
        }
        self.read_all();
        assert!(steps < 100 || self.steps.iter().all(|count| *count > 0), "{:?}", self.steps);
        self.initiator.device.reset();
        self.content
    }

    fn read_all(&mut self) {
        for first in (0..self.blocks()).step_by(64) {
            self.read(first, 64.min(self.blocks() - first), 0);
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Both block sizes, both engines, and modes with and without the page cache.
const TURNS: [(u32, EngineKind, CacheMode); 4] = [
    (512, EngineKind::IoUring, CacheMode::WriteBack),
    (512, EngineKind::Threads, CacheMode::None),
    (4096, EngineKind::IoUring, CacheMode::None),
    (4096, EngineKind::Threads, CacheMode::WriteThrough),
];

/// Plays each turn on the disk that `open` opens, with the content that the last one left.
fn play_turns(
    name: &str,
    mut content: Vec<u8>,
    open: impl Fn(&DiskOptions) -> Arc<dyn Backend>,
) -> Vec<u8> {
    let (seed, steps) = (number("BULKHEAD_SEED", 1), number("BULKHEAD_STEPS", STEPS));
    for (turn, (block, engine, mode)) in (0..).zip(TURNS) {
        println!("{name}: seed {seed}, {steps} steps, blocks of {block}, {engine}, {mode}");
        let options = DiskOptions { block_size: Some(block), engine, ..DiskOptions::new(mode) };
        let model = Model::new(open(&options), content, seed.wrapping_mul(1000) + turn);
        content = model.play(steps);
    }
    content
}

fn play(path: &Path) {
    let open = |options: &DiskOptions| -> Arc<dyn Backend> {
        Arc::new(RawFile::open(path, options).unwrap())
    };
    let before = std::fs::read(path).unwrap();
    let content = play_turns(&path.display().to_string(), before, open);
    // The image has the same content.
    let found = std::fs::read(path).unwrap();
    let differs = found.iter().zip(&content).position(|(found, is)| found != is);
    assert_eq!((found.len(), differs), (content.len(), None), "differing byte of the image");
}

/// A sparse image.
fn image() -> NamedTempFile {
    let file = NamedTempFile::new_in(scratch()).unwrap();
    file.as_file().set_len(CAPACITY).unwrap();
    file
}

#[test]
fn file_matches_model() {
    play(image().path());
}

#[test]
fn block_device_matches_model() {
    if !needs::root() {
        return;
    }
    let file = image();
    play(&Loop::new(file.path()).0);
}

/// Each layer stands on the one before. What a layer has is read again after it was frozen, and the
/// base never changes.
#[test]
fn layers_match_model() {
    let folder = TempDir::new_in(scratch()).unwrap();
    let path = |depth: usize| folder.path().join(format!("{depth}.layer"));
    let base: Vec<u8> = (0..CAPACITY).map(|at| (at / 512 + at % 251).to_le_bytes()[0]).collect();
    std::fs::write(path(0), &base).unwrap();
    let mut content = base.clone();
    for depth in 1..=4 {
        create_layer(&path(depth), &path(depth - 1), None).unwrap();
        let open = |options: &DiskOptions| -> Arc<dyn Backend> {
            Arc::new(LayeredDisk::open(&path(depth), &path(depth - 1), options).unwrap())
        };
        content = play_turns(&format!("depth {depth}"), content, open);
        let disk = open(&DiskOptions::new(CacheMode::None));
        Model::new(disk, content.clone(), 0).read_all();
    }
    assert!(std::fs::read(path(0)).unwrap() == base, "the base has changed");
}

/// Run by [`zfs_volume_matches_model`] on a host with ZFS.
#[test]
#[ignore = "overwrites the device BULKHEAD_DEVICE"]
fn named_device_matches_model() {
    play(Path::new(&std::env::var("BULKHEAD_DEVICE").unwrap()));
}

#[test]
#[ignore = "long: make guests"]
fn zfs_volume_matches_model() {
    let host = lab::Host::start_with_zfs("scsi-model-zvol").unwrap();
    let program = host.put(&std::env::current_exe().unwrap(), "scsi_model").unwrap();
    let device = host.volume("model", "2M", "-b 16k").unwrap();
    // Fewer steps: the host is emulated.
    let (seed, steps) = (number("BULKHEAD_SEED", 1), number("BULKHEAD_STEPS", STEPS / 4));
    let output = host.run(&format!(
        "BULKHEAD_DEVICE={device} BULKHEAD_SEED={seed} BULKHEAD_STEPS={steps} {program} --ignored --nocapture named_device"
    ));
    let output = output.unwrap();
    println!("{output}");
    assert!(output.contains("1 passed"), "{output}");
}
