//! What no single crate can test: hostile driver, power cuts, real guests.

pub mod bench;
pub mod lab;
pub mod serve;
pub mod sim;

pub use driver;
