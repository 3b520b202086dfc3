//! A second reading of the specification (Virtio 1.2 §2.7, §5.2.6), byte by byte and without care
//! for speed: what must come of a chain on a writable disk with 512-byte blocks and discard.

use std::collections::HashSet;

use driver::{Descriptor, HIGH_MEMORY, LOW_BYTES, Machine};

use super::victim::{IO_ERROR, OK, UNSUPPORTED};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// What must come of a chain.
pub(crate) enum Verdict {
    /// The device asks for a reset.
    Reset,
    /// The chain is used.
    Answer {
        /// The length in the used ring.
        written: u32,
        /// Every byte of guest memory that is written, in order.
        writes: Vec<(u64, u8)>,
    },
}

/// A run of guest memory; it may lie anywhere.
type Run = (u64, u64);

/// Whether the run lies in guest memory.
fn is_memory((start, len): Run) -> bool {
    let Some(end) = start.checked_add(len) else { return false };
    end <= LOW_BYTES || (start >= HIGH_MEMORY && end <= HIGH_MEMORY + LOW_BYTES)
}

/// The first `len` bytes of the runs, or the rest after them.
fn split(runs: &[Run], len: u64) -> (Vec<Run>, Vec<Run>) {
    let (mut first, mut rest, mut left) = (vec![], vec![], len);
    for (start, len) in runs {
        let part = left.min(*len);
        left -= part;
        if part > 0 {
            first.push((*start, part));
        }
        if part < *len {
            rest.push((start.saturating_add(part), len - part));
        }
    }
    (first, rest)
}

fn total(runs: &[Run]) -> u64 {
    runs.iter().map(|(_, len)| len).sum()
}

/// The bytes in the runs, if all of them are memory.
fn bytes(machine: &Machine, runs: &[Run]) -> Option<Vec<u8>> {
    let all = runs.iter().map(|run| is_memory(*run).then(|| machine.read(run.0, run.1)));
    Some(all.collect::<Option<Vec<_>>>()?.concat())
}

/// The addresses of the bytes, in order.
fn addresses(runs: &[Run]) -> impl Iterator<Item = u64> + '_ {
    runs.iter().flat_map(|(start, len)| (0..*len).map(|at| start.wrapping_add(at)))
}

/// The readable and the writable runs of a chain; `None` if it is corrupt.
fn follow(
    machine: &Machine,
    table: &[Descriptor],
    head: u16,
    indirect: bool,
) -> Option<(Vec<Run>, Vec<Run>)> {
    let (mut readable, mut writable, mut seen_writable) = (vec![], vec![], false);
    let mut inner: Option<Vec<Descriptor>> = None;
    let (mut index, mut visited) = (head, HashSet::new());
    loop {
        if !visited.insert((inner.is_some(), index)) {
            return None;
        }
        let descriptor = *inner.as_deref().unwrap_or(table).get(usize::from(index))?;
        if descriptor.flags & INDIRECT != 0 {
            let run = (descriptor.addr, u64::from(descriptor.len));
            let fits = run.1 > 0 && run.1.is_multiple_of(16) && is_memory(run);
            if !indirect || inner.is_some() || descriptor.flags & NEXT != 0 || !fits {
                return None;
            }
            let raw = machine.read(run.0, run.1);
            inner = Some(raw.as_chunks::<16>().0.iter().map(decode).collect());
            index = 0;
            continue;
        }
        let run = (descriptor.addr, u64::from(descriptor.len));
        if descriptor.flags & WRITE != 0 {
            seen_writable = true;
            writable.push(run);
        } else if seen_writable && total(&writable) > 0 {
            return None;
        } else {
            readable.push(run);
        }
        if descriptor.flags & NEXT == 0 {
            return Some((readable, writable));
        }
        index = descriptor.next;
    }
}

fn decode(raw: &[u8; 16]) -> Descriptor {
    Descriptor {
        addr: u64::from_le_bytes(raw[..8].try_into().unwrap()),
        len: u32::from_le_bytes(raw[8..12].try_into().unwrap()),
        flags: u16::from_le_bytes(raw[12..14].try_into().unwrap()),
        next: u16::from_le_bytes(raw[14..].try_into().unwrap()),
    }
}

/// What must come of the chain at `head`, with what it does to the disk's `content` done.
/// `indirect` tells whether tables were negotiated.
pub(crate) fn judge(
    machine: &Machine,
    table: &[Descriptor],
    head: u16,
    indirect: bool,
    content: &mut [u8],
) -> Verdict {
    let Some((readable, writable)) = follow(machine, table, head, indirect) else {
        return Verdict::Reset;
    };
    let Some(data_len) = total(&writable).checked_sub(1) else { return Verdict::Reset };
    let (data_in, status) = split(&writable, data_len);
    if !is_memory((status[0].0, 1)) {
        return Verdict::Reset;
    }
    let (code, filled) = match answer(machine, &readable, &data_in, content) {
        Ok(filled) => (OK, filled),
        Err(code) => (code, vec![]),
    };
    let mut written = filled.len() as u64;
    written += u64::from(written == data_len);
    let mut writes: Vec<_> = addresses(&data_in).zip(filled).collect();
    // Where data overlaps, the last write counts, and the status is the very last.
    writes.push((status[0].0, code));
    Verdict::Answer { written: u32::try_from(written).unwrap(), writes }
}

/// Does the request and returns what is written into its data buffers, or its status.
fn answer(
    machine: &Machine,
    readable: &[Run],
    data_in: &[Run],
    content: &mut [u8],
) -> Result<Vec<u8>, u8> {
    let (header, data_out) = split(readable, 16);
    let header = bytes(machine, &header).filter(|raw| raw.len() == 16).ok_or(IO_ERROR)?;
    let sector = u64::from_le_bytes(header[8..].try_into().unwrap());
    match u32::from_le_bytes(header[..4].try_into().unwrap()) {
        0 => {
            let place = place(sector, total(data_in), content.len())?;
            let fits = data_in.iter().all(|run| is_memory(*run));
            if fits { Ok(content[place].to_vec()) } else { Err(IO_ERROR) }
        }
        1 => {
            let place = place(sector, total(&data_out), content.len())?;
            content[place].copy_from_slice(&bytes(machine, &data_out).ok_or(IO_ERROR)?);
            Ok(vec![])
        }
        4 => Ok(vec![]),
        8 => {
            let (first, _) = split(data_in, 20);
            let fits = total(&first) == 20 && first.iter().all(|run| is_memory(*run));
            let id = b"serial\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
            if fits { Ok(id) } else { Err(IO_ERROR) }
        }
        kind @ (11 | 13) => {
            let fits = total(&data_out) == 16;
            let raw = bytes(machine, &data_out).filter(|_| fits).ok_or(IO_ERROR)?;
            let flags = u32::from_le_bytes(raw[12..].try_into().unwrap());
            if flags > u32::from(kind == 13) {
                return Err(UNSUPPORTED);
            }
            let sector = u64::from_le_bytes(raw[..8].try_into().unwrap());
            let sectors = u32::from_le_bytes(raw[8..12].try_into().unwrap());
            let place = place(sector, u64::from(sectors) * 512, content.len())?;
            content[place].fill(0);
            Ok(vec![])
        }
        _ => Err(UNSUPPORTED),
    }
}

/// The bytes of the disk that a request means.
fn place(sector: u64, len: u64, capacity: usize) -> Result<std::ops::Range<usize>, u8> {
    let end = u128::from(sector) * 512 + u128::from(len);
    if !len.is_multiple_of(512) || end > capacity as u128 {
        return Err(IO_ERROR);
    }
    let end = usize::try_from(end).unwrap();
    Ok(end - usize::try_from(len).unwrap()..end)
}
