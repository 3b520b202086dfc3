//! The load of one disk: a thread with a vhost-user front-end that writes, reads, flushes and
//! discards, and verifies each block that it reads.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use driver::feature;
use driver::vhost_user::{Monitor, PendingIo};
use fixtures::Random;

use crate::content::{BLOCK_BYTES, decode, encode};
use crate::ledger::Ledger;
use crate::stall_clock::StallClock;

/// Longest time of a request outside of stalls.
pub(crate) const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// Requests in flight on each queue.
const DEPTH: usize = 12;
const QUEUES: usize = 2;
/// Requests submitted in each round of a millisecond.
const BURST: usize = 6;
const MAX_BLOCKS: usize = 8;
/// Bytes of guest memory that are allocated before the buffer of a pending request is reused, with
/// a margin.
const ARENA_BYTES: u64 = 12 << 20;
const SECTORS: u64 = BLOCK_BYTES as u64 / 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Discard,
    Flush { covers: u64 },
}

struct InFlight {
    io: PendingIo,
    kind: Kind,
    first: usize,
    blocks: usize,
    submitted: Instant,
    /// Stall clock at the submission.
    stalled: Duration,
    /// Bytes allocated before it.
    allocated: u64,
}

/// Counts of completed requests.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) discards: u64,
    pub(crate) flushes: u64,
    /// Blocks read and verified.
    pub(crate) verified: u64,
    /// Longest time of a request outside of stalls.
    pub(crate) slowest: Duration,
}

enum Command {
    Reconnect,
    /// Complete all requests, verify all blocks, and continue.
    Verify,
    /// The same, and end.
    Finish,
    /// End with requests in flight.
    Abandon,
}

/// Counters that the thread publishes.
#[derive(Debug, Default)]
struct Progress {
    connections: AtomicU32,
    completed: AtomicU64,
    /// Whether all blocks have been verified once.
    verified: AtomicBool,
}

/// A running load.
pub(crate) struct Load {
    commands: Sender<Command>,
    progress: Arc<Progress>,
    thread: Option<JoinHandle<Result<(Ledger, Tally)>>>,
}

/// The disk and its socket.
pub(crate) struct Target {
    pub(crate) socket: PathBuf,
    pub(crate) disk: u64,
    pub(crate) blocks: usize,
}

impl Load {
    pub(crate) fn start(target: Target, random: Random, stalls: Arc<StallClock>) -> Self {
        let (commands, receiver) = channel();
        let progress = Arc::<Progress>::default();
        let published = Arc::clone(&progress);
        let thread = thread::spawn(move || {
            let ledger = Ledger::new(target.blocks);
            let features = feature::EVENT_IDX;
            let queues = u16::try_from(QUEUES).unwrap();
            let monitor = Monitor::start(&target.socket, queues, features, true);
            published.connections.fetch_add(1, Ordering::Release);
            let runner = Runner {
                busy: vec![0; target.blocks],
                target,
                random,
                stalls,
                progress: published,
                monitor,
                ledger,
                tally: Tally::default(),
                in_flight: (0..QUEUES).map(|_| HashMap::new()).collect(),
                allocated: 0,
            };
            runner.run(&receiver)
        });
        Self { commands, progress, thread: Some(thread) }
    }

    /// Number of connections to the back-end so far.
    pub(crate) fn connections(&self) -> u32 {
        self.progress.connections.load(Ordering::Acquire)
    }

    /// Number of requests completed so far.
    pub(crate) fn completed(&self) -> u64 {
        self.progress.completed.load(Ordering::Relaxed)
    }

    /// Connects to the restarted back-end.
    pub(crate) fn reconnect(&self) {
        // A load that has ended is reported by `check`.
        let _ = self.commands.send(Command::Reconnect);
    }

    /// An error if the load has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        if !self.is_finished() {
            return Ok(());
        }
        self.join().and_then(|_| bail!("the load ended early"))
    }

    /// Requests a verification after which the load continues.
    pub(crate) fn verify(&self) {
        let _ = self.commands.send(Command::Verify);
    }

    /// Whether that verification has succeeded.
    pub(crate) fn is_verified(&self) -> bool {
        self.progress.verified.load(Ordering::Acquire)
    }

    /// Requests the end with requests in flight.
    pub(crate) fn abandon(&self) {
        let _ = self.commands.send(Command::Abandon);
    }

    /// Requests the final verification.
    pub(crate) fn finish(&self) {
        let _ = self.commands.send(Command::Finish);
    }

    /// Whether the thread has ended.
    pub(crate) fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the end of the thread.
    pub(crate) fn join(&mut self) -> Result<(Ledger, Tally)> {
        let thread = self.thread.take().context("the load has ended")?;
        thread.join().map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            anyhow!("the front-end failed: {}", text.unwrap_or_default())
        })?
    }
}

/// The state of the thread.
struct Runner {
    target: Target,
    random: Random,
    stalls: Arc<StallClock>,
    progress: Arc<Progress>,
    monitor: Monitor,
    ledger: Ledger,
    tally: Tally,
    in_flight: Vec<HashMap<u32, InFlight>>,
    /// Requests in flight for each block.
    busy: Vec<u8>,
    allocated: u64,
}

impl Runner {
    fn run(mut self, commands: &Receiver<Command>) -> Result<(Ledger, Tally)> {
        loop {
            match commands.try_recv() {
                Ok(Command::Reconnect) => {
                    self.monitor.reconnect(&self.target.socket);
                    self.progress.connections.fetch_add(1, Ordering::Release);
                }
                Ok(Command::Verify) => {
                    self.verify_all()?;
                    self.progress.verified.store(true, Ordering::Release);
                }
                Ok(Command::Finish) => break,
                Ok(Command::Abandon) | Err(TryRecvError::Disconnected) => {
                    return Ok((self.ledger, self.tally));
                }
                Err(TryRecvError::Empty) => {}
            }
            self.reap()?;
            (0..BURST).for_each(|_| self.submit_any());
            (0..QUEUES).for_each(|queue| self.monitor.publish(queue));
            thread::sleep(Duration::from_millis(1));
        }
        self.verify_all()?;
        Ok((self.ledger, self.tally))
    }

    /// Completes used requests and checks the age of the others.
    fn reap(&mut self) -> Result<()> {
        for queue in 0..QUEUES {
            while let Some(used) = self.monitor.queues[queue].ring.take_used() {
                let request = self.in_flight[queue].remove(&used.id);
                let request = request
                    .with_context(|| format!("queue {queue}: head {} is used twice", used.id))?;
                self.complete(&request)?;
            }
        }
        let stalled = self.stalls.total();
        for request in self.in_flight.iter().flat_map(HashMap::values) {
            let age = age(request, stalled);
            ensure!(
                age < REQUEST_LIMIT,
                "{:?} of {} blocks at block {} hangs: in flight for {:?}, {age:?} of it without a \
                 disturbance",
                request.kind,
                request.blocks,
                request.first,
                request.submitted.elapsed()
            );
        }
        Ok(())
    }

    fn complete(&mut self, request: &InFlight) -> Result<()> {
        let InFlight { kind, first, blocks, .. } = *request;
        let status = self.monitor.status(&request.io);
        ensure!(status == 0, "{kind:?} of {blocks} blocks at block {first} has status {status}");
        self.tally.slowest = self.tally.slowest.max(age(request, self.stalls.total()));
        self.progress.completed.fetch_add(1, Ordering::Relaxed);
        let range = first..first + blocks;
        range.clone().for_each(|block| self.busy[block] -= 1);
        match kind {
            Kind::Read => {
                self.tally.reads += 1;
                self.verify(first, &self.monitor.data(&request.io))?;
                self.tally.verified += blocks as u64;
            }
            Kind::Write => {
                self.tally.writes += 1;
                range.for_each(|block| self.ledger.acknowledge(block));
            }
            Kind::Discard => {
                self.tally.discards += 1;
                range.for_each(|block| self.ledger.acknowledge(block));
            }
            Kind::Flush { covers } => {
                self.tally.flushes += 1;
                self.ledger.acknowledge_flush(covers);
            }
        }
        Ok(())
    }

    fn verify(&self, first: usize, data: &[u8]) -> Result<()> {
        for (block, bytes) in (first..).zip(data.chunks(BLOCK_BYTES)) {
            decode(self.target.disk, block as u64, bytes)
                .map_err(anyhow::Error::msg)
                .and_then(|content| self.ledger.check(block, content))
                .with_context(|| format!("block {block} was read"))?;
        }
        Ok(())
    }

    /// Submits one random request if its queue and its blocks are free.
    fn submit_any(&mut self) {
        let queue = self.random.below(QUEUES);
        let blocks = self.random.within(1, MAX_BLOCKS);
        let first = self.random.below(self.ledger.len() - blocks);
        let draw = self.random.below(100);
        let oldest = self.in_flight.iter().flat_map(HashMap::values).map(|one| one.allocated).min();
        let range = first..first + blocks;
        if self.in_flight[queue].len() >= DEPTH
            || oldest.is_some_and(|oldest| self.allocated - oldest > ARENA_BYTES)
            || range.clone().any(|block| self.busy[block] > 0)
        {
            return;
        }
        match draw {
            0..55 => self.submit_write(queue, first, blocks),
            55..88 => self.submit_read(queue, first, blocks),
            88..96 => self.submit_discard(queue, first, blocks),
            _ => self.submit_flush(queue),
        }
    }

    fn submit_write(&mut self, queue: usize, first: usize, blocks: usize) {
        let mut data = Vec::with_capacity(blocks * BLOCK_BYTES);
        for block in first..first + blocks {
            let generation = self.ledger.write(block);
            encode(self.target.disk, block as u64, generation, &mut data);
        }
        let io = self.monitor.offer_write(queue, 1, first as u64 * SECTORS, &data);
        self.track(queue, io, Kind::Write, first, blocks);
    }

    fn submit_read(&mut self, queue: usize, first: usize, blocks: usize) {
        let bytes = u32::try_from(blocks * BLOCK_BYTES).unwrap();
        let io = self.monitor.offer_read(queue, first as u64 * SECTORS, bytes);
        self.track(queue, io, Kind::Read, first, blocks);
    }

    fn submit_discard(&mut self, queue: usize, first: usize, blocks: usize) {
        (first..first + blocks).for_each(|block| self.ledger.discard(block));
        let sectors = u32::try_from(blocks as u64 * SECTORS).unwrap();
        let io = self.monitor.offer_discard(queue, first as u64 * SECTORS, sectors);
        self.track(queue, io, Kind::Discard, first, blocks);
    }

    fn submit_flush(&mut self, queue: usize) {
        let covers = self.ledger.flush();
        let io = self.monitor.offer_write(queue, 4, 0, &[]);
        self.track(queue, io, Kind::Flush { covers }, 0, 0);
    }

    fn track(&mut self, queue: usize, io: PendingIo, kind: Kind, first: usize, blocks: usize) {
        (first..first + blocks).for_each(|block| self.busy[block] += 1);
        let (submitted, stalled) = (Instant::now(), self.stalls.total());
        let allocated = self.allocated;
        self.allocated += (blocks * BLOCK_BYTES) as u64 + 1024;
        let request = InFlight { io, kind, first, blocks, submitted, stalled, allocated };
        self.in_flight[queue].insert(io.head.into(), request);
    }

    /// Completes all requests in flight.
    fn drain(&mut self) -> Result<()> {
        while self.in_flight.iter().any(|queue| !queue.is_empty()) {
            (0..QUEUES).for_each(|queue| self.monitor.publish(queue));
            self.reap()?;
            thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    /// Completes all requests, flushes, then reads and verifies all blocks.
    fn verify_all(&mut self) -> Result<()> {
        self.drain()?;
        self.submit_flush(0);
        self.drain()?;
        for first in (0..self.ledger.len()).step_by(MAX_BLOCKS) {
            if self.in_flight[0].len() >= DEPTH {
                self.drain()?;
            }
            self.submit_read(0, first, MAX_BLOCKS.min(self.ledger.len() - first));
        }
        self.drain()
    }
}

/// Age of a request without the stalls since its submission.
fn age(request: &InFlight, stalled: Duration) -> Duration {
    request.submitted.elapsed().saturating_sub(stalled.saturating_sub(request.stalled))
}
