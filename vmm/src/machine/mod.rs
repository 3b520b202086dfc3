//! A machine: memory, vCPUs and devices, connected as the configuration says.

mod bus;
mod ending;
mod pause_gate;
mod pci;
mod serial;
mod vcpu;

use std::io;
use std::sync::{Arc, Mutex};

use devices::Hypervisor;
use devices::pci::PciRoot;
use devices::platform::{Cmos, KeyboardReset, PowerButton, PowerControl, PowerRequest, Pvpanic};
use devices::storage::DiskControl;
use kvm_ioctls::Kvm;
use thiserror::Error;
use vm_memory::GuestAddress;

use crate::acpi::{self, AcpiError};
use crate::boot::{self, BootError};
use crate::config::MachineConfig;
use crate::console::OutputWriter;
use crate::cpu::{self, Cpuid};
use crate::disks::ScsiControllers;
use crate::exit::Exit;
use crate::kvm::{self, KvmDevices, KvmError, Vm, refused};
use crate::layout;
use crate::memory::{self, MemoryError};
use bus::Bus;
pub(crate) use ending::{Ending, EndingCell};
pub(crate) use pause_gate::PauseGate;
use pci::{PciDevices, PciError};
pub(crate) use serial::Serial;
use vcpu::Vcpu;
pub(crate) use vcpu::Vcpus;

/// The reason a machine cannot be built or started.
#[derive(Debug, Error)]
pub(crate) enum MachineError {
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// A disk or another device on PCI.
    #[error(transparent)]
    Device(#[from] PciError),
    /// The host is out of descriptors, interrupts or threads.
    #[error("cannot {0}")]
    Host(&'static str, #[source] io::Error),
}

fn cannot(action: &'static str) -> impl FnOnce(io::Error) -> MachineError {
    move |source| MachineError::Host(action, source)
}

/// A machine that can be started.
pub(crate) struct Machine {
    pub(crate) ending: Arc<EndingCell>,
    pub(crate) serial: Serial,
    pub(crate) button: PowerButton,
    /// The disks' controls, in the order of the configuration.
    pub(crate) disks: Vec<DiskControl>,
    /// The SCSI controllers, for hotplug.
    pub(crate) controllers: ScsiControllers,
    /// The gate of the vCPUs.
    pub(crate) gate: Arc<PauseGate>,
    pci: Arc<PciRoot>,
    vcpus: Vec<Vcpu>,
}

/// A machine whose guest runs.
pub(crate) struct RunningMachine {
    pci: Arc<PciRoot>,
    pub(crate) vcpus: Vcpus,
}

impl Machine {
    /// Builds the machine. Its serial port writes to `console`.
    ///
    /// # Errors
    ///
    /// The machine cannot be built, or `interrupted` returned true.
    pub(crate) fn build(
        config: &MachineConfig,
        console: OutputWriter,
        interrupted: impl FnMut() -> bool,
    ) -> Result<Self, MachineError> {
        let kvm = kvm::open()?;
        let memory = memory::claim(config.memory_bytes, interrupted)?;
        acpi::write(&memory, config.vcpus)?;
        let entry = boot::load(&memory, config.memory_bytes, &config.kernel)?;

        let vm = Arc::new(Vm::new(&kvm, memory.clone())?);
        let hypervisor = Arc::new(KvmDevices::new(Arc::clone(&vm)));
        let devices: Arc<dyn Hypervisor> = hypervisor.clone();
        let PciDevices { root, disks, controllers } =
            pci::create_devices(config, &memory, &devices)?;
        let pci = Arc::new(root);
        let ending = Arc::new(EndingCell::new().map_err(cannot("create an event"))?);
        let interrupt =
            hypervisor.pin(layout::SERIAL_GSI).map_err(cannot("connect the serial port"))?;
        let serial = Serial::new(interrupt, console).map_err(cannot("create an event"))?;
        let power = power_control(&hypervisor, &ending)?;
        let button = power.button();
        let bus = bus(&pci, &serial, power, &ending);
        let gate = Arc::new(PauseGate::default());
        let vcpus = vcpus(&kvm, &vm, config.vcpus, entry, &bus, &ending, &gate)?;
        Ok(Self { ending, serial, button, disks, controllers, gate, pci, vcpus })
    }

    /// Starts the vCPUs.
    ///
    /// # Errors
    ///
    /// The host is out of threads.
    pub(crate) fn start(&mut self) -> Result<RunningMachine, MachineError> {
        vcpu::handle_kicks().map_err(cannot("handle the signal that stops vCPUs"))?;
        let vcpus = Vcpus::new(Arc::clone(&self.gate));
        let mut running = RunningMachine { pci: Arc::clone(&self.pci), vcpus };
        for vcpu in self.vcpus.drain(..) {
            if let Err(error) = running.vcpus.start(vcpu) {
                self.ending.set(Ending::Exit(Exit::Failed));
                running.vcpus.stop();
                return Err(MachineError::Host("start a vCPU thread", error));
            }
        }
        Ok(running)
    }
}

impl RunningMachine {
    /// Stops the vCPUs, then the devices. The machine must have ended.
    ///
    /// # Errors
    ///
    /// A disk could not be flushed.
    pub(crate) fn stop(self) -> io::Result<()> {
        self.vcpus.stop();
        self.pci.close()
    }
}

fn power_control(
    hypervisor: &KvmDevices,
    ending: &Arc<EndingCell>,
) -> Result<PowerControl, MachineError> {
    let interrupt =
        hypervisor.pin(layout::POWER_GSI).map_err(cannot("connect the power button"))?;
    let ending = Arc::clone(ending);
    Ok(PowerControl::new(interrupt, move |request| {
        ending.set(Ending::Exit(match request {
            PowerRequest::Off => Exit::PoweredOff,
            PowerRequest::Reset => Exit::Rebooted,
        }));
    }))
}

/// The devices that vCPUs access.
fn bus(
    pci: &Arc<PciRoot>,
    serial: &Serial,
    power: PowerControl,
    ending: &Arc<EndingCell>,
) -> Arc<Bus> {
    let (reset, panicked) = (Arc::clone(ending), Arc::clone(ending));
    let keyboard = KeyboardReset::new(move || reset.set(Ending::Exit(Exit::Rebooted)));
    let pvpanic = Pvpanic::new(move || panicked.set_panicked());
    let mut bus = Bus::new(Arc::clone(pci));
    bus.attach(layout::SERIAL_PORTS, serial.registers());
    bus.attach(layout::KEYBOARD_PORTS, Arc::new(Mutex::new(keyboard)));
    bus.attach(layout::CMOS_PORTS, Arc::new(Mutex::new(Cmos::new())));
    bus.attach(layout::POWER_PORTS, Arc::new(Mutex::new(power)));
    bus.attach(layout::PVPANIC_PORTS, Arc::new(Mutex::new(pvpanic)));
    Arc::new(bus)
}

/// All vCPUs. The boot processor starts at `entry`, and wakes the others.
fn vcpus(
    kvm: &Kvm,
    vm: &Arc<Vm>,
    count: u8,
    entry: GuestAddress,
    bus: &Arc<Bus>,
    ending: &Arc<EndingCell>,
    gate: &Arc<PauseGate>,
) -> Result<Vec<Vcpu>, MachineError> {
    let cpuid = Cpuid::new(kvm, count).map_err(refused("list processor features"))?;
    let mut vcpus = Vec::new();
    for index in 0..count {
        let fd = vm.create_vcpu(index)?;
        cpuid.apply(&fd, index).map_err(refused("set processor features"))?;
        cpu::set_boot_msrs(&fd).map_err(refused("set model specific registers"))?;
        if index == 0 {
            boot::enter_long_mode(&fd, entry).map_err(refused("set registers"))?;
        }
        let (vm, bus, ending) = (Arc::clone(vm), Arc::clone(bus), Arc::clone(ending));
        vcpus.push(Vcpu { fd, index, bus, ending, gate: Arc::clone(gate), _vm: vm });
    }
    Ok(vcpus)
}
