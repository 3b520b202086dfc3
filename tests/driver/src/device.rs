//! Bringing a device up (Virtio 1.2 §3.1.1): status, features, queues, interrupts.

use std::sync::Arc;

use devices::virtio::QueueLayout;

use fixtures::wait_for;

use super::{Arena, Function, Line, Machine, Ring, Structure};

/// Bits of the device status (§2.1).
pub mod status {
    #![allow(missing_docs, reason = "named as in the specification")]
    pub const ACKNOWLEDGE: u8 = 1;
    pub const DRIVER: u8 = 2;
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
    pub const NEEDS_RESET: u8 = 64;
}

/// Feature bits (§5.2.3, §6).
pub mod feature {
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
}

/// A device and what its driver does with its registers.
#[derive(Clone)]
pub struct Device {
    /// Its registers.
    pub function: Function,
}

impl Device {
    /// The virtio device in `slot`.
    #[must_use]
    pub fn find(machine: &Arc<Machine>, slot: u8) -> Self {
        Self { function: Function::find(machine, slot) }
    }

    /// The machine the device is part of.
    #[must_use]
    pub fn machine(&self) -> &Arc<Machine> {
        &self.function.machine
    }

    /// Device status.
    #[must_use]
    pub fn status(&self) -> u8 {
        u8::from_le_bytes(self.function.read(Structure::Common, 0x14))
    }

    /// Writes device status.
    pub fn set_status(&self, status: u8) {
        self.function.write(Structure::Common, 0x14, &[status]);
    }

    /// Whether the device asked for a reset.
    #[must_use]
    pub fn needs_reset(&self) -> bool {
        self.status() & status::NEEDS_RESET != 0
    }

    /// Resets the device and waits for the end of it (§4.1.4.3.2).
    pub fn reset(&self) {
        self.set_status(0);
        wait_for(|| (self.status() == 0).then_some(())).expect("a reset ends");
    }

    /// The features the device offers.
    #[must_use]
    pub fn offered(&self) -> u64 {
        let half = |select: u32| {
            self.function.write(Structure::Common, 0x00, &select.to_le_bytes());
            u64::from(self.function.common_u32(0x04))
        };
        half(0) | half(1) << 32
    }

    /// Writes the driver's features.
    pub fn choose(&self, features: u64) {
        let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
        for (select, half) in [(0u32, [a, b, c, d]), (1, [e, f, g, h])] {
            self.function.write(Structure::Common, 0x08, &select.to_le_bytes());
            self.function.write(Structure::Common, 0x0c, &half);
        }
    }

    /// Resets, acknowledges, and settles features; whether the device took them.
    pub fn negotiate(&self, features: u64) -> bool {
        self.reset();
        self.set_status(status::ACKNOWLEDGE | status::DRIVER);
        self.choose(features);
        self.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        self.status() & status::FEATURES_OK != 0
    }

    /// How many queues there are.
    #[must_use]
    pub fn queues(&self) -> u16 {
        self.function.common_u16(0x12)
    }

    /// Lays out a queue with memory from `arena` and enables it, on vector `index + 1`.
    pub fn queue(&self, index: u16, size: u16, features: u64, arena: &mut Arena) -> Ring {
        let entries = u64::from(size);
        let layout = QueueLayout {
            size,
            descriptors: arena.take(16 * entries, 16),
            available: arena.take(6 + 2 * entries, 2),
            used: arena.take(6 + 8 * entries, 4),
        };
        let ring = Ring::new(self.machine().memory.clone(), layout, features);
        self.enable_queue(index, layout);
        ring
    }

    /// Tells the device of a queue and enables it, on vector `index + 1`.
    pub fn enable_queue(&self, index: u16, layout: QueueLayout) {
        self.function.place_queue(index, layout);
        self.function.write(Structure::Common, 0x1a, &(index + 1).to_le_bytes());
        self.function.write(Structure::Common, 0x1c, &1u16.to_le_bytes());
    }

    /// Unmasks all vectors, and gives the first to changes of configuration.
    pub fn enable_interrupts(&self) {
        for vector in 0..=self.queues() {
            self.set_vector(vector, false);
        }
        self.function.msix_control(0x80);
        self.function.write(Structure::Common, 0x10, &0u16.to_le_bytes());
    }

    /// Writes a vector's entry: a message of its own, masked or not.
    pub fn set_vector(&self, vector: u16, masked: bool) {
        let entry = u32::from(vector) * 16;
        let words = [0xfee0_0000, 0, 0x40 + u32::from(vector), u32::from(masked)];
        for (at, word) in (entry..).step_by(4).zip(words) {
            self.function.write(Structure::MsixTable, at, &word.to_le_bytes());
        }
    }

    /// Sets DRIVER_OK.
    pub fn start(&self) {
        self.set_status(self.status() | status::DRIVER_OK);
    }

    /// The line of a queue.
    #[must_use]
    pub fn queue_line(&self, queue: u16) -> Arc<Line> {
        self.machine().line(self.function.slot, queue + 1)
    }

    /// The line of configuration changes.
    #[must_use]
    pub fn config_line(&self) -> Arc<Line> {
        self.machine().line(self.function.slot, 0)
    }

    /// `N` bytes of device configuration.
    #[must_use]
    pub fn config<const N: usize>(&self, offset: u32) -> [u8; N] {
        self.function.read(Structure::Device, offset)
    }
}
