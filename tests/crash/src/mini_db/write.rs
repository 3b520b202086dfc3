//! The writer: transactions and checkpoints.

use super::block::{self, COMMIT, PAGE, SUPERBLOCK};
use super::{
    BLOCK, CHANGED, FAULTY, Fault, LAP, LOG, OTHERS, PAGE_COUNT, PAGES, RECORD, SUPERBLOCKS,
    changed, version_after,
};

/// One request of the database.
#[derive(Clone, Debug)]
pub enum DiskOp {
    /// Write these bytes at this block.
    Write(u64, Vec<u8>),
    /// The same, durable when it completes.
    WriteFua(u64, Vec<u8>),
    /// Discard from this block, as many as the second number.
    Discard(u64, u64),
    /// Make all completed writes durable.
    Flush,
}

/// The disk of a database.
pub trait Device {
    /// Issues all requests together, and waits for all of them.
    fn batch(&mut self, ops: Vec<DiskOp>);

    /// Makes a mark.
    fn mark(&mut self, text: &str);
}

/// Runs transactions, with a checkpoint after each few, on a disk of zeroes. Others write to the
/// same disk meanwhile, most of the time. A fault shows once: in the last two transactions of a
/// lap, or in its checkpoint.
pub fn run(device: &mut dyn Device, transactions: u64, fault: Option<Fault>) {
    let last = FAULTY.min(transactions / LAP * LAP);
    let mut writer = Writer { device, fault, faulty: last - 1, others: 1 };
    for transaction in 1..=transactions {
        writer.commit(transaction);
        writer.others();
        if transaction.is_multiple_of(LAP) {
            writer.checkpoint(transaction);
        }
    }
}

struct Writer<'d> {
    device: &'d mut dyn Device,
    fault: Option<Fault>,
    /// The transaction that has the fault, as have the next one and its checkpoint.
    faulty: u64,
    /// Determines what others write.
    others: u64,
}

impl Writer<'_> {
    fn has(&self, fault: Fault, transaction: u64) -> bool {
        self.fault == Some(fault) && (self.faulty..=self.faulty + 1).contains(&transaction)
    }

    fn flush_unless(&mut self, faults: &[Fault], transaction: u64) {
        if !faults.iter().any(|fault| self.has(*fault, transaction)) {
            self.device.batch(vec![DiskOp::Flush]);
        }
    }

    fn other_write(&mut self) -> DiskOp {
        self.others = self.others.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let random = self.others >> 33;
        let block = OTHERS.start + random % (OTHERS.end - OTHERS.start);
        DiskOp::Write(block, random.to_le_bytes().repeat(BLOCK / 8))
    }

    /// A file that grows is synced, and others are written back.
    fn others(&mut self) {
        for _ in 0..6 {
            for _ in 0..2 {
                let writes = (0..8).map(|_| self.other_write()).collect();
                self.device.batch(writes);
            }
            self.device.batch(vec![DiskOp::Flush]);
        }
    }

    fn commit(&mut self, transaction: u64) {
        let has = |fault| self.has(fault, transaction);
        let (is_fua, is_flushed_with) = (has(Fault::FuaWithoutFlush), has(Fault::FlushTooEarly));
        let is_early = has(Fault::ReportedBeforeFlush);
        let has_pages = has(Fault::PagesBeforeCommit);
        let is_last_unflushed = has(Fault::LastCommitUnflushed) && transaction.is_multiple_of(LAP);
        let mut ops = self.record(transaction, is_fua);
        if has_pages {
            ops.extend(changed(transaction).map(|page| page_write(page, transaction)));
        }
        // In flight at the same time.
        ops.extend([self.other_write(), self.other_write()]);
        let mark = format!("committed {transaction}");
        if is_flushed_with {
            ops.push(DiskOp::Flush);
            self.device.batch(ops);
            self.device.mark(&mark);
            return;
        }
        self.device.batch(ops);
        if is_early {
            self.device.mark(&mark);
        }
        if !is_last_unflushed && !is_fua {
            self.flush_unless(&[Fault::NoFlushAtCommit], transaction);
        }
        self.device.mark(&mark);
    }

    /// The writes of the log.
    fn record(&self, transaction: u64, is_fua: bool) -> Vec<DiskOp> {
        let at = LOG + (transaction - 1) % LAP * RECORD;
        let pages = changed(transaction).map(|page| block::encode(PAGE, page, transaction));
        let mut commit = block::encode(COMMIT, transaction, CHANGED);
        block::put(&mut commit, 32, block::sum_of(&pages, self.fault));
        // The checksum covers that of the pages.
        let own = block::checksum(&commit);
        block::put(&mut commit, 24, own);
        let mut ops: Vec<_> = (at..).zip(pages).map(|(at, data)| DiskOp::Write(at, data)).collect();
        let write = if is_fua { DiskOp::WriteFua } else { DiskOp::Write };
        ops.push(write(at + CHANGED, commit));
        ops
    }

    fn checkpoint(&mut self, transaction: u64) {
        let has = |fault| self.has(fault, transaction);
        let (is_fua, is_late) = (has(Fault::FuaSuperblockWithPages), has(Fault::LatePage));
        let discards_early = has(Fault::DiscardTooEarly);
        let discards_with = has(Fault::DiscardWithSuperblock);
        // The newest superblock is overwritten instead of the other.
        let which = (transaction / LAP + u64::from(has(Fault::OneSuperblock))) % 2;
        let clears = has(Fault::LogClearedTooEarly);
        let pages = (0..PAGE_COUNT).filter(|page| version_after(*page, transaction) > 0);
        let pages = pages.map(|page| page_write(page, version_after(page, transaction)));
        let mut pages: Vec<_> = pages.collect();
        let [first, second] = SUPERBLOCKS;
        let at = if which == 0 { first } else { second };
        let superblock = block::encode(SUPERBLOCK, at, transaction);
        let discard = DiskOp::Discard(LOG, LAP * RECORD);
        if clears {
            pages.push(DiskOp::Write(LOG + CHANGED, vec![0; BLOCK]));
        }
        let mut last = Vec::new();
        if is_late {
            // A page of this transaction, which differs from what was there.
            let [late, ..] = changed(transaction);
            last.push(page_write(late, transaction));
            pages.retain(|op| !matches!(op, DiskOp::Write(at, _) if *at == PAGES + late));
        }
        if is_fua {
            pages.push(DiskOp::WriteFua(at, superblock));
            self.device.batch(pages);
        } else {
            self.device.batch(pages);
            let unflushed = [Fault::NoFlushBeforeSuperblock, Fault::NoFlushInCheckpoint];
            self.flush_unless(&unflushed, transaction);
            if discards_early {
                self.device.batch(vec![discard.clone()]);
            }
            last.push(DiskOp::Write(at, superblock));
            last.extend(discards_with.then(|| discard.clone()));
            self.device.batch(last);
        }
        let unflushed = [Fault::NoFlushAfterSuperblock, Fault::NoFlushInCheckpoint];
        self.flush_unless(&unflushed, transaction);
        self.device.batch(vec![discard]);
    }
}

fn page_write(page: u64, version: u64) -> DiskOp {
    DiskOp::Write(PAGES + page, block::encode(PAGE, page, version))
}
