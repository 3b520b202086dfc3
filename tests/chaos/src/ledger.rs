//! Contents that each block of a disk may have, by the requests that were acknowledged.

use anyhow::{Result, bail};

use crate::content::Content;

/// One content that a block may have.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    content: Content,
    /// Whether it replaces earlier contents. A discard may leave them.
    replaces: bool,
    /// Number of the acknowledgement, none while the request is in flight.
    acknowledged: Option<u64>,
}

/// The candidates of all blocks of one disk, oldest first.
pub(crate) struct Ledger {
    blocks: Vec<Vec<Candidate>>,
    generation: u64,
    acknowledgements: u64,
}

impl Ledger {
    /// A disk of zeroes.
    pub(crate) fn new(blocks: usize) -> Self {
        let zero = Candidate { content: Content::Zero, replaces: true, acknowledged: Some(0) };
        Self { blocks: vec![vec![zero]; blocks], generation: 0, acknowledgements: 0 }
    }

    /// Number of blocks.
    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// A write of `block` is in flight; returns its generation.
    pub(crate) fn write(&mut self, block: usize) -> u64 {
        self.generation += 1;
        let content = Content::Generation(self.generation);
        self.blocks[block].push(Candidate { content, replaces: true, acknowledged: None });
        self.generation
    }

    /// A discard of `block` is in flight.
    pub(crate) fn discard(&mut self, block: usize) {
        let content = Content::Zero;
        self.blocks[block].push(Candidate { content, replaces: false, acknowledged: None });
    }

    /// The write or discard of `block` is acknowledged.
    pub(crate) fn acknowledge(&mut self, block: usize) {
        self.acknowledgements += 1;
        let last = self.blocks[block].last_mut().unwrap();
        last.acknowledged = Some(self.acknowledgements);
    }

    /// A flush is in flight; returns the last acknowledgement that it covers.
    pub(crate) fn flush(&self) -> u64 {
        self.acknowledgements
    }

    /// A flush that covers `last` is acknowledged.
    pub(crate) fn acknowledge_flush(&mut self, last: u64) {
        for candidates in &mut self.blocks {
            let flushed = |one: &Candidate| {
                one.replaces && one.acknowledged.is_some_and(|number| number <= last)
            };
            if let Some(at) = candidates.iter().rposition(flushed) {
                candidates.drain(..at);
            }
        }
    }

    /// Checks content read from `block`: the latest acknowledged write, or a later request.
    pub(crate) fn check(&self, block: usize, content: Content) -> Result<()> {
        let candidates = &self.blocks[block];
        let latest = candidates
            .iter()
            .rposition(|one| one.replaces && one.acknowledged.is_some())
            .unwrap_or(0);
        check_among(&candidates[latest..], content)
    }

    /// Checks content found after a power cut: the latest flushed write, or a later request.
    pub(crate) fn check_after_power_cut(&self, block: usize, content: Content) -> Result<()> {
        check_among(&self.blocks[block], content)
    }
}

fn check_among(candidates: &[Candidate], content: Content) -> Result<()> {
    if candidates.iter().any(|one| one.content == content) {
        return Ok(());
    }
    let expected: Vec<_> = candidates.iter().map(|one| one.content).collect();
    bail!("it has {content:?}, expected one of {expected:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledged_write_replaces_and_discard_does_not() {
        let mut ledger = Ledger::new(1);
        let first = ledger.write(0);
        ledger.check(0, Content::Zero).unwrap();
        ledger.acknowledge(0);
        assert!(ledger.check(0, Content::Zero).is_err());
        ledger.discard(0);
        ledger.acknowledge(0);
        ledger.check(0, Content::Generation(first)).unwrap();
        ledger.check(0, Content::Zero).unwrap();
    }

    #[test]
    fn power_cut_may_lose_unflushed_writes() {
        let mut ledger = Ledger::new(1);
        let first = ledger.write(0);
        ledger.acknowledge(0);
        let covered = ledger.flush();
        let second = ledger.write(0);
        ledger.acknowledge(0);
        ledger.acknowledge_flush(covered);
        ledger.check_after_power_cut(0, Content::Generation(first)).unwrap();
        ledger.check_after_power_cut(0, Content::Generation(second)).unwrap();
        assert!(ledger.check_after_power_cut(0, Content::Zero).is_err());
        assert!(ledger.check(0, Content::Generation(first)).is_err());
    }
}
