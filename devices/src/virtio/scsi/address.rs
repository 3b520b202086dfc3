//! Addresses of logical units and their encoding in requests and events (Virtio 1.2 §5.6.6.1).

use crate::scsi::Target;

/// Address of a disk on the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The target.
    pub target: u8,
    /// The logical unit number, at most [`Address::MAX_LUN`].
    pub lun: u16,
}

impl Address {
    /// The highest logical unit number (Virtio 1.2 §5.6.4).
    pub const MAX_LUN: u16 = Target::MAX_LUN;

    /// The `lun` field of requests and events.
    pub(super) fn encode(self) -> [u8; 8] {
        let [high, low] = Target::encode_lun(self.lun);
        [1, self.target, high, low, 0, 0, 0, 0]
    }
}

/// A decoded `lun` field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LunField {
    pub(super) target: u8,
    /// `None` for a number that no unit can have.
    pub(super) lun: Option<u16>,
}

impl LunField {
    /// Decodes a single level LUN of a target; `None` for any other structure.
    pub(super) fn decode(field: [u8; 8]) -> Option<Self> {
        let [1, target, high, low, rest @ ..] = field else { return None };
        let single_level = rest == [0; 4];
        let lun = Target::decode_lun([high, low]).filter(|_| single_level);
        Some(Self { target, lun })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_single_level_luns_are_decoded() {
        let decode = LunField::decode;
        let to = |target, lun| Some(LunField { target, lun });
        assert_eq!(decode([1, 3, 0, 5, 0, 0, 0, 0]), to(3, Some(5)));
        assert_eq!(decode([1, 255, 0x7f, 0xff, 0, 0, 0, 0]), to(255, Some(0x3fff)));
        assert_eq!(decode([1, 0, 0, 0, 0, 0, 0, 1]), to(0, None), "a second level");
        assert_eq!(decode([1, 0, 1, 0, 0, 0, 0, 0]), to(0, None), "another bus");
        assert_eq!(decode([0xc1, 1, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(decode([0; 8]), None);
    }
}
