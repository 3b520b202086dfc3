//! A virtual processor: one thread that runs it until the machine ends.
//!
//! A vCPU leaves the guest only for port and memory accesses; disk and network requests do not pass
//! here. [`Vcpu::run`] never waits for anything but KVM_RUN and, while the machine is paused, the gate.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::bus::Bus;
use super::ending::{Ending, EndingCell};
use super::pause_gate::Gate;
use crate::exit::Exit;
use crate::kvm::{Cause, KvmFailure, Vm};

/// How long to wait for a vCPU that was asked to stop before asking again.
const KICK_INTERVAL: Duration = Duration::from_millis(1);

/// A virtual processor that has not started yet.
pub(crate) struct Vcpu {
    pub(crate) fd: VcpuFd,
    pub(crate) index: u8,
    pub(crate) bus: Arc<Bus>,
    pub(crate) ending: Arc<EndingCell>,
    pub(crate) gate: Arc<Gate>,
    /// Keeps the guest's memory for as long as the vCPU may run; dropped after `fd`.
    pub(crate) _vm: Arc<Vm>,
}

/// What a return from the guest asks for.
enum Step {
    Resume,
    End(Ending),
    Fail(Cause),
    /// As `Fail`, with the cause still to be read from KVM's page.
    FailInternally,
}

impl Vcpu {
    fn run(mut self) {
        loop {
            self.gate.pass(|| note_pause(&self.fd));
            if self.ending.get().is_some() {
                break;
            }
            if let Some(ending) = self.step() {
                self.ending.set(ending);
            }
        }
        let pointer = self.fd.get_regs().map(|registers| format!("{:#x}", registers.rip));
        tracing::info!(vcpu = self.index, instruction_pointer = ?pointer, "vCPU stopped");
    }

    /// Enters the guest once.
    fn step(&mut self) -> Option<Ending> {
        let cause = match handle(self.fd.run(), &self.bus) {
            Step::Resume => return None,
            Step::End(ending) => return Some(ending),
            Step::Fail(cause) => cause,
            Step::FailInternally => Cause::of_internal_error(self.fd.get_kvm_run()),
        };
        Some(Ending::Failure(KvmFailure::new(self.index, &self.fd, cause)))
    }
}

/// Tells the guest that it was paused, so that its watchdogs do not take the time for a lock-up.
fn note_pause(fd: &VcpuFd) {
    // Refused while the guest has no KVM clock. Then its watchdogs ask nobody, and there is nobody to tell.
    if let Err(error) = fd.kvmclock_ctrl()
        && error.errno() != libc::EINVAL
    {
        tracing::warn!(%error, "the guest does not learn that it was paused");
    }
}

/// Serves what the guest left for.
fn handle(exit: Result<VcpuExit<'_>, kvm_ioctls::Error>, bus: &Bus) -> Step {
    match exit {
        Ok(VcpuExit::IoIn(port, data)) => bus.read_port(port, data),
        Ok(VcpuExit::IoOut(port, data)) => bus.write_port(port, data),
        Ok(VcpuExit::MmioRead(address, data)) => bus.read_memory(address, data),
        Ok(VcpuExit::MmioWrite(address, data)) => bus.write_memory(address, data),
        Ok(VcpuExit::Shutdown) => return Step::End(Ending::Exit(Exit::TripleFault)),
        Ok(VcpuExit::Intr) => {}
        Ok(VcpuExit::InternalError) => return Step::FailInternally,
        Ok(VcpuExit::FailEntry(reason, cpu)) => {
            return Step::Fail(Cause::FailEntry { reason, cpu });
        }
        Ok(exit) => return Step::Fail(Cause::Unexpected { exit: format!("{exit:?}") }),
        // A kick, or a processor that waits for its start was disturbed.
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
        Err(error) => return Step::Fail(Cause::Run { error }),
    }
    Step::Resume
}

/// How long a pause may take: a vCPU leaves the guest at once, unless the host has no time for it.
const PAUSE_PATIENCE: Duration = Duration::from_secs(5);

/// The running processors of a machine.
pub(crate) struct Vcpus {
    threads: Vec<JoinHandle<()>>,
    gate: Arc<Gate>,
}

impl Vcpus {
    /// No processors yet. All that are started must pass `gate`.
    pub(crate) fn new(gate: Arc<Gate>) -> Self {
        Self { threads: Vec::new(), gate }
    }

    /// Stops all processors where they are, and returns once they have. I/O in flight goes on.
    ///
    /// # Errors
    ///
    /// When one does not stop in time. Then all go on.
    pub(crate) fn pause(&self) -> io::Result<()> {
        let start = Instant::now();
        self.gate.close();
        // A kick is lost when it hits between the gate and KVM_RUN, so kick again.
        while self.kick() > self.gate.parked() {
            if start.elapsed() > PAUSE_PATIENCE {
                self.gate.open();
                return Err(io::Error::new(io::ErrorKind::TimedOut, "a vCPU does not stop"));
            }
            thread::sleep(KICK_INTERVAL);
        }
        tracing::info!(took = ?start.elapsed(), "paused");
        Ok(())
    }

    /// Lets the processors go on.
    pub(crate) fn resume(&self) {
        self.gate.open();
    }

    /// Starts `vcpu` on its own thread.
    ///
    /// # Errors
    ///
    /// When the host gives no thread.
    pub(crate) fn start(&mut self, vcpu: Vcpu) -> io::Result<()> {
        let name = format!("vcpu{}", vcpu.index);
        let thread = thread::Builder::new().name(name).spawn(move || vcpu.run())?;
        self.threads.push(thread);
        Ok(())
    }

    /// Waits until all have stopped. The machine must have ended.
    pub(crate) fn stop(self) {
        self.gate.open();
        // A kick is lost when it hits between the look at the ending and KVM_RUN, so kick again.
        while self.kick() > 0 {
            thread::sleep(KICK_INTERVAL);
        }
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a vCPU thread panicked");
            }
        }
    }

    /// Interrupts those that have not ended; how many there were.
    fn kick(&self) -> usize {
        let running: Vec<_> = self.threads.iter().filter(|thread| !thread.is_finished()).collect();
        for thread in &running {
            if let Err(error) = thread.kill(kick_signal()) {
                tracing::error!(%error, "cannot stop a vCPU");
            }
        }
        running.len()
    }
}

fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

/// Makes kicks interrupt KVM_RUN and do nothing else.
///
/// # Errors
///
/// When the host refuses the handler.
pub(crate) fn prepare_kicks() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    Ok(register_signal_handler(kick_signal(), nothing)?)
}
