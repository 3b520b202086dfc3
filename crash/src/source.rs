//! A recording with its data: what each block has after a power cut.

use std::collections::BTreeMap;
use std::io;

use crate::block_index::BlockIndex;
use crate::cells::{Cells, cells};
use crate::content::{BlockBytes, Store, hash};
use crate::history::History;
use crate::losses::{Loss, Losses};
use crate::name::StateName;

/// The pseudo block whose content is the text of the marks.
pub(crate) const MARKS: u64 = u64::MAX;

/// A recording with its data.
pub(crate) struct Source {
    pub(crate) history: History,
    pub(crate) index: BlockIndex,
    pub(crate) store: Store,
    /// For each number of marks the identity of their text.
    mark_hashes: Vec<u128>,
}

impl Source {
    pub(crate) fn new(history: History, store: Store) -> Self {
        let index = BlockIndex::new(&history);
        let mut mark_hashes = vec![0];
        let mut last = 0u128;
        for mark in history.marks() {
            let mut bytes = last.to_le_bytes().to_vec();
            bytes.extend_from_slice(mark.text.as_bytes());
            last = hash(&bytes);
            mark_hashes.push(last);
        }
        Self { history, index, store, mark_hashes }
    }

    /// The sectors of a block in a state.
    pub(crate) fn cells(&self, block: u64, state: &StateName) -> Cells {
        cells(&self.history, &self.index, block, state)
    }

    /// The content of a block in a state.
    pub(crate) fn block(&self, block: u64, state: &StateName) -> io::Result<BlockBytes> {
        self.store.read(&self.history, block, &self.cells(block, state).value)
    }

    /// The identity of the content of a block in a state, or of the text of its marks.
    pub(crate) fn identity(&self, block: u64, state: &StateName) -> io::Result<u128> {
        if block == MARKS {
            let marks = self.history.marks_at(state.point);
            return Ok(self.mark_hashes.get(marks).copied().unwrap_or_default());
        }
        self.store.hash(&self.history, block, &self.cells(block, state).value)
    }

    /// The marks that were made before a power cut, a line for each.
    pub(crate) fn marks(&self, point: u64) -> String {
        let made = self.history.marks().get(..self.history.marks_at(point)).unwrap_or_default();
        made.iter().flat_map(|mark| [mark.text.as_str(), "\n"]).collect()
    }

    /// All that a state lost, one by one.
    pub(crate) fn lost(&self, state: &StateName) -> BTreeMap<u64, Loss> {
        let (history, point) = (&self.history, state.point);
        let mut lost = match &state.losses {
            Losses::These(these) => these.clone(),
            Losses::All => (0..history.issued_end(point))
                .filter(|number| history.is_open(*number, point))
                .filter(|number| !history.is_flushed_discard(*number, point))
                .map(|number| (number, Loss::Whole))
                .collect(),
        };
        if state.discards {
            lost.extend(history.flushed_discards(point).map(|number| (number, Loss::Whole)));
        }
        lost
    }
}
