//! Descriptor chains, and reading and writing through them whatever their framing (Virtio 1.2 §2.7.4).

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileMemory};

use ::block::{Segment, Segments};

use super::guest_slice::slice;
use crate::GuestMemory;

/// One buffer of a chain: never empty, not yet known to lie in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical start.
    pub addr: GuestAddress,
    /// Length in bytes.
    pub len: u32,
}

/// A chain as it was when popped. One value is used again and again for all chains of a queue.
#[derive(Debug, Default)]
pub struct Chain {
    buffers: Vec<Buffer>,
    writable_from: usize,
    readable_len: u64,
    writable_len: u64,
}

impl Chain {
    /// An empty chain with room for `buffers`, so that popping does not allocate.
    #[must_use]
    pub fn with_capacity(buffers: usize) -> Self {
        Self { buffers: Vec::with_capacity(buffers), ..Self::default() }
    }

    /// What the driver wrote for the device.
    #[must_use]
    pub fn readable(&self) -> Span<'_> {
        let buffers = self.buffers.get(..self.writable_from).unwrap_or_default();
        Span { buffers, skip: 0, len: self.readable_len }
    }

    /// What the device is to write for the driver.
    #[must_use]
    pub fn writable(&self) -> Span<'_> {
        let buffers = self.buffers.get(self.writable_from..).unwrap_or_default();
        Span { buffers, skip: 0, len: self.writable_len }
    }

    /// As [`Chain::writable`], with the last byte apart as its address; `None` if there is no byte.
    #[must_use]
    pub fn writable_but_last(&self) -> Option<(Span<'_>, GuestAddress)> {
        let writable = self.writable();
        let (last, before) = writable.buffers.split_last()?;
        // Mostly it is a buffer of its own.
        if last.len == 1 {
            return Some((Span { buffers: before, skip: 0, len: writable.len - 1 }, last.addr));
        }
        let (data, last) = writable.split_at(writable.len.checked_sub(1)?)?;
        Some((data, last.buffers().next()?.addr))
    }

    /// Number of buffers.
    pub(super) fn len(&self) -> usize {
        self.buffers.len()
    }

    pub(super) fn clear(&mut self) {
        self.buffers.clear();
        (self.writable_from, self.readable_len, self.writable_len) = (0, 0, 0);
    }

    /// Appends a buffer; `false` if it is a readable one after a writable one.
    pub(super) fn push(&mut self, buffer: Buffer, writable: bool) -> bool {
        if writable {
            self.writable_len += u64::from(buffer.len);
        } else if self.writable_from == self.buffers.len() {
            self.readable_len += u64::from(buffer.len);
            self.writable_from += usize::from(buffer.len != 0);
        } else {
            return false;
        }
        if buffer.len != 0 {
            self.buffers.push(buffer);
        }
        true
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
    pub fn read(&self, memory: &GuestMemory, into: &mut [u8]) -> Result<(), OutOfMemoryRange> {
        let mut into = into;
        for buffer in self.buffers() {
            let (part, rest) = into.split_at_mut(into.len().min(buffer.len as usize));
            memory.read_slice(part, buffer.addr).map_err(|_| OutOfMemoryRange)?;
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
    pub fn read_16(&self, memory: &GuestMemory) -> Result<[u8; 16], OutOfMemoryRange> {
        // Mostly it is one buffer.
        if let Some(buffer) = self.buffers().next()
            && buffer.len >= 16
            && let Some(slice) = slice(memory, buffer.addr, 16)
            && let Ok(word) = slice.get_ref::<u128>(0)
        {
            return Ok(word.load().to_ne_bytes());
        }
        let mut bytes = [0; 16];
        self.read(memory, &mut bytes)?;
        Ok(bytes)
    }

    /// Copies `from` over the span's first bytes, all or none of it.
    ///
    /// # Errors
    ///
    /// [`OutOfMemoryRange`] if a buffer lies outside of guest memory or the span is too short.
    pub fn write(&self, memory: &GuestMemory, from: &[u8]) -> Result<(), OutOfMemoryRange> {
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
    /// The caller keeps `memory` until the request made of the segments has completed.
    ///
    /// # Errors
    ///
    /// [`OutOfMemoryRange`] if a buffer lies outside of guest memory.
    #[inline]
    pub fn map(
        &self,
        memory: &GuestMemory,
        segments: &mut Segments,
    ) -> Result<(), OutOfMemoryRange> {
        for buffer in self.buffers() {
            if let Some(slice) = slice(memory, buffer.addr, buffer.len as usize) {
                // SAFETY: the bytes are guest memory; the queue worker keeps its handle on it until its
                // engine has drained.
                segments.push(unsafe { Segment::new(slice.ptr_guard_mut().as_ptr(), slice.len()) });
                continue;
            }
            // More than one slice where the buffer lies across neighbouring regions.
            for slice in memory.get_slices(buffer.addr, buffer.len as usize) {
                let slice = slice.map_err(|_| OutOfMemoryRange)?;
                // SAFETY: get_slices has checked that the bytes are guest memory; the queue worker
                // keeps its handle on the guest memory until its engine has drained.
                segments.push(unsafe { Segment::new(slice.ptr_guard_mut().as_ptr(), slice.len()) });
            }
        }
        Ok(())
    }
}
