//! The writer: transactions and checkpoints.

use super::block::{self, COMMIT, PAGE, SUPERBLOCK};
use super::{
    CHANGED, Fault, LAP, LOG, PAGE_COUNT, PAGES, RECORD, SUPERBLOCKS, changed, version_after,
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

/// Runs transactions, with a checkpoint after each few, on a disk of zeroes.
pub fn run(device: &mut dyn Device, transactions: u64, fault: Option<Fault>) {
    let mut writer = Writer { device, fault };
    for transaction in 1..=transactions {
        writer.commit(transaction);
        if transaction.is_multiple_of(LAP) {
            writer.checkpoint(transaction);
        }
    }
}

struct Writer<'d> {
    device: &'d mut dyn Device,
    fault: Option<Fault>,
}

impl Writer<'_> {
    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn flush_unless(&mut self, faults: &[Fault]) {
        if !faults.iter().any(|fault| self.has(*fault)) {
            self.device.batch(vec![DiskOp::Flush]);
        }
    }

    fn commit(&mut self, transaction: u64) {
        let at = LOG + (transaction - 1) % LAP * RECORD;
        let pages = changed(transaction).map(|page| block::encode(PAGE, page, transaction));
        let mut commit = block::encode(COMMIT, transaction, CHANGED);
        let sum = pages.iter().fold(0, |sum: u64, page| sum.rotate_left(1) ^ block::checksum(page));
        block::put(&mut commit, 32, sum);
        // The checksum covers that of the pages.
        let own = block::checksum(&commit);
        block::put(&mut commit, 24, own);
        let log = (at..).zip(pages);
        let mut ops: Vec<_> = log.map(|(at, data)| DiskOp::Write(at, data)).collect();
        let is_fua = self.has(Fault::FuaWithoutFlush);
        let write = if is_fua { DiskOp::WriteFua } else { DiskOp::Write };
        ops.push(write(at + CHANGED, commit));
        if self.has(Fault::PagesBeforeCommit) {
            ops.extend(changed(transaction).map(|page| page_write(page, transaction)));
        }
        let mark = format!("committed {transaction}");
        if self.has(Fault::FlushTooEarly) {
            ops.push(DiskOp::Flush);
            self.device.batch(ops);
            self.device.mark(&mark);
            return;
        }
        self.device.batch(ops);
        if self.has(Fault::ReportedBeforeFlush) {
            self.device.mark(&mark);
        }
        let is_last_unflushed =
            self.has(Fault::LastCommitUnflushed) && transaction.is_multiple_of(LAP);
        if !is_last_unflushed && !is_fua {
            self.flush_unless(&[Fault::NoFlushAtCommit]);
        }
        self.device.mark(&mark);
    }

    fn checkpoint(&mut self, transaction: u64) {
        let pages = (0..PAGE_COUNT).filter(|page| version_after(*page, transaction) > 0);
        let pages = pages.map(|page| page_write(page, version_after(page, transaction)));
        self.device.batch(pages.collect());
        self.flush_unless(&[Fault::NoFlushBeforeSuperblock, Fault::NoFlushInCheckpoint]);
        let which = if self.has(Fault::OneSuperblock) { 0 } else { transaction / LAP % 2 };
        let [first, second] = SUPERBLOCKS;
        let at = if which == 0 { first } else { second };
        let superblock = block::encode(SUPERBLOCK, at, transaction);
        let discard = DiskOp::Discard(LOG, LAP * RECORD);
        if self.has(Fault::DiscardTooEarly) {
            self.device.batch(vec![discard.clone()]);
        }
        self.device.batch(vec![DiskOp::Write(at, superblock)]);
        self.flush_unless(&[Fault::NoFlushAfterSuperblock, Fault::NoFlushInCheckpoint]);
        self.device.batch(vec![discard]);
    }
}

fn page_write(page: u64, version: u64) -> DiskOp {
    DiskOp::Write(PAGES + page, block::encode(PAGE, page, version))
}
