//! The devices of a PC outside PCI: port-mapped register blocks that run on the vCPU threads and
//! never block.

mod cmos;
mod keyboard_reset;
mod power;
mod pvpanic;
mod serial;

pub use cmos::Cmos;
pub use keyboard_reset::KeyboardReset;
pub use power::{PowerButton, PowerControl, PowerRegister, PowerRequest};
pub use pvpanic::Pvpanic;
pub use serial::{SerialOutput, SerialPort};
