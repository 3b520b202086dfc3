//! What waking costs here, without any storage: the least that a request at queue depth 1 takes of
//! one CPU beside its I/O.
//!
//! One thread plays the driver: it asks, and sleeps in a `read` of an eventfd until it is
//! interrupted. The other plays the worker: it is asked by a word of memory that it looks at
//! between two times it gives the CPU away, or by an eventfd, and interrupts.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{EventfdFlags, eventfd};

const TURNS: u32 = 20_000;
const ONE: [u8; 8] = 1u64.to_ne_bytes();

/// The time of one turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    /// With an interrupt alone, as where the worker polls.
    pub(super) polled: Duration,
    /// With a kick as well.
    pub(super) kicked: Duration,
}

/// Measures on the CPUs that this thread may use.
pub(super) fn measure() -> Result<Turn> {
    Ok(Turn { polled: turn(false)?, kicked: turn(true)? })
}

fn turn(kicks: bool) -> Result<Duration> {
    let event = || Ok::<_, anyhow::Error>(File::from(eventfd(0, EventfdFlags::CLOEXEC)?));
    let (mut kick, mut interrupt, asked) = (event()?, event()?, Arc::new(AtomicBool::new(false)));
    let (mut kicked, mut signal, look) = (kick.try_clone()?, interrupt.try_clone()?, asked.clone());
    let worker = thread::spawn(move || -> Result<()> {
        for _ in 0..TURNS {
            if kicks {
                kicked.read_exact(&mut [0; 8])?;
            }
            while !look.swap(false, Ordering::AcqRel) {
                thread::yield_now();
            }
            signal.write_all(&ONE)?;
        }
        Ok(())
    });
    let start = Instant::now();
    for _ in 0..TURNS {
        asked.store(true, Ordering::Release);
        if kicks {
            kick.write_all(&ONE)?;
        }
        interrupt.read_exact(&mut [0; 8])?;
    }
    let took = start.elapsed();
    worker.join().ok().context("the other thread panicked")??;
    Ok(took / TURNS)
}
