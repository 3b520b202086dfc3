//! One client: a request in, an answer out. Never waits; its time and its memory are bounded.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::http::{self, BODY_MAX, HEAD_MAX, Problem, Request, Response};

/// How long a client may take to send its request, and again to take the answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// How long, and how much, is read of what a client goes on sending after its answer.
const FAREWELL: Duration = Duration::from_millis(200);
const FAREWELL_BYTES: usize = 1 << 20;
const CHUNK: usize = 4 << 10;

enum Phase {
    /// The request comes in.
    Reading(Vec<u8>),
    /// The answer goes out; this much has gone.
    Writing { answer: Vec<u8>, sent: usize },
    /// The answer is out, but closing now would destroy it if there is still something to read.
    Leaving { left: usize },
}

/// A connected client.
pub(super) struct Connection {
    stream: UnixStream,
    phase: Phase,
    deadline: Instant,
}

/// Whether the client is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Stay,
    Close,
}

impl Connection {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, phase: Phase::Reading(Vec::new()), deadline: Instant::now() + PATIENCE })
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// What to wait for.
    pub(super) fn interest(&self) -> PollFlags {
        match self.phase {
            Phase::Reading(_) | Phase::Leaving { .. } => PollFlags::IN,
            Phase::Writing { .. } => PollFlags::OUT,
        }
    }

    /// Goes on as far as the client lets it. `serve` is called once, with the whole request.
    pub(super) fn advance(&mut self, serve: impl FnOnce(&Request) -> Response) -> Next {
        let outcome = match &mut self.phase {
            Phase::Reading(_) => self.read(serve),
            Phase::Writing { .. } => self.write(),
            Phase::Leaving { .. } => self.leave(),
        };
        match outcome {
            Ok(next) => next,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Next::Stay
            }
            Err(_) => Next::Close,
        }
    }

    /// The client took too long.
    pub(super) fn expire(&mut self) -> Next {
        let Phase::Reading(received) = &self.phase else { return Next::Close };
        if received.is_empty() {
            return Next::Close;
        }
        let detail = format!("the request was not whole within {} s", PATIENCE.as_secs());
        self.reply(&Problem::new(408, detail, "send it at once").into());
        self.advance(|_| Problem::new(500, "", "").into())
    }

    fn read(&mut self, serve: impl FnOnce(&Request) -> Response) -> io::Result<Next> {
        let Phase::Reading(received) = &mut self.phase else { return Ok(Next::Close) };
        let mut chunk = [0; CHUNK];
        let length = self.stream.read(&mut chunk)?;
        if length == 0 {
            return Ok(Next::Close);
        }
        // No more than this is looked at: a longer request is refused before it gets here.
        let room = (HEAD_MAX + BODY_MAX + CHUNK).saturating_sub(received.len());
        received.extend(chunk.iter().take(length.min(room)));
        let response = match http::parse(received) {
            Ok(None) => return Ok(Next::Stay),
            Ok(Some(request)) => serve(&request),
            Err(problem) => problem.into(),
        };
        self.reply(&response);
        self.write()
    }

    fn reply(&mut self, response: &Response) {
        self.phase = Phase::Writing { answer: response.to_bytes(), sent: 0 };
        self.deadline = Instant::now() + PATIENCE;
    }

    fn write(&mut self) -> io::Result<Next> {
        let Phase::Writing { answer, sent } = &mut self.phase else { return Ok(Next::Close) };
        while let Some(rest) = answer.get(*sent..).filter(|rest| !rest.is_empty()) {
            *sent += self.stream.write(rest)?;
        }
        self.stream.shutdown(std::net::Shutdown::Write)?;
        self.phase = Phase::Leaving { left: FAREWELL_BYTES };
        self.deadline = Instant::now() + FAREWELL;
        self.leave()
    }

    fn leave(&mut self) -> io::Result<Next> {
        let Phase::Leaving { left } = &mut self.phase else { return Ok(Next::Close) };
        let length = self.stream.read(&mut [0; CHUNK])?;
        *left = left.saturating_sub(length);
        Ok(if length == 0 || *left == 0 { Next::Close } else { Next::Stay })
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
