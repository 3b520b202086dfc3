//! The engines of one queue as its worker uses them: one for each disk that the queue serves.

use std::convert::Infallible;
use std::io;

use ::block::{Completion, IoEngine, Request};

/// The engines of one queue. A queue with a single disk uses the disk's engine itself.
pub trait Engines {
    /// A query of a disk's store that is executed off the queue. Uninhabited if there is none.
    type Query;

    /// Whether [`Self::Query`] is inhabited.
    const HAS_QUERIES: bool;

    /// Starts a query. Its tag is unique among all requests in flight.
    fn query(&mut self, tag: u16, query: Self::Query);

    /// Takes the tags of the queries that are done or cancelled.
    fn take_answered(&mut self) -> Vec<u16>;

    /// Accepts a request for disk number `unit`. See [`IoEngine::push`].
    fn push(&mut self, unit: u16, request: Request<'_>);

    /// See [`IoEngine::submit`].
    ///
    /// # Errors
    ///
    /// An engine cannot continue.
    fn submit(&mut self) -> io::Result<()>;

    /// See [`IoEngine::reap`].
    fn reap(&mut self, completed: &mut Vec<Completion>);

    /// See [`IoEngine::parked`].
    fn parked(&self) -> usize;

    /// See [`IoEngine::cancel`]. A query is always cancelled.
    fn cancel(&mut self, unit: u16, tag: u16) -> bool;

    /// See [`IoEngine::wait`].
    ///
    /// # Errors
    ///
    /// An engine cannot continue.
    fn wait(&mut self) -> io::Result<()>;
}

impl Engines for Box<dyn IoEngine> {
    type Query = Infallible;

    const HAS_QUERIES: bool = false;

    fn query(&mut self, _tag: u16, query: Infallible) {
        match query {}
    }

    fn take_answered(&mut self) -> Vec<u16> {
        Vec::new()
    }

    #[inline]
    fn push(&mut self, _unit: u16, request: Request<'_>) {
        (**self).push(request);
    }

    #[inline]
    fn submit(&mut self) -> io::Result<()> {
        (**self).submit()
    }

    #[inline]
    fn reap(&mut self, completed: &mut Vec<Completion>) {
        (**self).reap(completed);
    }

    fn parked(&self) -> usize {
        (**self).parked()
    }

    fn cancel(&mut self, _unit: u16, tag: u16) -> bool {
        (**self).cancel(tag)
    }

    #[inline]
    fn wait(&mut self) -> io::Result<()> {
        (**self).wait().map(drop)
    }
}
