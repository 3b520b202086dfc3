//! The virtio network device (Virtio 1.2 §5.1) over a tap device, with one pair of queues.
//!
//! The tap device uses the virtio header itself (`IFF_VNET_HDR`): frames pass unchanged, and the
//! host's kernel checks the headers that the guest writes.

mod device;
mod tap;

pub use device::Net;
pub use tap::{Tap, TapError};
