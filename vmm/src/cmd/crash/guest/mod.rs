//! Checks in a standing guest: each state is attached to it as a SCSI disk, and its agent
//! (resources/checker/agent) runs the command.

mod agent;
mod machine;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crash::host::{StateMount, separate_mounts};
use crash::{CheckError, CheckedDisk, Checker, Failure, Verdict};

use self::agent::{CheckAnswer, NoAnswer};
use self::machine::CheckerMachine;
pub(super) use self::machine::{GuestError, require_checker_guest};
use super::interrupt::is_interrupted;

/// Checks in a guest, one at a time.
pub(super) struct GuestChecker {
    config: PathBuf,
    command: String,
    /// After this time a check has failed, and the guest is started again.
    limit: Duration,
    mount: StateMount,
    machine: Mutex<Option<CheckerMachine>>,
    number: AtomicU64,
    stop: AtomicBool,
}

impl GuestChecker {
    /// Starts the machine of `config`, and waits for its agent.
    ///
    /// # Errors
    ///
    /// See [`GuestError`].
    pub(super) fn start(
        config: &Path,
        command: String,
        limit: Duration,
    ) -> Result<Self, GuestError> {
        // Users other than root have the mounts of all.
        let _ = separate_mounts();
        let mount = StateMount::new(2).map_err(GuestError::Mount)?;
        let machine = CheckerMachine::start(config, &is_interrupted)?;
        Ok(Self {
            config: config.to_owned(),
            command,
            limit,
            mount,
            machine: Mutex::new(Some(machine)),
            number: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        })
    }

    /// Ends a running check soon, and refuses others.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || is_interrupted()
    }

    /// Runs the check in the guest, which is lost if it gives no answer.
    fn check_in(
        &self,
        machine: &mut CheckerMachine,
        disk: Arc<dyn CheckedDisk>,
    ) -> Result<Result<CheckAnswer, NoAnswer>, CheckError> {
        let id = format!("state{}", self.number.fetch_add(1, Ordering::Relaxed));
        let marks = disk.marks();
        let state = self.mount.expose(disk);
        machine.attach(&id, &state.disk()).map_err(failed("attach a state to the guest"))?;
        let is_stopped = || self.is_stopped();
        let asked = machine.agent.ask(&id, &self.command, &marks, &is_stopped);
        let answer = asked.and_then(|()| machine.agent.answer(&id, self.limit, &is_stopped));
        if answer.is_ok() {
            machine.detach(&id).map_err(failed("detach a state from the guest"))?;
        }
        Ok(answer)
    }
}

impl Checker for GuestChecker {
    fn check(&self, disk: Arc<dyn CheckedDisk>) -> Result<Verdict, CheckError> {
        let mut place = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_stopped() {
            return Err(CheckError::Stopped);
        }
        let mut machine = match place.take() {
            Some(machine) => machine,
            None => match CheckerMachine::start(&self.config, &|| self.is_stopped()) {
                Ok(machine) => machine,
                Err(GuestError::Stopped) => return Err(CheckError::Stopped),
                Err(error) => return Err(failed("start the guest again")(error)),
            },
        };
        let (end, output) = match self.check_in(&mut machine, disk)? {
            Ok(CheckAnswer { status: Some(0), .. }) => {
                *place = Some(machine);
                return Ok(Verdict::Passed);
            }
            Ok(CheckAnswer { status: None, output }) => {
                return Err(failed("check in the guest")(io::Error::other(output)));
            }
            Ok(CheckAnswer { status: Some(status), output }) => {
                *place = Some(machine);
                (format!("exit status {status}"), output)
            }
            Err(NoAnswer::Stopped) => return Err(CheckError::Stopped),
            Err(NoAnswer::Late) => {
                (format!("no end within {} s", self.limit.as_secs()), machine.agent.last_output())
            }
            Err(NoAnswer::Ended) => ("the guest ended".to_owned(), machine.agent.last_output()),
        };
        Ok(Verdict::Failed(Failure { end, output }))
    }
}

fn failed<E>(what: &'static str) -> impl FnOnce(E) -> CheckError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |error| CheckError::Host { what, source: io::Error::other(error) }
}
