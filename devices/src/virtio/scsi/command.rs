//! One command from its chain to its response.

use std::io;
use std::sync::Arc;

use ::block::{Operation, Segments};

use super::request::{CommandHeader, DataOutSpan};
use super::response::{Response, ResponseBuffer, ResponseFields};
use crate::GuestMap;
use crate::scsi::{
    AllocationQuery, Data, Job, LbaStatusQuery, LogicalUnit, Next, Sense, Step, status,
};
use crate::virtqueue::{Buffer, Span};

/// The parts of a well-formed chain.
pub(super) struct CommandChain<'a> {
    pub(super) header: CommandHeader,
    pub(super) response: ResponseBuffer,
    pub(super) data_out: Span<'a>,
    pub(super) data_in: Span<'a>,
}

/// The end of a command that did not succeed.
pub(super) struct CommandFailure {
    response: Response,
    /// SCSI status code.
    status: u8,
    sense: Vec<u8>,
}

impl CommandFailure {
    pub(super) const CONFLICT: Self =
        Self { response: Response::Ok, status: status::RESERVATION_CONFLICT, sense: Vec::new() };

    /// CHECK CONDITION with sense data in the format of the unit.
    pub(super) fn check(sense: &Sense, unit: Option<&LogicalUnit>) -> Self {
        let descriptor_format = unit.is_some_and(LogicalUnit::descriptor_sense);
        let sense = sense.encode(descriptor_format);
        Self { response: Response::Ok, status: status::CHECK_CONDITION, sense }
    }

    /// The command was not executed, or not to its end.
    pub(super) fn refused(response: Response) -> Self {
        Self { response, status: status::GOOD, sense: Vec::new() }
    }

    /// Writes the response of a command with data buffers of these lengths in bytes.
    pub(super) fn write(
        &self,
        buffer: &ResponseBuffer,
        map: &GuestMap,
        data_in: u64,
        data_out: u64,
    ) -> u32 {
        let Self { response, status, ref sense } = *self;
        let residual = data_in.saturating_add(data_out);
        buffer.write(map, &ResponseFields { response, status, sense, residual }, 0)
    }
}

/// Writes the response of a command that succeeded. It used `taken` bytes of data-out and returned
/// `given` bytes of data-in, of `all` bytes of both.
fn write_good(buffer: &ResponseBuffer, map: &GuestMap, all: u64, taken: u64, given: u64) -> u32 {
    let residual = all.saturating_sub(taken).saturating_sub(given);
    let response = Response::Ok;
    let good = ResponseFields { response, status: status::GOOD, sense: &[], residual };
    buffer.write(map, &good, given)
}

impl CommandChain<'_> {
    fn data_len(&self) -> u64 {
        self.data_out.len().saturating_add(self.data_in.len())
    }

    /// Whether the data buffers are as long as the command requires.
    pub(super) fn has_room_for(&self, job: &Job) -> bool {
        job.taken() <= self.data_out.len() && job.given() <= self.data_in.len()
    }

    /// Writes the response of a failure. Returns the used length, as all methods below.
    pub(super) fn fail(&self, map: &GuestMap, failure: &CommandFailure) -> u32 {
        failure.write(&self.response, map, self.data_in.len(), self.data_out.len())
    }

    pub(super) fn refuse(&self, map: &GuestMap, response: Response) -> u32 {
        self.fail(map, &CommandFailure::refused(response))
    }

    /// Completes a command that did not access the medium.
    pub(super) fn succeed(&self, map: &GuestMap, data: &[u8], taken: u64) -> u32 {
        let given = data.len() as u64;
        if given > self.data_in.len() {
            return self.refuse(map, Response::Overrun);
        }
        if self.data_in.write(map, data).is_err() {
            return self.refuse(map, Response::Failure);
        }
        write_good(&self.response, map, self.data_len(), taken, given)
    }
}

/// State of a command until it completes.
#[derive(Debug)]
pub(super) struct PendingCommand {
    /// Number of its disk.
    pub(super) disk: u16,
    /// The driver's identifier of the command.
    pub(super) id: u64,
    /// The command's number on its queue.
    pub(super) number: u64,
    /// The response that a task management function requires.
    pub(super) abort: Option<Response>,
    response: ResponseBuffer,
    work: CommandWork,
    /// Lengths of the data buffers, in bytes.
    data_out: u64,
    data_in: u64,
    /// The data buffers, if a later step needs them.
    buffers: Option<Box<DataBuffers>>,
}

/// The medium or the host, which executes a command.
#[derive(Debug)]
enum CommandWork {
    Medium(Job),
    Host(Box<HostCommand>),
}

/// A command that waits for a query of the host. Its data buffers are kept apart from those of
/// jobs, because it writes them itself.
#[derive(Debug)]
struct HostCommand {
    status: LbaStatusQuery,
    query: Arc<AllocationQuery>,
    data_in: Vec<Buffer>,
}

#[derive(Debug)]
struct DataBuffers {
    data_out: Vec<Buffer>,
    data_in: Vec<Buffer>,
}

impl PendingCommand {
    pub(super) fn new(disk: u16, number: u64, job: Job, chain: CommandChain<'_>) -> Self {
        let CommandChain { header, response, data_out, data_in } = chain;
        let buffers = job.keeps_buffers().then(|| {
            let data_out = data_out.buffers().collect();
            Box::new(DataBuffers { data_out, data_in: data_in.buffers().collect() })
        });
        let (data_out, data_in) = (data_out.len(), data_in.len());
        let id = header.id;
        let work = CommandWork::Medium(job);
        Self { disk, id, number, abort: None, response, work, data_out, data_in, buffers }
    }

    /// A command that waits for `query`.
    pub(super) fn with_query(
        disk: u16,
        number: u64,
        status: LbaStatusQuery,
        query: Arc<AllocationQuery>,
        chain: CommandChain<'_>,
    ) -> Self {
        let CommandChain { header, response, data_out, data_in } = chain;
        let host = HostCommand { status, query, data_in: data_in.buffers().collect() };
        let work = CommandWork::Host(Box::new(host));
        let (data_out, data_in, id) = (data_out.len(), data_in.len(), header.id);
        Self { disk, id, number, abort: None, response, work, data_out, data_in, buffers: None }
    }

    /// Whether an abort may cancel the current step or query.
    pub(super) fn may_be_cancelled(&self) -> bool {
        match &self.work {
            CommandWork::Medium(job) => job.may_be_cancelled(),
            CommandWork::Host(_) => true,
        }
    }

    /// See [`Job::end_step`].
    pub(super) fn end_step(&self, unit: &LogicalUnit, succeeded: bool) {
        if let CommandWork::Medium(job) = &self.work {
            job.end_step(unit, succeeded);
        }
    }

    /// Completes the command with the result of its query and returns the used length.
    pub(super) fn complete_query(&self, unit: &LogicalUnit, map: &GuestMap) -> u32 {
        let CommandWork::Host(host) = &self.work else {
            return self.fail(map, &CommandFailure::refused(Response::Failure));
        };
        let result = host.query.take_result().unwrap_or_else(|| Err(io::ErrorKind::Other.into()));
        match host.status.answer(unit, result) {
            Ok(data) if data.len() as u64 > self.data_in => {
                self.fail(map, &CommandFailure::refused(Response::Overrun))
            }
            Ok(data) if Span::new(&host.data_in).write(map, &data).is_err() => {
                self.fail(map, &CommandFailure::refused(Response::Failure))
            }
            Ok(data) => {
                let all = self.data_out.saturating_add(self.data_in);
                write_good(&self.response, map, all, 0, data.len() as u64)
            }
            Err(sense) => self.fail(map, &CommandFailure::check(&sense, Some(unit))),
        }
    }

    /// Passes the result of the last step to the job and prepares the next step.
    pub(super) fn next_step(
        &mut self,
        unit: &LogicalUnit,
        map: &GuestMap,
        result: io::Result<()>,
        segments: &mut Segments,
    ) -> Next {
        let CommandWork::Medium(job) = &mut self.work else {
            // Only a bug reaches this: a query has no steps.
            return Next::Done(Err(Sense::TARGET_FAILURE));
        };
        let (data_out, data_in) = match &self.buffers {
            Some(buffers) => (Span::new(&buffers.data_out), Span::new(&buffers.data_in)),
            None => (Span::new(&[]), Span::new(&[])),
        };
        let next = job.next(unit, result, &DataOutSpan { span: data_out, map });
        if let Next::Step(step) = &next
            && fill_segments(step, data_out, data_in, map, segments).is_none()
        {
            // Only a bug reaches this: the buffers are guest memory, and kept if they are needed.
            return Next::Done(Err(Sense::TARGET_FAILURE));
        }
        next
    }

    /// Completes with GOOD and returns the used length.
    pub(super) fn succeed(&self, map: &GuestMap) -> u32 {
        let all = self.data_out.saturating_add(self.data_in);
        let (taken, given) = match &self.work {
            CommandWork::Medium(job) => (job.taken(), job.given()),
            CommandWork::Host(_) => (0, 0),
        };
        write_good(&self.response, map, all, taken, given)
    }

    /// Completes with a failure and returns the used length.
    pub(super) fn fail(&self, map: &GuestMap, failure: &CommandFailure) -> u32 {
        failure.write(&self.response, map, self.data_in, self.data_out)
    }
}

/// Fills `segments` with the data buffers of a step; `None` if they are not in guest memory.
pub(super) fn fill_segments(
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
