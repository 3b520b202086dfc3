//! The port through which a guest reports a kernel panic (pvpanic).

use crate::bus::BusDevice;

/// Event: the guest panicked.
const PANICKED: u8 = 1 << 0;

/// A pvpanic device (ACPI ID QEMU0001). A read returns the supported events, a write reports
/// events.
pub struct Pvpanic {
    on_panic: Box<dyn Fn() + Send>,
}

impl Pvpanic {
    /// Number of ports.
    pub const LENGTH: u16 = 1;

    /// A device that calls `on_panic` when the guest reports a panic.
    pub fn new(on_panic: impl Fn() + Send + 'static) -> Self {
        Self { on_panic: Box::new(on_panic) }
    }
}

impl BusDevice for Pvpanic {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(PANICKED);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data.iter().any(|event| event & PANICKED != 0) {
            (self.on_panic)();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn only_the_panic_event_counts() {
        let (sender, panics) = mpsc::channel();
        let mut device = Pvpanic::new(move || sender.send(()).unwrap());
        device.write(0, &[0x02]);
        assert!(panics.try_recv().is_err());
        device.write(0, &[PANICKED]);
        assert!(panics.try_recv().is_ok());
        let mut events = [0];
        device.read(0, &mut events);
        assert_eq!(events, [PANICKED]);
    }
}
