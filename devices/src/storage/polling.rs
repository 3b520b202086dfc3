//! How long an idle worker polls its ring before it sleeps.
//!
//! A kick costs the driver a system call and both sides a wake-up. A driver that returns within
//! microseconds finds the worker polling and need not kick. Between checks the worker yields its
//! CPU (`sched_yield`): a driver on the same CPU can return only then.
//!
//! Only a worker without requests in flight polls: it waits for its driver, never for the disk. It
//! polls for at most [`MAX_BUDGET_NS`] before a sleep, and only after its driver has returned
//! sooner than that.

use std::hint::spin_loop;

/// Maximum time to poll before a sleep, in nanoseconds.
pub(super) const MAX_BUDGET_NS: u64 = 50_000;
/// First non-zero budget, in nanoseconds.
const FIRST_BUDGET_NS: u64 = 5_000;
/// Maximum number of checks between two yields.
const MAX_SPINS: u32 = 256;
/// Maximum number of strikes; the pause after a strike doubles with each.
const MAX_STRIKES: u32 = 10;

/// Polling state of one worker.
#[derive(Debug, Default)]
pub(super) struct Polling {
    /// How long to poll before the next sleep, in nanoseconds.
    budget_ns: u64,
    /// Backoff exponent: grows when the CPU returns late from a yield.
    strikes: u32,
    /// While paused: sleeps left. While polling: successful polls since the last strike.
    count: u32,
}

/// One poll, from its start to a result. Times in nanoseconds.
#[derive(Debug)]
pub(super) struct Poll {
    since_ns: u64,
    checked_ns: u64,
    spins: u32,
}

impl Polling {
    /// The current budget, in nanoseconds.
    pub(super) fn budget_ns(&self) -> u64 {
        self.budget_ns
    }

    /// Starts to poll; `None` if the worker should sleep.
    pub(super) fn begin(&self, now_ns: u64) -> Option<Poll> {
        (self.budget_ns > 0).then_some(Poll { since_ns: now_ns, checked_ns: now_ns, spins: 0 })
    }

    /// Evaluates a check after a yield. `None` to continue, otherwise whether there is work.
    pub(super) fn checked(&mut self, poll: &mut Poll, found: bool, now_ns: u64) -> Option<bool> {
        let away_ns = now_ns.saturating_sub(poll.checked_ns);
        poll.checked_ns = now_ns;
        poll.spins = (poll.spins * 2).clamp(8, MAX_SPINS);
        if away_ns > MAX_BUDGET_NS {
            // Other tasks had the CPU, and no kick could end the driver's wait.
            self.strike();
            return Some(found);
        }
        if found {
            self.succeed();
            return Some(true);
        }
        if now_ns.saturating_sub(poll.since_ns) < self.budget_ns {
            return None;
        }
        self.budget_ns = if self.budget_ns > FIRST_BUDGET_NS { self.budget_ns / 2 } else { 0 };
        Some(false)
    }

    /// Adapts the budget to the duration of a sleep without requests in flight.
    pub(super) fn slept(&mut self, slept_ns: u64) {
        if self.budget_ns == 0 && self.count > 0 && self.strikes > 0 {
            self.count -= 1;
        } else if slept_ns > MAX_BUDGET_NS {
            self.budget_ns = 0;
        } else {
            self.budget_ns = (self.budget_ns * 2).clamp(FIRST_BUDGET_NS, MAX_BUDGET_NS);
        }
    }

    /// Pauses polling.
    fn strike(&mut self) {
        self.budget_ns = 0;
        self.strikes = (self.strikes + 1).min(MAX_STRIKES);
        self.count = 1 << self.strikes;
    }

    /// Counts a successful poll; enough of them revoke a strike.
    fn succeed(&mut self) {
        self.count += 1;
        if self.count >> self.strikes > 0 {
            self.strikes = self.strikes.saturating_sub(1);
            self.count = 0;
        }
    }
}

impl Poll {
    /// Time of the last check.
    pub(super) fn checked_ns(&self) -> u64 {
        self.checked_ns
    }

    /// Checks without yielding: not at first, then longer each time. Returns whether a check
    /// succeeded.
    pub(super) fn spin(&self, found: impl Fn() -> bool) -> bool {
        (0..self.spins).any(|_| {
            spin_loop();
            found()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: u64 = 1000;

    /// Polls with a check each `step_ns` and a driver that returns after `back_ns`.
    fn poll(polling: &mut Polling, step_ns: u64, back_ns: u64) -> (bool, u64) {
        let Some(mut poll) = polling.begin(0) else { return (false, 0) };
        for now_ns in (1..).map(|step| step * step_ns) {
            if let Some(found) = polling.checked(&mut poll, now_ns >= back_ns, now_ns) {
                return (found, now_ns);
            }
        }
        unreachable!()
    }

    #[test]
    fn a_fast_driver_is_polled_for() {
        let mut polling = Polling::default();
        assert_eq!(poll(&mut polling, US, US), (false, 0), "its speed is not known yet");
        polling.slept(3 * US);
        assert_eq!(poll(&mut polling, US, 3 * US), (true, 3 * US));
    }

    #[test]
    fn a_slow_driver_is_not_polled_for() {
        let mut polling = Polling::default();
        for _ in 0..10 {
            polling.slept(1000 * US);
            assert_eq!(poll(&mut polling, US, 1000 * US), (false, 0));
        }
    }

    #[test]
    fn failed_polls_halve_the_budget_to_zero() {
        let mut polling = Polling::default();
        for _ in 0..10 {
            polling.slept(30 * US);
        }
        let mut spent = Vec::new();
        while polling.budget_ns() > 0 {
            let (found, took_ns) = poll(&mut polling, US, 1000 * US);
            assert!(!found && took_ns <= MAX_BUDGET_NS, "{took_ns} ns");
            spent.push(took_ns);
        }
        assert_eq!(spent, [50 * US, 25 * US, 13 * US, 7 * US, 4 * US]);
    }

    /// While other tasks keep the CPU, a driver that does not kick waits for it.
    #[test]
    fn late_returns_from_yield_back_off_exponentially() {
        let mut polling = Polling::default();
        let mut tries = Vec::new();
        for sleep in 0..5000 {
            polling.slept(3 * US);
            if polling.budget_ns() > 0 {
                tries.push(sleep);
                assert!(poll(&mut polling, 3000 * US, US).0, "a chain that was found is served");
            }
        }
        let gaps: Vec<_> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(gaps[..9], [3, 5, 9, 17, 33, 65, 129, 257, 513]);
        assert!(gaps[9..].iter().all(|gap| *gap == 1025), "{gaps:?}");
    }

    #[test]
    fn successful_polls_revoke_strikes() {
        let mut polling = Polling::default();
        for _ in 0..3 {
            while polling.budget_ns() == 0 {
                polling.slept(3 * US);
            }
            poll(&mut polling, 3000 * US, US);
        }
        while polling.budget_ns() == 0 {
            polling.slept(3 * US);
        }
        for _ in 0..100 {
            assert!(poll(&mut polling, US, US).0);
        }
        assert_eq!(polling.strikes, 0);
    }
}
