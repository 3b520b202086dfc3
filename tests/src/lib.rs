//! What no single crate can test: hostile driver, real guests.

pub mod driver;
pub mod lab;
