//! Interrupts to the guest (irqfd) and doorbells from it (ioeventfd).
//!
//! An interrupt has a KVM interrupt number (GSI). The first [`layout::IOAPIC_PINS`] numbers are the
//! pins of the IOAPIC, the others carry messages (MSI). Runs on the control thread while the
//! machine is built, and on vCPU threads when a driver configures its vectors; never for a request.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::{Hypervisor, MsiLine, MsiMessage};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting,
    kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip,
    kvm_irq_routing_msi,
};
use kvm_ioctls::{Cap, IoEventAddress, NoDatamatch};
use vmm_sys_util::eventfd::EventFd;

use super::Vm;
use crate::layout;

/// The hypervisor of the devices.
pub(crate) struct KvmDevices {
    vm: Arc<Vm>,
    table: Arc<Mutex<RoutingTable>>,
}

/// The messages of the GSIs above the IOAPIC's, `None` until first unmasked.
struct RoutingTable {
    messages: Vec<Option<MsiMessage>>,
    entries_max: usize,
}

impl KvmDevices {
    /// Interrupts and doorbells of `vm`.
    pub(crate) fn new(vm: Arc<Vm>) -> Self {
        let entries_max = vm.fd.check_extension_int(Cap::IrqRouting);
        let entries_max = usize::try_from(entries_max).unwrap_or_default();
        Self { vm, table: Arc::new(Mutex::new(RoutingTable { messages: Vec::new(), entries_max })) }
    }

    /// An event that pulses a pin of the IOAPIC, which the guest must treat as edge triggered.
    ///
    /// # Errors
    ///
    /// KVM refuses.
    pub(crate) fn pin(&self, gsi: u32) -> io::Result<EventFd> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        self.vm.fd.register_irqfd(&event, gsi)?;
        Ok(event)
    }
}

impl Hypervisor for KvmDevices {
    fn msi_line(&self) -> io::Result<Box<dyn MsiLine>> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let gsi = lock(&self.table).add_line()?;
        Ok(Box::new(MsiInterrupt {
            vm: Arc::clone(&self.vm),
            table: Arc::clone(&self.table),
            event: Arc::new(event),
            gsi,
            unmasked: false,
        }))
    }

    fn attach_doorbell(&self, address: u64, event: &EventFd) -> io::Result<()> {
        let address = IoEventAddress::Mmio(address);
        Ok(self.vm.fd.register_ioevent(event, &address, NoDatamatch)?)
    }

    fn detach_doorbell(&self, address: u64, event: &EventFd) -> io::Result<()> {
        let address = IoEventAddress::Mmio(address);
        Ok(self.vm.fd.unregister_ioevent(event, &address, NoDatamatch)?)
    }
}

/// The table holds plain values, so a poisoned lock is usable.
fn lock(table: &Mutex<RoutingTable>) -> MutexGuard<'_, RoutingTable> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RoutingTable {
    fn add_line(&mut self) -> io::Result<u32> {
        let gsi = layout::IOAPIC_PINS as usize + self.messages.len();
        if gsi >= self.entries_max {
            let limit = format!("KVM supports only {} interrupt numbers", self.entries_max);
            return Err(io::Error::other(limit));
        }
        self.messages.push(None);
        u32::try_from(gsi).map_err(io::Error::other)
    }

    /// Sets the message of `gsi`; returns whether it changed.
    fn set(&mut self, gsi: u32, message: MsiMessage) -> bool {
        let index = (gsi - layout::IOAPIC_PINS) as usize;
        let slot = self.messages.get_mut(index);
        slot.is_some_and(|slot| slot.replace(message) != Some(message))
    }

    fn entries(&self) -> Vec<kvm_irq_routing_entry> {
        let pins = (0..layout::IOAPIC_PINS).map(pin_entry);
        let lines = (layout::IOAPIC_PINS..).zip(&self.messages);
        let lines = lines.filter_map(|(gsi, message)| Some(message_entry(gsi, (*message)?)));
        pins.chain(lines).collect()
    }

    fn apply(&self, vm: &Vm) -> io::Result<()> {
        let routing = KvmIrqRouting::from_entries(&self.entries()).map_err(io::Error::other)?;
        Ok(vm.fd.set_gsi_routing(&routing)?)
    }
}

fn pin_entry(pin: u32) -> kvm_irq_routing_entry {
    let irqchip = kvm_irq_routing_irqchip { irqchip: KVM_IRQCHIP_IOAPIC, pin };
    kvm_irq_routing_entry {
        gsi: pin,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 { irqchip },
        ..kvm_irq_routing_entry::default()
    }
}

fn message_entry(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let [a, b, c, d, e, f, g, h] = message.address.to_le_bytes();
    let msi = kvm_irq_routing_msi {
        address_lo: u32::from_le_bytes([a, b, c, d]),
        address_hi: u32::from_le_bytes([e, f, g, h]),
        data: message.data,
        ..kvm_irq_routing_msi::default()
    };
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 { msi },
        ..kvm_irq_routing_entry::default()
    }
}

/// One message signalled interrupt.
struct MsiInterrupt {
    vm: Arc<Vm>,
    table: Arc<Mutex<RoutingTable>>,
    event: Arc<EventFd>,
    gsi: u32,
    unmasked: bool,
}

impl MsiLine for MsiInterrupt {
    fn event(&self) -> &Arc<EventFd> {
        &self.event
    }

    fn unmask(&mut self, message: MsiMessage) -> io::Result<()> {
        let mut table = lock(&self.table);
        if table.set(self.gsi, message) {
            table.apply(&self.vm)?;
        }
        drop(table);
        if !self.unmasked {
            self.vm.fd.register_irqfd(&self.event, self.gsi)?;
            self.unmasked = true;
        }
        Ok(())
    }

    fn mask(&mut self) -> io::Result<()> {
        if self.unmasked {
            self.vm.fd.unregister_irqfd(&self.event, self.gsi)?;
            self.unmasked = false;
        }
        Ok(())
    }
}

impl Drop for MsiInterrupt {
    fn drop(&mut self) {
        if let Err(error) = self.mask() {
            tracing::warn!(%error, gsi = self.gsi, "cannot detach the interrupt");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: MsiMessage = MsiMessage { address: 0x1_fee0_0000, data: 0x31 };

    fn table(entries_max: usize) -> RoutingTable {
        RoutingTable { messages: Vec::new(), entries_max }
    }

    #[test]
    fn messages_keep_the_routes_of_pins() {
        let mut table = table(4096);
        let (first, second) = (table.add_line().unwrap(), table.add_line().unwrap());
        assert_eq!((first, second), (24, 25));
        assert_eq!(table.entries().len(), 24);
        assert!(table.set(second, MESSAGE));
        let entries = table.entries();
        assert_eq!((entries.len(), entries[24].gsi), (25, 25));
        assert_eq!(entries[4].type_, KVM_IRQ_ROUTING_IRQCHIP);
    }

    #[test]
    fn an_equal_message_is_no_change() {
        let mut table = table(4096);
        let gsi = table.add_line().unwrap();
        assert!(table.set(gsi, MESSAGE));
        assert!(!table.set(gsi, MESSAGE));
        assert!(table.set(gsi, MsiMessage { data: 0x32, ..MESSAGE }));
    }

    #[test]
    fn exhausted_interrupt_numbers_are_an_error() {
        let mut table = table(25);
        assert!(table.add_line().is_ok());
        assert!(table.add_line().unwrap_err().to_string().contains("25"));
    }
}
