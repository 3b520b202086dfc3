//! The power cuts of a recording that differ by what they can leave. Pure.

use crate::history::History;

/// Power cuts, in completions, those around flushes first.
#[derive(Debug)]
pub(crate) struct Points {
    /// All of them, in the order in which they are explored.
    pub(crate) all: Vec<u64>,
    /// Those of them at the start that are next to a flush or a mark.
    pub(crate) first: usize,
}

impl Points {
    /// The power cuts of a history after at least `from` completions.
    ///
    /// A power cut that finds the same requests durable, the same open and the same marks as the
    /// one before leaves the same, and is left out.
    pub(crate) fn new(history: &History, from: u64) -> Self {
        let len = usize::try_from(history.len()).unwrap_or(usize::MAX);
        let mut differs = vec![false; len + 1];
        let mut first = vec![false; len + 1];
        let set = |list: &mut Vec<bool>, at: u64| {
            let place = usize::try_from(at).ok().and_then(|at| list.get_mut(at));
            if let Some(place) = place {
                *place = true;
            }
        };
        for (number, request) in (0u64..).zip(history.requests()) {
            if request.is_write() {
                set(&mut differs, request.issued_after);
                let flushed = history.discard_flushed_at(number);
                set(&mut differs, flushed.unwrap_or(history.durable_at(number)));
            }
            if (request.is_flush() || request.fua) && request.errno == 0 {
                set(&mut first, number);
                set(&mut first, number + 1);
            }
        }
        for mark in history.marks() {
            set(&mut differs, mark.after);
            set(&mut first, mark.after);
        }
        set(&mut differs, from);
        Self::in_order(from, &differs, &first)
    }

    fn in_order(from: u64, differs: &[bool], first: &[bool]) -> Self {
        let (mut near, mut far): (Vec<u64>, Vec<u64>) = (Vec::new(), Vec::new());
        let mut last: Option<(u64, bool)> = None;
        let mut keep = |kept: Option<(u64, bool)>| match kept {
            Some((point, true)) => near.push(point),
            Some((point, false)) => far.push(point),
            None => {}
        };
        for ((point, differs), first) in (0..).zip(differs).zip(first) {
            if point < from {
                continue;
            }
            if *differs {
                keep(last.take());
                last = Some((point, *first));
            } else if let Some((_, near)) = &mut last {
                *near |= *first;
            }
        }
        keep(last);
        let first = near.len();
        near.append(&mut far);
        Self { all: near, first }
    }
}
