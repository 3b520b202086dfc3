//! Descriptor chains, and reading and writing through them whatever their framing (Virtio 1.2 §2.7.4).

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use ::block::{Segment, Segments};

use super::queue::{MAX_BUFFERS, QueueError};
use crate::guest_memory::GuestMap;

/// One buffer of a chain: never empty, not yet known to lie in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical start.
    pub addr: GuestAddress,
    /// Length in bytes.
    pub len: u32,
}

/// A chain as it was when popped. One value is used again and again for all chains of a queue.
#[derive(Debug)]
pub struct Chain {
    /// Room for the longest chain, so that popping does not allocate.
    buffers: Box<[Buffer; MAX_BUFFERS]>,
    extent: Extent,
}

/// How much of a chain's room is in use, and for what.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Extent {
    buffers: usize,
    writable_from: usize,
    readable_len: u64,
    writable_len: u64,
}

impl Default for Chain {
    fn default() -> Self {
        let none = Buffer { addr: GuestAddress(0), len: 0 };
        Self { buffers: Box::new([none; MAX_BUFFERS]), extent: Extent::default() }
    }
}

impl Chain {
    /// What the driver wrote for the device.
    #[must_use]
    pub fn readable(&self) -> Span<'_> {
        let buffers = self.buffers.get(..self.extent.writable_from).unwrap_or_default();
        Span { buffers, skip: 0, len: self.extent.readable_len }
    }

    /// What the device is to write for the driver.
    #[must_use]
    pub fn writable(&self) -> Span<'_> {
        let Extent { buffers, writable_from, writable_len, .. } = self.extent;
        let buffers = self.buffers.get(writable_from..buffers).unwrap_or_default();
        Span { buffers, skip: 0, len: writable_len }
    }

    /// The chain as most requests for a disk are framed: a buffer of 16 bytes, then data in one piece, then a buffer of one byte.
    #[inline]
    #[must_use]
    pub fn framed(&self) -> Option<Framed> {
        let [header, data, status, ..] = &*self.buffers;
        if self.extent.buffers != 3 || header.len != 16 || status.len != 1 {
            return None;
        }
        let writable = match self.extent.writable_from {
            1 => true,
            2 => false,
            _ => return None,
        };
        Some(Framed { header: header.addr, data: *data, writable, status: status.addr })
    }

    /// As [`Chain::writable`], with the last byte apart as its address; `None` if there is no byte.
    #[must_use]
    pub fn writable_but_last(&self) -> Option<(Span<'_>, GuestAddress)> {
        let writable = self.writable();
        let (data, last) = writable.split_at(writable.len.checked_sub(1)?)?;
        Some((data, last.buffers().next()?.addr))
    }

    /// Fills the chain behind `extent`, which is empty or the extent of what was filled before.
    #[inline]
    pub(crate) fn fill(&mut self, extent: Extent) -> Filling<'_> {
        Filling { buffers: &mut self.buffers, extent }
    }

    /// Makes a chain of these three, the device-writable ones from the one or two on. `false` if one of them is empty.
    #[inline]
    pub(crate) fn set_three(&mut self, three: [Buffer; 3], writable_from: usize) -> bool {
        let lens = three.map(|buffer| u64::from(buffer.len));
        let [header, data, status] = lens;
        let data_out = if writable_from == 1 { 0 } else { data };
        let [first, second, third, ..] = &mut *self.buffers;
        [*first, *second, *third] = three;
        self.extent = Extent {
            buffers: 3,
            writable_from,
            readable_len: header + data_out,
            writable_len: data - data_out + status,
        };
        lens.iter().all(|len| *len != 0)
    }

    /// The chain is complete.
    #[inline]
    pub(crate) fn set_extent(&mut self, extent: Extent) {
        self.extent = extent;
    }
}

/// See [`Chain::framed`].
#[derive(Clone, Copy, Debug)]
pub struct Framed {
    /// Where the 16 bytes are. They are device-readable.
    pub header: GuestAddress,
    /// The data.
    pub data: Buffer,
    /// Whether the data is device-writable.
    pub writable: bool,
    /// Where the last byte is. It is device-writable.
    pub status: GuestAddress,
}

/// A chain while its buffers are appended.
pub(crate) struct Filling<'a> {
    buffers: &'a mut [Buffer; MAX_BUFFERS],
    pub(crate) extent: Extent,
}

impl Filling<'_> {
    /// Appends a buffer.
    ///
    /// # Errors
    ///
    /// It is a readable one after a writable one, or one too many.
    #[inline(always)]
    pub(crate) fn push(&mut self, buffer: Buffer, writable: bool) -> Result<(), QueueError> {
        let (extent, len) = (&mut self.extent, u64::from(buffer.len));
        let used = usize::from(len != 0);
        if writable {
            extent.writable_len += len;
        } else if extent.writable_from == extent.buffers {
            extent.readable_len += len;
            extent.writable_from += used;
        } else {
            return Err(QueueError::BufferOrder);
        }
        // One that is empty is overwritten by the next.
        *self.buffers.get_mut(extent.buffers).ok_or(QueueError::ChainLength)? = buffer;
        extent.buffers += used;
        Ok(())
    }
}

/// A buffer lies, in part or whole, outside of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a buffer lies outside of guest memory")]
pub struct OutOfMemoryRange;

/// A run of a chain's bytes: what matters is their order, not how the driver cut them.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    buffers: &'a [Buffer],
    /// Bytes of the first buffer that lie before the span.
    skip: u32,
    len: u64,
}

impl<'a> Span<'a> {
    /// All bytes of `buffers`.
    #[must_use]
    pub fn new(buffers: &'a [Buffer]) -> Self {
        Self { buffers, skip: 0, len: buffers.iter().map(|buffer| u64::from(buffer.len)).sum() }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first `at` bytes and the rest; `None` if there are fewer.
    #[must_use]
    pub fn split_at(self, at: u64) -> Option<(Self, Self)> {
        let tail_len = self.len.checked_sub(at)?;
        let (mut buffers, mut skip) = (self.buffers, u64::from(self.skip) + at);
        while let Some((first, rest)) = buffers.split_first()
            && skip >= u64::from(first.len)
        {
            skip -= u64::from(first.len);
            buffers = rest;
        }
        // What is left to skip lies within one buffer.
        let skip = u32::try_from(skip).ok()?;
        Some((Self { len: at, ..self }, Self { buffers, skip, len: tail_len }))
    }

    /// The buffers of the span, cut to it.
    pub fn buffers(&self) -> impl Iterator<Item = Buffer> + use<'a> {
        let mut skip = self.skip;
        let mut left = self.len;
        self.buffers.iter().map_while(move |buffer| {
            let len = u64::from(buffer.len - skip).min(left);
            // The address may be the driver's fancy: whoever reads there checks it. It must not wrap
            // around to one that passes.
            let addr = GuestAddress(buffer.addr.0.saturating_add(u64::from(skip)));
            skip = 0;
            left -= len;
            (len > 0).then_some(Buffer { addr, len: u32::try_from(len).unwrap_or(u32::MAX) })
        })
    }

    /// Copies the span's first bytes, as many as `into` holds.
    ///
    /// # Errors
    ///
    /// [`OutOfMemoryRange`] if a buffer lies outside of guest memory or the span is too short.
    pub fn read(&self, map: &GuestMap, into: &mut [u8]) -> Result<(), OutOfMemoryRange> {
        let mut into = into;
        for buffer in self.buffers() {
            let (part, rest) = into.split_at_mut(into.len().min(buffer.len as usize));
            map.memory().read_slice(part, buffer.addr).map_err(|_| OutOfMemoryRange)?;
            into = rest;
            if into.is_empty() {
                break;
            }
        }
        if into.is_empty() { Ok(()) } else { Err(OutOfMemoryRange) }
    }

    /// Copies the span's first 16 bytes, the size of most of what devices are asked with.
    ///
    /// # Errors
    ///
    /// As [`Span::read`].
    pub fn read_16(&self, map: &GuestMap) -> Result<[u8; 16], OutOfMemoryRange> {
        let mut bytes = [0; 16];
        self.read(map, &mut bytes)?;
        Ok(bytes)
    }

    /// Copies the span's first 16 bytes as two little-endian words.
    ///
    /// # Errors
    ///
    /// As [`Span::read`].
    pub fn read_words(&self, map: &GuestMap) -> Result<[u64; 2], OutOfMemoryRange> {
        let mut bytes = [[0; 8]; 2];
        self.read(map, bytes.as_flattened_mut())?;
        Ok(bytes.map(u64::from_le_bytes))
    }

    /// Copies `from` over the span's first bytes, all or none of it.
    ///
    /// # Errors
    ///
    /// [`OutOfMemoryRange`] if a buffer lies outside of guest memory or the span is too short.
    pub fn write(&self, map: &GuestMap, from: &[u8]) -> Result<(), OutOfMemoryRange> {
        let memory = map.memory();
        let (target, _) = self.split_at(from.len() as u64).ok_or(OutOfMemoryRange)?;
        if !target.buffers().all(|buffer| memory.check_range(buffer.addr, buffer.len as usize)) {
            return Err(OutOfMemoryRange);
        }
        let mut from = from;
        for buffer in target.buffers() {
            let (part, rest) = from.split_at(from.len().min(buffer.len as usize));
            memory.write_slice(part, buffer.addr).map_err(|_| OutOfMemoryRange)?;
            from = rest;
            if from.is_empty() {
                break;
            }
        }
        if from.is_empty() { Ok(()) } else { Err(OutOfMemoryRange) }
    }

    /// Appends the span's bytes to `segments` as memory of this process.
    ///
    /// The caller keeps `map` until the request made of the segments has completed.
    ///
    /// # Errors
    ///
    /// [`OutOfMemoryRange`] if a buffer lies outside of guest memory.
    pub fn map(&self, map: &GuestMap, segments: &mut Segments) -> Result<(), OutOfMemoryRange> {
        for buffer in self.buffers() {
            match map.segment(buffer.addr, buffer.len) {
                Some(segment) => segments.push(segment),
                None => map_across(buffer, map, segments)?,
            }
        }
        Ok(())
    }
}

/// Appends a buffer that lies across neighbouring regions, which is more than one piece of this process.
#[cold]
fn map_across(
    buffer: Buffer,
    map: &GuestMap,
    segments: &mut Segments,
) -> Result<(), OutOfMemoryRange> {
    for slice in map.memory().get_slices(buffer.addr, buffer.len as usize) {
        let slice = slice.map_err(|_| OutOfMemoryRange)?;
        // SAFETY: get_slices has checked that the bytes are guest memory; the queue worker
        // keeps its map until its engine has drained.
        segments.push(unsafe { Segment::new(slice.ptr_guard_mut().as_ptr(), slice.len()) });
    }
    Ok(())
}
