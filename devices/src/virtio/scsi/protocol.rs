//! SCSI commands over the queue worker: chains in, responses out.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ::block::Segments;
use vmm_sys_util::eventfd::EventFd;

use super::books::Books;
use super::engines::{GONE, UnitEngines};
use super::request::{Addressee, HEADER_BYTES, Header, Out, Place, RESPONSE_BYTES, Response};
use super::shared::{Map, Shared};
use super::task::{Ending, Pending, Request, fill};
use super::tasks::Obedience;
use crate::scsi::{Answer, Failure, Job, Next, Sense};
use crate::storage::queue_worker::{Completed, Parsed, Protocol};
use crate::storage::stats::{Kind, Round};
use crate::virtio::{Chain, GuestMap, QueueError};

/// The protocol of one request queue.
pub(super) struct ScsiProtocol {
    shared: Arc<Shared>,
    /// The map as this queue knows it, and its version.
    map: Arc<Map>,
    version: u64,
    /// Whether a request may have data in both directions.
    inout: bool,
    obedience: Obedience,
    books: Books,
}

/// A chain that is no request.
enum Malformed {
    /// There is no place for a response.
    NoResponse,
    Answered {
        written: u32,
    },
}

/// What a request turned out to be.
enum Verdict {
    /// Answered. Which disk did it.
    Answered(u32, Option<u16>),
    /// Work for the medium of a disk.
    Work(u16, Job),
}

impl ScsiProtocol {
    /// `None` if there is no such queue.
    pub(super) fn new(
        shared: Arc<Shared>,
        queue: u16,
        kick: &Arc<EventFd>,
        inout: bool,
    ) -> Option<Self> {
        let version = shared.version();
        Some(Self {
            map: shared.map(),
            version,
            inout,
            obedience: Obedience::new(Arc::clone(&shared), queue, kick)?,
            books: Books::new(queue),
            shared,
        })
    }

    /// Looks whether the map has changed.
    #[inline]
    fn refresh(&mut self) {
        let version = self.shared.version();
        if version != self.version {
            self.version = version;
            self.map = self.shared.map();
            self.books.follow(&self.map);
        }
    }

    /// Whether a request failed because its disk is not there any more.
    #[inline]
    fn has_gone(&mut self, disk: u16, result: &io::Result<()>) -> bool {
        let Err(error) = result else { return false };
        if error.raw_os_error() != Some(GONE) {
            return false;
        }
        self.refresh();
        self.map.disk(disk).is_none()
    }

    /// Cuts a chain into its parts.
    fn cut<'a>(&self, chain: &'a Chain, map: &GuestMap) -> Result<Request<'a>, Malformed> {
        let sense_size = self.shared.sense_size.load(Ordering::Acquire);
        let cdb_size = self.shared.cdb_size.load(Ordering::Acquire);
        let writable = chain.writable().split_at(RESPONSE_BYTES + u64::from(sense_size));
        let Some((place, data_in)) = writable.and_then(|(response, data_in)| {
            Some((Place::of(&response, map, sense_size)?, data_in))
        }) else {
            return Err(Malformed::NoResponse);
        };
        let readable = chain.readable().split_at(HEADER_BYTES + u64::from(cdb_size));
        let Some((header, data_out)) = readable
            .and_then(|(header, data_out)| Some((Header::read(&header, map, cdb_size)?, data_out)))
        else {
            let written = Ending::refused(Response::Failure).write(&place, map, data_in.len(), 0);
            return Err(Malformed::Answered { written });
        };
        Ok(Request { header, place, data_out, data_in })
    }

    /// What becomes of a request, as far as that needs no medium.
    fn judge(&self, request: &Request<'_>, map: &GuestMap) -> Verdict {
        if !request.data_out.is_empty() && !request.data_in.is_empty() && !self.inout {
            return Verdict::Answered(request.refuse(map, Response::Failure), None);
        }
        let to = request.header.to;
        let Some((Addressee { lun, .. }, place)) =
            to.and_then(|to| Some((to, self.map.target(to.target)?)))
        else {
            return Verdict::Answered(request.refuse(map, Response::BadTarget), None);
        };
        let number = lun.and_then(|lun| place.disk(lun));
        let out = Out { span: request.data_out, map };
        let written = match place.target.execute(lun, &request.header.cdb, &out) {
            Ok(Answer::Work(job)) => match number {
                Some(disk) if request.has_room_for(&job) => return Verdict::Work(disk, job),
                _ => request.refuse(map, Response::Overrun),
            },
            Ok(Answer::Good { data, taken }) => request.give(map, &data, taken),
            Err(Failure::Overrun) => request.refuse(map, Response::Overrun),
            Err(Failure::Conflict) => request.end(map, &Ending::CONFLICT),
            Err(Failure::Check(sense)) => {
                let unit = number.and_then(|number| self.map.disk(number)).map(|disk| &*disk.unit);
                request.end(map, &Ending::check(&sense, unit))
            }
        };
        Verdict::Answered(written, number)
    }

    /// Starts a command on the medium.
    fn start(
        &mut self,
        disk: u16,
        job: Job,
        request: Request<'_>,
        map: &GuestMap,
        segments: &mut Segments,
    ) -> Parsed<Pending> {
        let step = job.step();
        if fill(&step, request.data_out, request.data_in, map, segments).is_none() {
            return Parsed::Done { written: request.refuse(map, Response::Failure) };
        }
        self.books.taken(disk, &self.map);
        let pending = Pending::new(disk, self.obedience.next_task(), job, request);
        Parsed::Io { unit: disk, op: step.op, pending }
    }
}

impl Protocol for ScsiProtocol {
    type Pending = Pending;
    type Engines = UnitEngines;

    fn parse(&mut self, chain: &Chain, map: &GuestMap, segments: &mut Segments) -> Parsed<Pending> {
        self.refresh();
        let request = match self.cut(chain, map) {
            Ok(request) => request,
            Err(Malformed::NoResponse) => return Parsed::Fatal(QueueError::NoStatus),
            Err(Malformed::Answered { written }) => return Parsed::Done { written },
        };
        match self.judge(&request, map) {
            Verdict::Work(disk, job) => self.start(disk, job, request, map, segments),
            Verdict::Answered(written, disk) => {
                if let Some(disk) = disk {
                    self.books.answered(disk, &self.map);
                }
                Parsed::Done { written }
            }
        }
    }

    fn complete(
        &mut self,
        pending: &mut Pending,
        map: &GuestMap,
        result: io::Result<()>,
        segments: &mut Segments,
    ) -> Completed {
        let gone = self.has_gone(pending.disk, &result);
        let written = match (self.books.disk(pending.disk), pending.end) {
            (Some(disk), None) if gone => {
                pending.fail(map, &Ending::check(&Sense::NO_SUCH_UNIT, Some(&disk.unit)))
            }
            (Some(disk), None) => match pending.go_on(&disk.unit, map, result, segments) {
                Next::Step(step) => return Completed::Again { unit: pending.disk, op: step.op },
                Next::Done(Ok(())) => pending.finish(map),
                Next::Done(Err(sense)) => {
                    tracing::debug!(target: "virtio-scsi", "{}: {sense:?}", disk.unit.name());
                    pending.fail(map, &Ending::check(&sense, Some(&disk.unit)))
                }
            },
            (disk, end) => {
                if let (Some(disk), Err(_)) = (disk, &result) {
                    pending.job.step_failed(&disk.unit);
                }
                pending.fail(map, &Ending::refused(end.unwrap_or(Response::Failure)))
            }
        };
        if let Some(disk) = self.books.disk(pending.disk) {
            self.obedience.ended(pending.task, disk.address, pending.id);
        }
        self.books.settled(pending.disk, &self.map);
        Completed::Done { written }
    }

    fn count(&mut self, pending: &Pending, kind: Kind, bytes: Option<u64>, took_ns: u64) {
        self.books.completed(pending.disk, kind, bytes, took_ns);
    }

    fn count_round(&mut self, round: &Round) {
        self.books.round(round);
        if self.books.owes() {
            self.books.follow(&self.map);
        }
    }

    fn wants_review(&mut self) -> bool {
        // Also where no request comes: who was woken for a disk that is gone lets go of it.
        self.refresh();
        self.obedience.take_orders()
    }

    fn review(&mut self, pending: &mut Pending) -> Option<u16> {
        let address = self.books.disk(pending.disk)?.address;
        let end = self.obedience.end_of(address, pending.id)?;
        pending.end.get_or_insert(end);
        pending.job.may_be_cancelled().then_some(pending.disk)
    }

    fn published(&mut self) {
        self.obedience.published();
    }
}
