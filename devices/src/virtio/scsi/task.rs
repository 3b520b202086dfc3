//! One command from its chain to its response.

use std::io;

use ::block::{Operation, Segments};

use super::request::{Header, Out, Outcome, Place, Response};
use crate::scsi::{Data, Job, LogicalUnit, Next, Sense, Step, status};
use crate::virtio::{GuestMap, Span};
use crate::virtqueue::Buffer;

/// The parts of a well-formed chain.
pub(super) struct Request<'a> {
    pub(super) header: Header,
    pub(super) place: Place,
    pub(super) data_out: Span<'a>,
    pub(super) data_in: Span<'a>,
}

/// How a command ends that has not succeeded.
pub(super) struct Ending {
    response: Response,
    status: u8,
    sense: Vec<u8>,
}

impl Ending {
    pub(super) const CONFLICT: Self =
        Self { response: Response::Ok, status: status::RESERVATION_CONFLICT, sense: Vec::new() };

    /// CHECK CONDITION, in the format that the unit uses.
    pub(super) fn check(sense: &Sense, unit: Option<&LogicalUnit>) -> Self {
        let descriptor_format = unit.is_some_and(LogicalUnit::descriptor_sense);
        let sense = sense.encode(descriptor_format);
        Self { response: Response::Ok, status: status::CHECK_CONDITION, sense }
    }

    /// It was not carried out, or not to its end.
    pub(super) fn refused(response: Response) -> Self {
        Self { response, status: status::GOOD, sense: Vec::new() }
    }

    /// Writes the response of a command with data buffers of these lengths.
    pub(super) fn write(&self, place: &Place, map: &GuestMap, data_in: u64, data_out: u64) -> u32 {
        let Self { response, status, ref sense } = *self;
        let residual = data_in.saturating_add(data_out);
        place.answer(map, &Outcome { response, status, sense, residual }, 0)
    }
}

/// Writes the response of a command that succeeded.
fn good(place: &Place, map: &GuestMap, all: u64, taken: u64, given: u64) -> u32 {
    let residual = all.saturating_sub(taken).saturating_sub(given);
    let good = Outcome { response: Response::Ok, status: status::GOOD, sense: &[], residual };
    place.answer(map, &good, given)
}

impl Request<'_> {
    fn all(&self) -> u64 {
        self.data_out.len().saturating_add(self.data_in.len())
    }

    /// Whether the buffers have what the command asks.
    pub(super) fn has_room_for(&self, job: &Job) -> bool {
        job.taken() <= self.data_out.len() && job.given() <= self.data_in.len()
    }

    pub(super) fn end(&self, map: &GuestMap, ending: &Ending) -> u32 {
        ending.write(&self.place, map, self.data_in.len(), self.data_out.len())
    }

    pub(super) fn refuse(&self, map: &GuestMap, response: Response) -> u32 {
        self.end(map, &Ending::refused(response))
    }

    /// Ends a command that needed no medium.
    pub(super) fn give(&self, map: &GuestMap, data: &[u8], taken: u64) -> u32 {
        let given = data.len() as u64;
        if given > self.data_in.len() {
            return self.refuse(map, Response::Overrun);
        }
        if self.data_in.write(map, data).is_err() {
            return self.refuse(map, Response::Failure);
        }
        good(&self.place, map, self.all(), taken, given)
    }
}

/// What is remembered of a command until it ends.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) disk: u16,
    /// The driver's name for the task, and its number on the queue.
    pub(super) id: u64,
    pub(super) task: u64,
    /// How it ends, whatever comes of it.
    pub(super) end: Option<Response>,
    place: Place,
    pub(super) job: Job,
    /// Bytes of the data buffers.
    data_out: u64,
    data_in: u64,
    /// The data buffers, where a later step needs them.
    buffers: Option<Box<Buffers>>,
}

#[derive(Debug)]
struct Buffers {
    data_out: Vec<Buffer>,
    data_in: Vec<Buffer>,
}

impl Pending {
    pub(super) fn new(disk: u16, task: u64, job: Job, request: Request<'_>) -> Self {
        let Request { header, place, data_out, data_in } = request;
        let buffers = job.keeps_buffers().then(|| {
            let data_out = data_out.buffers().collect();
            Box::new(Buffers { data_out, data_in: data_in.buffers().collect() })
        });
        let (data_out, data_in) = (data_out.len(), data_in.len());
        Self { disk, id: header.id, task, end: None, place, job, data_out, data_in, buffers }
    }

    /// Takes the result of the last step, and readies the next if there is one.
    pub(super) fn go_on(
        &mut self,
        unit: &LogicalUnit,
        map: &GuestMap,
        result: io::Result<()>,
        segments: &mut Segments,
    ) -> Next {
        let (data_out, data_in) = match &self.buffers {
            Some(buffers) => (Span::new(&buffers.data_out), Span::new(&buffers.data_in)),
            None => (Span::new(&[]), Span::new(&[])),
        };
        let next = self.job.next(unit, result, &Out { span: data_out, map });
        if let Next::Step(step) = &next
            && fill(step, data_out, data_in, map, segments).is_none()
        {
            // The buffers were seen to lie in guest memory; only those that are not kept can be missing.
            return Next::Done(Err(Sense::TARGET_FAILURE));
        }
        next
    }

    /// Ends it with GOOD and returns the bytes written.
    pub(super) fn finish(&self, map: &GuestMap) -> u32 {
        let all = self.data_out.saturating_add(self.data_in);
        good(&self.place, map, all, self.job.taken(), self.job.given())
    }

    /// Ends it otherwise.
    pub(super) fn fail(&self, map: &GuestMap, ending: &Ending) -> u32 {
        ending.write(&self.place, map, self.data_in, self.data_out)
    }
}

/// Fills in the memory of a step; `None` if it is not in guest memory.
pub(super) fn fill(
    step: &Step,
    data_out: Span<'_>,
    data_in: Span<'_>,
    map: &GuestMap,
    segments: &mut Segments,
) -> Option<()> {
    match step.data {
        Data::None => {}
        Data::Own(segment) => segments.push(segment),
        Data::Initiator(len) => {
            let reads = matches!(step.op, Operation::Read { .. });
            let (data, _) = if reads { data_in } else { data_out }.split_at(len)?;
            data.map(map, segments).ok()?;
        }
    }
    Some(())
}
