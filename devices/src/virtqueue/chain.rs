//! Descriptor chains as popped from a queue (Virtio 1.2 §2.7.4).

use vm_memory::GuestAddress;

use super::error::{MAX_BUFFERS, QueueError};
use super::span::{Buffer, Span};

/// The buffers of one chain. A worker reuses one value for all chains of its queue.
#[derive(Debug)]
pub struct Chain {
    /// Sized for the longest chain, so that popping does not allocate.
    buffers: Box<[Buffer; MAX_BUFFERS]>,
    extent: Extent,
}

/// The used part of a chain's buffers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Extent {
    /// Number of buffers.
    buffers: usize,
    /// Index of the first device-writable buffer.
    writable_from: usize,
    /// Bytes of the device-readable buffers.
    readable_len: u64,
    /// Bytes of the device-writable buffers.
    writable_len: u64,
}

impl Default for Chain {
    fn default() -> Self {
        let none = Buffer { addr: GuestAddress(0), len: 0 };
        Self { buffers: Box::new([none; MAX_BUFFERS]), extent: Extent::default() }
    }
}

impl Chain {
    /// The device-readable bytes.
    #[must_use]
    pub fn readable(&self) -> Span<'_> {
        let buffers = self.buffers.get(..self.extent.writable_from).unwrap_or_default();
        Span::with_len(buffers, self.extent.readable_len)
    }

    /// The device-writable bytes.
    #[must_use]
    pub fn writable(&self) -> Span<'_> {
        let Extent { buffers, writable_from, writable_len, .. } = self.extent;
        let buffers = self.buffers.get(writable_from..buffers).unwrap_or_default();
        Span::with_len(buffers, writable_len)
    }

    /// The device-writable bytes before the last one, and the address of the last one; `None` if
    /// the chain has no device-writable byte.
    #[must_use]
    pub fn writable_but_last(&self) -> Option<(Span<'_>, GuestAddress)> {
        let writable = self.writable();
        let (data, last) = writable.split_at(writable.len().checked_sub(1)?)?;
        Some((data, last.buffers().next()?.addr))
    }

    /// Fast path: the framing of most disk requests, a buffer of 16 bytes, one of data and one of
    /// one byte. `None` for any other framing.
    #[inline]
    #[must_use]
    pub fn fast_parts(&self) -> Option<FastParts> {
        let [header, data, status, ..] = &*self.buffers;
        if self.extent.buffers != 3 || header.len != 16 || status.len != 1 {
            return None;
        }
        let writable = match self.extent.writable_from {
            1 => true,
            2 => false,
            _ => return None,
        };
        Some(FastParts { header: header.addr, data: *data, writable, status: status.addr })
    }

    /// Fast path: fills the chain with three buffers, device-writable from index `writable_from`,
    /// which is 1 or 2. `false` if a buffer is empty; the chain is then invalid.
    #[inline]
    pub(super) fn fast_fill(&mut self, three: [Buffer; 3], writable_from: usize) -> bool {
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

    /// Appends buffers after `extent`, which is empty or the extent of an earlier builder.
    #[inline]
    pub(super) fn builder(&mut self, extent: Extent) -> ChainBuilder<'_> {
        ChainBuilder { buffers: &mut self.buffers, extent }
    }

    /// Completes the chain with the extent of its builder.
    #[inline]
    pub(super) fn set_extent(&mut self, extent: Extent) {
        self.extent = extent;
    }
}

/// The parts of a chain with the framing of the fast path; see [`Chain::fast_parts`].
#[derive(Clone, Copy, Debug)]
pub struct FastParts {
    /// Address of the 16 device-readable bytes.
    pub header: GuestAddress,
    /// The data buffer.
    pub data: Buffer,
    /// Whether the data buffer is device-writable.
    pub writable: bool,
    /// Address of the last byte, which is device-writable.
    pub status: GuestAddress,
}

/// Appends buffers to a chain.
pub(super) struct ChainBuilder<'a> {
    buffers: &'a mut [Buffer; MAX_BUFFERS],
    pub(super) extent: Extent,
}

impl ChainBuilder<'_> {
    /// Appends a buffer.
    ///
    /// # Errors
    ///
    /// [`QueueError::BufferOrder`] or [`QueueError::ChainLength`].
    #[inline(always)]
    pub(super) fn push(&mut self, buffer: Buffer, writable: bool) -> Result<(), QueueError> {
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
        // An empty buffer is overwritten by the next one.
        *self.buffers.get_mut(extent.buffers).ok_or(QueueError::ChainLength)? = buffer;
        extent.buffers += used;
        Ok(())
    }
}
