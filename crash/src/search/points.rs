//! The power cuts of a recording that differ by what they can leave, in an order that spreads over
//! the recording. Pure.

use crate::history::History;

/// Power cuts, in completions, those around flushes first. Each kind is spread over the recording,
/// so that a fault that shows at several neighbours is met early, wherever it is.
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
        let all = spread(&near).chain(spread(&far)).collect();
        Self { all, first }
    }
}

/// The points in the order of the reversed bits of their places: the first one, one in the middle,
/// those in the middle of the halves, and so on.
fn spread(points: &[u64]) -> impl Iterator<Item = u64> {
    let bits = points.len().next_power_of_two().trailing_zeros();
    (0..1usize << bits).filter_map(move |turn| {
        let place = turn.reverse_bits().checked_shr(usize::BITS - bits).unwrap_or(0);
        points.get(place).copied()
    })
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn points_are_spread_and_none_is_left_out() {
        for len in 0..200u64 {
            let points: Vec<u64> = (0..len).collect();
            let order: Vec<u64> = spread(&points).collect();
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, points);
            // Each fifth of many points is met in the first third.
            for start in 0..if len < 20 { 0 } else { len - len / 5 } {
                let window = start..start + len / 5;
                let mut third = order.iter().take(order.len() / 3);
                assert!(third.any(|point| window.contains(point)), "{len}: {window:?}");
            }
        }
    }
}
