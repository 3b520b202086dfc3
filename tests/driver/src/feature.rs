//! Feature bits (Virtio 1.2 §5.2.3, §6).

#![allow(missing_docs, reason = "named as in the specification")]

pub const BLK_SEG_MAX: u64 = 1 << 2;
pub const BLK_RO: u64 = 1 << 5;
pub const BLK_SIZE: u64 = 1 << 6;
pub const BLK_FLUSH: u64 = 1 << 9;
pub const BLK_TOPOLOGY: u64 = 1 << 10;
pub const BLK_CONFIG_WCE: u64 = 1 << 11;
pub const BLK_MQ: u64 = 1 << 12;
pub const BLK_DISCARD: u64 = 1 << 13;
pub const BLK_WRITE_ZEROES: u64 = 1 << 14;
pub const INDIRECT_DESC: u64 = 1 << 28;
pub const EVENT_IDX: u64 = 1 << 29;
pub const VERSION_1: u64 = 1 << 32;
