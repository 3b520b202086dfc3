//! The few devices of a PC outside PCI.
