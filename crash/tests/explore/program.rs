//! Checks that decide at random, but always the same: the next read depends on what was read.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};

use crash::{CheckError, CheckedDisk, Checker, Failure, Verdict};

use crate::log_files::SECTOR;

/// The reads of a run: the place, the length and the hash of the content.
pub(crate) type Trace = Vec<(u64, usize, u64)>;

/// A disk in use.
pub(crate) trait TestDisk {
    fn read(&mut self, at: u64, len: usize) -> Vec<u8>;
    fn write(&mut self, at: u64, data: &[u8]);
    fn zero(&mut self, at: u64, len: usize);
    fn marks(&mut self) -> String;
}

/// A disk in memory.
#[derive(Clone)]
pub(crate) struct TestImage {
    pub(crate) bytes: Vec<u8>,
    pub(crate) marks: String,
}

pub(crate) struct Checked(pub(crate) Arc<dyn CheckedDisk>);

impl TestDisk for Checked {
    fn read(&mut self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.read(at, &mut bytes).unwrap();
        bytes
    }

    fn write(&mut self, at: u64, data: &[u8]) {
        self.0.write(at, data).unwrap();
    }

    fn zero(&mut self, at: u64, len: usize) {
        self.0.zero(at, len as u64).unwrap();
    }

    fn marks(&mut self) -> String {
        self.0.marks()
    }
}

impl TestDisk for TestImage {
    fn read(&mut self, at: u64, len: usize) -> Vec<u8> {
        let at = usize::try_from(at).unwrap();
        self.bytes[at..at + len].to_vec()
    }

    fn write(&mut self, at: u64, data: &[u8]) {
        let at = usize::try_from(at).unwrap();
        self.bytes[at..at + data.len()].copy_from_slice(data);
    }

    fn zero(&mut self, at: u64, len: usize) {
        let at = usize::try_from(at).unwrap();
        self.bytes[at..at + len].fill(0);
    }

    fn marks(&mut self) -> String {
        self.marks.clone()
    }
}

/// The seed of the program that reads all, and passes.
pub(crate) const WHOLE_DISK: u64 = u64::MAX;

/// A program that reads, writes and decides by its seed and what it reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program {
    pub(crate) seed: u64,
    pub(crate) sectors: u64,
    /// Most reads and writes.
    pub(crate) steps: usize,
    /// One of this number of runs fails.
    pub(crate) fails: u64,
}

pub(crate) fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

impl Program {
    /// Runs, and returns whether it passed, and what it read.
    pub(crate) fn run(&self, disk: &mut dyn TestDisk) -> (bool, Trace) {
        let mut state = hash(self.seed);
        let mut trace = Trace::new();
        if self.seed == WHOLE_DISK {
            let len = usize::try_from(self.sectors).unwrap() * SECTOR;
            return (true, vec![(0, len, hash(disk.read(0, len)))]);
        }
        for _ in 0..self.steps {
            let sector = hash((state, 1)) % self.sectors;
            let most = (self.sectors - sector).min(9);
            let len = usize::try_from(hash((state, 2)) % most + 1).unwrap() * SECTOR;
            let at = sector * SECTOR as u64;
            match hash((state, 3)) % 10 {
                0 => return (!state.is_multiple_of(self.fails), trace),
                1 => disk.write(at, &vec![u8::try_from(state % 256).unwrap(); len]),
                // Parts of a sector as well.
                2 => disk.write(at + 7, &[9; 30]),
                3 => disk.zero(at, len),
                4 => {
                    let found = hash(disk.marks());
                    trace.push((0, 0, found));
                    state ^= found;
                }
                _ => {
                    let found = hash(disk.read(at, len));
                    trace.push((at, len, found));
                    state ^= found;
                }
            }
            state = hash((state, 4));
        }
        (!state.is_multiple_of(self.fails), trace)
    }
}

/// Checks by a program, and remembers what its runs read.
pub(crate) struct ProgramChecker {
    pub(crate) program: Program,
    pub(crate) traces: Mutex<BTreeSet<(bool, Trace)>>,
}

impl ProgramChecker {
    pub(crate) fn new(program: Program) -> Self {
        Self { program, traces: Mutex::default() }
    }
}

impl Checker for ProgramChecker {
    fn check(&self, disk: Arc<dyn CheckedDisk>) -> Result<Verdict, CheckError> {
        let (passed, trace) = self.program.run(&mut Checked(disk));
        self.traces.lock().unwrap().insert((passed, trace));
        Ok(verdict(passed))
    }
}

pub(crate) fn verdict(passed: bool) -> Verdict {
    if passed {
        return Verdict::Passed;
    }
    Verdict::Failed(Failure { end: "exit status 1".to_string(), output: String::new() })
}

/// A check that is a function.
pub(crate) struct Check<F>(pub(crate) F);

impl<F: Fn(&dyn CheckedDisk) -> Result<Verdict, CheckError> + Sync> Checker for Check<F> {
    fn check(&self, disk: Arc<dyn CheckedDisk>) -> Result<Verdict, CheckError> {
        (self.0)(&*disk)
    }
}
