//! The control queue (Virtio 1.2 §5.6.6.2): task management and asynchronous notification.
//!
//! A function is answered when the driver can see the end of every command that it selected. Until
//! then its chain waits, and the chains behind it. No event that a driver can subscribe to exists.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ::block::LogLimit;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::address::{Address, LunField};
use super::controller::Controller;
use super::response::Response;
use super::task_management::{TaskSelector, TmfRequest};
use crate::GuestMap;
use crate::scsi::Attention;
use crate::virtio::chain_worker::{ChainHandler, Handled};
use crate::virtqueue::{Chain, OutOfMemoryRange, QueueError, Span};

/// Values of `type`.
const TMF: u32 = 0;
const AN_QUERY: u32 = 1;
const AN_SUBSCRIBE: u32 = 2;

/// Values of `response`.
const OK: u8 = 0;
const FUNCTION_COMPLETE: u8 = 0;
const BAD_TARGET: u8 = 3;
const FAILURE: u8 = 9;
const FUNCTION_SUCCEEDED: u8 = 10;
const FUNCTION_REJECTED: u8 = 11;
const INCORRECT_LUN: u8 = 12;

/// The device-readable part of `struct virtio_scsi_ctrl_tmf`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
struct TmfBytes {
    kind: U32,
    subtype: U32,
    lun: [u8; 8],
    id: U64,
}

/// The device-readable part of `struct virtio_scsi_ctrl_an`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
struct NotificationBytes {
    kind: U32,
    lun: [u8; 8],
    event_requested: U32,
}

/// The device-writable part of `struct virtio_scsi_ctrl_an`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Immutable, IntoBytes)]
struct NotificationResponse {
    event_actual: U32,
    response: u8,
}

/// Task management functions, values of `subtype`. CLEAR ACA is rejected: no ACA condition exists
/// (NORMACA = 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TaskFunction {
    AbortTask,
    AbortTaskSet,
    ClearTaskSet,
    NexusReset,
    UnitReset,
    QueryTask,
    QueryTaskSet,
}

impl TaskFunction {
    fn decode(subtype: u32) -> Option<Self> {
        Some(match subtype {
            0 => Self::AbortTask,
            1 => Self::AbortTaskSet,
            3 => Self::ClearTaskSet,
            4 => Self::NexusReset,
            5 => Self::UnitReset,
            6 => Self::QueryTask,
            7 => Self::QueryTaskSet,
            _ => return None,
        })
    }

    /// The commands that the function is about.
    fn selector(self, address: Address, id: u64) -> TaskSelector {
        match self {
            Self::AbortTask | Self::QueryTask => TaskSelector::Task(address, id),
            Self::AbortTaskSet | Self::ClearTaskSet | Self::UnitReset | Self::QueryTaskSet => {
                TaskSelector::Disk(address)
            }
            Self::NexusReset => TaskSelector::Target(address.target),
        }
    }

    /// The response of the selected commands.
    fn abort(self) -> Option<Response> {
        match self {
            // With one initiator CLEAR TASK SET and ABORT TASK SET select the same commands.
            Self::AbortTask | Self::AbortTaskSet | Self::ClearTaskSet => Some(Response::Aborted),
            Self::NexusReset | Self::UnitReset => Some(Response::Reset),
            Self::QueryTask | Self::QueryTaskSet => None,
        }
    }
}

/// A function whose commands have not all ended.
struct PendingTmf {
    function: TaskFunction,
    address: Address,
    request: Arc<TmfRequest>,
}

/// The handler of the control queue.
pub(super) struct ControlQueue {
    controller: Arc<Controller>,
    pending: Option<PendingTmf>,
    /// Bounds the log of functions that failed.
    failed: LogLimit,
}

impl ControlQueue {
    pub(super) fn new(controller: Arc<Controller>) -> Self {
        Self { controller, pending: None, failed: LogLimit::default() }
    }

    /// Starts the function in a chain, or returns its response if it fails.
    fn start(&mut self, readable: &Span<'_>, map: &GuestMap) -> Result<(), u8> {
        let TmfBytes { subtype, lun, id, .. } = read(readable, map).map_err(|_| FAILURE)?;
        let function = TaskFunction::decode(subtype.get()).ok_or(FUNCTION_REJECTED)?;
        let address = self.address(function, LunField::decode(lun))?;
        let (selector, abort) = (function.selector(address, id.get()), function.abort());
        match TmfRequest::post(selector, abort, &self.controller.mailboxes) {
            Ok(request) => {
                self.pending = Some(PendingTmf { function, address, request });
                Ok(())
            }
            Err(error) => {
                if let Some(suppressed) = self.failed.check() {
                    let name = &self.controller.name;
                    tracing::error!(
                        target: "virtio-scsi", suppressed,
                        "{name}: cannot manage tasks: {error}"
                    );
                }
                Err(FAILURE)
            }
        }
    }

    /// The address that a function is about, or its response if the address is invalid.
    fn address(&self, function: TaskFunction, to: Option<LunField>) -> Result<Address, u8> {
        let map = self.controller.map();
        let Some((to, entry)) = to.and_then(|to| Some((to, map.target(to.target)?))) else {
            return Err(BAD_TARGET);
        };
        let lun = match to.lun {
            _ if function == TaskFunction::NexusReset => 0,
            Some(lun) if entry.disk(lun).is_some() => lun,
            _ => return Err(INCORRECT_LUN),
        };
        Ok(Address { target: to.target, lun })
    }

    /// Completes a function whose commands have all ended and returns its response.
    fn complete(&self, pending: &PendingTmf) -> u8 {
        let map = self.controller.map();
        let reset = |selector: TaskSelector, reason| {
            for disk in map.disks().filter(|disk| selector.selects(disk.address, 0)) {
                disk.unit.reset(reason);
            }
        };
        let address = pending.address;
        match pending.function {
            TaskFunction::UnitReset => reset(TaskSelector::Disk(address), Attention::UnitReset),
            TaskFunction::NexusReset => {
                reset(TaskSelector::Target(address.target), Attention::NexusLoss);
            }
            TaskFunction::QueryTask | TaskFunction::QueryTaskSet if pending.request.has_found() => {
                return FUNCTION_SUCCEEDED;
            }
            _ => {}
        }
        FUNCTION_COMPLETE
    }

    /// Answers the chain if that does not depend on commands.
    fn answer_at_once(&mut self, chain: &Chain, map: &GuestMap) -> Option<Handled> {
        let readable = chain.readable();
        let response = match read::<U32>(&readable, map).map(U32::get) {
            Ok(TMF) => self.start(&readable, map).err()?,
            Ok(AN_QUERY | AN_SUBSCRIBE) => {
                let response = self.notification_response(&readable, map);
                return Some(write_answer(chain.writable(), map, response.as_bytes()));
            }
            _ => FAILURE,
        };
        Some(write_answer(chain.writable(), map, &[response]))
    }

    /// The response to an asynchronous notification query or subscription: no event exists.
    fn notification_response(&self, readable: &Span<'_>, map: &GuestMap) -> NotificationResponse {
        let response = match read::<NotificationBytes>(readable, map) {
            Err(_) => FAILURE,
            Ok(request) => {
                let to = LunField::decode(request.lun);
                let disks = self.controller.map();
                match to.and_then(|to| Some((to, disks.target(to.target)?))) {
                    None => BAD_TARGET,
                    Some((to, entry)) if to.lun.and_then(|lun| entry.disk(lun)).is_none() => {
                        INCORRECT_LUN
                    }
                    Some(_) => OK,
                }
            }
        };
        NotificationResponse { event_actual: 0.into(), response }
    }
}

impl ChainHandler for ControlQueue {
    fn handle(&mut self, chain: &Chain, map: &GuestMap) -> Result<Handled, QueueError> {
        if chain.writable().is_empty() {
            return Err(QueueError::NoStatus);
        }
        if self.pending.is_none()
            && let Some(answered) = self.answer_at_once(chain, map)
        {
            return Ok(answered);
        }
        match &self.pending {
            Some(pending) if !pending.request.is_done() => Ok(Handled::WaitForSource),
            Some(pending) => {
                let response = self.complete(pending);
                self.pending = None;
                Ok(write_answer(chain.writable(), map, &[response]))
            }
            None => Ok(write_answer(chain.writable(), map, &[FAILURE])),
        }
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.pending.as_ref()?.request.signal())
    }
}

/// Reads a structure at the start of a chain.
fn read<T: FromBytes + IntoBytes>(
    readable: &Span<'_>,
    map: &GuestMap,
) -> Result<T, OutOfMemoryRange> {
    let mut value = T::new_zeroed();
    readable.read(map, value.as_mut_bytes())?;
    Ok(value)
}

/// Writes an answer, or nothing if the buffer is too short for it.
fn write_answer(writable: Span<'_>, map: &GuestMap, answer: &[u8]) -> Handled {
    let written = writable.write(map, answer).map_or(0, |()| answer.len());
    Handled::Used(u32::try_from(written).unwrap_or(0))
}
