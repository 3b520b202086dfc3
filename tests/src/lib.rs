//! What no single crate can test: hostile driver, power cuts, real guests.

pub use driver;
pub use lab;

/// The frontend and the program it talks to.
pub mod serve {
    pub use driver::feature;
    pub use driver::vhost_user::{Kept, Monitor, PendingRequest as Request, RingPart};
    pub use lab::Served;
}
