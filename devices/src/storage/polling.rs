//! How long a worker looks at its ring before it sleeps, and when it does not look at all.
//!
//! A kick that wakes a worker costs its driver a system call and both a wake-up. A driver that comes back within
//! microseconds is met by a worker that still looks, and need not kick. Between looks the worker gives its CPU away
//! (`sched_yield`): where the driver runs on the same one, it can come back only then.
//!
//! Only a worker whose engine holds nothing polls: it waits for its driver, never for the disk. It polls for at most
//! [`MOST_NS`] before a sleep, and not at all before it has seen that its driver comes back sooner than that.

use std::hint::spin_loop;

/// The longest time to poll before a sleep, in nanoseconds.
pub(crate) const MOST_NS: u64 = 50_000;
/// What polling begins with.
const FIRST_NS: u64 = 5_000;
/// The most looks between two times that the CPU is given away.
const MOST_SPINS: u32 = 256;
/// After so many disappointments in a row the pauses of polling grow no longer.
const MOST_STRIKES: u32 = 10;

/// The state of one worker. Times in nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct Polling {
    /// How long to poll before the next sleep.
    budget_ns: u64,
    /// How often the CPU given away came back late.
    strikes: u32,
    /// Sleeps to go before another try, or, while it polls, polls that went well since the last strike.
    count: u32,
}

/// One time of polling.
#[derive(Debug)]
pub(crate) struct Poll {
    since_ns: u64,
    looked_ns: u64,
    spins: u32,
}

impl Polling {
    /// How long it would poll now.
    pub(crate) fn budget_ns(&self) -> u64 {
        self.budget_ns
    }

    /// Begins to poll, if it is worth it.
    pub(crate) fn begin(&self, now_ns: u64) -> Option<Poll> {
        (self.budget_ns > 0).then_some(Poll { since_ns: now_ns, looked_ns: now_ns, spins: 0 })
    }

    /// The CPU came back, and a look found something or not. `None`: go on; else whether there is something to do.
    pub(crate) fn looked(&mut self, poll: &mut Poll, found: bool, now_ns: u64) -> Option<bool> {
        let away_ns = now_ns.saturating_sub(poll.looked_ns);
        poll.looked_ns = now_ns;
        poll.spins = (poll.spins * 2).clamp(8, MOST_SPINS);
        if away_ns > MOST_NS {
            // Others had the CPU, and who was to be served at once waited for it without a kick to end that.
            self.strike();
            return Some(found);
        }
        if found {
            self.went_well();
            return Some(true);
        }
        if now_ns.saturating_sub(poll.since_ns) < self.budget_ns {
            return None;
        }
        self.budget_ns = if self.budget_ns > FIRST_NS { self.budget_ns / 2 } else { 0 };
        Some(false)
    }

    /// A sleep with nothing in flight ended after so long.
    pub(crate) fn slept(&mut self, slept_ns: u64) {
        if self.budget_ns == 0 && self.count > 0 && self.strikes > 0 {
            self.count -= 1;
        } else if slept_ns > MOST_NS {
            self.budget_ns = 0;
        } else {
            self.budget_ns = (self.budget_ns * 2).clamp(FIRST_NS, MOST_NS);
        }
    }

    fn strike(&mut self) {
        self.budget_ns = 0;
        self.strikes = (self.strikes + 1).min(MOST_STRIKES);
        self.count = 1 << self.strikes;
    }

    fn went_well(&mut self) {
        self.count += 1;
        if self.count >> self.strikes > 0 {
            self.strikes = self.strikes.saturating_sub(1);
            self.count = 0;
        }
    }
}

impl Poll {
    /// When it looked last.
    pub(crate) fn looked_ns(&self) -> u64 {
        self.looked_ns
    }

    /// Looks a while without giving the CPU away: not at first, then longer each time. Whether something was found.
    pub(crate) fn spin(&self, found: impl Fn() -> bool) -> bool {
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

    /// Polls until it ends, with a look each `step_ns` and the driver back after `back_ns`.
    fn poll(polling: &mut Polling, step_ns: u64, back_ns: u64) -> (bool, u64) {
        let Some(mut poll) = polling.begin(0) else { return (false, 0) };
        for now_ns in (1..).map(|step| step * step_ns) {
            if let Some(found) = polling.looked(&mut poll, now_ns >= back_ns, now_ns) {
                return (found, now_ns);
            }
        }
        unreachable!()
    }

    #[test]
    fn a_driver_that_comes_back_soon_is_met() {
        let mut polling = Polling::default();
        assert_eq!(poll(&mut polling, US, US), (false, 0), "not before it was seen to");
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
    fn polling_is_bounded_and_ends_when_it_finds_nothing() {
        let mut polling = Polling::default();
        for _ in 0..10 {
            polling.slept(30 * US);
        }
        let mut spent = Vec::new();
        while polling.budget_ns() > 0 {
            let (found, took_ns) = poll(&mut polling, US, 1000 * US);
            assert!(!found && took_ns <= MOST_NS, "{took_ns} ns");
            spent.push(took_ns);
        }
        assert_eq!(spent, [50 * US, 25 * US, 13 * US, 7 * US, 4 * US]);
    }

    /// Where others keep the CPU for long, a driver that does not kick waits for it: ever fewer tries.
    #[test]
    fn a_cpu_that_comes_back_late_is_given_away_ever_less_often() {
        let mut polling = Polling::default();
        let mut tries = Vec::new();
        for sleep in 0..5000 {
            polling.slept(3 * US);
            if polling.budget_ns() > 0 {
                tries.push(sleep);
                assert!(poll(&mut polling, 3000 * US, US).0, "what was found is served");
            }
        }
        let gaps: Vec<_> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(gaps[..9], [3, 5, 9, 17, 33, 65, 129, 257, 513]);
        assert!(gaps[9..].iter().all(|gap| *gap == 1025), "{gaps:?}");
    }

    #[test]
    fn good_times_make_up_for_bad_ones() {
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
