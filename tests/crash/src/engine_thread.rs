//! A thread with an engine of a disk, which executes requests of a FUSE file. Several are in flight
//! at a time.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use block::{Backend, EngineSetup, IoEngine, Operation, Request, Segment};
use rustix::event::{EventfdFlags, eventfd};

/// Most requests in flight.
const DEPTH: u16 = 64;

/// One request, with its data and the function that gets its result.
pub(crate) struct Job {
    pub(crate) op: Operation,
    /// The data to write, or room for that to read.
    pub(crate) data: Vec<u8>,
    pub(crate) done: Box<dyn FnOnce(io::Result<Vec<u8>>) + Send>,
}

/// The thread. It ends when this is dropped, after the requests in flight.
pub(crate) struct EngineThread {
    jobs: Option<Sender<Job>>,
    kick: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl EngineThread {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// The host refuses a thread or a descriptor.
    pub(crate) fn start(disk: Arc<dyn Backend>) -> io::Result<Self> {
        let kick = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (sender, receiver) = channel();
        let kicked = Arc::clone(&kick);
        let thread = thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || serve(&*disk, &kicked, &receiver))?;
        Ok(Self { jobs: Some(sender), kick, thread: Some(thread) })
    }

    /// Hands a request to the engine.
    pub(crate) fn submit(&self, job: Job) {
        let Some(jobs) = &self.jobs else { return };
        if jobs.send(job).is_ok() {
            self.wake();
        }
    }

    fn wake(&self) {
        // A full counter wakes as well.
        let _ = rustix::io::write(&self.kick, &1u64.to_ne_bytes());
    }
}

impl Drop for EngineThread {
    fn drop(&mut self) {
        self.jobs = None;
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Executes the jobs until their sender is gone.
fn serve(disk: &dyn Backend, kick: &OwnedFd, jobs: &Receiver<Job>) {
    let setup = EngineSetup { depth: DEPTH, memory: &[], kick: kick.as_fd() };
    let Ok(mut engine) = disk.engine(&setup) else { return };
    let mut in_flight: Vec<Option<Job>> = (0..DEPTH).map(|_| None).collect();
    let mut completed = Vec::new();
    let mut is_open = true;
    loop {
        while let Some(tag) = in_flight.iter().position(Option::is_none) {
            match jobs.try_recv() {
                Ok(job) => push(&mut *engine, &mut in_flight, tag, job),
                Err(error) => {
                    is_open = error == std::sync::mpsc::TryRecvError::Empty;
                    break;
                }
            }
        }
        let is_idle = in_flight.iter().all(Option::is_none);
        if !is_open && is_idle || engine.wait().is_err() {
            return;
        }
        engine.reap(&mut completed);
        for completion in completed.drain(..) {
            let job = in_flight.get_mut(usize::from(completion.tag)).and_then(Option::take);
            if let Some(Job { data, done, .. }) = job {
                done(completion.result.map(|()| data));
            }
        }
    }
}

fn push(engine: &mut dyn IoEngine, in_flight: &mut [Option<Job>], slot: usize, mut job: Job) {
    let mut segments = Vec::new();
    if !job.data.is_empty() {
        // SAFETY: the buffer stays in its slot, and is used by the engine only, until the
        // completion of the request is reaped or the engine is dropped, which is before the slots
        // are.
        segments.push(unsafe { Segment::new(job.data.as_mut_ptr(), job.data.len()) });
    }
    let op = job.op;
    let Some(place) = in_flight.get_mut(slot) else { return };
    *place = Some(job);
    let tag = u16::try_from(slot).unwrap_or(u16::MAX);
    engine.push(Request { tag, op, segments: &mut segments });
}
