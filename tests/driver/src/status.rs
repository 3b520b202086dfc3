//! Bits of the device status (Virtio 1.2 §2.1).

#![allow(missing_docs, reason = "named as in the specification")]

pub const ACKNOWLEDGE: u8 = 1;
pub const DRIVER: u8 = 2;
pub const DRIVER_OK: u8 = 4;
pub const FEATURES_OK: u8 = 8;
pub const NEEDS_RESET: u8 = 64;
