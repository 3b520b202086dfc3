//! The engine of a disk that is held: it keeps new requests, completes those that it has started,
//! and changes to the files of a successor.

use std::io;
use std::sync::Arc;

use super::super::levels::Levels;
use super::super::seats::{Order, Successor};
use super::slot::SlotWork;
use super::successions::Spares;
use super::{LayerEngine, LevelEngine};
use crate::{IoEngine, OpenError, Request};

impl LayerEngine {
    /// Keeps a request until the hold ends.
    pub(super) fn keep(&mut self, mut request: Request<'_>) {
        if self.is_lost {
            return self.complete(request.tag, Err(io::Error::from_raw_os_error(libc::EIO)));
        }
        self.keep_segments(&mut request);
        self.begin(request.tag, SlotWork::Held(request.op));
        self.waiting.push(request.tag);
    }

    /// Starts a request that was kept, unless the disk is held. Returns whether it was started.
    pub(super) fn start_kept(&mut self, tag: u16) -> bool {
        if self.levels.is_held() && !self.is_lost {
            return false;
        }
        let SlotWork::Held(op) = self.take_work(tag) else { return true };
        let slot = self.slots.get_mut(usize::from(tag));
        let mut segments = slot.map(|slot| std::mem::take(&mut slot.segments)).unwrap_or_default();
        self.push(Request { tag, op, segments: &mut segments });
        true
    }

    /// Whether all requests that were started are complete.
    pub(super) fn is_drained(&self) -> bool {
        let is_held = |tag: &&u16| {
            let slot = self.slots.get(usize::from(**tag));
            matches!(slot.map(|slot| &slot.work), Some(SlotWork::Held(_)))
        };
        self.engines.iter().all(|level| level.in_flight == 0)
            && self.stepping == self.waiting.iter().filter(is_held).count()
    }

    /// Whether it has made engines for a successor.
    #[inline]
    pub(super) fn has_spares(&self) -> bool {
        self.successions.as_ref().is_some_and(|successions| successions.spares.is_some())
    }

    /// Does what the disk's seats order.
    #[cold]
    pub(super) fn follow_orders(&mut self) {
        loop {
            let Some(successions) = &self.successions else { return };
            match successions.seat.order() {
                (_, Order::Switch(levels, successor)) => {
                    if self.make_spares(&successor) {
                        self.switch_to(levels);
                    }
                }
                (turn, Order::Prepare(successor)) => {
                    let made = successions.engines(&successor, &self.kick);
                    self.set_spares(turn, made);
                }
                (turn, Order::Drain) if self.is_drained() => {
                    successions.seat.answer(turn, Ok(()));
                    return;
                }
                (_, Order::Drain | Order::Wait) => return,
                (_, Order::None) => return self.drop_spares(),
            }
        }
    }

    /// Keeps engines for a successor, unless it has been given up meanwhile.
    fn set_spares(&mut self, turn: u64, made: Result<Spares, OpenError>) {
        let Some(successions) = &mut self.successions else { return };
        let (spares, answer) = match made {
            Ok(spares) => (Some(spares), Ok(())),
            Err(error) => (None, Err(error)),
        };
        let is_last = successions.seat.answer(turn, answer);
        successions.spares = spares.filter(|_| is_last);
    }

    fn drop_spares(&mut self) {
        if let Some(successions) = &mut self.successions {
            successions.spares = None;
        }
    }

    /// Makes engines for the successor, which an engine that was made during the hold lacks.
    /// Returns false if the host refuses: then this queue has no disk until it is reset.
    fn make_spares(&mut self, successor: &Successor) -> bool {
        let Some(successions) = &mut self.successions else { return false };
        if successions.spares.is_some() {
            return true;
        }
        match successions.engines(successor, &self.kick) {
            Ok(spares) => successions.spares = Some(spares),
            Err(error) => {
                tracing::error!(%error, "a queue cannot use the new files of the disk");
                self.is_lost = true;
                self.revive();
            }
        }
        !self.is_lost
    }

    /// Uses the levels of the successor from now on, and starts the requests that were kept.
    pub(super) fn switch_to(&mut self, levels: Arc<Levels>) {
        // An engine that was made between both steps of a switch has the levels already.
        let is_present = Arc::ptr_eq(&self.levels, &levels);
        let spares = self.successions.as_mut().and_then(|successions| successions.spares.take());
        let Some(Spares { levels: range, engines }) = spares.filter(|_| !is_present) else {
            return;
        };
        let idle = |engine| LevelEngine { engine, in_flight: 0 };
        let end = range.end.min(self.engines.len());
        let range = range.start.min(end)..end;
        let retired: Vec<_> = self.engines.splice(range, engines.into_iter().map(idle)).collect();
        self.levels = levels;
        self.events = None;
        self.revive();
        // An error shows again at the next submission.
        let _ = self.submit_levels();
        // Its end may take a moment, for which these requests need not wait.
        drop(retired);
    }
}
