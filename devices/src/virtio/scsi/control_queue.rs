//! The control queue (Virtio 1.2 §5.6.6.2): task management functions, and asynchronous notification.
//!
//! A function is answered when the driver can see the end of every task it was about. Until then its chain waits, and
//! with it those behind it. No disk here has notifications of the kind that can be subscribed to.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ::block::LogLimit;

use super::request::{Addressee, Response};
use super::shared::{Address, Shared};
use super::tasks::{Order, Which};
use crate::scsi::Attention;
use crate::virtio::chain_worker::{ChainHandler, Handled};
use crate::virtio::{Chain, GuestMap, QueueError, Span};

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

/// Task management functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    AbortTask,
    AbortTaskSet,
    ClearTaskSet,
    NexusReset,
    UnitReset,
    QueryTask,
    QueryTaskSet,
}

impl Function {
    /// CLEAR ACA is none of them: there is no ACA condition (NORMACA = 0).
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

    /// Which tasks it is about.
    fn which(self, address: Address, id: u64) -> Which {
        match self {
            Self::AbortTask | Self::QueryTask => Which::Task(address, id),
            Self::AbortTaskSet | Self::ClearTaskSet | Self::UnitReset | Self::QueryTaskSet => {
                Which::Disk(address)
            }
            Self::NexusReset => Which::Target(address.target),
        }
    }

    /// How these end.
    fn end(self) -> Option<Response> {
        match self {
            // With one initiator its task set is all there is.
            Self::AbortTask | Self::AbortTaskSet | Self::ClearTaskSet => Some(Response::Aborted),
            Self::NexusReset | Self::UnitReset => Some(Response::Reset),
            Self::QueryTask | Self::QueryTaskSet => None,
        }
    }
}

/// A function whose tasks have not all ended.
struct Running {
    function: Function,
    address: Address,
    order: Arc<Order>,
}

/// See the module's documentation.
pub(super) struct ControlQueue {
    shared: Arc<Shared>,
    running: Option<Running>,
    unmanaged: LogLimit,
}

impl ControlQueue {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, running: None, unmanaged: LogLimit::default() }
    }

    /// Starts a function; what to answer if there is nothing to wait for.
    fn start(&mut self, function: Function, to: Option<Addressee>, id: u64) -> Result<Running, u8> {
        let map = self.shared.map();
        let Some((to, place)) = to.and_then(|to| Some((to, map.target(to.target)?))) else {
            return Err(BAD_TARGET);
        };
        let lun = match to.lun {
            _ if function == Function::NexusReset => 0,
            Some(lun) if place.disk(lun).is_some() => lun,
            _ => return Err(INCORRECT_LUN),
        };
        let address = Address { target: to.target, lun };
        let which = function.which(address, id);
        let order = Order::give(which, function.end(), &self.shared.mailboxes);
        match order {
            Ok(order) => Ok(Running { function, address, order }),
            Err(error) => {
                if let Some(suppressed) = self.unmanaged.check() {
                    let name = &self.shared.name;
                    tracing::error!(target: "virtio-scsi", suppressed, "{name}: cannot manage tasks: {error}");
                }
                Err(FAILURE)
            }
        }
    }

    /// Ends a function whose tasks have all ended, and returns its response.
    fn finish(&self, running: &Running) -> u8 {
        let map = self.shared.map();
        let reset = |which: Which, reason| {
            for disk in map.disks().filter(|disk| which.means(disk.address, 0)) {
                disk.unit.reset(reason);
            }
        };
        match running.function {
            Function::UnitReset => reset(Which::Disk(running.address), Attention::UnitReset),
            Function::NexusReset => {
                reset(Which::Target(running.address.target), Attention::NexusLoss);
            }
            Function::QueryTask | Function::QueryTaskSet if running.order.has_found() => {
                return FUNCTION_SUCCEEDED;
            }
            _ => {}
        }
        FUNCTION_COMPLETE
    }

    fn manage(&mut self, request: &[u8; 24]) -> Result<(), u8> {
        let (words, rest) = request.split_at(8);
        let subtype = words.last_chunk().map_or(u32::MAX, |word| u32::from_le_bytes(*word));
        let (lun, id) = (rest.first_chunk::<8>(), rest.last_chunk::<8>());
        let (Some(lun), Some(id)) = (lun, id) else { return Err(FAILURE) };
        let function = Function::decode(subtype).ok_or(FUNCTION_REJECTED)?;
        let to = Addressee::decode(*lun);
        self.running = Some(self.start(function, to, u64::from_le_bytes(*id))?);
        Ok(())
    }
}

impl ChainHandler for ControlQueue {
    fn handle(&mut self, chain: &Chain, map: &GuestMap) -> Result<Handled, QueueError> {
        if chain.writable().is_empty() {
            return Err(QueueError::NoStatus);
        }
        if self.running.is_none() {
            let readable = chain.readable();
            let mut kind = [0; 4];
            let kind = readable.read(map, &mut kind).map(|()| u32::from_le_bytes(kind));
            let mut request = [0; 24];
            let answer = match kind {
                Ok(TMF) => match readable.read(map, &mut request) {
                    Ok(()) => self.manage(&request).err(),
                    Err(_) => Some(FAILURE),
                },
                Ok(AN_QUERY | AN_SUBSCRIBE) => {
                    return Ok(notification(&self.shared, &readable, chain.writable(), map));
                }
                _ => Some(FAILURE),
            };
            if let Some(response) = answer {
                return Ok(answered(chain.writable(), map, &[response]));
            }
        }
        match &self.running {
            Some(running) if !running.order.is_done() => Ok(Handled::Wait),
            Some(running) => {
                let response = self.finish(running);
                self.running = None;
                Ok(answered(chain.writable(), map, &[response]))
            }
            None => Ok(answered(chain.writable(), map, &[FAILURE])),
        }
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.running.as_ref()?.order.signal())
    }
}

/// Asynchronous notification: which of the events asked for there are. None.
fn notification(
    shared: &Shared,
    readable: &Span<'_>,
    writable: Span<'_>,
    map: &GuestMap,
) -> Handled {
    let mut request = [0; 16];
    let read = readable.read(map, &mut request);
    let (_, rest) = request.split_at(4);
    let to = rest.first_chunk::<8>().and_then(|lun| Addressee::decode(*lun));
    let known = shared.map();
    let place = to.and_then(|to| Some((to, known.target(to.target)?)));
    let response = match (read, place) {
        (Err(_), _) => FAILURE,
        (_, None) => BAD_TARGET,
        (_, Some((to, place))) if to.lun.and_then(|lun| place.disk(lun)).is_none() => INCORRECT_LUN,
        _ => OK,
    };
    answered(writable, map, &[0, 0, 0, 0, response])
}

/// Writes an answer into a buffer that need not have room for it.
fn answered(writable: Span<'_>, map: &GuestMap, answer: &[u8]) -> Handled {
    let written = writable.write(map, answer).map_or(0, |()| answer.len());
    Handled::Used(u32::try_from(written).unwrap_or(0))
}
