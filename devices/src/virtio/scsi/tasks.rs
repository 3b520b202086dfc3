//! Task management (SAM-5 §7): orders from the control queue to the request queues about the tasks they hold.
//!
//! A request queue takes an order at its next round, behind everything that was in its ring by then. It cancels what can
//! be cancelled of the tasks that are meant and remembers the others; once the driver can see the end of all of them
//! the queue has obeyed. The order is done when all queues have.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::request::Response;
use super::shared::{Address, Shared};
use crate::event;

/// Which tasks are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// The one of this disk that the driver calls so.
    Task(Address, u64),
    /// All of a disk.
    Disk(Address),
    /// All of a target.
    Target(u8),
}

impl Which {
    pub(super) fn means(&self, address: Address, id: u64) -> bool {
        match *self {
            Self::Task(of, task) => of == address && task == id,
            Self::Disk(of) => of == address,
            Self::Target(target) => target == address.target,
        }
    }
}

/// One order.
pub(super) struct Order {
    pub(super) which: Which,
    /// How the tasks end; nothing if they are only looked for.
    pub(super) end: Option<Response>,
    found: AtomicBool,
    /// How many queues have not obeyed yet, and one more until all are asked.
    left: AtomicUsize,
    done: EventFd,
}

impl Order {
    /// Gives an order to the request queues that are in use. It is done when [`Order::is_done`] says so, which
    /// [`Order::signal`] tells.
    ///
    /// # Errors
    ///
    /// The host gives no event.
    pub(super) fn give(
        which: Which,
        end: Option<Response>,
        to: &[Mailbox],
    ) -> io::Result<Arc<Self>> {
        let done = EventFd::new(EFD_NONBLOCK)?;
        let (found, left) = (AtomicBool::new(false), AtomicUsize::new(1));
        let order = Arc::new(Self { which, end, found, left, done });
        to.iter().for_each(|mailbox| mailbox.post(&order));
        order.obeyed();
        Ok(order)
    }

    /// A task that is meant was there.
    pub(super) fn was_found(&self) {
        self.found.store(true, Ordering::Release);
    }

    pub(super) fn has_found(&self) -> bool {
        self.found.load(Ordering::Acquire)
    }

    /// A queue is done with it.
    fn obeyed(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            let _ = self.done.write(1);
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.left.load(Ordering::Acquire) == 0
    }

    /// Readable when it is done.
    pub(super) fn signal(&self) -> BorrowedFd<'_> {
        event::as_fd(&self.done)
    }
}

/// Where a request queue finds its orders.
#[derive(Default)]
pub(super) struct Mailbox {
    has_post: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    orders: Vec<Arc<Order>>,
    /// How the queue is woken, while it is in use.
    kick: Option<Arc<EventFd>>,
}

impl Mailbox {
    /// The queue is in use.
    fn open(&self, kick: &Arc<EventFd>) {
        self.lock().kick = Some(Arc::clone(kick));
    }

    /// The queue is not in use any more; its orders are obeyed by that.
    fn close(&self) {
        let Inner { orders, .. } = std::mem::take(&mut *self.lock());
        orders.iter().for_each(|order| order.obeyed());
    }

    fn post(&self, order: &Arc<Order>) {
        let mut inner = self.lock();
        if inner.kick.is_none() {
            return;
        }
        order.left.fetch_add(1, Ordering::AcqRel);
        inner.orders.push(Arc::clone(order));
        self.has_post.store(true, Ordering::Release);
        drop(inner);
        self.kick();
    }

    /// Wakes the queue, if it is in use.
    pub(super) fn kick(&self) {
        if let Some(kick) = &self.lock().kick {
            // Fails only if the counter is full, in which case the worker is awake.
            let _ = kick.write(1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Orders are pushed and taken whole, so that a panic elsewhere leaves nothing broken.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The orders that a request queue is obeying, on its worker's thread.
pub(super) struct Obedience {
    shared: Arc<Shared>,
    queue: usize,
    /// Numbers the tasks of the queue in their order.
    next_task: u64,
    orders: Vec<Obeying>,
}

struct Obeying {
    order: Arc<Order>,
    /// Tasks from this one on are not meant; nothing while tasks are still to be looked at for it.
    before: Option<u64>,
    /// How many that are meant have not ended.
    left: usize,
}

impl Obedience {
    /// `None` if there is no such queue.
    pub(super) fn new(shared: Arc<Shared>, queue: u16, kick: &Arc<EventFd>) -> Option<Self> {
        let queue = usize::from(queue);
        shared.mailboxes.get(queue)?.open(kick);
        Some(Self { shared, queue, next_task: 0, orders: Vec::new() })
    }

    fn mailbox(&self) -> Option<&Mailbox> {
        self.shared.mailboxes.get(self.queue)
    }

    /// The number of a new task.
    pub(super) fn next_task(&mut self) -> u64 {
        self.next_task += 1;
        self.next_task
    }

    /// Whether there are new orders, so that each task, with those that come in this round, is to be [looked at](Self::end_of).
    pub(super) fn take_orders(&mut self) -> bool {
        let Some(mailbox) = self.mailbox() else { return false };
        if !mailbox.has_post.load(Ordering::Relaxed) {
            return false;
        }
        let mut inner = mailbox.lock();
        mailbox.has_post.store(false, Ordering::Release);
        let orders = std::mem::take(&mut inner.orders);
        drop(inner);
        let obeying = |order| Obeying { order, before: None, left: 0 };
        self.orders.extend(orders.into_iter().map(obeying));
        true
    }

    /// Looks at a task for the new orders, and says how it is to end, if it is.
    pub(super) fn end_of(&mut self, address: Address, id: u64) -> Option<Response> {
        let mut end = None;
        let new = self.orders.iter_mut().filter(|obeying| obeying.before.is_none());
        for obeying in new.filter(|obeying| obeying.order.which.means(address, id)) {
            obeying.order.was_found();
            if obeying.order.end.is_some() {
                obeying.left += 1;
                end = end.or(obeying.order.end);
            }
        }
        end
    }

    /// A task has ended.
    pub(super) fn ended(&mut self, number: u64, address: Address, id: u64) {
        for obeying in &mut self.orders {
            let Order { which, end, .. } = &*obeying.order;
            let meant = obeying.before.is_some_and(|before| number < before);
            if meant && end.is_some() && which.means(address, id) {
                obeying.left = obeying.left.saturating_sub(1);
            }
        }
    }

    /// The driver can see the end of all that has ended.
    pub(super) fn published(&mut self) {
        if self.orders.is_empty() {
            return;
        }
        let next = self.next_task + 1;
        self.orders.retain_mut(|obeying| {
            obeying.before.get_or_insert(next);
            if obeying.left == 0 {
                obeying.order.obeyed();
            }
            obeying.left > 0
        });
    }
}

impl Drop for Obedience {
    /// The queue ends, and with it its tasks.
    fn drop(&mut self) {
        if let Some(mailbox) = self.mailbox() {
            mailbox.close();
        }
        self.orders.iter().for_each(|obeying| obeying.order.obeyed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: Address = Address { target: 0, lun: 1 };
    const OTHER: Address = Address { target: 0, lun: 2 };

    fn queue() -> (Arc<Shared>, Obedience) {
        let shared = Arc::new(Shared::new("scsi", 2).unwrap());
        let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let obedience = Obedience::new(Arc::clone(&shared), 0, &kick).unwrap();
        assert!(Obedience::new(Arc::clone(&shared), 2, &kick).is_none());
        (shared, obedience)
    }

    fn abort(shared: &Shared, which: Which) -> Arc<Order> {
        Order::give(which, Some(Response::Aborted), &shared.mailboxes).unwrap()
    }

    #[test]
    fn an_order_is_done_when_the_tasks_it_found_have_ended() {
        let (shared, mut queue) = queue();
        let (first, second) = (queue.next_task(), queue.next_task());
        let order = abort(&shared, Which::Disk(DISK));
        assert!(!order.is_done() && queue.take_orders() && !queue.take_orders());
        assert_eq!(queue.end_of(DISK, 1), Some(Response::Aborted));
        assert_eq!(queue.end_of(OTHER, 2), None);
        queue.published();
        assert!(!order.is_done());
        // One that came later is not meant, whatever the driver calls it.
        let later = queue.next_task();
        queue.ended(later, DISK, 1);
        queue.ended(second, OTHER, 2);
        queue.published();
        assert!(!order.is_done());
        queue.ended(first, DISK, 1);
        assert!(!order.is_done(), "the driver cannot see it yet");
        queue.published();
        assert!(order.is_done() && order.has_found());
    }

    /// A task is counted once for each order, however many come while it goes on.
    #[test]
    fn orders_do_not_disturb_each_other() {
        let (shared, mut queue) = queue();
        let task = queue.next_task();
        let orders: Vec<_> = [Which::Disk(DISK), Which::Task(DISK, 1), Which::Target(0)]
            .into_iter()
            .map(|which| {
                let order = abort(&shared, which);
                assert!(queue.take_orders());
                assert_eq!(queue.end_of(DISK, 1), Some(Response::Aborted));
                queue.published();
                order
            })
            .collect();
        queue.ended(task, DISK, 1);
        queue.published();
        assert!(orders.iter().all(|order| order.is_done()));
    }

    #[test]
    fn a_queue_that_ends_has_obeyed() {
        let (shared, mut queue) = queue();
        queue.next_task();
        let taken = abort(&shared, Which::Disk(DISK));
        assert!(queue.take_orders());
        assert!(queue.end_of(DISK, 1).is_some());
        let waiting = abort(&shared, Which::Disk(DISK));
        drop(queue);
        assert!(taken.is_done() && waiting.is_done());
        assert!(abort(&shared, Which::Disk(DISK)).is_done(), "no queue is in use");
    }
}
