//! Requests held for ENOSPC: the policy and the account of one disk, shared by its engines.
//!
//! A held request has not completed: to the guest the disk is slow. No flush covers it and none
//! waits for it. When to retry is each engine's own business ([`crate::requests`]).

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::{LogLimit, OnEnospc};

/// Requests that a disk holds for ENOSPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnospcHold {
    /// Number of held requests.
    pub requests: u32,
    /// When the oldest of them was first refused.
    pub since: Instant,
    /// When the oldest of them fails if no space becomes available.
    pub deadline: Instant,
    /// `ENOSPC` or `EDQUOT`.
    pub errno: i32,
}

/// Episodes logged per minute.
const EPISODES_LOGGED: u32 = 10;

/// The held requests of one disk.
#[derive(Debug)]
pub(crate) struct EnospcAccount {
    disk: String,
    path: PathBuf,
    policy: OnEnospc,
    /// The disk is being detached: nothing is held from now on.
    stopped: AtomicBool,
    episode: Mutex<Option<Episode>>,
    /// A guest that aborts its held requests begins and ends episodes as fast as it likes.
    log_limit: LogLimit,
}

/// The time from the first held request to the last.
#[derive(Debug)]
struct Episode {
    began: Instant,
    /// Its beginning was logged, so its end has to be.
    logged: bool,
    errno: i32,
    /// When each held request was first refused, in no order.
    held_since: Vec<Instant>,
}

impl EnospcAccount {
    pub(crate) fn new(disk: String, path: PathBuf, policy: OnEnospc) -> Self {
        Self {
            disk,
            path,
            policy,
            stopped: AtomicBool::new(false),
            episode: Mutex::new(None),
            log_limit: LogLimit::new(EPISODES_LOGGED, Duration::from_secs(60)),
        }
    }

    /// Disables holding for good.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// The deadline of a request first refused at `since`; `None` if requests are not held.
    pub(crate) fn deadline(&self, since: Instant) -> Option<Instant> {
        self.policy_deadline(since).filter(|_| !self.is_stopped())
    }

    fn policy_deadline(&self, since: Instant) -> Option<Instant> {
        match self.policy {
            OnEnospc::Report => None,
            OnEnospc::Hold { deadline } => since.checked_add(deadline),
        }
    }

    /// The requests that are held now.
    pub(crate) fn held(&self) -> Option<EnospcHold> {
        let episode = self.lock();
        let Episode { errno, held_since, .. } = episode.as_ref()?;
        let since = *held_since.iter().min()?;
        let requests = u32::try_from(held_since.len()).unwrap_or(u32::MAX);
        Some(EnospcHold { requests, since, deadline: self.policy_deadline(since)?, errno: *errno })
    }

    /// Accounts for one more held request. The first begins an episode.
    pub(crate) fn enter(&self, error: &io::Error, now: Instant) {
        let mut episode = self.lock();
        if let Some(episode) = &mut *episode {
            episode.held_since.push(now);
            return;
        }
        let errno = error.raw_os_error().unwrap_or(libc::ENOSPC);
        let log = self.log_limit.check_at(now);
        let held_since = vec![now];
        *episode = Some(Episode { began: now, logged: log.is_some(), errno, held_since });
        drop(episode);
        if let Some(suppressed) = log {
            tracing::warn!(
                disk = self.disk, path = %self.path.display(), %error, suppressed,
                "no space on the host: writes are held until there is, and the guest waits for them"
            );
        }
    }

    /// A request held since `since` has completed. The last one ends the episode.
    pub(crate) fn leave(&self, since: Instant) {
        let mut guard = self.lock();
        let Some(episode) = &mut *guard else { return };
        if let Some(index) = episode.held_since.iter().position(|entered| *entered == since) {
            episode.held_since.swap_remove(index);
        }
        if !episode.held_since.is_empty() {
            return;
        }
        let Episode { began, logged, .. } = *episode;
        *guard = None;
        drop(guard);
        if logged {
            let seconds = began.elapsed().as_secs_f32();
            tracing::warn!(disk = self.disk, seconds, "writes are no longer held for ENOSPC");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Episode>> {
        // Each change is complete when the lock is released, also by a panic.
        self.episode.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_episode_lasts_from_the_first_held_request_to_the_last() {
        let policy = OnEnospc::Hold { deadline: Duration::from_secs(1) };
        let account = EnospcAccount::new("disk".into(), "path".into(), policy);
        let now = Instant::now();
        let error = io::Error::from_raw_os_error(libc::EDQUOT);
        let second = Duration::from_secs(1);
        account.enter(&error, now);
        account.enter(&error, now + second);
        let held = |requests, since| {
            Some(EnospcHold { requests, since, deadline: since + second, errno: libc::EDQUOT })
        };
        assert_eq!(account.held(), held(2, now));
        account.leave(now);
        assert_eq!(account.held(), held(1, now + second), "the oldest is gone");
        let is_logged = || account.lock().as_ref().is_some_and(|episode| episode.logged);
        assert!(is_logged());
        account.leave(now + second);
        assert_eq!(account.held(), None);
        for episode in 1..2 * EPISODES_LOGGED {
            account.enter(&error, now + 2 * second);
            assert_eq!(is_logged(), episode < EPISODES_LOGGED, "ten per minute");
            account.leave(now + 2 * second);
        }
        assert_eq!(account.deadline(now), Some(now + second));
        account.stop();
        assert_eq!(account.deadline(now), None);
    }
}
