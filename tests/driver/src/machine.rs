//! The machine of a driver: guest memory with a hole, a PCI bus, and its devices.

use std::ops::Range;
use std::sync::Arc;

use devices::GuestMemory;
use devices::pci::{PciRoot, Window};
use devices::virtio::{PciTransport, VirtioDevice};
use vm_memory::{Bytes, GuestAddress};

use super::{EventHypervisor, Line};

/// Bytes of memory at address 0, and as many at [`HIGH_MEMORY`].
pub const LOW_BYTES: u64 = 8 << 20;
/// Start of the memory above the hole.
pub const HIGH_MEMORY: u64 = 1 << 32;
/// An address in the hole.
pub const HOLE: u64 = 0x8000_0000;
/// The MMIO window of the BARs.
pub const WINDOW: Window = Window { base: 0xc000_0000, len: 0x1000_0000 };

/// Guest memory, the bus and the hypervisor.
pub struct Machine {
    /// Guest memory.
    pub memory: GuestMemory,
    /// The bus.
    pub root: PciRoot,
    /// The stand-in for KVM.
    pub hypervisor: Arc<EventHypervisor>,
    /// Range of interrupt lines by slot.
    lines: Vec<Range<usize>>,
}

impl Machine {
    /// A machine with `devices` in slots 1, 2, …
    #[must_use]
    pub fn new(devices: Vec<Box<dyn VirtioDevice>>) -> Arc<Self> {
        let bytes = usize::try_from(LOW_BYTES).unwrap();
        let ranges = [(GuestAddress(0), bytes), (GuestAddress(HIGH_MEMORY), bytes)];
        Self::with_memory(GuestMemory::from_ranges(&ranges).unwrap(), devices)
    }

    /// As [`Machine::new`], with the caller's guest memory.
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
    pub fn write(&self, addr: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    /// Reads guest memory.
    pub fn read(&self, addr: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        self.memory.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }
}

impl Drop for Machine {
    /// Closes the devices, so that no worker outlives its test.
    fn drop(&mut self) {
        let _ = self.root.close();
    }
}
