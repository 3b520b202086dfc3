//! Reference implementation of virtio-blk chains (Virtio 1.2 §2.7, §5.2.6), independent of the
//! device and byte by byte: the expected outcome on a writable disk with 512-byte blocks and
//! discard.

use std::collections::HashSet;

use driver::{Descriptor, HIGH_MEMORY, LOW_BYTES, Machine};

use super::dut::{IO_ERROR, OK, UNSUPPORTED};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Expected outcome of a chain.
pub(crate) enum Expected {
    /// The device sets DEVICE_NEEDS_RESET.
    NeedsReset,
    /// The chain is used.
    Used {
        /// The length in the used ring.
        written: u32,
        /// The written bytes of guest memory in order.
        writes: Vec<(u64, u8)>,
    },
}

/// Address and length; may be outside of guest memory.
type Range = (u64, u64);

/// Whether the range is in guest memory.
fn is_memory((start, len): Range) -> bool {
    let Some(end) = start.checked_add(len) else { return false };
    end <= LOW_BYTES || (start >= HIGH_MEMORY && end <= HIGH_MEMORY + LOW_BYTES)
}

/// Splits ranges after `len` bytes.
fn split(ranges: &[Range], len: u64) -> (Vec<Range>, Vec<Range>) {
    let (mut first, mut rest, mut left) = (vec![], vec![], len);
    for (start, len) in ranges {
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

fn total(ranges: &[Range]) -> u64 {
    ranges.iter().map(|(_, len)| len).sum()
}

/// The bytes of the ranges if all are in guest memory.
fn bytes(machine: &Machine, ranges: &[Range]) -> Option<Vec<u8>> {
    let all = ranges.iter().map(|range| is_memory(*range).then(|| machine.read(range.0, range.1)));
    Some(all.collect::<Option<Vec<_>>>()?.concat())
}

/// The address of each byte in order.
fn addresses(ranges: &[Range]) -> impl Iterator<Item = u64> + '_ {
    ranges.iter().flat_map(|(start, len)| (0..*len).map(|at| start.wrapping_add(at)))
}

/// The readable and the writable ranges of a chain; `None` if it is malformed.
fn follow(
    machine: &Machine,
    table: &[Descriptor],
    head: u16,
    indirect: bool,
) -> Option<(Vec<Range>, Vec<Range>)> {
    let (mut readable, mut writable, mut seen_writable) = (vec![], vec![], false);
    let mut inner: Option<Vec<Descriptor>> = None;
    let (mut index, mut visited) = (head, HashSet::new());
    loop {
        if !visited.insert((inner.is_some(), index)) {
            return None;
        }
        let descriptor = *inner.as_deref().unwrap_or(table).get(usize::from(index))?;
        if descriptor.flags & INDIRECT != 0 {
            let range = (descriptor.addr, u64::from(descriptor.len));
            let fits = range.1 > 0 && range.1.is_multiple_of(16) && is_memory(range);
            if !indirect || inner.is_some() || descriptor.flags & NEXT != 0 || !fits {
                return None;
            }
            let raw = machine.read(range.0, range.1);
            inner = Some(raw.as_chunks::<16>().0.iter().map(decode).collect());
            index = 0;
            continue;
        }
        let range = (descriptor.addr, u64::from(descriptor.len));
        if descriptor.flags & WRITE != 0 {
            seen_writable = true;
            writable.push(range);
        } else if seen_writable && total(&writable) > 0 {
            return None;
        } else {
            readable.push(range);
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

/// Expected outcome of the chain at `head`. Applies its effect to the disk's `content`. `indirect`
/// says whether INDIRECT_DESC is negotiated.
pub(crate) fn expected_outcome(
    machine: &Machine,
    table: &[Descriptor],
    head: u16,
    indirect: bool,
    content: &mut [u8],
) -> Expected {
    let Some((readable, writable)) = follow(machine, table, head, indirect) else {
        return Expected::NeedsReset;
    };
    let Some(data_len) = total(&writable).checked_sub(1) else { return Expected::NeedsReset };
    let (data_in, status) = split(&writable, data_len);
    if !is_memory((status[0].0, 1)) {
        return Expected::NeedsReset;
    }
    let (code, filled) = match execute(machine, &readable, &data_in, content) {
        Ok(filled) => (OK, filled),
        Err(code) => (code, vec![]),
    };
    let mut written = filled.len() as u64;
    written += u64::from(written == data_len);
    let mut writes: Vec<_> = addresses(&data_in).zip(filled).collect();
    // In overlapping buffers the last write wins; the status is written last.
    writes.push((status[0].0, code));
    Expected::Used { written: u32::try_from(written).unwrap(), writes }
}

/// Executes the request; returns the bytes written to its data buffers, or the status of its
/// failure.
fn execute(
    machine: &Machine,
    readable: &[Range],
    data_in: &[Range],
    content: &mut [u8],
) -> Result<Vec<u8>, u8> {
    let (header, data_out) = split(readable, 16);
    let header = bytes(machine, &header).filter(|raw| raw.len() == 16).ok_or(IO_ERROR)?;
    let sector = u64::from_le_bytes(header[8..].try_into().unwrap());
    match u32::from_le_bytes(header[..4].try_into().unwrap()) {
        0 => {
            let place = disk_range(sector, total(data_in), content.len())?;
            let fits = data_in.iter().all(|range| is_memory(*range));
            if fits { Ok(content[place].to_vec()) } else { Err(IO_ERROR) }
        }
        1 => {
            let place = disk_range(sector, total(&data_out), content.len())?;
            content[place].copy_from_slice(&bytes(machine, &data_out).ok_or(IO_ERROR)?);
            Ok(vec![])
        }
        4 => Ok(vec![]),
        8 => {
            let (first, _) = split(data_in, 20);
            let fits = total(&first) == 20 && first.iter().all(|range| is_memory(*range));
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
            let place = disk_range(sector, u64::from(sectors) * 512, content.len())?;
            content[place].fill(0);
            Ok(vec![])
        }
        _ => Err(UNSUPPORTED),
    }
}

/// The range of the disk of a request.
fn disk_range(sector: u64, len: u64, capacity: usize) -> Result<std::ops::Range<usize>, u8> {
    let end = u128::from(sector) * 512 + u128::from(len);
    if !len.is_multiple_of(512) || end > capacity as u128 {
        return Err(IO_ERROR);
    }
    let end = usize::try_from(end).unwrap();
    Ok(end - usize::try_from(len).unwrap()..end)
}
