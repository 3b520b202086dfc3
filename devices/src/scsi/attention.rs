//! Unit attention conditions: changes of a unit that its initiator does not know yet (SAM-5 §5.14).
//!
//! Any thread raises them; the next command reports one. A command checks a flag and takes the lock
//! only if conditions are pending.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::sense::{Key, Sense};

/// A unit attention condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// POWER ON, RESET, OR BUS DEVICE RESET OCCURRED.
    PowerOn,
    /// BUS DEVICE RESET FUNCTION OCCURRED: a LOGICAL UNIT RESET.
    UnitReset,
    /// I_T NEXUS LOSS OCCURRED.
    NexusLoss,
    /// MODE PARAMETERS CHANGED, not by the initiator.
    ModeChanged,
    /// CAPACITY DATA HAS CHANGED.
    CapacityChanged,
    /// REPORTED LUNS DATA HAS CHANGED.
    LunsChanged,
    /// THIN PROVISIONING SOFT THRESHOLD REACHED (SBC-3 §4.7.3.7.6).
    SoftThreshold,
}

impl Attention {
    /// Additional sense code and qualifier (SPC-4 annex F).
    #[must_use]
    pub fn code(self) -> (u8, u8) {
        match self {
            Self::PowerOn => (0x29, 0x00),
            Self::UnitReset => (0x29, 0x03),
            Self::NexusLoss => (0x29, 0x07),
            Self::ModeChanged => (0x2a, 0x01),
            Self::CapacityChanged => (0x2a, 0x09),
            Self::LunsChanged => (0x3f, 0x0e),
            Self::SoftThreshold => (0x38, 0x07),
        }
    }

    pub(super) fn sense(self) -> Sense {
        let (code, qualifier) = self.code();
        Sense::new(Key::UnitAttention, code, qualifier)
    }

    /// Whether the condition clears all earlier ones.
    fn is_reset(self) -> bool {
        matches!(self, Self::PowerOn | Self::UnitReset | Self::NexusLoss)
    }
}

/// The pending conditions of a unit.
#[derive(Debug, Default)]
pub(super) struct Attentions {
    /// Whether `list` has conditions.
    pending: AtomicBool,
    list: Mutex<VecDeque<Attention>>,
}

impl Attentions {
    /// Adds a condition. A pending one is not added twice; a reset replaces all others.
    pub(super) fn raise(&self, attention: Attention) {
        let mut list = self.lock();
        if attention.is_reset() {
            list.clear();
        }
        if !list.contains(&attention) {
            list.push_back(attention);
        }
        self.pending.store(true, Ordering::Release);
    }

    /// Removes the oldest condition, which the caller reports.
    pub(super) fn take(&self) -> Option<Attention> {
        if !self.pending.load(Ordering::Acquire) {
            return None;
        }
        let mut list = self.lock();
        let oldest = list.pop_front();
        self.pending.store(!list.is_empty(), Ordering::Release);
        oldest
    }

    /// Removes REPORTED LUNS DATA HAS CHANGED: the initiator has read the list.
    pub(super) fn clear_luns_changed(&self) {
        if !self.pending.load(Ordering::Acquire) {
            return;
        }
        let mut list = self.lock();
        list.retain(|attention| *attention != Attention::LunsChanged);
        self.pending.store(!list.is_empty(), Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Attention>> {
        // The list is consistent after each operation on it.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_reported_once_and_in_order() {
        let attentions = Attentions::default();
        assert_eq!(attentions.take(), None);
        for attention in [Attention::CapacityChanged, Attention::LunsChanged] {
            attentions.raise(attention);
            attentions.raise(attention);
        }
        assert_eq!(attentions.take(), Some(Attention::CapacityChanged));
        attentions.clear_luns_changed();
        assert_eq!(attentions.take(), None);
    }

    #[test]
    fn a_reset_clears_earlier_conditions() {
        let attentions = Attentions::default();
        attentions.raise(Attention::CapacityChanged);
        attentions.raise(Attention::UnitReset);
        attentions.raise(Attention::ModeChanged);
        assert_eq!(attentions.take(), Some(Attention::UnitReset));
        assert_eq!(attentions.take(), Some(Attention::ModeChanged));
        assert_eq!(attentions.take(), None);
    }
}
