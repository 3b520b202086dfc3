//! The configuration space of a function, 256 bytes (PCI 3.0 §6.1): values and a mask of the bits
//! that the guest may write.

const COMMAND: usize = 0x04;
const COMMAND_MEMORY: u8 = 1 << 1;
const COMMAND_BUS_MASTER: u8 = 1 << 2;
const COMMAND_INTX_DISABLE: u8 = 1 << 2; // in the register's second byte
const STATUS_CAPABILITIES: u8 = 1 << 4;
const BAR0: usize = 0x10;
const CAPABILITIES_POINTER: usize = 0x34;
/// End of the header and start of the capabilities.
const FIRST_CAPABILITY: u8 = 0x40;

/// Capability IDs (PCI 3.0 appendix H).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CapabilityId {
    /// Vendor specific; used by virtio.
    Vendor = 0x09,
    /// MSI-X.
    MsiX = 0x11,
}

/// Identification registers of a function (PCI 3.0 §6.2.1).
#[derive(Clone, Copy, Debug)]
pub struct FunctionIds {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class, subclass and programming interface.
    pub class: [u8; 3],
    /// Subsystem ID. The subsystem vendor ID is the vendor ID.
    pub subsystem: u16,
}

/// A type 0 configuration space with at most one 32-bit memory BAR.
pub struct ConfigSpace {
    values: [u8; 256],
    writable: [u8; 256],
    bar_bytes: u32,
    /// Offset of the pointer to the next capability.
    last_pointer: usize,
    /// Offset of the first free byte.
    free: u8,
}

impl ConfigSpace {
    /// A space with the given IDs and a BAR 0 of `bar_bytes`: a power of two of at least 16, or 0
    /// for no BAR.
    #[must_use]
    pub fn new(ids: &FunctionIds, bar_bytes: u32) -> Self {
        let mut space = Self {
            values: [0; 256],
            writable: [0; 256],
            bar_bytes,
            last_pointer: CAPABILITIES_POINTER,
            free: FIRST_CAPABILITY,
        };
        let [class, subclass, interface] = ids.class;
        space.set(0x00, &ids.vendor.to_le_bytes());
        space.set(0x02, &ids.device.to_le_bytes());
        space.set(0x08, &[ids.revision, interface, subclass, class]);
        space.set(0x2c, &ids.vendor.to_le_bytes());
        space.set(0x2e, &ids.subsystem.to_le_bytes());
        space.allow(COMMAND, &[COMMAND_MEMORY | COMMAND_BUS_MASTER, COMMAND_INTX_DISABLE]);
        space.allow(0x3c, &[0xff]); // interrupt line: scratch for the guest
        if bar_bytes != 0 {
            space.allow(BAR0, &(!(bar_bytes - 1)).to_le_bytes());
        }
        space
    }

    /// Appends a capability. `body` follows the two bytes of its header; the guest may write the
    /// bits of it that are set in `writable`. Returns the capability's offset; `None` if the space
    /// is full.
    #[must_use]
    pub fn add_capability(&mut self, id: CapabilityId, body: &[u8], writable: &[u8]) -> Option<u8> {
        let at = self.free;
        let len = u8::try_from(body.len() + 2).ok()?;
        self.free = at.checked_add(len)?.checked_next_multiple_of(4)?;
        self.set(self.last_pointer, &[at]);
        self.set(usize::from(at), &[id as u8, 0]);
        self.set(usize::from(at) + 2, body);
        self.allow(usize::from(at) + 2, writable);
        self.last_pointer = usize::from(at) + 1;
        self.set(0x06, &[STATUS_CAPABILITIES]);
        Some(at)
    }

    /// Reads `data.len()` bytes at `offset`; all ones beyond the end.
    pub fn read(&self, offset: u8, data: &mut [u8]) {
        let from = self.values.get(usize::from(offset)..).unwrap_or_default();
        data.fill(0xff);
        for (to, from) in data.iter_mut().zip(from) {
            *to = *from;
        }
    }

    /// Writes the bits that the guest may write.
    pub fn write(&mut self, offset: u8, data: &[u8]) {
        let at = usize::from(offset)..;
        let (Some(values), Some(writable)) =
            (self.values.get_mut(at.clone()), self.writable.get(at))
        else {
            return;
        };
        for ((value, mask), byte) in values.iter_mut().zip(writable).zip(data) {
            *value = *value & !mask | byte & mask;
        }
    }

    /// Address of BAR 0; `None` while memory decoding is disabled.
    #[must_use]
    pub fn bar(&self) -> Option<u32> {
        let mut base = [0; 4];
        self.read(0x10, &mut base);
        let decoding = self.values[COMMAND] & COMMAND_MEMORY != 0;
        (self.bar_bytes != 0 && decoding).then_some(u32::from_le_bytes(base))
    }

    /// Size of BAR 0 in bytes.
    #[must_use]
    pub fn bar_bytes(&self) -> u32 {
        self.bar_bytes
    }

    /// Sets BAR 0 and enables memory decoding.
    pub fn place_bar(&mut self, base: u32) {
        self.set(BAR0, &base.to_le_bytes());
        self.set(COMMAND, &[COMMAND_MEMORY]);
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        if let Some(values) = self.values.get_mut(at..at + bytes.len()) {
            values.copy_from_slice(bytes);
        }
    }

    fn allow(&mut self, at: usize, bits: &[u8]) {
        if let Some(writable) = self.writable.get_mut(at..at + bits.len()) {
            writable.copy_from_slice(bits);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let class = [1, 0, 0];
        let ids = FunctionIds { vendor: 0x1af4, device: 0x1042, revision: 1, class, subsystem: 2 };
        ConfigSpace::new(&ids, 0x8000)
    }

    fn dword(space: &ConfigSpace, at: u8) -> u32 {
        let mut data = [0; 4];
        space.read(at, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn ids_are_read_only() {
        let mut space = space();
        space.write(0, &[0; 4]);
        assert_eq!(dword(&space, 0), 0x1042_1af4);
    }

    /// PCI 3.0 §6.2.5.1: all ones written to a BAR read back as its size mask.
    #[test]
    fn a_bar_reports_its_size_and_moves() {
        let mut space = space();
        space.place_bar(0xc000_0000);
        assert_eq!(space.bar(), Some(0xc000_0000));
        space.write(0x10, &[0xff; 4]);
        assert_eq!(dword(&space, 0x10), 0xffff_8000);
        space.write(0x10, &0xd000_8000u32.to_le_bytes());
        assert_eq!(space.bar(), Some(0xd000_8000));
        space.write(0x04, &[0, 0]);
        assert_eq!(space.bar(), None);
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut space = space();
        let first = space.add_capability(CapabilityId::Vendor, &[1, 2, 3], &[]).unwrap();
        let second = space.add_capability(CapabilityId::MsiX, &[0; 10], &[]).unwrap();
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!(dword(&space, 0x34), 0x40);
        assert_eq!(dword(&space, 0x40), 0x0201_4809);
        assert_eq!(dword(&space, 0x48) & 0xffff, 0x0011);
        assert!(space.add_capability(CapabilityId::Vendor, &[0; 200], &[]).is_none());
    }

    #[test]
    fn reads_beyond_the_end_are_ones() {
        let mut data = [0; 4];
        space().read(254, &mut data);
        assert_eq!(data[2..], [0xff, 0xff]);
    }
}
