//! Line numbers of byte offsets in a text.

use std::ops::Range;

/// The byte offset of each line of a text.
#[derive(Debug)]
pub(crate) struct LineIndex {
    starts: Vec<usize>,
}

impl LineIndex {
    /// Indexes `text`.
    pub(crate) fn new(text: &str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self { starts: std::iter::once(0).chain(breaks.map(|(offset, _)| offset + 1)).collect() }
    }

    /// The line of a byte offset. Lines count from one.
    pub(crate) fn line(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset)
    }

    /// The byte offset of the first character of a line.
    pub(crate) fn start(&self, line: usize) -> usize {
        self.starts.get(line.saturating_sub(1)).copied().unwrap_or(0)
    }
}

/// The bytes `range` of `text`; empty if the range is out of bounds.
pub(crate) fn part(text: &str, range: Range<usize>) -> &str {
    text.get(range).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_count_from_one() {
        let index = LineIndex::new("ab\n\ncd");
        assert_eq!([0, 2, 3, 4, 6].map(|offset| index.line(offset)), [1, 1, 2, 3, 3]);
        assert_eq!([1, 2, 3].map(|line| index.start(line)), [0, 3, 4]);
    }
}
