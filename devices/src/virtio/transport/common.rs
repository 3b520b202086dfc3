//! The common configuration structure (Virtio 1.2 §4.1.4.3): features, device status and the layout
//! of the queues.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::interrupt::NO_VECTOR;
use crate::virtqueue::{DeviceStatus, QueueLayout, feature, status};

/// Effect of a write beyond its register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    /// The driver wrote zero to the device status.
    Reset,
    /// The driver's features were accepted.
    FeaturesOk {
        /// The same write set DRIVER_OK.
        driver_ok: bool,
    },
    /// The driver set DRIVER_OK.
    DriverOk,
}

/// The registers of one queue.
pub(super) struct QueueSetup {
    max_size: u16,
    pub(super) layout: QueueLayout,
    pub(super) enabled: bool,
    pub(super) vector: Arc<AtomicU16>,
}

impl QueueSetup {
    fn new(max_size: u16) -> Self {
        let vector = Arc::new(AtomicU16::new(NO_VECTOR));
        let layout = QueueLayout { size: max_size, ..QueueLayout::default() };
        Self { max_size, layout, enabled: false, vector }
    }

    fn reset(&mut self) {
        self.layout = QueueLayout { size: self.max_size, ..QueueLayout::default() };
        self.enabled = false;
        self.vector.store(NO_VECTOR, Ordering::Relaxed);
    }
}

/// The registers of the structure.
pub(super) struct CommonConfig {
    device_features: u64,
    driver_features: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    config_vector: Arc<AtomicU16>,
    /// Number of MSI-X vectors.
    vectors: usize,
    status: DeviceStatus,
    /// A copy of the device's, refreshed before each read.
    pub(super) config_generation: u8,
    queue_select: u16,
    queues: Vec<QueueSetup>,
}

impl CommonConfig {
    pub(super) fn new(device_features: u64, queue_sizes: &[u16], vectors: usize) -> Self {
        Self {
            device_features,
            driver_features: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            config_vector: Arc::new(AtomicU16::new(NO_VECTOR)),
            vectors,
            status: DeviceStatus::default(),
            config_generation: 0,
            queue_select: 0,
            queues: queue_sizes.iter().map(|size| QueueSetup::new(*size)).collect(),
        }
    }

    pub(super) fn reset(&mut self) {
        self.driver_features = 0;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.config_vector.store(NO_VECTOR, Ordering::Relaxed);
        self.status.reset();
        self.queue_select = 0;
        self.queues.iter_mut().for_each(QueueSetup::reset);
    }

    pub(super) fn driver_features(&self) -> u64 {
        self.driver_features
    }

    pub(super) fn queues(&self) -> &[QueueSetup] {
        &self.queues
    }

    pub(super) fn config_vector(&self) -> Arc<AtomicU16> {
        Arc::clone(&self.config_vector)
    }

    /// The device status and ISR status registers.
    pub(super) fn status(&self) -> &DeviceStatus {
        &self.status
    }

    /// Reads registers. A driver reads each with its own width, or a half of a 64-bit one
    /// (§4.1.3.1).
    pub(super) fn read(&self, offset: u32, data: &mut [u8]) {
        data.fill(0);
        let value = self.register(offset).to_le_bytes();
        for (to, from) in data.iter_mut().zip(value) {
            *to = from;
        }
    }

    fn register(&self, offset: u32) -> u64 {
        let queue = self.queues.get(usize::from(self.queue_select));
        let layout = queue.map(|queue| queue.layout).unwrap_or_default();
        match offset {
            0x00 => self.device_feature_select.into(),
            0x04 => half(self.device_features, self.device_feature_select),
            0x08 => self.driver_feature_select.into(),
            0x0c => half(self.driver_features, self.driver_feature_select),
            0x10 => self.config_vector.load(Ordering::Relaxed).into(),
            0x12 => self.queues.len() as u64,
            0x14 => self.status.get().into(),
            0x15 => self.config_generation.into(),
            0x16 => self.queue_select.into(),
            0x18 => layout.size.into(), // zero: the queue does not exist
            0x1a => queue.map_or(NO_VECTOR, |q| q.vector.load(Ordering::Relaxed)).into(),
            0x1c => queue.is_some_and(|queue| queue.enabled).into(),
            0x1e => self.queue_select.into(), // queue_notify_off: one doorbell per queue
            0x20 => layout.descriptors,
            0x24 => layout.descriptors >> 32,
            0x28 => layout.available,
            0x2c => layout.available >> 32,
            0x30 => layout.used,
            0x34 => layout.used >> 32,
            _ => 0,
        }
    }

    /// Writes registers and returns the effect of the write beyond them.
    pub(super) fn write(&mut self, offset: u32, data: &[u8]) -> Effect {
        match (offset, data) {
            (0x14, &[status]) => return self.write_status(status),
            (_, &[low, high]) => self.write_u16(offset, u16::from_le_bytes([low, high])),
            (_, &[a, b, c, d]) => self.write_u32(offset, u32::from_le_bytes([a, b, c, d])),
            (_, data) if data.len() == 8 => {
                let _ = self.write(offset, data.get(..4).unwrap_or_default());
                let _ = self.write(offset + 4, data.get(4..).unwrap_or_default());
            }
            _ => {}
        }
        Effect::None
    }

    fn write_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            return Effect::Reset;
        }
        let before = self.status.get();
        let mut accepted = value | before;
        // §2.2.1, §3.1.1: FEATURES_OK stays clear if the driver's features are not acceptable.
        if before & status::FEATURES_OK == 0 && !self.features_acceptable() {
            accepted &= !status::FEATURES_OK;
        }
        // §3.1.1: DRIVER_OK requires FEATURES_OK.
        if accepted & status::FEATURES_OK == 0 {
            accepted &= !status::DRIVER_OK;
        }
        let starts =
            accepted & !before & status::DRIVER_OK != 0 && before & status::NEEDS_RESET == 0;
        self.status.set(accepted);
        if accepted & !before & status::FEATURES_OK != 0 {
            Effect::FeaturesOk { driver_ok: starts }
        } else if starts {
            Effect::DriverOk
        } else {
            Effect::None
        }
    }

    fn features_acceptable(&self) -> bool {
        self.driver_features & !self.device_features == 0
            && self.driver_features & feature::VERSION_1 != 0
    }

    fn write_u16(&mut self, offset: u32, value: u16) {
        match offset {
            0x10 => self.config_vector.store(self.vector(value), Ordering::Relaxed),
            0x16 => self.queue_select = value,
            0x1a => {
                let vector = self.vector(value);
                if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
                    queue.vector.store(vector, Ordering::Relaxed);
                }
            }
            _ => {
                let Some(queue) = self.queue_in_setup() else { return };
                match offset {
                    0x18 if value <= queue.max_size => queue.layout.size = value,
                    0x1c => queue.enabled = value == 1,
                    _ => {}
                }
            }
        }
    }

    fn write_u32(&mut self, offset: u32, value: u32) {
        match offset {
            0x00 => self.device_feature_select = value,
            0x08 => self.driver_feature_select = value,
            0x0c => self.write_driver_features(value),
            _ => {
                let Some(QueueSetup { layout, .. }) = self.queue_in_setup() else { return };
                match offset {
                    0x20 => set_low(&mut layout.descriptors, value),
                    0x24 => set_high(&mut layout.descriptors, value),
                    0x28 => set_low(&mut layout.available, value),
                    0x2c => set_high(&mut layout.available, value),
                    0x30 => set_low(&mut layout.used, value),
                    0x34 => set_high(&mut layout.used, value),
                    _ => {}
                }
            }
        }
    }

    /// Features are fixed once FEATURES_OK is set (§3.1.1).
    fn write_driver_features(&mut self, value: u32) {
        if self.status.get() & status::FEATURES_OK != 0 {
            return;
        }
        match self.driver_feature_select {
            0 => set_low(&mut self.driver_features, value),
            1 => set_high(&mut self.driver_features, value),
            _ => {}
        }
    }

    /// The selected queue, unless the workers run.
    fn queue_in_setup(&mut self) -> Option<&mut QueueSetup> {
        if self.status.get() & status::DRIVER_OK != 0 {
            return None;
        }
        self.queues.get_mut(usize::from(self.queue_select))
    }

    /// The vector, or NO_VECTOR if it does not exist, which the driver reads back (§4.1.5.1.2.1).
    fn vector(&self, value: u16) -> u16 {
        if usize::from(value) < self.vectors { value } else { NO_VECTOR }
    }
}

fn half(value: u64, select: u32) -> u64 {
    match select {
        0 => value & 0xffff_ffff,
        1 => value >> 32,
        _ => 0,
    }
}

fn set_low(target: &mut u64, value: u32) {
    *target = *target & !0xffff_ffff | u64::from(value);
}

fn set_high(target: &mut u64, value: u32) {
    *target = *target & 0xffff_ffff | u64::from(value) << 32;
}
