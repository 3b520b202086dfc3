//! Access to a chain's bytes independent of the driver's framing (Virtio 1.2 §2.7.4.1).

use ::block::Segments;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::GuestMap;

/// One buffer of a chain: not empty, but not yet checked to be in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical start.
    pub addr: GuestAddress,
    /// Length in bytes.
    pub len: u32,
}

/// A buffer is partly or completely outside of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a buffer is outside of guest memory")]
pub struct OutOfMemoryRange;

/// A run of bytes across the buffers of a chain.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    buffers: &'a [Buffer],
    /// Bytes of the first buffer before the span.
    skip: u32,
    len: u64,
}

impl<'a> Span<'a> {
    /// All bytes of `buffers`.
    #[must_use]
    pub fn new(buffers: &'a [Buffer]) -> Self {
        Self::with_len(buffers, buffers.iter().map(|buffer| u64::from(buffer.len)).sum())
    }

    /// All bytes of `buffers`, whose lengths add up to `len`.
    #[inline]
    pub(super) fn with_len(buffers: &'a [Buffer], len: u64) -> Self {
        Self { buffers, skip: 0, len }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the span has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first `at` bytes and the rest; `None` if the span is shorter.
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
        // The rest of `skip` is within one buffer.
        let skip = u32::try_from(skip).ok()?;
        Some((Self { len: at, ..self }, Self { buffers, skip, len: tail_len }))
    }

    /// The buffers of the span, cut to its bytes.
    pub fn buffers(&self) -> impl Iterator<Item = Buffer> + use<'a> {
        let mut skip = self.skip;
        let mut left = self.len;
        self.buffers.iter().map_while(move |buffer| {
            let len = u64::from(buffer.len - skip).min(left);
            // The address is unchecked. It must not wrap to one that passes a later check.
            let addr = GuestAddress(buffer.addr.0.saturating_add(u64::from(skip)));
            skip = 0;
            left -= len;
            (len > 0).then_some(Buffer { addr, len: u32::try_from(len).unwrap_or(u32::MAX) })
        })
    }

    /// Fills `into` from the start of the span.
    ///
    /// # Errors
    ///
    /// [`OutOfMemoryRange`] if a buffer is outside of guest memory or the span is too short.
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

    /// Copies the first 16 bytes, the size of most request headers.
    ///
    /// # Errors
    ///
    /// As [`Span::read`].
    pub fn read_16(&self, map: &GuestMap) -> Result<[u8; 16], OutOfMemoryRange> {
        let mut bytes = [0; 16];
        self.read(map, &mut bytes)?;
        Ok(bytes)
    }

    /// Copies the first 16 bytes as two little-endian words.
    ///
    /// # Errors
    ///
    /// As [`Span::read`].
    pub fn read_words(&self, map: &GuestMap) -> Result<[u64; 2], OutOfMemoryRange> {
        let mut bytes = [[0; 8]; 2];
        self.read(map, bytes.as_flattened_mut())?;
        Ok(bytes.map(u64::from_le_bytes))
    }

    /// Writes `from` to the start of the span: all of it, or nothing on an error.
    ///
    /// # Errors
    ///
    /// [`OutOfMemoryRange`] if a buffer is outside of guest memory or the span is too short.
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
    /// The caller keeps `map` until the request that uses the segments has completed.
    ///
    /// # Errors
    ///
    /// [`OutOfMemoryRange`] if a buffer is outside of guest memory.
    pub fn map(&self, map: &GuestMap, segments: &mut Segments) -> Result<(), OutOfMemoryRange> {
        for buffer in self.buffers() {
            if !map.push_segments(buffer.addr, buffer.len, segments) {
                return Err(OutOfMemoryRange);
            }
        }
        Ok(())
    }
}
