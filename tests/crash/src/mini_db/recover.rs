//! Recovery, and whether the database is what it was after one of its transactions.

use std::sync::Arc;

use crash::{CheckError, CheckedDisk, Checker, Failure, Verdict};

use super::block::{self, COMMIT, PAGE, SUPERBLOCK};
use super::{
    BLOCK, CHANGED, Fault, LAP, LOG, PAGE_COUNT, PAGE_SLOTS, PAGES, RECORD, SUPERBLOCKS, changed,
    version_after,
};

/// Recovery as a check, with the fault of the database.
pub struct Recovery(pub Option<Fault>);

impl Checker for Recovery {
    fn check(&self, disk: Arc<dyn CheckedDisk>) -> Result<Verdict, CheckError> {
        Ok(match recover(&*disk, self.0) {
            Ok(()) => Verdict::Passed,
            Err(output) => Verdict::Failed(Failure { end: "exit status 1".into(), output }),
        })
    }
}

/// Recovers the database and compares it with what the transactions have made of it.
///
/// # Errors
///
/// A transaction that was reported is lost, or one is there in part.
pub fn recover(disk: &dyn CheckedDisk, fault: Option<Fault>) -> Result<(), String> {
    let database = Database { disk, fault };
    let checkpoint = database.checkpoint()?;
    let (last, logged) = database.log(checkpoint)?;
    let committed = committed(&disk.marks());
    if last < committed {
        return Err(format!("transaction {committed} was committed, but {last} is the last one"));
    }
    for page in 0..PAGE_COUNT {
        let expected = version_after(page, last);
        let found = database
            .version(page, logged.get(usize::try_from(page).unwrap_or(0)).copied().flatten())?;
        if found != expected {
            return Err(format!("page {page} has version {found}, not {expected} of {last}"));
        }
    }
    Ok(())
}

/// The transaction of the last mark.
fn committed(marks: &str) -> u64 {
    let numbers = marks.lines().filter_map(|line| line.strip_prefix("committed "));
    numbers.filter_map(|number| number.parse().ok()).max().unwrap_or(0)
}

struct Database<'d> {
    disk: &'d dyn CheckedDisk,
    fault: Option<Fault>,
}

/// The version of each page in the log.
type Logged = [Option<u64>; PAGE_SLOTS];

impl Database<'_> {
    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn read(&self, number: u64) -> Result<Vec<u8>, String> {
        let mut data = vec![0; BLOCK];
        self.disk.read(number * BLOCK as u64, &mut data).map_err(|error| error.to_string())?;
        Ok(data)
    }

    /// The last transaction that the pages have.
    fn checkpoint(&self) -> Result<u64, String> {
        let is_checked = !self.has(Fault::SuperblockUnchecked);
        let mut newest = 0;
        for at in SUPERBLOCKS {
            let superblock = self.read(at)?;
            if let Some((_, value)) = block::decode(&superblock, SUPERBLOCK, is_checked) {
                newest = newest.max(value);
            }
            if newest > 0 && !is_checked && !block::is_whole(&superblock) {
                return Err("a torn superblock counts".into());
            }
        }
        Ok(newest)
    }

    /// The last transaction of the log after `checkpoint`, and the versions of its pages.
    fn log(&self, checkpoint: u64) -> Result<(u64, Logged), String> {
        let mut logged: Logged = [None; PAGE_SLOTS];
        let mut last = checkpoint;
        for slot in 0..LAP {
            let at = LOG + slot * RECORD;
            let commit = self.read(at + CHANGED)?;
            let Some((transaction, _)) = block::decode(&commit, COMMIT, true) else { break };
            if transaction != last + 1 && !self.has(Fault::StaleRecordAccepted) {
                break;
            }
            let mut pages = Vec::new();
            for index in 0..CHANGED {
                pages.push(self.read(at + index)?);
            }
            let sum = block::sum_of(&pages, self.fault);
            if block::get(&commit, 32) != sum && !self.has(Fault::LogUnchecked) {
                break;
            }
            for (page, data) in changed(transaction).into_iter().zip(&pages) {
                let version = block::decode(data, PAGE, true).map_or(0, |(_, version)| version);
                if let Some(place) = logged.get_mut(usize::try_from(page).unwrap_or(0)) {
                    *place = Some(version);
                }
            }
            last = transaction;
        }
        Ok((last, logged))
    }

    /// The version of a page after recovery.
    fn version(&self, page: u64, logged: Option<u64>) -> Result<u64, String> {
        match logged {
            Some(version) if !self.has(Fault::TornPageKept) => return Ok(version),
            _ => {}
        }
        let data = self.read(PAGES + page)?;
        let found = block::decode(&data, PAGE, logged.is_none()).map(|(_, version)| version);
        if let Some(version) = logged {
            // Recovery would keep it, torn or not.
            if found != Some(version) {
                return Ok(version);
            }
            return if block::is_whole(&data) {
                Ok(version)
            } else {
                Err(format!("page {page} is torn"))
            };
        }
        match found {
            Some(version) => Ok(version),
            None if data.iter().all(|byte| *byte == 0) => Ok(0),
            None => Err(format!("page {page} is damaged")),
        }
    }
}
