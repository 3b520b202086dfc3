//! A file system with a journal, small enough to be read at once, and errors that real ones had.
//!
//! Each transaction writes its number to all files, by way of the journal: descriptor, new contents
//! and commit record; then the files in place, and last the header, which has the number of the
//! last transaction whose files are in place. Each of these is a sector in a block of its own.

use std::sync::Arc;

use block::LogKind;
use crash::{CheckError, CheckedDisk, Checker, Failure, Verdict};

use crate::log_files::{SECTOR, TestLog, TestRequest};
use crate::program::hash;

/// How it is written. The default is right.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Journal {
    /// A flush is between the contents and the commit record.
    pub(crate) flush_before_commit: bool,
    /// The commit record is written with FUA.
    pub(crate) commit_fua: bool,
    /// A flush follows the commit record.
    pub(crate) flush_after_commit: bool,
    /// The commit record has a checksum, without which it is not believed.
    pub(crate) checksum: bool,
    /// A flush is between the files and the header.
    pub(crate) flush_before_header: bool,
    /// The header has two sectors that must agree.
    pub(crate) wide_header: bool,
    /// Writes to blocks that no check reads, after each write.
    pub(crate) noise: u64,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            flush_before_commit: true,
            commit_fua: true,
            flush_after_commit: false,
            checksum: false,
            flush_before_header: true,
            wide_header: false,
            noise: 0,
        }
    }
}

const FILES: u64 = 3;
/// Blocks of one transaction in the journal, of which there are two.
const ENTRY: u64 = FILES + 2;
const HEADER_AT: u64 = 0;
const FILES_AT: u64 = 1 + 2 * ENTRY;
const NOISE_AT: u64 = FILES_AT + FILES;
const BLOCKS: u64 = NOISE_AT + 64;

fn sector_of(words: &[u64]) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    for (chunk, word) in sector.chunks_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    sector
}

fn entry_at(transaction: u64) -> u64 {
    1 + transaction % 2 * ENTRY
}

fn checksum(transaction: u64) -> u64 {
    hash((transaction, vec![transaction; usize::try_from(FILES).unwrap()]))
}

impl Journal {
    /// The recording of a number of transactions. A mark follows each that is durable.
    pub(crate) fn record(&self, transactions: u64) -> TestLog {
        let mut log = TestLog {
            base: vec![[0; SECTOR]; usize::try_from(BLOCKS * 8).unwrap()],
            ..TestLog::default()
        };
        for transaction in 1..=transactions {
            self.transaction(&mut log, transaction);
        }
        log
    }

    fn transaction(&self, log: &mut TestLog, transaction: u64) {
        let entry = entry_at(transaction);
        let contents = (0..=FILES).map(|at| (entry + at, transaction)).collect::<Vec<_>>();
        self.together(log, &contents);
        if self.flush_before_commit {
            log.flush();
        }
        let commit = sector_of(&[transaction, checksum(transaction)]);
        log.write((entry + FILES + 1) * 8, vec![commit], self.commit_fua);
        if self.flush_after_commit {
            log.flush();
        }
        log.mark(&format!("committed {transaction}"));
        let files = (0..FILES).map(|at| (FILES_AT + at, transaction)).collect::<Vec<_>>();
        self.together(log, &files);
        if self.flush_before_header {
            log.flush();
        }
        let header = vec![sector_of(&[transaction]); if self.wide_header { 2 } else { 1 }];
        log.write(HEADER_AT * 8, header, true);
    }

    /// Writes that are in flight together.
    fn together(&self, log: &mut TestLog, writes: &[(u64, u64)]) {
        let issued_after = log.len();
        for (block, value) in writes {
            let noise = (0..self.noise).map(|at| NOISE_AT + (block * 7 + at) % (BLOCKS - NOISE_AT));
            for block in std::iter::once(*block).chain(noise) {
                log.add(TestRequest {
                    kind: LogKind::Write,
                    sector: block * 8,
                    data: vec![sector_of(&[*value])],
                    issued_after,
                    fua: false,
                    errno: 0,
                });
            }
        }
    }
}

/// Recovers the file system, and checks that all files are of the last transaction.
impl Checker for Journal {
    fn check(&self, disk: Arc<dyn CheckedDisk>) -> Result<Verdict, CheckError> {
        Ok(match self.recover(&*disk) {
            Ok(()) => Verdict::Passed,
            Err(output) => Verdict::Failed(Failure { end: "exit status 1".to_string(), output }),
        })
    }
}

fn word(disk: &dyn CheckedDisk, sector: u64, place: usize) -> u64 {
    let mut bytes = [0; SECTOR];
    disk.read(sector * SECTOR as u64, &mut bytes).unwrap();
    u64::from_le_bytes(bytes[place * 8..place * 8 + 8].try_into().unwrap())
}

impl Journal {
    fn recover(&self, disk: &dyn CheckedDisk) -> Result<(), String> {
        let mut last = word(disk, HEADER_AT * 8, 0);
        if self.wide_header && word(disk, HEADER_AT * 8 + 1, 0) != last {
            return Err("the header is torn".to_string());
        }
        while self.is_committed(disk, last + 1)? {
            last += 1;
            for file in 0..FILES {
                let content = word(disk, (entry_at(last) + 1 + file) * 8, 0);
                disk.write((FILES_AT + file) * 8 * SECTOR as u64, &sector_of(&[content])).unwrap();
            }
        }
        for file in 0..FILES {
            let found = word(disk, (FILES_AT + file) * 8, 0);
            if found != last {
                return Err(format!("file {file} is of {found}, not {last}"));
            }
        }
        let marks = disk.marks();
        let promised =
            marks.lines().filter_map(|mark| mark.strip_prefix("committed ")?.parse::<u64>().ok());
        match promised.max() {
            Some(promised) if promised > last => Err(format!("{promised} was lost after {last}")),
            _ => Ok(()),
        }
    }

    fn is_committed(&self, disk: &dyn CheckedDisk, transaction: u64) -> Result<bool, String> {
        let entry = entry_at(transaction);
        let commit = (entry + FILES + 1) * 8;
        if word(disk, commit, 0) != transaction {
            return Ok(false);
        }
        let descriptor = word(disk, entry * 8, 0);
        if self.checksum {
            let contents: Vec<u64> =
                (1..=FILES).map(|at| word(disk, (entry + at) * 8, 0)).collect();
            return Ok(word(disk, commit, 1) == hash((descriptor, contents)));
        }
        if descriptor == transaction { Ok(true) } else { Err("no descriptor".to_string()) }
    }
}
