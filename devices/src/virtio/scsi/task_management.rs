//! Task management functions (TMF, SAM-5 §7): requests of the control queue to the request queues
//! about the commands that these hold.
//!
//! A request queue receives a function at its next round, after all chains that were available by
//! then. It cancels the selected commands where possible and waits for the others. The function is
//! done on the queue once the driver can see the end of all of them, and done when it is on every
//! queue.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::address::Address;
use super::response::Response;
use crate::event;

/// The commands that a function is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TaskSelector {
    /// The command of a disk with the driver's identifier.
    Task(Address, u64),
    /// All commands of a disk.
    Disk(Address),
    /// All commands of a target.
    Target(u8),
}

impl TaskSelector {
    pub(super) fn selects(&self, address: Address, id: u64) -> bool {
        match *self {
            Self::Task(of, task) => of == address && task == id,
            Self::Disk(of) => of == address,
            Self::Target(target) => target == address.target,
        }
    }
}

/// A function in progress.
pub(super) struct TmfRequest {
    selector: TaskSelector,
    /// The response of the selected commands; `None` if the function only queries them.
    abort: Option<Response>,
    found: AtomicBool,
    /// Number of queues that are not done, plus one while the function is being posted.
    left: AtomicUsize,
    done: EventFd,
}

impl TmfRequest {
    /// Posts a function to the request queues in use. [`TmfRequest::signal`] becomes readable when
    /// it [is done](TmfRequest::is_done).
    ///
    /// # Errors
    ///
    /// The host refuses an eventfd.
    pub(super) fn post(
        selector: TaskSelector,
        abort: Option<Response>,
        to: &[TmfMailbox],
    ) -> io::Result<Arc<Self>> {
        let done = EventFd::new(EFD_NONBLOCK)?;
        let (found, left) = (AtomicBool::new(false), AtomicUsize::new(1));
        let request = Arc::new(Self { selector, abort, found, left, done });
        to.iter().for_each(|mailbox| mailbox.post(&request));
        request.queue_done();
        Ok(request)
    }

    /// Whether a selected command was in flight.
    pub(super) fn has_found(&self) -> bool {
        self.found.load(Ordering::Acquire)
    }

    /// One queue is done.
    fn queue_done(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            let _ = self.done.write(1);
        }
    }

    /// Whether every queue is done.
    pub(super) fn is_done(&self) -> bool {
        self.left.load(Ordering::Acquire) == 0
    }

    /// Readable when the function is done.
    pub(super) fn signal(&self) -> BorrowedFd<'_> {
        event::as_fd(&self.done)
    }
}

/// Functions posted to one request queue.
#[derive(Default)]
pub(super) struct TmfMailbox {
    /// Whether `inner` has functions: the queue's worker checks it in each round.
    has_posts: AtomicBool,
    inner: Mutex<MailboxInner>,
}

#[derive(Default)]
struct MailboxInner {
    posts: Vec<Arc<TmfRequest>>,
    /// Wakes the queue's worker; `None` while the queue is not in use.
    kick: Option<Arc<EventFd>>,
}

impl TmfMailbox {
    /// Opens the mailbox of a queue in use.
    fn open(&self, kick: &Arc<EventFd>) {
        self.lock().kick = Some(Arc::clone(kick));
    }

    /// Closes the mailbox; the functions in it are done on this queue.
    fn close(&self) {
        let MailboxInner { posts, .. } = std::mem::take(&mut *self.lock());
        posts.iter().for_each(|request| request.queue_done());
    }

    fn post(&self, request: &Arc<TmfRequest>) {
        let mut inner = self.lock();
        if inner.kick.is_none() {
            return;
        }
        request.left.fetch_add(1, Ordering::AcqRel);
        inner.posts.push(Arc::clone(request));
        self.has_posts.store(true, Ordering::Release);
        drop(inner);
        self.kick();
    }

    fn take(&self) -> Vec<Arc<TmfRequest>> {
        if !self.has_posts.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let mut inner = self.lock();
        self.has_posts.store(false, Ordering::Release);
        std::mem::take(&mut inner.posts)
    }

    /// Wakes the queue's worker if the queue is in use.
    pub(super) fn kick(&self) {
        if let Some(kick) = &self.lock().kick {
            // Fails only if the counter is full: the worker is then awake.
            let _ = kick.write(1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, MailboxInner> {
        // Functions are pushed and taken whole: a panic leaves nothing inconsistent.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The functions that a request queue processes, on its worker's thread.
pub(super) struct TaskAborts {
    mailboxes: Arc<[TmfMailbox]>,
    queue: usize,
    /// Number of the last command; commands are numbered in order.
    last_number: u64,
    active: Vec<ActiveTmf>,
}

struct ActiveTmf {
    request: Arc<TmfRequest>,
    /// Selected commands have smaller numbers. `None` until the commands in flight were reviewed.
    before: Option<u64>,
    /// Number of selected commands in flight.
    left: usize,
}

impl TaskAborts {
    /// Opens the mailbox of a queue; `None` if the queue does not exist.
    pub(super) fn new(
        mailboxes: Arc<[TmfMailbox]>,
        queue: u16,
        kick: &Arc<EventFd>,
    ) -> Option<Self> {
        let queue = usize::from(queue);
        mailboxes.get(queue)?.open(kick);
        Some(Self { mailboxes, queue, last_number: 0, active: Vec::new() })
    }

    fn mailbox(&self) -> Option<&TmfMailbox> {
        self.mailboxes.get(self.queue)
    }

    /// Numbers a new command.
    pub(super) fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Takes the posted functions. Returns whether there are any: each command, including those
    /// accepted in this round, must then be [reviewed](Self::review).
    pub(super) fn take_posts(&mut self) -> bool {
        let posts = self.mailbox().map_or_else(Vec::new, TmfMailbox::take);
        let activate = |request| ActiveTmf { request, before: None, left: 0 };
        let has_posts = !posts.is_empty();
        self.active.extend(posts.into_iter().map(activate));
        has_posts
    }

    /// Reviews a command for the new functions. Returns its response if one aborts it.
    pub(super) fn review(&mut self, address: Address, id: u64) -> Option<Response> {
        let mut abort = None;
        let new = self.active.iter_mut().filter(|tmf| tmf.before.is_none());
        for tmf in new.filter(|tmf| tmf.request.selector.selects(address, id)) {
            tmf.request.found.store(true, Ordering::Release);
            if tmf.request.abort.is_some() {
                tmf.left += 1;
                abort = abort.or(tmf.request.abort);
            }
        }
        abort
    }

    /// A command has ended.
    pub(super) fn command_ended(&mut self, number: u64, address: Address, id: u64) {
        for tmf in &mut self.active {
            let TmfRequest { selector, abort, .. } = &*tmf.request;
            let was_reviewed = tmf.before.is_some_and(|before| number < before);
            if was_reviewed && abort.is_some() && selector.selects(address, id) {
                tmf.left = tmf.left.saturating_sub(1);
            }
        }
    }

    /// All completions so far are visible to the driver.
    pub(super) fn published(&mut self) {
        if self.active.is_empty() {
            return;
        }
        let next = self.last_number + 1;
        self.active.retain_mut(|tmf| {
            tmf.before.get_or_insert(next);
            if tmf.left == 0 {
                tmf.request.queue_done();
            }
            tmf.left > 0
        });
    }
}

impl Drop for TaskAborts {
    /// The commands of the queue end with it.
    fn drop(&mut self) {
        if let Some(mailbox) = self.mailbox() {
            mailbox.close();
        }
        self.active.iter().for_each(|tmf| tmf.request.queue_done());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: Address = Address { target: 0, lun: 1 };
    const OTHER: Address = Address { target: 0, lun: 2 };

    fn queue() -> (Arc<[TmfMailbox]>, TaskAborts) {
        let mailboxes: Arc<[_]> = [(); 2].map(|()| TmfMailbox::default()).into();
        let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let aborts = TaskAborts::new(Arc::clone(&mailboxes), 0, &kick).unwrap();
        assert!(TaskAborts::new(Arc::clone(&mailboxes), 2, &kick).is_none());
        (mailboxes, aborts)
    }

    fn abort(mailboxes: &[TmfMailbox], selector: TaskSelector) -> Arc<TmfRequest> {
        TmfRequest::post(selector, Some(Response::Aborted), mailboxes).unwrap()
    }

    #[test]
    fn a_function_is_done_when_its_commands_have_ended() {
        let (mailboxes, mut queue) = queue();
        let (first, second) = (queue.next_number(), queue.next_number());
        let request = abort(&mailboxes, TaskSelector::Disk(DISK));
        assert!(!request.is_done() && queue.take_posts() && !queue.take_posts());
        assert_eq!(queue.review(DISK, 1), Some(Response::Aborted));
        assert_eq!(queue.review(OTHER, 2), None);
        queue.published();
        assert!(!request.is_done());
        // A later command is not selected, even with the same identifier.
        let later = queue.next_number();
        queue.command_ended(later, DISK, 1);
        queue.command_ended(second, OTHER, 2);
        queue.published();
        assert!(!request.is_done());
        queue.command_ended(first, DISK, 1);
        assert!(!request.is_done(), "not published yet");
        queue.published();
        assert!(request.is_done() && request.has_found());
    }

    /// Each function counts a command once, however many functions arrive while it is in flight.
    #[test]
    fn functions_are_independent() {
        let (mailboxes, mut queue) = queue();
        let number = queue.next_number();
        let selectors =
            [TaskSelector::Disk(DISK), TaskSelector::Task(DISK, 1), TaskSelector::Target(0)];
        let requests = selectors.map(|selector| {
            let request = abort(&mailboxes, selector);
            assert!(queue.take_posts());
            assert_eq!(queue.review(DISK, 1), Some(Response::Aborted));
            queue.published();
            request
        });
        queue.command_ended(number, DISK, 1);
        queue.published();
        assert!(requests.iter().all(|request| request.is_done()));
    }

    #[test]
    fn functions_are_done_on_a_queue_that_ends() {
        let (mailboxes, mut queue) = queue();
        queue.next_number();
        let taken = abort(&mailboxes, TaskSelector::Disk(DISK));
        assert!(queue.take_posts());
        assert!(queue.review(DISK, 1).is_some());
        let waiting = abort(&mailboxes, TaskSelector::Disk(DISK));
        drop(queue);
        assert!(taken.is_done() && waiting.is_done());
        assert!(abort(&mailboxes, TaskSelector::Disk(DISK)).is_done(), "no queue is in use");
    }
}
