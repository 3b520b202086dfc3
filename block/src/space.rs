//! What becomes of requests that the host has no space for.
//!
//! A held request has not completed: the guest runs on and waits for it as for a slow disk, and no flush covers
//! it, so none waits for it. The policy and the account of what is held are the disk's, shared by its
//! engines; when to ask again is each engine's own.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::LogLimit;

/// What to do when the host has no space for a write (`ENOSPC`) or none for us (`EDQUOT`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnEnospc {
    /// Fail the request at once.
    #[default]
    Report,
    /// Ask again until there is space, and fail the request only when it has waited this long.
    Hold {
        /// How long a request may wait.
        deadline: Duration,
    },
}

/// What a disk holds for want of space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnospcHold {
    /// How many requests wait.
    pub requests: u32,
    /// Since when the oldest of them has waited.
    pub since: Instant,
    /// When the oldest of them fails, if there is no space before.
    pub deadline: Instant,
    /// Why: `ENOSPC` or `EDQUOT`.
    pub errno: i32,
}

/// How many episodes are told of in a minute.
const EPISODES_TOLD: u32 = 10;

/// The account of one disk.
#[derive(Debug)]
pub(crate) struct SpaceWatch {
    disk: String,
    path: PathBuf,
    policy: OnEnospc,
    /// The disk is on its way out: nothing is held any more.
    stopped: AtomicBool,
    episode: Mutex<Option<Episode>>,
    /// A guest that aborts what is held begins and ends episodes at will.
    told: LogLimit,
}

/// From the first held request to the last.
#[derive(Debug)]
struct Episode {
    began: Instant,
    /// Whether its beginning was, so that its end is to be.
    told: bool,
    errno: i32,
    /// Since when each request has waited, in no order.
    waiting: Vec<Instant>,
}

impl SpaceWatch {
    pub(crate) fn new(disk: String, path: PathBuf, policy: OnEnospc) -> Self {
        Self {
            disk,
            path,
            policy,
            stopped: AtomicBool::new(false),
            episode: Mutex::new(None),
            told: LogLimit::new(EPISODES_TOLD, Duration::from_secs(60)),
        }
    }

    /// From now on nothing is held.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Until when a request is held that waits since `since`; nothing if it is not.
    pub(crate) fn holds_until(&self, since: Instant) -> Option<Instant> {
        self.deadline(since).filter(|_| !self.is_stopped())
    }

    fn deadline(&self, since: Instant) -> Option<Instant> {
        match self.policy {
            OnEnospc::Report => None,
            OnEnospc::Hold { deadline } => since.checked_add(deadline),
        }
    }

    pub(crate) fn held(&self) -> Option<EnospcHold> {
        let episode = self.lock();
        let Episode { errno, waiting, .. } = episode.as_ref()?;
        let since = *waiting.iter().min()?;
        let requests = u32::try_from(waiting.len()).unwrap_or(u32::MAX);
        Some(EnospcHold { requests, since, deadline: self.deadline(since)?, errno: *errno })
    }

    /// One more request is held. The first begins an episode.
    pub(crate) fn enter(&self, error: &io::Error, now: Instant) {
        let mut episode = self.lock();
        if let Some(episode) = &mut *episode {
            episode.waiting.push(now);
            return;
        }
        let errno = error.raw_os_error().unwrap_or(libc::ENOSPC);
        let news = self.told.check_at(now);
        *episode = Some(Episode { began: now, told: news.is_some(), errno, waiting: vec![now] });
        drop(episode);
        if let Some(suppressed) = news {
            tracing::warn!(
                disk = self.disk, path = %self.path.display(), %error, suppressed,
                "the host has no space: writes are held until it has, and the guest waits for them"
            );
        }
    }

    /// A request that was held since `since` has ended. The last ends the episode.
    pub(crate) fn leave(&self, since: Instant) {
        let mut guard = self.lock();
        let Some(episode) = &mut *guard else { return };
        if let Some(place) = episode.waiting.iter().position(|entered| *entered == since) {
            episode.waiting.swap_remove(place);
        }
        if !episode.waiting.is_empty() {
            return;
        }
        let Episode { began, told, .. } = *episode;
        *guard = None;
        drop(guard);
        if told {
            let seconds = began.elapsed().as_secs_f32();
            tracing::warn!(
                disk = self.disk,
                seconds,
                "no write is held for want of space any more"
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Episode>> {
        // Every change is whole when it is made, so that a panic elsewhere leaves nothing broken.
        self.episode.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first wait before the host is asked again, and the longest: each is twice the one before.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// An engine's held requests, by tag.
#[derive(Debug)]
pub(crate) struct Waiting {
    tags: Vec<u16>,
    due: Option<Instant>,
    wait: Duration,
}

impl Waiting {
    pub(crate) fn new() -> Self {
        Self { tags: Vec::new(), due: None, wait: FIRST_WAIT }
    }

    /// Holds a request, at most until `deadline`.
    pub(crate) fn hold(&mut self, tag: u16, now: Instant, deadline: Instant) {
        self.tags.push(tag);
        let next = *self.due.get_or_insert_with(|| now + self.wait);
        self.due = Some(next.min(deadline));
    }

    pub(crate) fn len(&self) -> usize {
        self.tags.len()
    }

    pub(crate) fn contains(&self, tag: u16) -> bool {
        self.tags.contains(&tag)
    }

    /// Those that wait.
    pub(crate) fn tags(&mut self) -> &mut Vec<u16> {
        &mut self.tags
    }

    /// When to ask again.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// The requests to ask again with, if it is time or `at_once`. They are no longer held here.
    pub(crate) fn take_due(&mut self, now: Instant, at_once: bool) -> Vec<u16> {
        if self.due.is_none_or(|due| due > now && !at_once) {
            return Vec::new();
        }
        self.due = None;
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
        std::mem::take(&mut self.tags)
    }

    /// There was space: the next want of it is asked about soon.
    pub(crate) fn space_was_had(&mut self) {
        self.wait = FIRST_WAIT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_five_seconds_and_start_anew_once_there_was_space() {
        let start = Instant::now();
        let far = start + Duration::from_secs(3600);
        let mut waiting = Waiting::new();
        let mut now = start;
        for millis in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            waiting.hold(1, now, far);
            waiting.hold(2, now + Duration::from_millis(10), far);
            assert_eq!(waiting.due(), Some(now + Duration::from_millis(millis)));
            assert!(waiting.take_due(now + Duration::from_millis(millis - 1), false).is_empty());
            now += Duration::from_millis(millis);
            assert_eq!(waiting.take_due(now, false), [1, 2]);
        }
        waiting.space_was_had();
        waiting.hold(1, now, far);
        assert_eq!(waiting.due(), Some(now + FIRST_WAIT));
        assert_eq!(waiting.take_due(now, true), [1], "whatever the time is");
    }

    #[test]
    fn a_deadline_is_not_slept_through() {
        let now = Instant::now();
        let deadline = now + Duration::from_millis(30);
        let mut waiting = Waiting::new();
        waiting.hold(1, now, now + LONGEST_WAIT);
        waiting.hold(2, now, deadline);
        assert_eq!(waiting.due(), Some(deadline));
    }

    #[test]
    fn an_episode_lasts_from_the_first_held_request_to_the_last() {
        let policy = OnEnospc::Hold { deadline: Duration::from_secs(1) };
        let watch = SpaceWatch::new("disk".into(), "path".into(), policy);
        let now = Instant::now();
        let error = io::Error::from_raw_os_error(libc::EDQUOT);
        let second = Duration::from_secs(1);
        watch.enter(&error, now);
        watch.enter(&error, now + second);
        let held = |requests, since| {
            Some(EnospcHold { requests, since, deadline: since + second, errno: libc::EDQUOT })
        };
        assert_eq!(watch.held(), held(2, now));
        watch.leave(now);
        assert_eq!(watch.held(), held(1, now + second), "the oldest is gone");
        let is_told = || watch.lock().as_ref().is_some_and(|episode| episode.told);
        assert!(is_told());
        watch.leave(now + second);
        assert_eq!(watch.held(), None);
        for episode in 1..2 * EPISODES_TOLD {
            watch.enter(&error, now + 2 * second);
            assert_eq!(is_told(), episode < EPISODES_TOLD, "ten in a minute");
            watch.leave(now + 2 * second);
        }
        assert_eq!(watch.holds_until(now), Some(now + second));
    }
}
