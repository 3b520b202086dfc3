//! Cost of wake-ups on this machine without storage: the lower bound of CPU time per request at
//! queue depth 1 in addition to its I/O.
//!
//! One thread plays the driver: it submits and sleeps in a `read` of an eventfd until it is
//! interrupted. The other plays the worker: it polls a word of memory between yields of the CPU, or
//! waits for an eventfd, and then interrupts.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{EventfdFlags, eventfd};

const ROUND_TRIPS: u32 = 20_000;
const ONE: [u8; 8] = 1u64.to_ne_bytes();

/// Time of one round trip.
#[derive(Clone, Copy, Debug)]
pub(super) struct WakeCost {
    /// With an interrupt only: the worker polls.
    pub(super) polled: Duration,
    /// With an interrupt and a kick.
    pub(super) kicked: Duration,
}

/// Measures on the CPUs this thread may use.
pub(super) fn measure() -> Result<WakeCost> {
    Ok(WakeCost { polled: round_trip(false)?, kicked: round_trip(true)? })
}

fn round_trip(kicks: bool) -> Result<Duration> {
    let event = || Ok::<_, anyhow::Error>(File::from(eventfd(0, EventfdFlags::CLOEXEC)?));
    let (mut kick, mut interrupt, submitted) =
        (event()?, event()?, Arc::new(AtomicBool::new(false)));
    let (mut kicked, mut signal, polled) =
        (kick.try_clone()?, interrupt.try_clone()?, submitted.clone());
    let worker = thread::spawn(move || -> Result<()> {
        for _ in 0..ROUND_TRIPS {
            if kicks {
                kicked.read_exact(&mut [0; 8])?;
            }
            while !polled.swap(false, Ordering::AcqRel) {
                thread::yield_now();
            }
            signal.write_all(&ONE)?;
        }
        Ok(())
    });
    let start = Instant::now();
    for _ in 0..ROUND_TRIPS {
        submitted.store(true, Ordering::Release);
        if kicks {
            kick.write_all(&ONE)?;
        }
        interrupt.read_exact(&mut [0; 8])?;
    }
    let elapsed = start.elapsed();
    worker.join().ok().context("the worker thread panicked")??;
    Ok(elapsed / ROUND_TRIPS)
}
