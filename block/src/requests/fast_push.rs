//! The push of contiguous transfers: what most requests are.

use super::Requests;
use super::admission::admits_transfer;
use super::fast_slot::SlotState;
use crate::host_io::{FastTransfer, HostCall};
use crate::{ByteOffset, Operation, Request, Segment};

impl Requests {
    /// Accepts a contiguous transfer that promises no durability and that the host takes as it is:
    /// what most requests are. The transfer returned is to be submitted. `None` leaves the
    /// request to [`Requests::push`].
    #[inline(always)] // 26 instructions a request, by `make bench-gate`.
    pub(crate) fn push_fast(&mut self, request: &Request<'_>) -> Option<FastTransfer> {
        let &Request { tag, op, ref segments } = request;
        let (state, at) =
            SlotState::of(op).filter(|(state, _)| *state != SlotState::DurableWrite)?;
        let &[segment] = segments.as_slice() else { return None };
        self.push_to_slot(tag, segment, at, state)
    }

    /// As [`Requests::push_fast`], for a transfer of one segment.
    #[inline(always)] // By `make bench-gate`.
    pub(crate) fn push_contiguous(
        &mut self,
        tag: u16,
        segment: Segment,
        at: ByteOffset,
        is_write: bool,
    ) -> Option<FastTransfer> {
        let state = if is_write { SlotState::Write } else { SlotState::Read };
        self.push_to_slot(tag, segment, at, state)
    }

    /// Accepts a fast-path transfer, to be in this state.
    #[inline(always)] // By `make bench-gate`.
    fn push_to_slot(
        &mut self,
        tag: u16,
        segment: Segment,
        at: ByteOffset,
        state: SlotState,
    ) -> Option<FastTransfer> {
        let slot = self.fast.get_mut(usize::from(tag))?;
        let bytes = u32::try_from(segment.len()).ok().filter(|bytes| *bytes != 0)?;
        let is_write = state == SlotState::Write;
        if slot.state != SlotState::Vacant
            || !self.filter.accepts(&segment, at.0, is_write)
            || !admits_transfer(&self.disk, at.0, bytes, is_write)
        {
            return None;
        }
        (slot.state, slot.bytes, slot.at, slot.contiguous) = (state, bytes, at, Some(segment));
        self.submitted += 1;
        self.transfers.submit();
        Some(FastTransfer { base: segment.base(), bytes, at: at.0, is_write })
    }

    /// As [`Requests::push`], for a transfer that [`Requests::push_contiguous`] leaves.
    #[cold]
    pub(crate) fn push_segment(
        &mut self,
        tag: u16,
        segment: Segment,
        at: ByteOffset,
        is_write: bool,
    ) -> Option<HostCall> {
        let slot = self.fast.get_mut(usize::from(tag));
        let slot = slot.filter(|slot| slot.state == SlotState::Vacant);
        let mut segments = slot.map(|slot| std::mem::take(&mut slot.segments)).unwrap_or_default();
        segments.clear();
        segments.push(segment);
        let op = Operation::volatile_transfer(at, is_write);
        self.push(Request { tag, op, segments: &mut segments })
    }
}
