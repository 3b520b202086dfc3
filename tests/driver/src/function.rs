//! One PCI function as its driver accesses it: configuration space through ports 0xcf8 and 0xcfc,
//! the capability list, and the virtio structures in its BAR (Virtio 1.2 §4.1.4).

use std::sync::Arc;

use devices::virtio::QueueLayout;

use super::Machine;

/// The structures in BAR 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Structure {
    /// Common configuration (§4.1.4.3).
    Common,
    /// Doorbells (§4.1.4.4).
    Notify,
    /// ISR status (§4.1.4.5).
    Isr,
    /// Device configuration (§4.1.4.6).
    Device,
    /// The MSI-X table (PCI 3.0 §6.8.2).
    MsixTable,
    /// The MSI-X pending bits.
    MsixPending,
}

#[derive(Clone, Copy, Debug, Default)]
struct StructureOffsets {
    common: u32,
    notify: u32,
    multiplier: u32,
    isr: u32,
    device: u32,
    access: u8,
    msix: u8,
    table: u32,
    pending: u32,
}

/// A virtio function on the bus of a [`Machine`].
#[derive(Clone)]
pub struct Function {
    /// The machine.
    pub machine: Arc<Machine>,
    /// Slot on bus 0.
    pub slot: u8,
    offsets: StructureOffsets,
}

impl Function {
    /// Finds the virtio function in `slot` and parses its capability list.
    #[must_use]
    pub fn find(machine: &Arc<Machine>, slot: u8) -> Self {
        let mut function =
            Self { machine: Arc::clone(machine), slot, offsets: StructureOffsets::default() };
        let id = function.config_dword(0);
        assert_eq!(id & 0xffff, 0x1af4, "slot {slot} holds a virtio device");
        let mut at = function.config_dword(0x34).to_le_bytes()[0];
        let mut seen = 0;
        while at != 0 {
            function.parse_capability(at);
            at = function.config_dword(at).to_le_bytes()[1];
            seen += 1;
            assert!(seen < 48, "the capability list has a loop");
        }
        function
    }

    fn parse_capability(&mut self, at: u8) {
        let [id, _, _, kind] = self.config_dword(at).to_le_bytes();
        let offset = self.config_dword(at + 8);
        match (id, kind) {
            (0x09, 1) => self.offsets.common = offset,
            (0x09, 2) => {
                self.offsets.notify = offset;
                self.offsets.multiplier = self.config_dword(at + 16);
            }
            (0x09, 3) => self.offsets.isr = offset,
            (0x09, 4) => self.offsets.device = offset,
            (0x09, 5) => self.offsets.access = at,
            (0x11, _) => {
                self.offsets.msix = at;
                self.offsets.table = self.config_dword(at + 4) & !7;
                self.offsets.pending = offset & !7;
            }
            _ => {}
        }
    }

    /// Offset of the PCI configuration access capability (§4.1.4.9).
    #[must_use]
    pub fn access_capability(&self) -> u8 {
        self.offsets.access
    }

    fn select(&self, register: u8) {
        let address = 1 << 31 | u32::from(self.slot) << 11 | u32::from(register & !3);
        self.machine.root.config_write(0, &address.to_le_bytes());
    }

    /// Reads configuration space in one port access.
    pub fn config_read(&self, register: u8, data: &mut [u8]) {
        self.select(register);
        self.machine.root.config_read(4 + (register & 3), data);
    }

    /// Writes configuration space in one port access.
    pub fn config_write(&self, register: u8, data: &[u8]) {
        self.select(register);
        self.machine.root.config_write(4 + (register & 3), data);
    }

    /// One dword of configuration space.
    #[must_use]
    pub fn config_dword(&self, register: u8) -> u32 {
        let mut data = [0; 4];
        self.config_read(register, &mut data);
        u32::from_le_bytes(data)
    }

    /// Address of BAR 0.
    #[must_use]
    pub fn bar(&self) -> u64 {
        u64::from(self.config_dword(0x10) & !0xf)
    }

    /// Moves BAR 0 as an operating system does: decoding off, sizing, new address, decoding on.
    pub fn move_bar(&self, to: u32) {
        self.config_write(0x04, &[0, 0]);
        self.config_write(0x10, &[0xff; 4]);
        let size = !self.config_dword(0x10) + 1;
        assert!(size.is_power_of_two() && to.is_multiple_of(size));
        self.config_write(0x10, &to.to_le_bytes());
        self.config_write(0x04, &[6, 0]);
    }

    /// Enables, disables or masks MSI-X as a whole: the upper byte of message control.
    pub fn msix_control(&self, bits: u8) {
        self.config_write(self.offsets.msix + 3, &[bits]);
    }

    /// The guest-physical address of a structure's byte.
    #[must_use]
    pub fn address(&self, structure: Structure, offset: u32) -> u64 {
        let base = match structure {
            Structure::Common => self.offsets.common,
            Structure::Notify => self.offsets.notify,
            Structure::Isr => self.offsets.isr,
            Structure::Device => self.offsets.device,
            Structure::MsixTable => self.offsets.table,
            Structure::MsixPending => self.offsets.pending,
        };
        self.bar() + u64::from(base) + u64::from(offset)
    }

    /// Reads `N` bytes of a structure in one access.
    #[must_use]
    pub fn read<const N: usize>(&self, structure: Structure, offset: u32) -> [u8; N] {
        let mut data = [0x5a; N];
        assert!(self.machine.root.mmio_read(self.address(structure, offset), &mut data));
        data
    }

    /// Writes a structure in one access.
    pub fn write(&self, structure: Structure, offset: u32, data: &[u8]) {
        assert!(self.machine.root.mmio_write(self.address(structure, offset), data));
    }

    /// A 16-bit register of the common configuration.
    #[must_use]
    pub fn common_u16(&self, offset: u32) -> u16 {
        u16::from_le_bytes(self.read(Structure::Common, offset))
    }

    /// A 32-bit register of the common configuration.
    #[must_use]
    pub fn common_u32(&self, offset: u32) -> u32 {
        u32::from_le_bytes(self.read(Structure::Common, offset))
    }

    /// Writes size and addresses of a queue.
    pub fn set_queue_layout(&self, index: u16, layout: QueueLayout) {
        self.write(Structure::Common, 0x16, &index.to_le_bytes());
        self.write(Structure::Common, 0x18, &layout.size.to_le_bytes());
        let areas = [(0x20, layout.descriptors), (0x28, layout.available), (0x30, layout.used)];
        for (register, addr) in areas {
            // §4.1.3.1: 64-bit registers are accessed as two 32-bit halves.
            let [a, b, c, d, e, f, g, h] = addr.to_le_bytes();
            self.write(Structure::Common, register, &[a, b, c, d]);
            self.write(Structure::Common, register + 4, &[e, f, g, h]);
        }
    }

    /// The address of a queue's doorbell.
    #[must_use]
    pub fn doorbell(&self, queue: u16) -> u64 {
        self.write(Structure::Common, 0x16, &queue.to_le_bytes());
        let offset = u32::from(self.common_u16(0x1e)) * self.offsets.multiplier;
        self.address(Structure::Notify, offset)
    }

    /// Kicks a queue as a guest's store does: through the ioeventfd, or the BAR where none is
    /// attached.
    pub fn kick(&self, queue: u16) {
        let at = u64::from(queue) * u64::from(self.offsets.multiplier);
        let address = self.address(Structure::Notify, 0) + at;
        if !self.machine.hypervisor.ring(address) {
            let _ = self.machine.root.mmio_write(address, &queue.to_le_bytes());
        }
    }
}
