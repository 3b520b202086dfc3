//! The engines of a layered disk, each in a seat, and the orders by which they replace levels of
//! the disk: by a new top over the old one, or by one file into which another was merged.
//!
//! Each engine first makes engines for the files of the successor. Then the disk is held
//! ([`super::levels::Levels::hold`]): an engine starts no more requests, and answers when those
//! that it has started are complete. When all have answered, the successor is [put
//! on](Seats::switch). Until then a succession can be [abandoned](Seats::abandon).

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::levels::Levels;
use crate::kick::Kick;
use crate::{OpenError, RawFile};

/// The files that succeed those of some levels of a disk.
#[derive(Debug)]
pub(super) struct Successor {
    /// The levels whose files they succeed, of which the top has 0.
    pub(super) levels: Range<usize>,
    /// From the top down.
    pub(super) files: Vec<Arc<RawFile>>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Seats {
    table: Mutex<Table>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Table {
    rows: Vec<Row>,
    next_id: u64,
    /// Counts the orders: an answer to an earlier one does not count.
    turn: u64,
    /// The successor for which the engines get ready.
    successor: Option<Arc<Successor>>,
    is_held: bool,
}

#[derive(Debug)]
struct Row {
    id: u64,
    kick: Kick,
    /// Whether the engine has done the last order, or why it cannot.
    answer: Option<Result<(), OpenError>>,
    /// The levels that the engine has to use from now on, and their new files.
    switch_to: Option<(Arc<Levels>, Arc<Successor>)>,
}

/// An order to an engine.
#[derive(Debug)]
pub(super) enum Order {
    /// Nothing: the levels stay.
    None,
    /// To wait for the next order.
    Wait,
    /// To make engines for the successor, and to answer.
    Prepare(Arc<Successor>),
    /// To answer when its requests are complete.
    Drain,
    /// To use these levels. An engine that was made during the hold is not ready for them.
    Switch(Arc<Levels>, Arc<Successor>),
}

/// Why the engines of a disk are not ready for a successor.
#[derive(Debug)]
pub(super) enum Unready {
    /// The engine of a queue cannot be made.
    Engine(OpenError),
    /// This many queues have not answered in time.
    Busy(usize),
}

impl Seats {
    /// A seat for a new engine. It has the present order, if the others have one; during a hold it
    /// has no request to complete.
    pub(super) fn seat(self: &Arc<Self>, kick: Kick) -> Seat {
        let mut table = self.lock();
        let id = table.next_id;
        table.next_id += 1;
        let answer = (table.successor.is_some() && table.is_held).then_some(Ok(()));
        table.rows.push(Row { id, kick, answer, switch_to: None });
        Seat { seats: Arc::clone(self), id }
    }

    /// Lets the engines of a disk with these levels get ready for a successor.
    pub(super) fn prepare(&self, levels: &Levels, successor: Successor) {
        let mut table = self.lock();
        (table.successor, table.is_held) = (Some(Arc::new(successor)), false);
        levels.set_orders(true);
        table.order_all();
    }

    /// Holds the disk, once all engines are ready for the successor.
    pub(super) fn hold(&self, levels: &Levels) {
        let mut table = self.lock();
        table.is_held = true;
        levels.hold();
        table.order_all();
    }

    /// Waits until the engines of all seats have done the last order.
    ///
    /// # Errors
    ///
    /// One cannot, or has not until the deadline.
    pub(super) fn wait_until(&self, deadline: Instant) -> Result<(), Unready> {
        let is_pending = |table: &Table| table.rows.iter().any(|row| row.answer.is_none());
        let has_failed = |row: &Row| matches!(row.answer, Some(Err(_)));
        let limit = deadline.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout_while(self.lock(), limit, |table| {
            is_pending(table) && !table.rows.iter().any(has_failed)
        });
        let (mut table, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let failed = table.rows.iter_mut().find_map(|row| row.answer.take_if(|it| it.is_err()));
        if let Some(Err(error)) = failed {
            return Err(Unready::Engine(error));
        }
        match table.rows.iter().filter(|row| row.answer.is_none()).count() {
            0 => Ok(()),
            busy => Err(Unready::Busy(busy)),
        }
    }

    /// Puts the successor on the disk, which is held. All engines have completed their requests.
    pub(super) fn switch(&self, levels: &Arc<Levels>) {
        let mut table = self.lock();
        if let Some(successor) = table.successor.take() {
            for row in &mut table.rows {
                row.switch_to = Some((Arc::clone(levels), Arc::clone(&successor)));
            }
        }
        table.order_all();
    }

    /// Leaves the levels as they are, and ends the hold.
    pub(super) fn abandon(&self, levels: &Levels) {
        let mut table = self.lock();
        table.successor = None;
        levels.set_orders(false);
        levels.admit();
        table.order_all();
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Each change is complete when the lock is released, also by a panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Gives all engines a new order.
    fn order_all(&mut self) {
        self.turn += 1;
        for row in &mut self.rows {
            row.answer = None;
            row.kick.signal();
        }
    }
}

/// The seat of one engine.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Arc<Seats>,
    id: u64,
}

impl Seat {
    /// The present order to the engine, and the turn that its answer is for.
    pub(super) fn order(&self) -> (u64, Order) {
        let mut table = self.seats.lock();
        let (turn, is_held) = (table.turn, table.is_held);
        let successor = table.successor.clone();
        let Some(row) = table.rows.iter_mut().find(|row| row.id == self.id) else {
            return (turn, Order::None);
        };
        let order = match (row.switch_to.take(), successor) {
            (Some((levels, successor)), _) => Order::Switch(levels, successor),
            (None, None) => Order::None,
            (None, Some(_)) if row.answer.is_some() => Order::Wait,
            (None, Some(_)) if is_held => Order::Drain,
            (None, Some(successor)) => Order::Prepare(successor),
        };
        (turn, order)
    }

    /// Answers the order of a turn. Returns whether that is still the last one.
    pub(super) fn answer(&self, turn: u64, answer: Result<(), OpenError>) -> bool {
        let mut table = self.seats.lock();
        let is_last = table.turn == turn;
        let row = table.rows.iter_mut().find(|row| row.id == self.id);
        if let Some(row) = row.filter(|_| is_last) {
            row.answer = Some(answer);
        }
        drop(table);
        self.seats.changed.notify_all();
        is_last
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.lock().rows.retain(|row| row.id != self.id);
        self.seats.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::time::Duration;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn seat(seats: &Arc<Seats>) -> Seat {
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        seats.seat(Kick::new(fd.as_fd()).unwrap())
    }

    /// Of an abandoned succession, for example: its engines are for another file.
    #[test]
    fn a_late_answer_does_not_count() {
        let seats: Arc<Seats> = Arc::default();
        let seat = seat(&seats);
        let (late, _) = seat.order();
        seats.lock().order_all();
        assert!(!seat.answer(late, Ok(())));
        let now = Instant::now();
        assert!(matches!(seats.wait_until(now), Err(Unready::Busy(1))));
        let (turn, _) = seat.order();
        assert!(seat.answer(turn, Ok(())) && seats.wait_until(now).is_ok());
        seats.lock().order_all();
        assert!(matches!(seats.wait_until(now), Err(Unready::Busy(1))));
    }

    #[test]
    fn a_failed_engine_ends_the_wait() {
        let seats: Arc<Seats> = Arc::default();
        let [failed, _busy] = [seat(&seats), seat(&seats)];
        let error = OpenError::InUse { path: "a".into(), pid: None };
        assert!(failed.answer(failed.order().0, Err(error)));
        let deadline = Instant::now() + Duration::from_secs(60);
        assert!(matches!(seats.wait_until(deadline), Err(Unready::Engine(_))));
    }
}
