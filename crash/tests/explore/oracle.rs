//! The disks that power cuts can leave, straight from docs/record-log.md: slow, and by trying
//! everything.

use std::collections::{BTreeMap, BTreeSet};

use block::LogKind;
use crash::Atomicity;

use crate::log_files::{SECTOR, TestLog};

/// The writer of a sector: a request, or the base.
pub(crate) type Writer = Option<u64>;

impl TestLog {
    /// "Durable: writes and zeroings with FUA and a number below n, and those that completed before
    /// a flush was issued whose number is below n. A discard or a request that failed is never
    /// durable. A failed flush covers nothing."
    pub(crate) fn is_durable(&self, number: u64, n: u64) -> bool {
        let write = &self.requests[usize::try_from(number).unwrap()];
        if !write.is_write() || write.errno != 0 || write.kind == LogKind::Discard {
            return false;
        }
        let flushes = self.requests.iter().zip(0..n).filter(|(request, _)| !request.is_write());
        let mut good = flushes.filter(|(flush, _)| flush.errno == 0);
        write.fua && number < n || good.any(|(flush, _)| number < flush.issued_after)
    }

    /// "Open: all others that were issued after at most n completions."
    pub(crate) fn is_open(&self, number: u64, n: u64) -> bool {
        let write = &self.requests[usize::try_from(number).unwrap()];
        write.is_write() && write.issued_after <= n && !self.is_durable(number, n)
    }

    /// A discard that completed before a flush was issued whose number is below n.
    pub(crate) fn is_flushed_discard(&self, number: u64, n: u64) -> bool {
        let write = &self.requests[usize::try_from(number).unwrap()];
        let mut flushes = self.requests.iter().zip(0..n).filter(|(flush, _)| !flush.is_write());
        write.kind == LogKind::Discard
            && flushes.any(|(flush, _)| flush.errno == 0 && number < flush.issued_after)
    }

    /// The writes that a power cut may find, with whether they are durable.
    pub(crate) fn writes_at(&self, n: u64) -> Vec<(u64, bool)> {
        let state = |number| match (self.is_durable(number, n), self.is_open(number, n)) {
            (true, _) => Some((number, true)),
            (false, true) => Some((number, false)),
            (false, false) => None,
        };
        (0..self.len()).filter_map(state).collect()
    }

    /// "A request with the number c completed before another was issued if, and only if, c is less
    /// than the other's issued after."
    fn is_before(&self, one: u64, other: u64) -> bool {
        one < self.requests[usize::try_from(other).unwrap()].issued_after
    }

    /// The possible writers of a sector: "the disk has each of the open ones, or lacks it", for
    /// each subset; of those that it has, one that no other came after, as "two writes that
    /// overlapped in time may have reached the disk in either order".
    pub(crate) fn legal_writers(&self, sector: u64, n: u64) -> BTreeSet<Writer> {
        let touching: Vec<(u64, bool)> = self
            .writes_at(n)
            .into_iter()
            .filter(|(number, _)| self.requests[usize::try_from(*number).unwrap()].touches(sector))
            .collect();
        let open: Vec<u64> = touching.iter().filter(|(_, durable)| !durable).map(|w| w.0).collect();
        let durable: Vec<u64> =
            touching.iter().filter(|(_, durable)| *durable).map(|w| w.0).collect();
        let mut legal = BTreeSet::new();
        for subset in 0..1u64 << open.len() {
            let kept = open.iter().enumerate().filter(|(at, _)| subset >> at & 1 == 1);
            let has: Vec<u64> = durable.iter().copied().chain(kept.map(|(_, w)| *w)).collect();
            if has.is_empty() {
                legal.insert(None);
            }
            let last = |one: &&u64| !has.iter().any(|other| self.is_before(**one, *other));
            legal.extend(has.iter().filter(last).map(|number| Some(*number)));
        }
        legal
    }

    /// Whether the write is durable and no write of the sector may have come after it: losing it
    /// is no power cut's doing.
    pub(crate) fn must_be_there(&self, number: u64, sector: u64, n: u64) -> bool {
        let others = self.writes_at(n).into_iter().map(|(other, _)| other);
        let touches = |other: u64| self.requests[usize::try_from(other).unwrap()].touches(sector);
        let mut others = others.filter(|other| *other != number && touches(*other));
        let overlaps = |other| !self.is_before(number, other) && !self.is_before(other, number);
        self.is_durable(number, n) && !others.any(overlaps)
    }

    /// The marks before a power cut.
    pub(crate) fn marks_at(&self, n: u64) -> String {
        let made = self.marks.iter().filter(|(after, _)| *after <= n);
        made.map(|(_, text)| format!("{text}\n")).collect()
    }

    /// The content of a sector by its writer.
    pub(crate) fn content_of(&self, writer: Writer, sector: u64) -> [u8; SECTOR] {
        match writer {
            None => self.base[usize::try_from(sector).unwrap()],
            Some(number) => self.requests[usize::try_from(number).unwrap()].at(sector),
        }
    }

    /// The pieces that are on the disk or not, of the writes that could be visible: each the write
    /// and its sectors.
    pub(crate) fn pieces(&self, n: u64, atomicity: Atomicity) -> Vec<(u64, Vec<u64>)> {
        let mut pieces: BTreeMap<(u64, u64), Vec<u64>> = BTreeMap::new();
        for sector in 0..self.base.len() as u64 {
            let legal = self.legal_writers(sector, n);
            if legal.len() < 2 {
                continue;
            }
            for number in legal.into_iter().flatten() {
                let piece = match atomicity {
                    Atomicity::Sector => sector,
                    Atomicity::Block => sector / 8,
                    Atomicity::Whole => 0,
                };
                pieces.entry((number, piece)).or_default().push(sector);
            }
        }
        pieces.into_iter().map(|((number, _), sectors)| (number, sectors)).collect()
    }

    /// All disks that a power cut can leave, for each subset of pieces lost. `visit` gets the
    /// writers of the sectors.
    pub(crate) fn each_disk(&self, n: u64, atomicity: Atomicity, mut visit: impl FnMut(&[Writer])) {
        let pieces = self.pieces(n, atomicity);
        let sectors = 0..self.base.len() as u64;
        let legal: Vec<BTreeSet<Writer>> =
            sectors.map(|sector| self.legal_writers(sector, n)).collect();
        for subset in 0..1u64 << pieces.len() {
            let mut lost: BTreeSet<(u64, u64)> = BTreeSet::new();
            for (_, (number, sectors)) in
                pieces.iter().enumerate().filter(|(at, _)| subset >> at & 1 == 1)
            {
                lost.extend(sectors.iter().map(|sector| (*number, *sector)));
            }
            let disk: Vec<Writer> = (0u64..)
                .zip(&legal)
                .map(|(sector, legal)| {
                    let kept = |writer: &&Writer| {
                        writer.is_none_or(|number| !lost.contains(&(number, sector)))
                    };
                    // A durable write is there if all that could hide it is lost.
                    let durable =
                        |writer: &&Writer| writer.is_some_and(|number| self.is_durable(number, n));
                    let found = legal.iter().rfind(kept);
                    *found.or(legal.iter().rfind(durable)).expect("one is legal")
                })
                .collect();
            visit(&disk);
        }
    }
}
