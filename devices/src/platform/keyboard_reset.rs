//! The reset line of a PC's keyboard controller (8042). No keyboard is attached.

use crate::bus::BusDevice;

/// Command: pulse the reset line.
const PULSE_RESET: u8 = 0xfe;
/// Status: ready for a command, no data.
const READY: u8 = 0;

/// The command and status register at port 0x64.
pub struct KeyboardReset {
    on_reset: Box<dyn Fn() + Send>,
}

impl KeyboardReset {
    /// Number of ports.
    pub const LENGTH: u16 = 1;

    /// A register that calls `on_reset` when the guest pulses the reset line.
    pub fn new(on_reset: impl Fn() + Send + 'static) -> Self {
        Self { on_reset: Box::new(on_reset) }
    }
}

impl BusDevice for KeyboardReset {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(READY);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data.contains(&PULSE_RESET) {
            (self.on_reset)();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn only_the_pulse_command_resets() {
        let (sender, resets) = mpsc::channel();
        let mut device = KeyboardReset::new(move || sender.send(()).unwrap());
        device.write(0, &[0xff]);
        assert!(resets.try_recv().is_err());
        device.write(0, &[PULSE_RESET]);
        assert!(resets.try_recv().is_ok());
        let mut status = [0xff];
        device.read(0, &mut status);
        assert_eq!(status, [READY]);
    }
}
