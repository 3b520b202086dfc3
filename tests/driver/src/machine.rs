//! The machine a driver runs on: guest memory with a hole, a bus, and devices on it.

use std::ops::Range;
use std::sync::Arc;

use devices::GuestMemory;
use devices::pci::{PciRoot, Window};
use devices::virtio::{PciTransport, VirtioDevice};
use vm_memory::{Bytes, GuestAddress};

use super::{EventHypervisor, Line};

/// Bytes of memory from address 0, and again from [`HIGH_MEMORY`].
pub const LOW_BYTES: u64 = 8 << 20;
/// Where memory goes on after the hole.
pub const HIGH_MEMORY: u64 = 1 << 32;
/// An address in the hole.
pub const HOLE: u64 = 0x8000_0000;
/// Where BARs are placed.
pub const WINDOW: Window = Window { base: 0xc000_0000, len: 0x1000_0000 };

/// Guest memory, the bus, and what the devices asked of the hypervisor.
pub struct Machine {
    /// Guest memory.
    pub memory: GuestMemory,
    /// The bus.
    pub root: PciRoot,
    /// What stands for KVM.
    pub hypervisor: Arc<EventHypervisor>,
    /// The interrupt lines of each slot.
    lines: Vec<Range<usize>>,
}

impl Machine {
    /// A machine with the given devices in slots 1, 2, …
    #[must_use]
    pub fn new(devices: Vec<Box<dyn VirtioDevice>>) -> Arc<Self> {
        let bytes = usize::try_from(LOW_BYTES).unwrap();
        let ranges = [(GuestAddress(0), bytes), (GuestAddress(HIGH_MEMORY), bytes)];
        Self::with_memory(GuestMemory::from_ranges(&ranges).unwrap(), devices)
    }

    /// The same with guest memory of one's own.
    #[must_use]
    pub fn with_memory(memory: GuestMemory, devices: Vec<Box<dyn VirtioDevice>>) -> Arc<Self> {
        let hypervisor = Arc::new(EventHypervisor::default());
        let mut root = PciRoot::new(WINDOW);
        let mut lines: Vec<_> = std::iter::once(0..0).collect();
        for device in devices {
            let shared = Arc::clone(&hypervisor);
            let transport = PciTransport::new(device, memory.clone(), shared).unwrap();
            let _ = root.add(Box::new(transport)).unwrap();
            lines.push(lines.last().unwrap().end..hypervisor.lines().len());
        }
        Arc::new(Self { memory, root, hypervisor, lines })
    }

    /// Line `vector` of the device in `slot`.
    pub fn line(&self, slot: u8, vector: u16) -> Arc<Line> {
        let lines = self.lines[usize::from(slot)].clone();
        Arc::clone(&self.hypervisor.lines()[lines][usize::from(vector)])
    }

    /// Writes guest memory.
    pub fn put(&self, addr: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    /// Reads guest memory.
    pub fn get(&self, addr: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        self.memory.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }
}

impl Drop for Machine {
    /// As the program does at its end, so that no worker outlives its test.
    fn drop(&mut self) {
        let _ = self.root.close();
    }
}
