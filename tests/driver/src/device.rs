//! Device initialization (Virtio 1.2 §3.1.1): status, features, queues, interrupts.

use std::sync::Arc;

use devices::virtio::QueueLayout;

use fixtures::wait_for;

use super::{Arena, Function, Line, Machine, Ring, Structure, status};

/// A virtio device, driven through its registers.
#[derive(Clone)]
pub struct Device {
    /// The registers.
    pub function: Function,
}

impl Device {
    /// The virtio device in `slot`.
    #[must_use]
    pub fn find(machine: &Arc<Machine>, slot: u8) -> Self {
        Self { function: Function::find(machine, slot) }
    }

    /// The machine that holds the device.
    #[must_use]
    pub fn machine(&self) -> &Arc<Machine> {
        &self.function.machine
    }

    /// Reads the device status.
    #[must_use]
    pub fn status(&self) -> u8 {
        u8::from_le_bytes(self.function.read(Structure::Common, 0x14))
    }

    /// Writes the device status.
    pub fn set_status(&self, status: u8) {
        self.function.write(Structure::Common, 0x14, &[status]);
    }

    /// Whether DEVICE_NEEDS_RESET is set.
    #[must_use]
    pub fn needs_reset(&self) -> bool {
        self.status() & status::NEEDS_RESET != 0
    }

    /// Resets the device and waits until the reset is complete (§4.1.4.3.2).
    pub fn reset(&self) {
        self.set_status(0);
        wait_for(|| (self.status() == 0).then_some(())).expect("the reset completes");
    }

    /// Reads the device's features.
    #[must_use]
    pub fn offered_features(&self) -> u64 {
        let half = |select: u32| {
            self.function.write(Structure::Common, 0x00, &select.to_le_bytes());
            u64::from(self.function.common_u32(0x04))
        };
        half(0) | half(1) << 32
    }

    /// Writes the driver's features.
    pub fn set_driver_features(&self, features: u64) {
        let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
        for (select, half) in [(0u32, [a, b, c, d]), (1, [e, f, g, h])] {
            self.function.write(Structure::Common, 0x08, &select.to_le_bytes());
            self.function.write(Structure::Common, 0x0c, &half);
        }
    }

    /// Resets, acknowledges and sets `features`; returns whether the device accepted FEATURES_OK.
    pub fn negotiate(&self, features: u64) -> bool {
        self.reset();
        self.set_status(status::ACKNOWLEDGE | status::DRIVER);
        self.set_driver_features(features);
        self.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        self.status() & status::FEATURES_OK != 0
    }

    /// Number of queues (`num_queues`).
    #[must_use]
    pub fn queues(&self) -> u16 {
        self.function.common_u16(0x12)
    }

    /// Lays out a queue in memory from `arena` and enables it on vector `index + 1`.
    pub fn queue(&self, index: u16, size: u16, features: u64, arena: &mut Arena) -> Ring {
        let entries = u64::from(size);
        let layout = QueueLayout {
            size,
            descriptors: arena.alloc(16 * entries, 16),
            available: arena.alloc(6 + 2 * entries, 2),
            used: arena.alloc(6 + 8 * entries, 4),
        };
        let ring = Ring::new(self.machine().memory.clone(), layout, features);
        self.enable_queue(index, layout);
        ring
    }

    /// Writes a queue's layout and enables it on vector `index + 1`.
    pub fn enable_queue(&self, index: u16, layout: QueueLayout) {
        self.function.set_queue_layout(index, layout);
        self.function.write(Structure::Common, 0x1a, &(index + 1).to_le_bytes());
        self.function.write(Structure::Common, 0x1c, &1u16.to_le_bytes());
    }

    /// Enables MSI-X with all vectors unmasked and maps configuration changes to vector 0.
    pub fn enable_interrupts(&self) {
        for vector in 0..=self.queues() {
            self.set_vector(vector, false);
        }
        self.function.msix_control(0x80);
        self.function.write(Structure::Common, 0x10, &0u16.to_le_bytes());
    }

    /// Writes the MSI-X table entry of a vector: a distinct message, masked or not.
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

    /// The interrupt line of a queue.
    #[must_use]
    pub fn queue_line(&self, queue: u16) -> Arc<Line> {
        self.machine().line(self.function.slot, queue + 1)
    }

    /// The interrupt line of configuration changes.
    #[must_use]
    pub fn config_line(&self) -> Arc<Line> {
        self.machine().line(self.function.slot, 0)
    }

    /// Reads `N` bytes of device configuration.
    #[must_use]
    pub fn config<const N: usize>(&self, offset: u32) -> [u8; N] {
        self.function.read(Structure::Device, offset)
    }
}
