//! The few devices a PC has outside PCI. All are small port-mapped register blocks, run on the
//! vCPU threads and never block.

mod cmos;
mod keyboard_reset;
mod power;
mod pvpanic;
mod serial;

pub use cmos::Cmos;
pub use keyboard_reset::KeyboardReset;
pub use power::{PowerButton, PowerControl, PowerRegister, PowerRequest};
pub use pvpanic::Pvpanic;
pub use serial::SerialPort;
