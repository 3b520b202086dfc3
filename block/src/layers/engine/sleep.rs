//! The sleep of an engine with requests in flight in several levels.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// The simulator's sleep, until a descriptor is ready or a time has come, if one is given. An error
/// is that of the engine's wait.
pub type SimulatedSleep = Box<dyn FnMut(BorrowedFd<'_>, Option<Instant>) -> io::Result<()>>;

/// See the module's documentation: poll(2), or the simulator's.
#[derive(Default)]
pub(super) struct LevelsSleep {
    simulated: Option<SimulatedSleep>,
}

impl LevelsSleep {
    pub(super) fn simulated(sleep: SimulatedSleep) -> Self {
        Self { simulated: Some(sleep) }
    }

    /// Sleeps until the descriptor is ready, or `due`. It may return early.
    pub(super) fn until(&mut self, events: BorrowedFd<'_>, due: Option<Instant>) -> io::Result<()> {
        if let Some(sleep) = &mut self.simulated {
            return sleep(events, due);
        }
        let left = due.map(|due| due.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        match poll(&mut [PollFd::new(&events, PollFlags::IN)], timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
