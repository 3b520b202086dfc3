//! One client of the control socket: a request in, an answer out.
//!
//! Never blocks. The time and the memory of a client are bounded.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::http::{self, BODY_MAX, HEAD_MAX, Problem, Request, Response};
use super::jobs::PendingResponse;

/// Time for a client to send its request, and again to read the answer.
pub(super) const TIMEOUT: Duration = Duration::from_secs(2);
/// Time and bytes for data that a client sends after its answer.
const LINGER: Duration = Duration::from_millis(200);
const LINGER_BYTES: usize = 1 << 20;
const CHUNK: usize = 4 << 10;

enum Phase {
    /// Receives the request.
    Reading(Vec<u8>),
    /// Waits for the job that makes the answer.
    Waiting(PendingResponse),
    /// Sends the answer, of which `sent` bytes are out.
    Writing { answer: Vec<u8>, sent: usize },
    /// The answer is out. A close with unread data would discard it, so up to `left` bytes are
    /// read.
    Lingering { left: usize },
}

/// A connected client.
pub(super) struct Connection {
    stream: UnixStream,
    phase: Phase,
    deadline: Instant,
}

/// The answer to a request.
pub(super) enum Reply {
    Now(Response),
    Later(PendingResponse),
}

/// Whether the connection continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeepAlive {
    Yes,
    No,
}

impl Connection {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, phase: Phase::Reading(Vec::new()), deadline: Instant::now() + TIMEOUT })
    }

    /// When the client has taken too long; `None` while the answer is not made.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let is_waiting = matches!(self.phase, Phase::Waiting(_));
        (!is_waiting).then_some(self.deadline)
    }

    /// The events to wait for; `None` while the answer is not made.
    pub(super) fn interest(&self) -> Option<PollFlags> {
        match self.phase {
            Phase::Reading(_) | Phase::Lingering { .. } => Some(PollFlags::IN),
            Phase::Waiting(_) => None,
            Phase::Writing { .. } => Some(PollFlags::OUT),
        }
    }

    /// Takes the answer of the job, if it has ended. Returns whether it has.
    pub(super) fn has_response(&mut self) -> bool {
        let Phase::Waiting(pending) = &self.phase else { return false };
        let Some(response) = pending.take() else { return false };
        self.reply(&response);
        true
    }

    /// Continues as far as possible without blocking. Calls `serve` once, with the whole request.
    pub(super) fn advance(&mut self, serve: impl FnOnce(Request) -> Reply) -> KeepAlive {
        let outcome = match &mut self.phase {
            Phase::Reading(_) => self.read(serve),
            Phase::Waiting(_) => return KeepAlive::Yes,
            Phase::Writing { .. } => self.write(),
            Phase::Lingering { .. } => self.linger(),
        };
        match outcome {
            Ok(keep) => keep,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                KeepAlive::Yes
            }
            Err(_) => KeepAlive::No,
        }
    }

    /// Handles the expiry of the deadline. A client that has sent something gets an answer.
    pub(super) fn expire(&mut self) -> KeepAlive {
        let Phase::Reading(received) = &self.phase else { return KeepAlive::No };
        if received.is_empty() {
            return KeepAlive::No;
        }
        let detail = format!("the request was not complete within {} s", TIMEOUT.as_secs());
        self.reply(&Problem::new(408, detail, "send it without delay").into());
        self.advance(|_| Reply::Now(Problem::new(500, "", "").into()))
    }

    fn read(&mut self, serve: impl FnOnce(Request) -> Reply) -> io::Result<KeepAlive> {
        let Phase::Reading(received) = &mut self.phase else { return Ok(KeepAlive::No) };
        let mut chunk = [0; CHUNK];
        let length = self.stream.read(&mut chunk)?;
        if length == 0 {
            return Ok(KeepAlive::No);
        }
        // A longer request is refused before it reaches this limit.
        let room = (HEAD_MAX + BODY_MAX + CHUNK).saturating_sub(received.len());
        received.extend(chunk.iter().take(length.min(room)));
        let reply = match http::parse(received) {
            Ok(None) => return Ok(KeepAlive::Yes),
            Ok(Some(request)) => serve(request),
            Err(problem) => Reply::Now(problem.into()),
        };
        match reply {
            Reply::Now(response) => self.reply(&response),
            Reply::Later(pending) => {
                self.phase = Phase::Waiting(pending);
                return Ok(KeepAlive::Yes);
            }
        }
        self.write()
    }

    fn reply(&mut self, response: &Response) {
        self.phase = Phase::Writing { answer: response.to_bytes(), sent: 0 };
        self.deadline = Instant::now() + TIMEOUT;
    }

    fn write(&mut self) -> io::Result<KeepAlive> {
        let Phase::Writing { answer, sent } = &mut self.phase else { return Ok(KeepAlive::No) };
        while let Some(rest) = answer.get(*sent..).filter(|rest| !rest.is_empty()) {
            *sent += self.stream.write(rest)?;
        }
        self.stream.shutdown(Shutdown::Write)?;
        self.phase = Phase::Lingering { left: LINGER_BYTES };
        self.deadline = Instant::now() + LINGER;
        self.linger()
    }

    fn linger(&mut self) -> io::Result<KeepAlive> {
        let Phase::Lingering { left } = &mut self.phase else { return Ok(KeepAlive::No) };
        let length = self.stream.read(&mut [0; CHUNK])?;
        *left = left.saturating_sub(length);
        Ok(if length == 0 || *left == 0 { KeepAlive::No } else { KeepAlive::Yes })
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
