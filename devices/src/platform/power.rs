//! The power registers of hardware-reduced ACPI: sleep, reset and power button.
//!
//! Any host thread may press the button; vCPU threads access the registers.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;

/// A request of the guest through the power registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerRequest {
    /// Enter the soft-off state S5.
    Off,
    /// Reset the machine.
    Reset,
}

/// Registers, by offset in the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum PowerRegister {
    /// Sleep Control Register (ACPI 6.5 §4.8.3.7).
    SleepControl = 0,
    /// Sleep Status Register (ACPI 6.5 §4.8.3.7).
    SleepStatus = 1,
    /// Reset Register (ACPI 6.5 §4.8.3.6). Any write resets.
    Reset = 2,
    /// Reads as 1 once after a press of the button.
    Button = 3,
}

impl PowerRegister {
    fn at(offset: u64) -> Option<Self> {
        [Self::SleepControl, Self::SleepStatus, Self::Reset, Self::Button]
            .into_iter()
            .find(|&register| u64::from(register as u16) == offset)
    }
}

/// Sleep type of S5, in the `_S5` object of the DSDT.
const SLEEP_TYPE_OFF: u8 = 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;
const SLEEP_ENABLE: u8 = 1 << 5;

/// The host's handle of the power button.
#[derive(Clone)]
pub struct PowerButton {
    pressed: Arc<AtomicBool>,
    interrupt: Arc<EventFd>,
}

impl PowerButton {
    /// Presses the button: sets its register and raises the interrupt.
    ///
    /// # Errors
    ///
    /// The interrupt cannot be raised.
    pub fn press(&self) -> io::Result<()> {
        self.pressed.store(true, Ordering::Release);
        self.interrupt.write(1)
    }
}

/// The register block.
pub struct PowerControl {
    button: PowerButton,
    on_request: Box<dyn Fn(PowerRequest) + Send>,
}

impl PowerControl {
    /// Number of ports.
    pub const LENGTH: u16 = 4;
    /// Sleep type for the `_S5` object of the DSDT.
    pub const SLEEP_TYPE_OFF: u8 = SLEEP_TYPE_OFF;

    /// Registers that call `on_request` when the guest powers off or resets. The button raises
    /// `interrupt`.
    pub fn new(interrupt: EventFd, on_request: impl Fn(PowerRequest) + Send + 'static) -> Self {
        let button = PowerButton {
            pressed: Arc::new(AtomicBool::new(false)),
            interrupt: Arc::new(interrupt),
        };
        Self { button, on_request: Box::new(on_request) }
    }

    /// The power button.
    pub fn button(&self) -> PowerButton {
        self.button.clone()
    }

    fn read_register(&self, register: PowerRegister) -> u8 {
        match register {
            PowerRegister::Button => self.button.pressed.swap(false, Ordering::AcqRel).into(),
            PowerRegister::SleepControl | PowerRegister::SleepStatus | PowerRegister::Reset => 0,
        }
    }

    fn write_register(&self, register: PowerRegister, value: u8) {
        let sleep_type = (value >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK;
        match register {
            PowerRegister::SleepControl
                if value & SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_OFF =>
            {
                (self.on_request)(PowerRequest::Off);
            }
            PowerRegister::Reset => (self.on_request)(PowerRequest::Reset),
            PowerRegister::SleepControl | PowerRegister::SleepStatus | PowerRegister::Button => {}
        }
    }
}

impl BusDevice for PowerControl {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value = PowerRegister::at(offset).map_or(0xff, |register| self.read_register(register));
        data.fill(0xff);
        if let Some(first) = data.first_mut() {
            *first = value;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Some(register), Some(&value)) = (PowerRegister::at(offset), data.first()) {
            self.write_register(register, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    fn power() -> (PowerControl, EventFd, Receiver<PowerRequest>) {
        let interrupt = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let line = interrupt.try_clone().unwrap();
        let (sender, requests) = channel();
        let power = PowerControl::new(interrupt, move |request| sender.send(request).unwrap());
        (power, line, requests)
    }

    fn read(power: &mut PowerControl, register: PowerRegister) -> u8 {
        let mut data = [0];
        power.read(u64::from(register as u16), &mut data);
        data[0]
    }

    #[test]
    fn soft_off_needs_the_sleep_type_and_the_enable_bit() {
        let (mut power, _, requests) = power();
        power.write(0, &[SLEEP_TYPE_OFF << SLEEP_TYPE_SHIFT]);
        power.write(0, &[SLEEP_ENABLE | 3 << SLEEP_TYPE_SHIFT]);
        assert!(requests.try_recv().is_err());
        power.write(0, &[SLEEP_ENABLE | SLEEP_TYPE_OFF << SLEEP_TYPE_SHIFT]);
        assert_eq!(requests.try_recv().unwrap(), PowerRequest::Off);
    }

    #[test]
    fn any_write_to_the_reset_register_resets() {
        let (mut power, _, requests) = power();
        power.write(2, &[0]);
        assert_eq!(requests.try_recv().unwrap(), PowerRequest::Reset);
    }

    #[test]
    fn a_press_interrupts_and_is_read_once() {
        let (mut power, line, _) = power();
        assert_eq!(read(&mut power, PowerRegister::Button), 0);
        power.button().press().unwrap();
        assert_eq!(line.read().unwrap(), 1);
        assert_eq!(read(&mut power, PowerRegister::Button), 1);
        assert_eq!(read(&mut power, PowerRegister::Button), 0);
    }
}
