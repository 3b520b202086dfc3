//! Routes the port and memory accesses of vCPUs to devices.
//!
//! Shared by all vCPU threads. An access takes only the lock of its device, and every device
//! answers from registers.

use std::sync::{Arc, Mutex, PoisonError};

use devices::bus::BusDevice;
use devices::pci::PciRoot;

use crate::layout::{PCI_CONFIG_PORTS, Ports};

/// A device shared by several threads.
pub(super) type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// The devices with ports, and those on PCI.
pub(super) struct Bus {
    ports: Vec<(Ports, SharedDevice)>,
    pci: Arc<PciRoot>,
}

impl Bus {
    /// A bus with only the PCI root.
    pub(super) fn new(pci: Arc<PciRoot>) -> Self {
        Self { ports: Vec::new(), pci }
    }

    /// Attaches `device` to `ports`.
    pub(super) fn attach(&mut self, ports: Ports, device: SharedDevice) {
        self.ports.push((ports, device));
    }

    /// Reads a port. Without a device, all bits are set.
    pub(super) fn read_port(&self, port: u16, data: &mut [u8]) {
        if let Some(offset) = PCI_CONFIG_PORTS.offset(port) {
            self.pci.config_read(offset, data);
        } else if let Some((offset, device)) = self.device_at(port) {
            device.lock().unwrap_or_else(PoisonError::into_inner).read(offset.into(), data);
        } else {
            data.fill(0xff);
        }
    }

    /// Writes a port.
    pub(super) fn write_port(&self, port: u16, data: &[u8]) {
        if let Some(offset) = PCI_CONFIG_PORTS.offset(port) {
            self.pci.config_write(offset, data);
        } else if let Some((offset, device)) = self.device_at(port) {
            device.lock().unwrap_or_else(PoisonError::into_inner).write(offset.into(), data);
        }
    }

    /// Reads device memory. Without a device, all bits are set.
    pub(super) fn read_memory(&self, address: u64, data: &mut [u8]) {
        if !self.pci.mmio_read(address, data) {
            data.fill(0xff);
        }
    }

    /// Writes device memory.
    pub(super) fn write_memory(&self, address: u64, data: &[u8]) {
        if !self.pci.mmio_write(address, data) {
            tracing::debug!(
                address = format_args!("{address:#x}"),
                "write to an address without a device"
            );
        }
    }

    fn device_at(&self, port: u16) -> Option<(u8, &SharedDevice)> {
        self.ports.iter().find_map(|(ports, device)| Some((ports.offset(port)?, device)))
    }
}

#[cfg(test)]
mod tests {
    use devices::pci::Window;

    use super::*;

    #[derive(Default)]
    struct RecordingDevice(Vec<(u64, u8)>);

    impl BusDevice for RecordingDevice {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }

        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0.push((offset, data[0]));
        }
    }

    #[test]
    fn configuration_ports_reach_the_pci_root() {
        let window = Window { base: 0xc000_0000, len: 0x1000 };
        let bus = Bus::new(Arc::new(PciRoot::new(window)));
        bus.write_port(0xcf8, &0x8000_0000_u32.to_le_bytes());
        let mut vendor = [0; 2];
        bus.read_port(0xcfc, &mut vendor);
        assert_ne!(vendor, [0xff; 2], "the host bridge answers");
        let mut absent = [0; 4];
        bus.read_memory(0xc000_0000, &mut absent);
        assert_eq!(absent, [0xff; 4]);
    }

    #[test]
    fn port_accesses_reach_the_device_of_their_range() {
        let window = Window { base: 0xc000_0000, len: 0x1000 };
        let mut bus = Bus::new(Arc::new(PciRoot::new(window)));
        let device = Arc::new(Mutex::new(RecordingDevice::default()));
        bus.attach(Ports { base: 0x100, length: 4 }, device.clone());
        for (port, seen) in [(0xff, 0xff), (0x100, 0), (0x103, 3), (0x104, 0xff)] {
            let mut data = [0];
            bus.read_port(port, &mut data);
            assert_eq!(data[0], seen, "{port:#x}");
            bus.write_port(port, &[7]);
        }
        assert_eq!(device.lock().unwrap().0, [(0, 7), (3, 7)]);
    }
}
