//! The values that each sector of the disk may hold.
//!
//! No two requests for one sector are in flight, so that the values of a sector are in one order.

/// The values of a sector since the last one that is durable.
#[derive(Debug, Clone)]
struct History {
    values: Vec<u64>,
    /// Values before, that no longer count.
    dropped: usize,
    /// All values, for reads that were in flight meanwhile.
    all: Vec<u64>,
    /// A change is in flight.
    is_changing: bool,
    /// A change has failed: the sector may hold any of the values.
    is_unknown: bool,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Oracle(Vec<History>);

impl Oracle {
    /// Sectors whose values are durable.
    pub(super) fn new(values: impl Iterator<Item = u64>) -> Self {
        let history = |value| History {
            values: vec![value],
            dropped: 0,
            all: vec![value],
            is_changing: false,
            is_unknown: false,
        };
        Self(values.map(history).collect())
    }

    /// Whether no change of these sectors is in flight.
    pub(super) fn is_quiet(&self, first: usize, count: usize) -> bool {
        self.0[first..first + count].iter().all(|sector| !sector.is_changing)
    }

    /// The value of a sector if it is certain.
    pub(super) fn value(&self, sector: usize) -> Option<u64> {
        let history = &self.0[sector];
        (!history.is_unknown && !history.is_changing).then(|| *history.values.last().unwrap())
    }

    /// The value of a sector, if it is certain, before a change that has not been started.
    pub(super) fn value_before(&self, sector: usize) -> Option<u64> {
        let History { values, is_changing, is_unknown, .. } = &self.0[sector];
        (!is_unknown).then(|| values[values.len() - 1 - usize::from(*is_changing)])
    }

    pub(super) fn begin(&mut self, first: usize, values: &[u64]) {
        for (sector, value) in self.0[first..].iter_mut().zip(values) {
            sector.values.push(*value);
            sector.all.push(*value);
            sector.is_changing = true;
        }
    }

    /// A change has ended: with its new value, the old one, or either.
    pub(super) fn end(&mut self, first: usize, count: usize, outcome: Outcome) {
        for sector in &mut self.0[first..first + count] {
            sector.is_changing = false;
            match outcome {
                Outcome::Unknown => sector.is_unknown = true,
                Outcome::Unchanged => {
                    sector.values.pop();
                    sector.all.pop();
                }
                Outcome::Changed => sector.is_unknown = false,
                Outcome::Durable => {
                    sector.is_unknown = false;
                    sector.drop_before(sector.dropped + sector.values.len() - 1);
                }
            }
        }
    }

    /// The values that a flush covers that is pushed now, by sector.
    pub(super) fn mark(&self) -> Vec<usize> {
        let certain = |sector: &History| {
            let last = sector.dropped + sector.values.len() - 1;
            if sector.is_unknown { 0 } else { last - usize::from(sector.is_changing) }
        };
        self.0.iter().map(certain).collect()
    }

    /// How many values the sectors had until now.
    pub(super) fn counts(&self, first: usize, count: usize) -> Vec<usize> {
        let sectors = self.0[first..first + count].iter();
        sectors.map(|sector| sector.all.len()).collect()
    }

    /// The values of a sector after the first `count` ones.
    pub(super) fn values_from(&self, sector: usize, count: usize) -> &[u64] {
        self.0[sector].all.get(count..).unwrap_or_default()
    }

    /// A flush has completed.
    pub(super) fn flush(&mut self, mark: &[usize]) {
        for (sector, mark) in self.0.iter_mut().zip(mark) {
            sector.drop_before(*mark);
        }
    }

    /// The values that the sector may hold now.
    pub(super) fn readable(&self, sector: usize) -> Vec<u64> {
        let history = &self.0[sector];
        match self.value(sector) {
            Some(value) => vec![value],
            None => history.values.clone(),
        }
    }

    /// Whether the sector may hold the value after a power cut.
    pub(super) fn may_survive(&self, sector: usize, value: u64) -> bool {
        self.0[sector].values.contains(&value)
    }

    /// The program was killed, and the next one has found these values.
    pub(super) fn settle(&mut self, found: &[u64]) {
        for (sector, found) in self.0.iter_mut().zip(found) {
            if std::mem::take(&mut sector.is_unknown) || sector.values.last() != Some(found) {
                sector.values.push(*found);
                sector.all.push(*found);
            }
        }
    }

    /// The values of the sector since the last durable one.
    pub(super) fn values(&self, sector: usize) -> &[u64] {
        &self.0[sector].values
    }
}

impl History {
    fn drop_before(&mut self, index: usize) {
        let count = index.saturating_sub(self.dropped);
        self.values.drain(..count);
        self.dropped += count;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Changed,
    Durable,
    Unchanged,
    Unknown,
}
