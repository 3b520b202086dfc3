//! vCPUs: a thread for each, which runs it until the machine ends.
//!
//! A vCPU exits to this thread only for port and memory accesses; disk and network requests do not
//! pass here. [`Vcpu::run`] waits only for KVM_RUN and, while the machine is paused, for the gate.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::bus::Bus;
use super::ending::{Ending, EndingCell};
use super::pause_gate::PauseGate;
use crate::exit::Exit;
use crate::kvm::{Cause, KvmFailure, Vm};

/// Interval between two kicks of a vCPU that has not stopped yet.
const KICK_INTERVAL: Duration = Duration::from_millis(1);
/// Longest time for a pause. A vCPU leaves the guest at once, unless the host is overloaded.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A vCPU that has not started.
pub(super) struct Vcpu {
    pub(super) fd: VcpuFd,
    pub(super) index: u8,
    pub(super) bus: Arc<Bus>,
    pub(super) ending: Arc<EndingCell>,
    pub(super) gate: Arc<PauseGate>,
    /// Keeps the guest's memory while the vCPU may run; dropped after `fd`.
    pub(super) _vm: Arc<Vm>,
}

/// The action after an exit from the guest.
enum AfterExit {
    Resume,
    End(Ending),
    Fail(Cause),
    /// Like `Fail`; the cause is in KVM's shared page.
    FailInternally,
}

impl Vcpu {
    fn run(mut self) {
        loop {
            self.gate.pass(|| notify_guest_of_pause(&self.fd));
            if self.ending.get().is_some() {
                break;
            }
            if let Some(ending) = self.enter() {
                self.ending.set(ending);
            }
        }
        let pointer = self.fd.get_regs().map(|registers| format!("{:#x}", registers.rip));
        tracing::info!(vcpu = self.index, instruction_pointer = ?pointer, "vCPU stopped");
    }

    /// Enters the guest once and handles the exit.
    fn enter(&mut self) -> Option<Ending> {
        let cause = match handle_exit(self.fd.run(), &self.bus) {
            AfterExit::Resume => return None,
            AfterExit::End(ending) => return Some(ending),
            AfterExit::Fail(cause) => cause,
            AfterExit::FailInternally => Cause::of_internal_error(self.fd.get_kvm_run()),
        };
        Some(Ending::Failure(KvmFailure::new(self.index, &self.fd, cause)))
    }
}

/// KVM_KVMCLOCK_CTRL: keeps the guest's watchdogs from reporting the pause as a lock-up.
fn notify_guest_of_pause(fd: &VcpuFd) {
    // EINVAL: the guest has not enabled the KVM clock, so it does not evaluate the flag either.
    if let Err(error) = fd.kvmclock_ctrl()
        && error.errno() != libc::EINVAL
    {
        tracing::warn!(%error, "cannot notify the guest of the pause");
    }
}

fn handle_exit(exit: Result<VcpuExit<'_>, kvm_ioctls::Error>, bus: &Bus) -> AfterExit {
    match exit {
        Ok(VcpuExit::IoIn(port, data)) => bus.read_port(port, data),
        Ok(VcpuExit::IoOut(port, data)) => bus.write_port(port, data),
        Ok(VcpuExit::MmioRead(address, data)) => bus.read_memory(address, data),
        Ok(VcpuExit::MmioWrite(address, data)) => bus.write_memory(address, data),
        Ok(VcpuExit::Shutdown) => return AfterExit::End(Ending::Exit(Exit::TripleFault)),
        Ok(VcpuExit::Intr) => {}
        Ok(VcpuExit::InternalError) => return AfterExit::FailInternally,
        Ok(VcpuExit::FailEntry(reason, cpu)) => {
            return AfterExit::Fail(Cause::FailEntry { reason, cpu });
        }
        Ok(exit) => return AfterExit::Fail(Cause::Unexpected { exit: format!("{exit:?}") }),
        // A kick, or a signal to a vCPU that waits for its SIPI.
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
        Err(error) => return AfterExit::Fail(Cause::Run { error }),
    }
    AfterExit::Resume
}

/// The running vCPUs of a machine.
pub(crate) struct Vcpus {
    threads: Vec<JoinHandle<()>>,
    gate: Arc<PauseGate>,
}

impl Vcpus {
    /// No vCPUs yet. All that are started must pass `gate`.
    pub(super) fn new(gate: Arc<PauseGate>) -> Self {
        Self { threads: Vec::new(), gate }
    }

    /// Parks all vCPUs, and returns when they are parked. I/O in flight continues.
    ///
    /// # Errors
    ///
    /// A vCPU did not stop in time. All vCPUs run again.
    pub(crate) fn pause(&self) -> io::Result<()> {
        let start = Instant::now();
        self.gate.close();
        // A kick between the gate and KVM_RUN is lost, so it is repeated.
        while self.kick() > self.gate.parked() {
            if start.elapsed() > PAUSE_TIMEOUT {
                self.gate.open();
                return Err(io::Error::new(io::ErrorKind::TimedOut, "a vCPU does not stop"));
            }
            thread::sleep(KICK_INTERVAL);
        }
        tracing::info!(took = ?start.elapsed(), "paused");
        Ok(())
    }

    /// Lets all vCPUs run.
    pub(crate) fn resume(&self) {
        self.gate.open();
    }

    /// Starts `vcpu` on its own thread.
    ///
    /// # Errors
    ///
    /// The host is out of threads.
    pub(super) fn start(&mut self, vcpu: Vcpu) -> io::Result<()> {
        let name = format!("vcpu{}", vcpu.index);
        let thread = thread::Builder::new().name(name).spawn(move || vcpu.run())?;
        self.threads.push(thread);
        Ok(())
    }

    /// Waits until all vCPUs have stopped. The machine must have ended.
    pub(super) fn stop(self) {
        self.gate.open();
        // A kick between the check of the ending and KVM_RUN is lost, so it is repeated.
        while self.kick() > 0 {
            thread::sleep(KICK_INTERVAL);
        }
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a vCPU thread panicked");
            }
        }
    }

    /// Interrupts KVM_RUN of all running vCPUs; returns their number.
    fn kick(&self) -> usize {
        let running: Vec<_> = self.threads.iter().filter(|thread| !thread.is_finished()).collect();
        for thread in &running {
            if let Err(error) = thread.kill(kick_signal()) {
                tracing::error!(%error, "cannot kick a vCPU");
            }
        }
        running.len()
    }
}

fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

/// Installs the handler of kicks, which only interrupts KVM_RUN.
///
/// # Errors
///
/// The kernel refuses the handler.
pub(super) fn handle_kicks() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    Ok(register_signal_handler(kick_signal(), nothing)?)
}
