//! `bulkhead run`: one machine, from its start to its end.

use std::io;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use thiserror::Error;

use crate::config::MachineConfig;
use crate::console::Console;
use crate::control::api::{Api, MachineView, View};
use crate::control::{
    BuildInterrupter, CommandSender, ControlThread, ListeningSocket, SignalWatch, Signals,
    SocketError, close, command_channel,
};
use crate::disks::{Commits, DiskRegistry, EventLog, Hotplug, ManagedDisk, StallWatch};
use crate::exit::Exit;
use crate::kvm::KvmFailure;
use crate::log;
use crate::machine::{Ending, Machine, MachineError};
use crate::memory::MemoryError;
use crate::{process, sys};

/// The reason a run failed on the host's side.
#[derive(Debug, Error)]
pub(crate) enum RunError {
    /// Signals cannot be received.
    #[error("cannot receive signals")]
    Signals(#[source] io::Error),
    /// The process that the machine has to end with cannot be watched.
    #[error("cannot watch the process that started this one")]
    Parent(#[source] io::Error),
    /// The log cannot be written from its own thread.
    #[error("cannot start the log")]
    Log(#[source] io::Error),
    /// The console cannot be opened.
    #[error("cannot open the console")]
    Console(#[source] io::Error),
    /// The machine cannot be built.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The control socket cannot be bound.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The control socket cannot be served.
    #[error("cannot serve the control socket")]
    Api(#[source] io::Error),
    /// A soft limit cannot be watched.
    #[error("cannot watch the soft limits of the disks")]
    SpaceWatch(#[source] io::Error),
    /// The control thread failed.
    #[error("the control thread failed")]
    Control(#[source] io::Error),
    /// KVM cannot run the guest.
    #[error(transparent)]
    Kvm(#[from] KvmFailure),
    /// The last flush of a disk failed.
    #[error("cannot close a device; data written to it may be lost")]
    Close(#[source] io::Error),
}

/// Runs the machine until it ends, and restores the terminal. It is killed when the process
/// `parent`, which started this one, ends earlier.
///
/// # Errors
///
/// The host failed, before the start or while the guest ran.
pub(crate) fn run(config: &MachineConfig, parent: Option<NonZeroU32>) -> Result<Exit, RunError> {
    let signals = Arc::new(Signals::block().map_err(RunError::Signals)?);
    if let Some(parent) = parent {
        process::end_with(parent).map_err(RunError::Parent)?;
    }
    log::start_queue().map_err(RunError::Log)?;
    let socket = config.control.as_deref();
    let socket = socket.map(|path| ListeningSocket::bind("control socket", path)).transpose()?;
    let mut console = Console::open(&config.console).map_err(RunError::Console)?;
    let ending = run_machine(config, &signals, &mut console, socket);
    console.close();
    match ending? {
        Ending::Exit(exit) => {
            match exit.explanation() {
                Some(explanation) => log::print(format_args!("{exit}; {explanation}")),
                None => tracing::info!("{exit}"),
            }
            Ok(exit)
        }
        Ending::Failure(failure) => Err(failure.into()),
    }
}

fn run_machine(
    config: &MachineConfig,
    signals: &Arc<Signals>,
    console: &mut Console,
    socket: Option<ListeningSocket>,
) -> Result<Ending, RunError> {
    let Some(mut machine) = build(config, signals, console)? else {
        return Ok(Ending::Exit(Exit::Stopped));
    };
    let (sender, commands) = command_channel().map_err(RunError::Api)?;
    let view = view(config, &mut machine, sender).map_err(RunError::SpaceWatch)?;
    let disks = Arc::clone(&view.disks);
    let stalls = StallWatch::start(Arc::clone(&disks), Arc::clone(&view.events));
    let _stalls = stalls.map_err(RunError::SpaceWatch)?;
    let api = socket.map(|socket| Api::start(socket, view));
    let api = api.transpose().map_err(RunError::Api)?;
    sys::release_text();
    let running = machine.start()?;
    let control = ControlThread {
        signals,
        console,
        serial: &machine.serial,
        ending: &machine.ending,
        vcpus: &running.vcpus,
        commands: api.is_some().then_some(commands),
        button: machine.button.clone(),
        grace: config.shutdown_grace,
    };
    let ending = control.run().map_err(RunError::Control);
    // The vCPUs stop once an ending is set, also after a failure of the control thread.
    machine.ending.set(ending.as_ref().map_or(Ending::Exit(Exit::Failed), Clone::clone));
    // The socket answers until the disks are closed.
    let closed = close(signals, &disks, || running.stop());
    drop(api);
    closed.map_err(RunError::Close)?;
    ending
}

/// Builds the machine; `None` if a signal arrived meanwhile.
fn build(
    config: &MachineConfig,
    signals: &Arc<Signals>,
    console: &Console,
) -> Result<Option<Machine>, RunError> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let watch = SignalWatch::start(signals, BuildInterrupter(Arc::clone(&interrupted)));
    let watch = watch.map_err(RunError::Signals)?;
    let is_interrupted = || interrupted.load(Ordering::Acquire);
    let machine = Machine::build(config, console.writer(), is_interrupted);
    drop(watch);
    match machine {
        _ if is_interrupted() => Ok(None),
        Err(MachineError::Memory(MemoryError::Interrupted)) => Ok(None),
        machine => Ok(Some(machine?)),
    }
}

/// The disks and the machine, for the control socket. Starts the watches of soft limits.
fn view(
    config: &MachineConfig,
    machine: &mut Machine,
    commands: CommandSender,
) -> io::Result<View> {
    let events = Arc::new(EventLog::default());
    // Moved out of the machine: a detached disk is closed when its last control is dropped.
    let controls = std::mem::take(&mut machine.disks);
    let disks = config.disks.iter().cloned().zip(controls);
    let disks = disks.map(|(config, control)| ManagedDisk::new(config, control).watched(&events));
    let disks = Arc::new(DiskRegistry::new(disks.collect::<Result<Vec<_>, _>>()?));
    let controllers = std::mem::take(&mut machine.controllers);
    let hotplug = Hotplug::new(Arc::clone(&disks), controllers, config, Arc::clone(&events));
    let machine = MachineView {
        vcpus: config.vcpus,
        memory_bytes: config.memory_bytes,
        gate: Arc::clone(&machine.gate),
        commands,
        hotplug: Arc::new(hotplug),
    };
    let commits = Commits::default();
    Ok(View { started: Instant::now(), machine: Some(machine), disks, events, commits })
}
