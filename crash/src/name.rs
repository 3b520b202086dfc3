//! Names of states, by which a user asks for one again.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::losses::{Loss, Losses};

/// The name of a state: after how many completions the power was cut, and what was lost.
///
/// `1234` lost nothing: the disk has the requests in flight as well. `1234-17` lost write 17, as
/// numbered in the order of completion, and `1234-17-18.24+8` also sectors 24 to 31 of write 18,
/// counted from its start. `1234-18.0.3` lost two single sectors, `1234-all` all that was open.
/// `1234-17-discards` lost write 17 and all discards that a flush had followed, and
/// `1234-all-discards` these and all other open writes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StateName {
    /// Number of requests that had completed.
    pub point: u64,
    /// The writes that were lost. All of them are all but the discards below.
    pub losses: Losses,
    /// All discards that a flush had followed were lost as well.
    pub discards: bool,
}

/// A text is not the name of a state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not the name of a state, as 1234, 1234-17 or 1234-17-18.24+8: the requests that had \
     completed, and each lost write with the sectors that it lost of it"
)]
pub struct StateNameError(String);

impl fmt::Display for StateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.point)?;
        let end = if self.discards { "-discards" } else { "" };
        let Losses::These(these) = &self.losses else { return write!(f, "-all{end}") };
        for (write, loss) in these {
            write!(f, "-{write}")?;
            let Loss::Sectors(ranges) = loss else { continue };
            for (first, count) in ranges {
                write!(f, ".{first}")?;
                if *count != 1 {
                    write!(f, "+{count}")?;
                }
            }
        }
        f.write_str(end)
    }
}

impl FromStr for StateName {
    type Err = StateNameError;

    fn from_str(text: &str) -> Result<Self, StateNameError> {
        parse(text).ok_or_else(|| StateNameError(text.chars().take(80).collect()))
    }
}

fn parse(text: &str) -> Option<StateName> {
    let mut parts = text.split('-');
    let point = number(parts.next()?)?;
    let mut rest: Vec<&str> = parts.collect();
    let discards = rest.pop_if(|last| *last == "discards").is_some();
    if rest == ["all"] {
        return Some(StateName { point, losses: Losses::All, discards });
    }
    let mut these: BTreeMap<u64, Loss> = BTreeMap::new();
    for part in rest {
        let mut fields = part.split('.');
        let write = number(fields.next()?)?;
        let ranges: Vec<_> = fields.map(range).collect::<Option<_>>()?;
        let none = Loss::Sectors(Vec::new());
        let loss = if ranges.is_empty() { Loss::Whole } else { none.and(&Loss::Sectors(ranges)) };
        if these.insert(write, loss).is_some() {
            return None;
        }
    }
    Some(StateName { point, losses: Losses::These(these), discards })
}

fn range(text: &str) -> Option<(u64, u64)> {
    let (first, count) = text.split_once('+').unwrap_or((text, "1"));
    let (first, count) = (number(first)?, number(count)?);
    (count > 0 && first.checked_add(count).is_some()).then_some((first, count))
}

/// A number in decimal digits only.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|digit| digit.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_read_as_written() {
        for text in ["0", "1234", "1234-all", "1234-17", "1234-17-18.3", "5-1.0.2+8-4.7"]
            .into_iter()
            .chain(["1-discards", "1-all-discards", "5-1.0.2+8-discards"])
        {
            assert_eq!(text.parse::<StateName>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn other_forms_of_a_name_have_one_form() {
        for (text, written) in [("9-7-3", "9-3-7"), ("9-3.4.2+2.1", "9-3.1+4"), ("9-03", "9-3")] {
            assert_eq!(text.parse::<StateName>().unwrap().to_string(), written);
        }
    }

    #[test]
    fn other_texts_are_refused() {
        let long = "9".repeat(30);
        let texts = ["", "-", "-1", "a", "1-", "1-2-2", "1-2.", "1-2.3+", "1-2.3+0", "1-all-2"];
        let others = ["1-+2", "+1", "1 ", "1-2.18446744073709551615", "1-discards-2", "discards"];
        for text in texts.into_iter().chain(others).chain([long.as_str(), "1-discards-all"]) {
            assert!(text.parse::<StateName>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn each_name_is_read_as_written(
            point in any::<u64>(),
            lost in proptest::collection::btree_map(
                any::<u64>(), proptest::collection::vec((0..50u64, 1..9u64), 0..4), 0..5),
        ) {
            let none = Loss::Sectors(Vec::new());
            let losses = lost.into_iter().map(|(write, ranges)| {
                let whole = ranges.is_empty();
                (write, if whole { Loss::Whole } else { none.and(&Loss::Sectors(ranges)) })
            });
            let discards = point.is_multiple_of(2);
            let name = StateName { point, losses: Losses::These(losses.collect()), discards };
            prop_assert_eq!(name.to_string().parse::<StateName>().unwrap(), name);
        }

        #[test]
        fn losses_together_cover_what_each_covers(
            one in proptest::collection::vec((0..50u64, 0..9u64), 0..5),
            two in proptest::collection::vec((0..50u64, 0..9u64), 0..5),
        ) {
            let none = Loss::Sectors(Vec::new());
            let both = none.and(&Loss::Sectors(one.clone())).and(&Loss::Sectors(two.clone()));
            for sector in 0..70 {
                let expected = one.iter().chain(&two).any(|(first, count)| {
                    (*first..first + count).contains(&sector)
                });
                prop_assert_eq!(both.covers(sector), expected);
            }
        }
    }
}
