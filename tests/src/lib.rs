//! What no single crate can test: hostile driver, power cuts, real guests.

pub mod bench;
pub mod driver;
pub mod lab;
mod owned_child;
pub mod serve;
pub mod sim;
