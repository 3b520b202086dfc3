//! The event loop of a thread: an adapter to the event-manager crate whose handlers may fail.

use std::cell::RefCell;
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use event_manager::{
    Error, EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps,
};

/// A handler of events, with the descriptors that cause them.
pub(crate) trait EventSource {
    /// Registers the descriptors.
    ///
    /// # Errors
    ///
    /// A descriptor cannot be registered.
    fn register(&mut self, interest: &mut Interest<'_, '_>) -> io::Result<()>;

    /// Handles an event of the descriptor that was registered with `token`.
    ///
    /// # Errors
    ///
    /// The error ends the loop.
    fn handle(&mut self, token: u32, interest: &mut Interest<'_, '_>) -> io::Result<()>;
}

/// The registered descriptors of one [`EventSource`].
pub(crate) struct Interest<'o, 'm>(&'o mut EventOps<'m>);

impl Interest<'_, '_> {
    /// Delivers an event with `token` while `descriptor` is ready for one of `events`.
    ///
    /// A descriptor must be removed before it is closed.
    ///
    /// # Errors
    ///
    /// The descriptor cannot be registered. Regular files fail with EPERM.
    pub(crate) fn add(
        &mut self,
        descriptor: &impl AsRawFd,
        token: u32,
        events: EventSet,
    ) -> io::Result<()> {
        self.0.add(Events::with_data(descriptor, token, events)).map_err(to_io)
    }

    /// Delivers no further events of `descriptor`.
    ///
    /// # Errors
    ///
    /// The descriptor is not registered.
    pub(crate) fn remove(&mut self, descriptor: &impl AsRawFd) -> io::Result<()> {
        self.0.remove(Events::empty(descriptor)).map_err(to_io)
    }
}

/// The event loop of the calling thread.
pub(crate) struct EventLoop<'s> {
    manager: EventManager<Subscriber<'s>>,
    failure: Failure,
}

/// The first error of a handler. The crate's handlers return nothing.
type Failure = Rc<RefCell<Option<io::Error>>>;

struct Subscriber<'s> {
    source: Box<dyn EventSource + 's>,
    failure: Failure,
}

impl Subscriber<'_> {
    fn record(&self, result: io::Result<()>) {
        if let Err(error) = result {
            self.failure.borrow_mut().get_or_insert(error);
        }
    }
}

impl MutEventSubscriber for Subscriber<'_> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let result = self.source.register(&mut Interest(ops));
        self.record(result);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let result = self.source.handle(events.data(), &mut Interest(ops));
        self.record(result);
    }
}

impl<'s> EventLoop<'s> {
    /// A loop without sources.
    ///
    /// # Errors
    ///
    /// The process or the host is out of descriptors.
    pub(crate) fn new() -> io::Result<Self> {
        let manager = EventManager::new().map_err(to_io)?;
        Ok(Self { manager, failure: Failure::default() })
    }

    /// Adds a source.
    ///
    /// # Errors
    ///
    /// A descriptor of the source cannot be registered.
    pub(crate) fn add(&mut self, source: impl EventSource + 's) -> io::Result<()> {
        let failure = Rc::clone(&self.failure);
        self.manager.add_subscriber(Subscriber { source: Box::new(source), failure });
        self.take_failure()
    }

    /// Waits for events, at most until `deadline`, and handles them.
    ///
    /// # Errors
    ///
    /// The first error of a handler, or of the wait.
    pub(crate) fn wait(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        self.manager.run_with_timeout(timeout_ms(deadline)).map_err(to_io)?;
        self.take_failure()
    }

    fn take_failure(&self) -> io::Result<()> {
        self.failure.borrow_mut().take().map_or(Ok(()), Err)
    }
}

/// A timeout for `epoll_wait(2)`, rounded up; -1 waits without limit.
fn timeout_ms(deadline: Option<Instant>) -> i32 {
    let Some(deadline) = deadline else { return -1 };
    let left = deadline.saturating_duration_since(Instant::now());
    let rounded_up = left.saturating_add(Duration::from_nanos(999_999));
    i32::try_from(rounded_up.as_millis()).unwrap_or(i32::MAX)
}

fn to_io(error: Error) -> io::Error {
    match error {
        Error::Epoll(errno) => errno.into(),
        error => io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notifier::Notifier;

    struct Failing(Notifier);

    impl EventSource for Failing {
        fn register(&mut self, interest: &mut Interest<'_, '_>) -> io::Result<()> {
            interest.add(&self.0, 7, EventSet::IN)
        }

        fn handle(&mut self, token: u32, _: &mut Interest<'_, '_>) -> io::Result<()> {
            self.0.clear();
            Err(io::Error::other(format!("token {token}")))
        }
    }

    #[test]
    fn errors_of_handlers_end_the_wait() {
        let notifier = Notifier::new().unwrap();
        let mut events = EventLoop::new().unwrap();
        events.add(Failing(notifier.clone())).unwrap();
        events.wait(Some(Instant::now())).unwrap();
        notifier.notify().unwrap();
        assert_eq!(events.wait(None).unwrap_err().to_string(), "token 7");
        events.wait(Some(Instant::now() + Duration::from_millis(1))).unwrap();
        let again = events.add(Failing(notifier)).unwrap_err();
        assert!(again.to_string().contains("already been registered"), "{again}");
    }

    #[test]
    fn timeouts_are_rounded_up() {
        assert_eq!(timeout_ms(None), -1);
        assert_eq!(timeout_ms(Some(Instant::now())), 0);
        let soon = Instant::now() + Duration::from_micros(900);
        assert!(timeout_ms(Some(soon)) <= 1);
        let late = Instant::now() + Duration::from_secs(1 << 32);
        assert_eq!(timeout_ms(Some(late)), i32::MAX);
    }
}
