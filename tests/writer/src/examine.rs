//! The oracle: whether a disk has each record that was acknowledged as flushed.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read};

use super::record::{Content, RECORD, Records, SECTOR};

/// Findings that are listed; more are counted.
const LISTED: usize = 5;

/// Something that no power cut may leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A sector of a slot has less than the flushed record.
    Lost {
        /// The slot.
        slot: u64,
        /// The flushed record.
        flushed: u64,
        /// The content of the slot's worst sector.
        found: Content,
    },
    /// A sector has neither zeroes nor a record of its slot.
    Garbage {
        /// The slot.
        slot: u64,
        /// The sector in the slot.
        index: u64,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { slot, flushed, found } => {
                write!(f, "slot {slot} lacks record {flushed}, which was flushed: {found:?}")
            }
            Self::Garbage { slot, index } => write!(f, "sector {index} of slot {slot} is garbage"),
        }
    }
}

/// The content of a disk after a power cut.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// Flushed records that are not there as a whole.
    pub flushed_lost: u64,
    /// Sectors that have neither zeroes nor a record of their slot.
    pub garbage: u64,
    /// Records that were written, not flushed, and are not there as a whole.
    pub unflushed_lost: u64,
    /// Records that were written, not flushed, and are there as a whole.
    pub unflushed_kept: u64,
    /// Slots whose sectors are of different records.
    pub torn: u64,
    /// The first few that no power cut may leave.
    pub listed: Vec<Finding>,
    /// A checksum of the content.
    pub state: u32,
}

/// Examines a disk. The records up to `flushed` were acknowledged as flushed; those up to `issued`
/// were written, and so were those before the last one that is found.
///
/// # Errors
///
/// The disk cannot be read or is too short.
pub fn examine(
    disk: &mut dyn Read,
    records: &Records,
    flushed: u64,
    issued: u64,
) -> io::Result<Findings> {
    let mut must_have: HashMap<u64, u64> = HashMap::new();
    for number in 1..=flushed {
        must_have.insert(records.slot(number), number);
    }
    let mut findings = Findings::default();
    let mut hasher = crc32fast::Hasher::new();
    let mut block = [0; RECORD];
    let (mut slots, mut last) = (Vec::new(), issued.max(flushed));
    for slot in 0..records.slots() {
        disk.read_exact(&mut block)?;
        hasher.update(&block);
        let contents: Vec<Content> = (0..)
            .zip(block.as_chunks::<SECTOR>().0)
            .map(|(index, sector)| records.content(slot, index, sector))
            .collect();
        last = contents.iter().copied().map(number).fold(last, u64::max);
        slots.push(contents);
    }
    let mut open: HashMap<u64, Vec<u64>> = HashMap::new();
    for number in flushed + 1..=last {
        open.entry(records.slot(number)).or_default().push(number);
    }
    for (slot, contents) in (0..).zip(&slots) {
        findings.add_slot(slot, contents, must_have.get(&slot).copied(), open.get(&slot));
    }
    findings.state = hasher.finalize();
    Ok(findings)
}

/// The number of a record; 0 if there is none.
fn number(content: Content) -> u64 {
    match content {
        Content::Record(number) => number,
        Content::Empty | Content::Garbage => 0,
    }
}

impl Findings {
    /// Whether a power cut may leave this.
    #[must_use]
    pub fn are_legal(&self) -> bool {
        self.flushed_lost == 0 && self.garbage == 0
    }

    fn add_slot(
        &mut self,
        slot: u64,
        contents: &[Content],
        flushed: Option<u64>,
        open: Option<&Vec<u64>>,
    ) {
        for (index, content) in (0..).zip(contents) {
            if *content == Content::Garbage {
                self.garbage += 1;
                self.list(Finding::Garbage { slot, index });
            }
        }
        let Some(worst) = contents.iter().copied().min_by_key(|content| number(*content)) else {
            return;
        };
        if let Some(flushed) = flushed
            && number(worst) < flushed
        {
            self.flushed_lost += 1;
            self.list(Finding::Lost { slot, flushed, found: worst });
        }
        for open in open.into_iter().flatten() {
            if number(worst) >= *open {
                self.unflushed_kept += 1;
            } else {
                self.unflushed_lost += 1;
            }
        }
        self.torn += u64::from(contents.iter().any(|content| *content != worst));
    }

    fn list(&mut self, finding: Finding) {
        if self.listed.len() < LISTED {
            self.listed.push(finding);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::{Content, Finding, Findings, RECORD, Records, SECTOR, examine};

    const SLOTS: usize = 8;

    fn write(disk: &mut [u8], records: &Records, number: u64) {
        let mut block = [0; RECORD];
        records.fill(number, &mut block);
        let at = usize::try_from(records.slot(number)).unwrap() * RECORD;
        disk[at..at + RECORD].copy_from_slice(&block);
    }

    fn see(disk: &[u8], flushed: u64, issued: u64) -> Findings {
        examine(&mut &disk[..], &Records::new(8, 1), flushed, issued).unwrap()
    }

    #[test]
    fn flushed_records_must_be_there_and_others_may() {
        let records = Records::new(8, 1);
        let mut disk = vec![0; SLOTS * RECORD];
        (1..=10).for_each(|number| write(&mut disk, &records, number));
        let all = see(&disk, 10, 10);
        assert!(all.are_legal() && all.unflushed_lost == 0 && all.torn == 0, "{all:?}");
        let fewer = see(&disk, 7, 12);
        assert!(fewer.are_legal(), "{fewer:?}");
        assert_eq!((fewer.unflushed_kept, fewer.unflushed_lost), (3, 2));
        write(&mut disk, &records, 14);
        let late = see(&disk, 7, 7);
        assert_eq!((late.unflushed_kept, late.unflushed_lost), (4, 3), "14 is there, 13 is not");
        let lost = see(&disk, 11, 11);
        let slot = records.slot(11);
        assert_eq!(lost.flushed_lost, 1);
        assert_eq!(
            lost.listed,
            [Finding::Lost { slot, flushed: 11, found: Content::Record(3) }],
            "an older record of the same slot"
        );
    }

    #[test]
    fn torn_records_count_by_their_oldest_sector() {
        let records = Records::new(8, 1);
        let mut disk = vec![0; SLOTS * RECORD];
        (1..=8).for_each(|number| write(&mut disk, &records, number));
        let old = disk.clone();
        write(&mut disk, &records, 9);
        let at = usize::try_from(records.slot(9)).unwrap() * RECORD + 5 * SECTOR;
        disk[at..at + SECTOR].copy_from_slice(&old[at..at + SECTOR]);
        let open = see(&disk, 8, 9);
        assert!(open.are_legal(), "{open:?}");
        assert_eq!((open.torn, open.unflushed_lost), (1, 1));
        assert_eq!(see(&disk, 9, 9).flushed_lost, 1);
    }

    #[test]
    fn garbage_and_short_disks_are_seen() {
        let mut disk = vec![0; SLOTS * RECORD];
        disk[RECORD + 3] = 1;
        let found = see(&disk, 0, 0);
        assert!(!found.are_legal());
        assert_eq!(found.listed, [Finding::Garbage { slot: 1, index: 0 }]);
        disk.pop();
        examine(&mut &disk[..], &Records::new(8, 1), 0, 0).unwrap_err();
    }
}
