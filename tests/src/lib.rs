//! What no single crate can test: hostile driver, real guests.

pub mod lab;
