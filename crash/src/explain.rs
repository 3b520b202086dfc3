//! Explanations of states, in words and numbers.

use std::fmt;

use block::LogKind;

use crate::cells::SECTOR;
use crate::history::Recorded;
use crate::losses::Loss;
use crate::name::StateName;
use crate::source::Source;

/// Lost writes that a text lists. There may be thousands.
const LISTED: usize = 20;

/// A request, as an explanation has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestFact {
    /// Its number in the order of completion.
    pub number: u64,
    /// A write, a flush, a discard or a zeroing.
    pub kind: LogKind,
    /// First byte of its range.
    pub at: u64,
    /// Bytes of its range; 0 for a flush.
    pub len: u64,
    /// Whether it was durable when it completed.
    pub fua: bool,
    /// The queue of the disk that it came through.
    pub queue: u16,
    /// The errno of its failure, or 0.
    pub errno: i32,
    /// When it was issued and when it completed, in nanoseconds from the start of the recording;
    /// `None` in logs of others.
    pub times: Option<(u64, u64)>,
}

/// A write that a state lost, in whole or in part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostWrite {
    /// The write.
    pub write: RequestFact,
    /// The ranges of the disk that are lost of it: first byte and number of bytes.
    pub lost: Vec<(u64, u64)>,
    /// Whether it was in flight when the power was cut.
    pub in_flight: bool,
    /// Whether it was durable. Then it is lost only where a write that overlapped it in time may
    /// have come after it.
    pub durable: bool,
    /// Whether it is a discard that a flush had followed, which makes no promise of its content.
    pub flushed_discard: bool,
}

/// A mark of a recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkFact {
    /// How many requests had completed when it was made.
    pub after: u64,
    /// Its text.
    pub text: String,
    /// When it was made, in nanoseconds from the start of the recording; `None` in logs of others.
    pub ns: Option<u64>,
}

/// A state, explained for a user to find the error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The state.
    pub name: StateName,
    /// The writes that it lost.
    pub lost: Vec<LostWrite>,
    /// Number of writes that were open when the power was cut: those in flight as well, and not the
    /// discards that a flush had followed.
    pub open: u64,
    /// The last flush that had completed.
    pub flush_before: Option<RequestFact>,
    /// The first flush that had not.
    pub flush_after: Option<RequestFact>,
    /// The last mark that had been made.
    pub mark_before: Option<MarkFact>,
    /// The first mark that had not.
    pub mark_after: Option<MarkFact>,
}

/// Explains a state whose name was verified.
pub(crate) fn explain(source: &Source, name: &StateName) -> Explanation {
    let history = &source.history;
    let point = name.point;
    let lost = source.lost(name).into_iter().filter_map(|(number, loss)| {
        let write = history.request(number)?;
        Some(LostWrite {
            write: fact(number, write),
            lost: ranges(write, &loss),
            in_flight: number >= point,
            durable: history.durable_at(number) <= point,
            flushed_discard: history.is_flushed_discard(number, point),
        })
    });
    let open = (0..history.issued_end(point))
        .filter(|number| history.is_open(*number, point))
        .filter(|number| !history.is_flushed_discard(*number, point));
    let is_flush = |number: &u64| history.request(*number).is_some_and(Recorded::is_flush);
    let flush = |number: u64| history.request(number).map(|request| fact(number, request));
    let marks = history.marks_at(point);
    let mark = |at: usize| {
        let mark = history.marks().get(at)?;
        Some(MarkFact { after: mark.after, text: mark.text.clone(), ns: mark.ns })
    };
    Explanation {
        name: name.clone(),
        lost: lost.collect(),
        open: open.count() as u64,
        flush_before: (0..point).rev().find(is_flush).and_then(flush),
        flush_after: (point..history.len()).find(is_flush).and_then(flush),
        mark_before: marks.checked_sub(1).and_then(mark),
        mark_after: mark(marks),
    }
}

fn fact(number: u64, request: &Recorded) -> RequestFact {
    let Recorded { kind, at, len, fua, queue, errno, times, .. } = *request;
    RequestFact { number, kind, at, len, fua, queue, errno, times }
}

fn ranges(write: &Recorded, loss: &Loss) -> Vec<(u64, u64)> {
    match loss {
        Loss::Whole => vec![(write.at, write.len)],
        Loss::Sectors(ranges) => ranges
            .iter()
            .map(|(first, count)| (write.at + first * SECTOR, count * SECTOR))
            .collect(),
    }
}

impl fmt::Display for RequestFact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            LogKind::Write => "write",
            LogKind::Flush => "flush",
            LogKind::Discard => "discard",
            LogKind::Zero => "zeroing",
            LogKind::Mark | LogKind::End => "mark",
        };
        write!(f, "{kind} {}", self.number)?;
        if self.len > 0 {
            write!(f, " of {} bytes at byte {}", self.len, self.at)?;
        }
        if self.fua {
            f.write_str(", FUA")?;
        }
        if self.errno != 0 {
            write!(f, ", failed with errno {}", self.errno)?;
        }
        if let Some((issued, completed)) = self.times {
            write!(f, ", queue {}, {} to {}", self.queue, Seconds(issued), Seconds(completed))?;
        }
        Ok(())
    }
}

/// Nanoseconds, as seconds with six digits.
struct Seconds(u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06} s", self.0 / 1_000_000_000, self.0 % 1_000_000_000 / 1000)
    }
}

impl fmt::Display for LostWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.write)?;
        if self.in_flight {
            f.write_str(", in flight")?;
        }
        if self.durable {
            f.write_str(", durable, lost to writes that overlapped it in time only")?;
        }
        if self.flushed_discard {
            f.write_str(", flushed, which makes no discard durable")?;
        }
        let lost: u64 = self.lost.iter().map(|(_, len)| len).sum();
        if lost == self.write.len {
            return f.write_str(": lost as a whole");
        }
        write!(f, ": {lost} bytes lost, at byte")?;
        for (at, len) in self.lost.iter().take(LISTED) {
            write!(f, " {at}+{len}")?;
        }
        let more = self.lost.len().saturating_sub(LISTED);
        if more > 0 { write!(f, " and {more} more ranges") } else { Ok(()) }
    }
}

impl fmt::Display for MarkFact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mark {:?} after {} completions", self.text, self.after)?;
        self.ns.map_or(Ok(()), |ns| write!(f, ", at {}", Seconds(ns)))
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (point, open) = (self.name.point, self.open);
        writeln!(f, "power cut after {point} completions; open writes: {open}")?;
        let or_none = |f: &mut fmt::Formatter<'_>, what: &str, fact: Option<String>| {
            writeln!(f, "  {what}: {}", fact.as_deref().unwrap_or("none"))
        };
        or_none(f, "last flush before", self.flush_before.as_ref().map(ToString::to_string))?;
        or_none(f, "first flush after", self.flush_after.as_ref().map(ToString::to_string))?;
        or_none(f, "last mark before", self.mark_before.as_ref().map(ToString::to_string))?;
        or_none(f, "first mark after", self.mark_after.as_ref().map(ToString::to_string))?;
        writeln!(f, "  lost writes: {}", self.lost.len())?;
        for lost in self.lost.iter().take(LISTED) {
            writeln!(f, "    {lost}")?;
        }
        let more = self.lost.len().saturating_sub(LISTED);
        if more > 0 { writeln!(f, "    and {more} more") } else { Ok(()) }
    }
}
