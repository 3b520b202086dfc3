//! A machine: memory, processors and devices, wired as the configuration says.

pub(crate) mod bus;
pub(crate) mod ending;
pub(crate) mod pause_gate;
mod pci;
pub(crate) mod serial;
pub(crate) mod vcpu;

use std::io;
use std::sync::{Arc, Mutex};

use devices::Hypervisor;
use devices::pci::PciRoot;
use devices::platform::{Cmos, KeyboardReset, PowerButton, PowerControl, PowerRequest, Pvpanic};
use devices::storage::DiskControl;
use kvm_ioctls::Kvm;
use thiserror::Error;
use vm_memory::GuestAddress;

use crate::config::MachineConfig;
use crate::console::OutputWriter;
use crate::cpu::{self, Cpuid};
use crate::disks::ScsiControllers;
use crate::exit::Exit;
use crate::kvm::{self, KvmDevices, Vm, refused};
use crate::{acpi, boot, layout, memory};
use bus::Bus;
use ending::{Ending, EndingCell};
use pause_gate::Gate;
use pci::{PciDevices, PciError, create_devices};
use serial::Serial;
use vcpu::{Vcpu, Vcpus};

/// Why a machine cannot be had.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// There is no usable KVM.
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    /// There is no memory.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// The kernel cannot be booted.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// The tables do not fit.
    #[error(transparent)]
    Acpi(#[from] acpi::Error),
    /// A disk or another device cannot be had.
    #[error(transparent)]
    Device(#[from] PciError),
    /// The host gives no event, interrupt or thread.
    #[error("cannot {0}")]
    Host(&'static str, #[source] io::Error),
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Host(what, source)
}

/// A machine that can be started.
pub(crate) struct Machine {
    pub(crate) ending: Arc<EndingCell>,
    pub(crate) serial: Serial,
    pub(crate) button: PowerButton,
    /// In the order of the configuration.
    pub(crate) disks: Vec<DiskControl>,
    /// What disks are attached to while the machine runs.
    pub(crate) controllers: ScsiControllers,
    /// What the processors pass.
    pub(crate) gate: Arc<Gate>,
    pci: Arc<PciRoot>,
    vcpus: Vec<Vcpu>,
}

/// A machine whose guest runs.
pub(crate) struct Running {
    pci: Arc<PciRoot>,
    pub(crate) vcpus: Vcpus,
}

impl Machine {
    /// Builds the machine, with its serial port writing to `console`.
    ///
    /// # Errors
    ///
    /// When something cannot be had, or `interrupted` says to stop.
    pub(crate) fn build(
        config: &MachineConfig,
        console: OutputWriter,
        interrupted: impl FnMut() -> bool,
    ) -> Result<Self, Error> {
        let kvm = kvm::open()?;
        let memory = memory::claim(config.memory_bytes, interrupted)?;
        acpi::write(&memory, config.vcpus)?;
        let entry = boot::load(&memory, config.memory_bytes, &config.kernel)?;

        let vm = Arc::new(Vm::new(&kvm, memory.clone())?);
        let hypervisor = Arc::new(KvmDevices::new(Arc::clone(&vm)));
        let devices: Arc<dyn Hypervisor> = hypervisor.clone();
        let PciDevices { root, disks, controllers } = create_devices(config, &memory, &devices)?;
        let pci = Arc::new(root);
        let ending = Arc::new(EndingCell::new().map_err(host("create an event"))?);
        let interrupt =
            hypervisor.pin(layout::SERIAL_GSI).map_err(host("connect the serial port"))?;
        let serial = Serial::new(interrupt, console).map_err(host("create an event"))?;
        let power = power_control(&hypervisor, &ending)?;
        let button = power.button();
        let bus = bus(&pci, &serial, power, &ending);
        let gate = Arc::new(Gate::default());
        let vcpus = vcpus(&kvm, &vm, config.vcpus, entry, &bus, &ending, &gate)?;
        Ok(Self { ending, serial, button, disks, controllers, gate, pci, vcpus })
    }

    /// Starts the processors. What else there is stays in place.
    ///
    /// # Errors
    ///
    /// When the host gives no thread.
    pub(crate) fn start(&mut self) -> Result<Running, Error> {
        vcpu::prepare_kicks().map_err(host("handle the signal that stops vCPUs"))?;
        let vcpus = Vcpus::new(Arc::clone(&self.gate));
        let mut running = Running { pci: Arc::clone(&self.pci), vcpus };
        for vcpu in self.vcpus.drain(..) {
            if let Err(error) = running.vcpus.start(vcpu) {
                self.ending.set(Ending::Exit(Exit::Failed));
                running.vcpus.stop();
                return Err(Error::Host("start a vCPU thread", error));
            }
        }
        Ok(running)
    }
}

impl Running {
    /// Stops the processors, then the devices. The machine must have ended.
    ///
    /// # Errors
    ///
    /// When a device could not make its data durable.
    pub(crate) fn stop(self) -> io::Result<()> {
        self.vcpus.stop();
        self.pci.close()
    }
}

fn power_control(hypervisor: &KvmDevices, ending: &Arc<EndingCell>) -> Result<PowerControl, Error> {
    let interrupt = hypervisor.pin(layout::POWER_GSI).map_err(host("connect the power button"))?;
    let ending = Arc::clone(ending);
    Ok(PowerControl::new(interrupt, move |request| {
        ending.set(Ending::Exit(match request {
            PowerRequest::Off => Exit::PoweredOff,
            PowerRequest::Reset => Exit::Rebooted,
        }));
    }))
}

/// The devices as vCPUs reach them.
fn bus(
    pci: &Arc<PciRoot>,
    serial: &Serial,
    power: PowerControl,
    ending: &Arc<EndingCell>,
) -> Arc<Bus> {
    let end = |exit| {
        let ending = Arc::clone(ending);
        move || ending.set(Ending::Exit(exit))
    };
    let keyboard = KeyboardReset::new(end(Exit::Rebooted));
    let pvpanic = Pvpanic::new(end(Exit::Panicked));
    let mut bus = Bus::new(Arc::clone(pci));
    bus.attach(layout::SERIAL_PORTS, serial.registers());
    bus.attach(layout::KEYBOARD_PORTS, Arc::new(Mutex::new(keyboard)));
    bus.attach(layout::CMOS_PORTS, Arc::new(Mutex::new(Cmos::new())));
    bus.attach(layout::POWER_PORTS, Arc::new(Mutex::new(power)));
    bus.attach(layout::PVPANIC_PORTS, Arc::new(Mutex::new(pvpanic)));
    Arc::new(bus)
}

/// All processors; the first is set to start at `entry`, it wakes the others.
fn vcpus(
    kvm: &Kvm,
    vm: &Arc<Vm>,
    count: u8,
    entry: GuestAddress,
    bus: &Arc<Bus>,
    ending: &Arc<EndingCell>,
    gate: &Arc<Gate>,
) -> Result<Vec<Vcpu>, Error> {
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
