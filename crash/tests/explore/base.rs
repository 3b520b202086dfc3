//! Which images are taken for the base of a recording.

use std::fs;

use block::{BaseSamples, CacheMode, DiskOptions, LOG_SECTOR, LogSuper, RawFile};
use crash::{BaseError, Recording};

use super::log_files::{SECTOR, TestLog, content};

/// Sectors of the disk: more blocks than there are samples.
const SECTORS: u64 = 16 << 10;
/// Sectors of a block.
const BLOCK: u64 = 8;

/// A log of writes to the blocks, in order, and a flush after each.
fn log_of(blocks: impl IntoIterator<Item = u64>) -> TestLog {
    let mut log = TestLog::new(SECTORS);
    for block in blocks {
        let sectors = block * BLOCK..(block + 1) * BLOCK;
        log.write(block * BLOCK, sectors.map(|sector| content(9, sector)).collect(), false);
        log.flush();
    }
    log
}

/// The disk after all requests of the log.
fn after(log: &TestLog) -> Vec<[u8; SECTOR]> {
    let mut disk = log.base.clone();
    for request in &log.requests {
        for (sector, data) in (request.sector..).zip(&request.data) {
            disk[usize::try_from(sector).unwrap()] = *data;
        }
    }
    disk
}

/// Checks `base` as that of the log, which has samples of its own base if it is `sampled`.
fn check(log: &TestLog, base: &[[u8; SECTOR]], sampled: bool) -> Result<(), BaseError> {
    let (_folder, log_path, base_path) = log.files(&log.encode(false));
    if sampled {
        let options = DiskOptions::new(CacheMode::WriteBack);
        let disk = RawFile::open(&base_path, &options).unwrap();
        let samples = BaseSamples::take(&disk).unwrap();
        let mut bytes = fs::read(&log_path).unwrap();
        let entries = LogSuper::decode(&bytes).unwrap().entries;
        bytes[..LOG_SECTOR].copy_from_slice(&LogSuper::new(entries, Some(samples)).encode());
        fs::write(&log_path, bytes).unwrap();
    }
    fs::write(&base_path, base.concat()).unwrap();
    Recording::open(&log_path, &base_path).unwrap().check_base()
}

#[test]
fn the_base_is_accepted() {
    for blocks in [0..0, 0..1, 100..101, 0..2000] {
        let log = log_of(blocks);
        check(&log, &log.base, false).unwrap();
        check(&log, &log.base, true).unwrap();
    }
}

#[test]
fn the_disk_after_its_recording_is_refused() {
    for (blocks, sampled) in [(0..1, true), (100..101, false), (100..101, true), (0..2000, false)] {
        let log = log_of(blocks);
        let error = check(&log, &after(&log), sampled).unwrap_err();
        let is_sample = sampled && log.requests[0].sector == 0;
        match error {
            BaseError::Other { at: 0 } => assert!(is_sample),
            BaseError::After { equal, compared } => {
                assert!(!is_sample && equal == compared && compared > 0);
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(
        check(&log_of(100..101), &after(&log_of(100..101)), false).unwrap_err().to_string(),
        "it is the disk as it was after its recording, over which no lost write is noticed: it has \
         what was written, in 1 of 1 blocks"
    );
}

/// A guest may go on for a moment when its log has ended.
#[test]
fn a_disk_that_has_most_of_what_was_written_is_refused() {
    let log = log_of(100..120);
    for (kept, is_refused) in [(18, true), (17, false)] {
        let mut base = log.base.clone();
        let written =
            usize::try_from(100 * BLOCK).unwrap()..usize::try_from((100 + kept) * BLOCK).unwrap();
        base[written.clone()].copy_from_slice(&after(&log)[written]);
        assert_eq!(check(&log, &base, false).is_err(), is_refused, "{kept}");
    }
}

#[test]
fn another_image_is_refused_by_the_samples() {
    let log = log_of(0..3);
    let mut other = log.base.clone();
    *other.last_mut().unwrap() = [1; SECTOR];
    let at = SECTORS * SECTOR as u64 - 4096;
    let error = check(&log, &other, true).unwrap_err();
    assert!(matches!(error, BaseError::Other { at: found } if found == at), "{error}");
    check(&log, &other, false).unwrap();
    other.extend([[0; SECTOR]; 8]);
    let error = check(&log, &other, true).unwrap_err();
    assert!(matches!(error, BaseError::Size { base, disk } if base == disk + 4096), "{error}");
}

/// Data that was there before proves nothing, unless a sample tells that the disk changed.
#[test]
fn writes_of_what_the_disk_had_are_no_proof_if_a_sample_changed() {
    let mut log = log_of([]);
    for block in 100..200 {
        let sectors = block * BLOCK..(block + 1) * BLOCK;
        log.write(block * BLOCK, sectors.map(|sector| content(0, sector)).collect(), false);
    }
    check(&log, &log.base, true).unwrap_err();
    log.write(0, vec![[7; SECTOR]], false);
    check(&log, &log.base, true).unwrap();
    check(&log, &log.base, false).unwrap_err();
}

/// Zeroes are what many bases have.
#[test]
fn zeroes_are_not_compared() {
    let mut log = log_of([]);
    log.base.fill([0; SECTOR]);
    log.write(800, vec![[0; SECTOR]; 80], false);
    check(&log, &log.base, false).unwrap();
}
