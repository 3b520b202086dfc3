//! The contract between the vCPUs and the register blocks of devices.

/// A block of device registers. Accesses are 1, 2, 4 or 8 bytes; offsets are relative to the block.
pub trait BusDevice: Send {
    /// Fills `data` from the registers at `offset`. Unknown registers read as all ones.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Writes `data` to the registers at `offset`. Writes to unknown registers are ignored.
    fn write(&mut self, offset: u64, data: &[u8]);
}
