//! The root of the bus: routes accesses of vCPUs to devices.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ScopedJoinHandle};

use super::{ConfigSpace, FunctionIds, PciDevice};

/// Number of slots. Slot 0 is the host bridge.
pub const SLOTS: u8 = 32;
/// The enable bit of CONFIG_ADDRESS.
const ENABLE: u32 = 1 << 31;
/// Address of a BAR while memory decoding is disabled.
const UNMAPPED: u32 = u32::MAX;

/// The guest-physical range for BARs.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// First address.
    pub base: u32,
    /// Length in bytes.
    pub len: u32,
}

/// No slot or no space in the window is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the PCI bus is full: it has {} slots for devices", SLOTS - 1)]
pub struct BusFull;

struct BusSlot {
    device: Mutex<Box<dyn PciDevice>>,
    bar_bytes: u32,
    /// A copy of the BAR, so that an access finds its device without a lock.
    bar: AtomicU32,
}

/// The bus. Built by one thread, then shared by all vCPUs.
pub struct PciRoot {
    slots: Vec<BusSlot>,
    /// CONFIG_ADDRESS.
    address: AtomicU32,
    window: Window,
    next_bar: u32,
}

impl PciRoot {
    /// A bus with only its host bridge.
    #[must_use]
    pub fn new(window: Window) -> Self {
        let bridge = BusSlot {
            device: Mutex::new(Box::new(HostBridge::new())),
            bar_bytes: 0,
            bar: AtomicU32::new(UNMAPPED),
        };
        Self { slots: vec![bridge], address: AtomicU32::new(0), window, next_bar: window.base }
    }

    /// Adds a device in the next slot, allocates its BAR and returns the number of the slot.
    ///
    /// # Errors
    ///
    /// [`BusFull`].
    pub fn add(&mut self, mut device: Box<dyn PciDevice>) -> Result<u8, BusFull> {
        let number = u8::try_from(self.slots.len()).map_err(|_| BusFull)?;
        let bar_bytes = device.config().bar_bytes();
        let base = self.next_bar.checked_next_multiple_of(bar_bytes.max(1)).ok_or(BusFull)?;
        let end = base.checked_add(bar_bytes).ok_or(BusFull)?;
        if number >= SLOTS || end - self.window.base > self.window.len {
            return Err(BusFull);
        }
        device.place_bar(base);
        self.next_bar = end;
        let bar = AtomicU32::new(device.config().bar().unwrap_or(UNMAPPED));
        self.slots.push(BusSlot { device: Mutex::new(device), bar_bytes, bar });
        Ok(number)
    }

    /// Reads from the ports 0xCF8 to 0xCFF; `port` is relative to 0xCF8.
    pub fn config_read(&self, port: u8, data: &mut [u8]) {
        data.fill(0xff);
        if port < 4 {
            let address = self.address.load(Ordering::Relaxed).to_le_bytes();
            for (to, from) in data.iter_mut().zip(address.iter().skip(usize::from(port))) {
                *to = *from;
            }
        } else if let Some((slot, offset)) = self.selected(port) {
            lock(slot).config_read(offset, data);
        }
    }

    /// Writes to the ports 0xCF8 to 0xCFF; `port` is relative to 0xCF8.
    pub fn config_write(&self, port: u8, data: &[u8]) {
        if let (0, Ok(address)) = (port, <[u8; 4]>::try_from(data)) {
            self.address.store(u32::from_le_bytes(address), Ordering::Relaxed);
        } else if let Some((slot, offset)) = self.selected(port) {
            let mut device = lock(slot);
            device.config_write(offset, data);
            slot.bar.store(device.config().bar().unwrap_or(UNMAPPED), Ordering::Release);
        }
    }

    /// Reads from the BAR at a guest-physical address; `false` if no BAR contains the access.
    #[must_use]
    pub fn mmio_read(&self, addr: u64, data: &mut [u8]) -> bool {
        let found = self.find(addr, data.len());
        if let Some((slot, offset)) = found {
            lock(slot).bar_read(offset, data);
        }
        found.is_some()
    }

    /// Writes to the BAR at a guest-physical address; `false` if no BAR contains the access.
    #[must_use]
    pub fn mmio_write(&self, addr: u64, data: &[u8]) -> bool {
        let found = self.find(addr, data.len());
        if let Some((slot, offset)) = found {
            lock(slot).bar_write(offset, data);
        }
        found.is_some()
    }

    /// Closes all devices side by side, because the host may take long for one of them. Returns
    /// when all are closed, with the first error.
    ///
    /// # Errors
    ///
    /// The first device's error; data of its disk may be lost.
    pub fn close(&self) -> io::Result<()> {
        thread::scope(|scope| {
            let close = |slot| {
                let closing = move || lock(slot).close();
                let thread = thread::Builder::new().name("close".to_owned());
                // Without a thread, the devices after this one wait for it.
                thread.spawn_scoped(scope, closing).map_err(|_| closing())
            };
            let closing: Vec<_> = self.slots.iter().map(close).collect();
            let join = |thread: ScopedJoinHandle<'_, io::Result<()>>| {
                thread.join().unwrap_or_else(|_| Err(io::Error::other("a close panicked")))
            };
            let outcomes = closing.into_iter().map(|one| one.map_or_else(|done| done, join));
            outcomes.fold(Ok(()), Result::and)
        })
    }

    /// The device and register that CONFIG_ADDRESS selects for an access to CONFIG_DATA.
    fn selected(&self, port: u8) -> Option<(&BusSlot, u8)> {
        let address = self.address.load(Ordering::Relaxed);
        let [register, function, bus, _] = address.to_le_bytes();
        if address & ENABLE == 0 || bus != 0 || function & 7 != 0 || port < 4 {
            return None;
        }
        let slot = self.slots.get(usize::from(function >> 3))?;
        Some((slot, register & !3 | port & 3))
    }

    /// The device whose BAR contains the `len` bytes at `addr`, and the offset in the BAR.
    fn find(&self, addr: u64, len: usize) -> Option<(&BusSlot, u32)> {
        let addr = u32::try_from(addr).ok()?;
        self.slots.iter().find_map(|slot| {
            let bar = Some(slot.bar.load(Ordering::Acquire)).filter(|bar| *bar != UNMAPPED)?;
            let offset = addr.checked_sub(bar)?;
            let end = offset.checked_add(u32::try_from(len).ok()?)?;
            (end <= slot.bar_bytes).then_some((slot, offset))
        })
    }
}

/// Locks a device. Each access leaves it consistent, so that a poisoned lock is usable.
fn lock(slot: &BusSlot) -> MutexGuard<'_, Box<dyn PciDevice>> {
    slot.device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Slot 0, without which guests do not detect the bus.
struct HostBridge(ConfigSpace);

impl HostBridge {
    fn new() -> Self {
        // Red Hat's generic host bridge; it needs no driver.
        let class = [0x06, 0x00, 0x00];
        let ids =
            FunctionIds { vendor: 0x1b36, device: 0x0008, revision: 0, class, subsystem: 0x1100 };
        Self(ConfigSpace::new(&ids, 0))
    }
}

impl PciDevice for HostBridge {
    fn config(&self) -> &ConfigSpace {
        &self.0
    }

    fn config_write(&mut self, offset: u8, data: &[u8]) {
        self.0.write(offset, data);
    }

    fn place_bar(&mut self, _base: u32) {}

    fn bar_read(&mut self, _offset: u32, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn bar_write(&mut self, _offset: u32, _data: &[u8]) {}

    fn close(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// A device whose close waits for `released`, reports and fails.
    struct Closing {
        bridge: HostBridge,
        released: Receiver<()>,
        closed: Sender<&'static str>,
        name: &'static str,
    }

    impl PciDevice for Closing {
        fn config(&self) -> &ConfigSpace {
            self.bridge.config()
        }

        fn config_write(&mut self, _: u8, _: &[u8]) {}

        fn place_bar(&mut self, _: u32) {}

        fn bar_read(&mut self, _: u32, _: &mut [u8]) {}

        fn bar_write(&mut self, _: u32, _: &[u8]) {}

        fn close(&mut self) -> io::Result<()> {
            let _ = self.released.recv();
            self.closed.send(self.name).unwrap();
            Err(io::Error::other(self.name))
        }
    }

    #[test]
    fn a_device_that_hangs_delays_no_other_close_and_errors_are_returned() {
        let mut root = PciRoot::new(Window { base: 0xc000_0000, len: 0x1000 });
        let (closed, order) = channel();
        let (release, released) = channel();
        let mut add = |name, released| {
            let closed = closed.clone();
            let bridge = HostBridge::new();
            root.add(Box::new(Closing { bridge, released, closed, name })).unwrap();
        };
        add("hung", released);
        // Its sender is gone: it is released from the start.
        add("healthy", channel().1);
        std::thread::scope(|scope| {
            let close = scope.spawn(|| root.close());
            assert_eq!(order.recv().unwrap(), "healthy");
            release.send(()).unwrap();
            assert_eq!(order.recv().unwrap(), "hung");
            assert_eq!(close.join().unwrap().unwrap_err().to_string(), "hung");
        });
    }
}
