//! SCSI commands on a queue worker: chains to requests, results to responses.

use std::io;
use std::marker::PhantomData;
use std::sync::Arc;

use ::block::Segments;
use vmm_sys_util::eventfd::EventFd;

use super::accounting::DiskAccounting;
use super::address::LunField;
use super::command::{CommandChain, CommandFailure, PendingCommand, fill_segments};
use super::controller::Controller;
use super::disk_map::DiskMap;
use super::engines::{DETACHED, UnitEngines};
use super::queries::UnitQuery;
use super::request::{CommandHeader, DataOutSpan, HEADER_BYTES};
use super::response::{RESPONSE_BYTES, Response, ResponseBuffer};
use super::sleep::Sleep;
use super::task_management::TaskAborts;
use crate::GuestMap;
use crate::scsi::{Answer, Failure, Job, LbaStatusQuery, Next, Sense};
use crate::storage::{Completed, OperationKind, Parsed, Protocol, Round};
use crate::virtqueue::{Chain, QueueError};

/// The protocol of one request queue. Its worker sleeps by `S`.
pub(super) struct ScsiProtocol<S> {
    controller: Arc<Controller>,
    /// A copy of the controller's map, and its version.
    disks: Arc<DiskMap>,
    version: u64,
    /// Whether a request may have data in both directions.
    inout: bool,
    aborts: TaskAborts,
    accounting: DiskAccounting,
    /// Wakes the worker.
    kick: Arc<EventFd>,
    sleep: PhantomData<fn() -> S>,
}

/// A chain that is not a command.
enum MalformedChain {
    /// The chain has no buffer for a response.
    NoResponse,
    /// The chain is answered.
    Answered { written: u32 },
}

/// The result of executing a command.
enum Executed {
    /// The command is answered, by the disk with this number if one was addressed.
    Answered { written: u32, disk: Option<u16> },
    /// The command accesses the medium of the disk with this number.
    Medium { disk: u16, job: Job },
    /// The command depends on the extents of the disk with this number.
    Query { disk: u16, status: LbaStatusQuery },
}

impl<S> ScsiProtocol<S> {
    /// `None` if the queue does not exist.
    pub(super) fn new(
        controller: Arc<Controller>,
        queue: u16,
        kick: &Arc<EventFd>,
        inout: bool,
    ) -> Option<Self> {
        let version = controller.version();
        Some(Self {
            disks: controller.map(),
            version,
            inout,
            aborts: TaskAborts::new(Arc::clone(&controller.mailboxes), queue, kick)?,
            accounting: DiskAccounting::new(queue),
            kick: Arc::clone(kick),
            controller,
            sleep: PhantomData,
        })
    }

    /// Copies the map if it changed.
    #[inline]
    fn refresh(&mut self) {
        let version = self.controller.version();
        if version != self.version {
            self.version = version;
            self.disks = self.controller.map();
            self.accounting.release_detached(&self.disks);
        }
    }

    /// Whether a request failed because its disk was detached.
    #[inline]
    fn was_detached(&mut self, disk: u16, result: &io::Result<()>) -> bool {
        let Err(error) = result else { return false };
        if error.raw_os_error() != Some(DETACHED) {
            return false;
        }
        self.refresh();
        self.disks.disk(disk).is_none()
    }

    /// Splits a chain into its parts.
    fn split<'a>(
        &self,
        chain: &'a Chain,
        map: &GuestMap,
    ) -> Result<CommandChain<'a>, MalformedChain> {
        let (sense_size, cdb_size) = (self.controller.sense_size(), self.controller.cdb_size());
        let writable = chain.writable().split_at(RESPONSE_BYTES + u64::from(sense_size));
        let Some((response, data_in)) = writable.and_then(|(response, data_in)| {
            Some((ResponseBuffer::new(&response, map, sense_size)?, data_in))
        }) else {
            return Err(MalformedChain::NoResponse);
        };
        let readable = chain.readable().split_at(HEADER_BYTES + u64::from(cdb_size));
        let Some((header, data_out)) = readable.and_then(|(header, data_out)| {
            Some((CommandHeader::read(&header, map, cdb_size)?, data_out))
        }) else {
            let failure = CommandFailure::refused(Response::Failure);
            let written = failure.write(&response, map, data_in.len(), 0);
            return Err(MalformedChain::Answered { written });
        };
        Ok(CommandChain { header, response, data_out, data_in })
    }

    /// Executes a command as far as the medium is not accessed.
    fn execute(&self, chain: &CommandChain<'_>, map: &GuestMap) -> Executed {
        let refuse =
            |response| Executed::Answered { written: chain.refuse(map, response), disk: None };
        if !chain.data_out.is_empty() && !chain.data_in.is_empty() && !self.inout {
            return refuse(Response::Failure);
        }
        let to = chain.header.to;
        let Some((LunField { lun, .. }, entry)) =
            to.and_then(|to| Some((to, self.disks.target(to.target)?)))
        else {
            return refuse(Response::BadTarget);
        };
        let disk = lun.and_then(|lun| entry.disk(lun));
        let out = DataOutSpan { span: chain.data_out, map };
        let written = match entry.target.execute(lun, &chain.header.cdb, &out) {
            Ok(Answer::Work(job)) => match disk {
                Some(disk) if chain.has_room_for(&job) => return Executed::Medium { disk, job },
                _ => chain.refuse(map, Response::Overrun),
            },
            Ok(Answer::Query(status)) => match disk {
                Some(disk) => return Executed::Query { disk, status },
                None => chain.refuse(map, Response::BadTarget),
            },
            Ok(Answer::Good { data, taken }) => chain.succeed(map, &data, taken),
            Err(Failure::Overrun) => chain.refuse(map, Response::Overrun),
            Err(Failure::Conflict) => chain.fail(map, &CommandFailure::CONFLICT),
            Err(Failure::Check(sense)) => {
                let unit = disk.and_then(|number| self.disks.disk(number)).map(|disk| &*disk.unit);
                chain.fail(map, &CommandFailure::check(&sense, unit))
            }
        };
        Executed::Answered { written, disk }
    }

    /// Starts a command on the medium.
    fn start(
        &mut self,
        disk: u16,
        job: Job,
        chain: CommandChain<'_>,
        map: &GuestMap,
        segments: &mut Segments,
    ) -> Parsed<PendingCommand, UnitQuery> {
        let step = job.step();
        if fill_segments(&step, chain.data_out, chain.data_in, map, segments).is_none() {
            return Parsed::Done { written: chain.refuse(map, Response::Failure) };
        }
        self.accounting.start(disk, &self.disks);
        let pending = PendingCommand::new(disk, self.aborts.next_number(), job, chain);
        Parsed::Io { unit: disk, op: step.op, pending }
    }

    /// Starts a command that needs a query of the host.
    fn start_query(
        &mut self,
        disk: u16,
        status: LbaStatusQuery,
        chain: CommandChain<'_>,
        map: &GuestMap,
    ) -> Parsed<PendingCommand, UnitQuery> {
        let Some(unit) = self.disks.disk(disk).map(|disk| Arc::clone(&disk.unit)) else {
            return Parsed::Done { written: chain.refuse(map, Response::BadTarget) };
        };
        self.accounting.start(disk, &self.disks);
        let query = Arc::new(status.allocation_query(Arc::clone(&self.kick)));
        let number = self.aborts.next_number();
        let pending = PendingCommand::with_query(disk, number, status, Arc::clone(&query), chain);
        Parsed::Query { query: UnitQuery { unit, query }, pending }
    }

    /// Accounts for a command that was in flight and has ended.
    fn command_ended(&mut self, pending: &PendingCommand) {
        if let Some(disk) = self.accounting.disk(pending.disk) {
            self.aborts.command_ended(pending.number, disk.address, pending.id);
        }
        self.accounting.complete(pending.disk, &self.disks);
    }
}

impl<S: Sleep> Protocol for ScsiProtocol<S> {
    type Pending = PendingCommand;
    type Engines = UnitEngines<S>;

    fn parse(
        &mut self,
        chain: &Chain,
        map: &GuestMap,
        segments: &mut Segments,
    ) -> Parsed<PendingCommand, UnitQuery> {
        self.refresh();
        let chain = match self.split(chain, map) {
            Ok(chain) => chain,
            Err(MalformedChain::NoResponse) => return Parsed::Fatal(QueueError::NoStatus),
            Err(MalformedChain::Answered { written }) => return Parsed::Done { written },
        };
        match self.execute(&chain, map) {
            Executed::Medium { disk, job } => self.start(disk, job, chain, map, segments),
            Executed::Query { disk, status } => self.start_query(disk, status, chain, map),
            Executed::Answered { written, disk } => {
                if let Some(disk) = disk {
                    self.accounting.count_answered(disk, &self.disks);
                }
                Parsed::Done { written }
            }
        }
    }

    fn complete(
        &mut self,
        pending: &mut PendingCommand,
        map: &GuestMap,
        result: io::Result<()>,
        segments: &mut Segments,
    ) -> Completed {
        let was_detached = self.was_detached(pending.disk, &result);
        let written = match (self.accounting.disk(pending.disk), pending.abort) {
            (Some(disk), None) if was_detached => {
                pending.fail(map, &CommandFailure::check(&Sense::NO_SUCH_UNIT, Some(&disk.unit)))
            }
            (Some(disk), None) => match pending.next_step(&disk.unit, map, result, segments) {
                Next::Step(step) => return Completed::Again { unit: pending.disk, op: step.op },
                Next::Done(Ok(())) => pending.succeed(map),
                Next::Done(Err(sense)) => {
                    tracing::debug!(target: "virtio-scsi", "{}: {sense:?}", disk.unit.name());
                    pending.fail(map, &CommandFailure::check(&sense, Some(&disk.unit)))
                }
            },
            (disk, abort) => {
                if let Some(disk) = disk {
                    pending.end_step(&disk.unit, result.is_ok());
                }
                pending.fail(map, &CommandFailure::refused(abort.unwrap_or(Response::Failure)))
            }
        };
        self.command_ended(pending);
        Completed::Done { written }
    }

    fn complete_query(&mut self, pending: &mut PendingCommand, map: &GuestMap) -> u32 {
        let written = match (self.accounting.disk(pending.disk), pending.abort) {
            (Some(disk), None) => pending.complete_query(&disk.unit, map),
            (_, abort) => {
                pending.fail(map, &CommandFailure::refused(abort.unwrap_or(Response::Failure)))
            }
        };
        if let Some(stats) = self.accounting.stats(pending.disk) {
            stats.count_answered();
        }
        self.command_ended(pending);
        written
    }

    fn count(
        &mut self,
        pending: &PendingCommand,
        kind: OperationKind,
        bytes: Option<u64>,
        took_ns: u64,
    ) {
        self.accounting.count_operation(pending.disk, kind, bytes, took_ns);
    }

    fn record_age(&mut self, pending: Option<&PendingCommand>, age_ns: u64) {
        match pending {
            None => self.accounting.begin_scan(),
            Some(pending) => self.accounting.record_age(pending.disk, age_ns),
        }
    }

    fn count_round(&mut self, round: &Round) {
        self.accounting.count_round(round);
        if self.accounting.has_detached() {
            self.accounting.release_detached(&self.disks);
        }
    }

    fn wants_review(&mut self) -> bool {
        // An idle queue that was kicked for a detached disk releases it here.
        self.refresh();
        self.aborts.take_posts()
    }

    fn review(&mut self, pending: &mut PendingCommand) -> Option<u16> {
        let address = self.accounting.disk(pending.disk)?.address;
        let abort = self.aborts.review(address, pending.id)?;
        pending.abort.get_or_insert(abort);
        pending.may_be_cancelled().then_some(pending.disk)
    }

    fn published(&mut self) {
        self.aborts.published();
    }
}
