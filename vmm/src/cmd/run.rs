//! `bulkhead run`: one machine from start to end, and back to a clean host.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use thiserror::Error;

use crate::config::MachineConfig;
use crate::console::Console;
use crate::control::Control;
use crate::control::api::{Api, MachineView, View};
use crate::control::commands::commands;
use crate::control::signals::Signals;
use crate::disks::{DiskRegistry, EventLog, Hotplug, ManagedDisk};
use crate::exit::Exit;
use crate::kvm::KvmFailure;
use crate::machine::ending::Ending;
use crate::machine::{self, Machine};
use crate::socket::{self, Socket};

/// Why a run failed on the host's side.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// Signals cannot be received.
    #[error("cannot receive signals")]
    Signals(#[source] io::Error),
    /// The console cannot be opened.
    #[error("cannot open the console")]
    Console(#[source] io::Error),
    /// The machine cannot be had.
    #[error(transparent)]
    Machine(#[from] machine::Error),
    /// The control socket cannot be had.
    #[error(transparent)]
    Socket(#[from] socket::Error),
    /// The control socket cannot be served.
    #[error("cannot serve the control socket")]
    Api(#[source] io::Error),
    /// The host's stores cannot be watched.
    #[error("cannot watch the space of the disks' stores")]
    SpaceWatch(#[source] io::Error),
    /// The event loop failed.
    #[error("the event loop failed")]
    Control(#[source] io::Error),
    /// KVM cannot run the guest.
    #[error(transparent)]
    Kvm(#[from] KvmFailure),
    /// Data may be lost.
    #[error("a device could not be closed; data written to it may be lost")]
    Close(#[source] io::Error),
}

/// Runs the machine until it ends. The terminal is back in its mode when this returns.
///
/// # Errors
///
/// When the host fails, before the start or while the guest runs.
pub(crate) fn run(config: &MachineConfig) -> Result<Exit, Error> {
    let signals = Signals::block().map_err(Error::Signals)?;
    let socket = config.control.as_deref();
    let socket = socket.map(|path| Socket::claim("control socket", path)).transpose()?;
    let mut console = Console::open(&config.console).map_err(Error::Console)?;
    let ending = run_machine(config, &signals, &mut console, socket);
    console.close();
    match ending? {
        Ending::Exit(exit) => {
            tracing::info!("{exit}");
            Ok(exit)
        }
        Ending::Failure(failure) => Err(failure.into()),
    }
}

fn run_machine(
    config: &MachineConfig,
    signals: &Signals,
    console: &mut Console,
    socket: Option<Socket>,
) -> Result<Ending, Error> {
    let interrupted = || !matches!(signals.next(), Ok(None));
    let mut machine = match Machine::build(config, console.writer(), interrupted) {
        Err(machine::Error::Memory(crate::memory::Error::Interrupted)) => {
            return Ok(Ending::Exit(Exit::Stopped));
        }
        machine => machine?,
    };
    let (commander, commands) = commands().map_err(Error::Api)?;
    let events = Arc::new(EventLog::default());
    let disks = Arc::new(disks(config, &mut machine, &events).map_err(Error::SpaceWatch)?);
    let controllers = std::mem::take(&mut machine.controllers);
    let vcpus = config.vcpus.into();
    let hotplug =
        Arc::new(Hotplug::new(Arc::clone(&disks), controllers, vcpus, Arc::clone(&events)));
    let view = View {
        started: Instant::now(),
        machine: Some(MachineView {
            vcpus: config.vcpus,
            memory_bytes: config.memory_bytes,
            gate: Arc::clone(&machine.gate),
            commander,
            hotplug,
        }),
        disks,
        events,
    };
    let api = socket.map(|socket| Api::start(socket, view));
    let api = api.transpose().map_err(Error::Api)?;
    let running = machine.start()?;
    let control = Control {
        signals,
        console,
        serial: &machine.serial,
        ending: &machine.ending,
        vcpus: &running.vcpus,
        commands: api.is_some().then_some(commands),
        button: machine.button.clone(),
        grace: config.shutdown_grace,
    };
    let ending = control.run().map_err(Error::Control);
    // Whatever the reason to leave the loop was, from here on the vCPUs have to stop.
    machine.ending.set(ending.as_ref().map_or(Ending::Exit(Exit::Failed), Clone::clone));
    drop(api);
    running.stop().map_err(Error::Close)?;
    ending
}

/// The disks the machine starts with.
fn disks(
    config: &MachineConfig,
    machine: &mut Machine,
    events: &Arc<EventLog>,
) -> io::Result<DiskRegistry> {
    // The machine must keep no control of a disk: a detached disk is closed once the last is gone.
    let controls = std::mem::take(&mut machine.disks);
    let disks = config.disks.iter().cloned().zip(controls);
    let disks = disks.map(|(config, control)| ManagedDisk::new(config, control).watched(events));
    Ok(DiskRegistry::new(disks.collect::<Result<Vec<_>, _>>()?))
}
