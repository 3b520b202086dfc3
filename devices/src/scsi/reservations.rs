//! PERSISTENT RESERVE IN and OUT (SPC-4 §5.12, §6.15, §6.16) for the one initiator there is.
//!
//! Whoever holds the reservation is the initiator itself, so that no other command ever conflicts with it.
//! What is reserved does not outlive the program (PTPL_C = 0): to ask for that is refused, not ignored.

use super::bytes::{be64, byte, len32, put};
use super::sense::Sense;
use super::unit::LogicalUnit;
use super::{Command, Failure, Outcome, data_in, good_after};

/// The parameter list of all actions that are supported, in bytes.
const LIST: u32 = 24;
/// Reservation types as the capabilities name them: all of SPC-4.
const TYPES: [(u8, u16); 6] =
    [(1, 0x0200), (3, 0x0800), (5, 0x2000), (6, 0x4000), (7, 0x8000), (8, 0x0001)];

/// Service actions of PERSISTENT RESERVE OUT.
pub(super) const REGISTER: u8 = 0;
pub(super) const RESERVE: u8 = 1;
pub(super) const RELEASE: u8 = 2;
pub(super) const CLEAR: u8 = 3;
pub(super) const PREEMPT: u8 = 4;
pub(super) const PREEMPT_AND_ABORT: u8 = 5;
pub(super) const REGISTER_AND_IGNORE: u8 = 6;

/// The state of one unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reservations {
    /// The initiator's key, if it is registered; never zero.
    key: Option<u64>,
    /// The type of the reservation that it holds.
    held: Option<u8>,
    generation: u32,
}

/// PERSISTENT RESERVE OUT: what a command asks.
#[derive(Clone, Copy, Debug)]
struct Ask {
    action: u8,
    kind: u8,
    key: u64,
    action_key: u64,
}

/// PERSISTENT RESERVE OUT.
pub(super) fn reserve_out(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let cdb = command.cdb;
    let action = cdb.byte(1) & 0x1f;
    let (scope, kind) = (cdb.byte(2) >> 4, cdb.byte(2) & 0xf);
    // Scope and type mean something to these alone (SPC-4 table 222).
    if matches!(action, RESERVE | RELEASE | PREEMPT | PREEMPT_AND_ABORT) {
        if scope != 0 {
            return Err(cdb.wrong_bit(2, 7).into());
        }
        if !TYPES.iter().any(|(known, _)| *known == kind) {
            return Err(cdb.wrong_bit(2, 3).into());
        }
    }
    if cdb.be32(5) != LIST {
        return Err(Sense::PARAMETER_LIST_LENGTH_ERROR.into());
    }
    let list = command.parameters(LIST.into())?;
    // SPEC_I_PT, ALL_TG_PT and APTPL, as REPORT CAPABILITIES says.
    if let Some(bit) = [3, 2, 0].into_iter().find(|bit| byte(&list, 20) >> bit & 1 == 1) {
        return Err(Sense::invalid_parameter(20, Some(bit)).into());
    }
    let ask = Ask { action, kind, key: be64(&list, 0), action_key: be64(&list, 8) };
    unit.reservations().apply(ask)?;
    good_after(LIST.into())
}

impl Reservations {
    fn apply(&mut self, ask: Ask) -> Result<(), Failure> {
        if ask.action != REGISTER_AND_IGNORE && ask.key != self.key.unwrap_or(0) {
            return Err(Failure::Conflict);
        }
        // All others need a registration.
        if !matches!(ask.action, REGISTER | REGISTER_AND_IGNORE) && self.key.is_none() {
            return Err(Failure::Conflict);
        }
        match ask.action {
            REGISTER | REGISTER_AND_IGNORE => self.register(ask.action_key),
            RESERVE => return self.reserve(ask.kind),
            RELEASE => return self.release(ask.kind),
            CLEAR => {
                *self = Self { generation: self.generation, ..Self::default() };
                self.count();
            }
            _ => return self.preempt(ask),
        }
        Ok(())
    }

    fn count(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// Key zero ends the registration, and with its only holder the reservation.
    fn register(&mut self, key: u64) {
        self.key = (key != 0).then_some(key);
        if key == 0 {
            self.held = None;
        }
        self.count();
    }

    fn reserve(&mut self, kind: u8) -> Result<(), Failure> {
        if self.held.is_some_and(|held| held != kind) {
            return Err(Failure::Conflict);
        }
        self.held = Some(kind);
        Ok(())
    }

    fn release(&mut self, kind: u8) -> Result<(), Failure> {
        if self.held.is_some_and(|held| held != kind) {
            return Err(Sense::INVALID_RELEASE.into());
        }
        self.held = None;
        Ok(())
    }

    /// The only registration there is to preempt is the initiator's own (SPC-4 §5.12.11.4).
    fn preempt(&mut self, ask: Ask) -> Result<(), Failure> {
        /// Types whose holders are all that are registered.
        const ALL_REGISTRANTS: [u8; 2] = [7, 8];
        let by_all = self.held.is_some_and(|held| ALL_REGISTRANTS.contains(&held));
        match ask.action_key {
            // All other registrations, of which there are none.
            0 if by_all => self.held = Some(ask.kind),
            0 => return Err(Sense::invalid_parameter(8, None).into()),
            key if Some(key) != self.key => return Err(Failure::Conflict),
            // The holder is registered on, and holds what it asks for now.
            _ if self.held.is_some() => self.held = Some(ask.kind),
            _ => self.key = None,
        }
        self.count();
        Ok(())
    }

    /// Generation and length, before what a PERSISTENT RESERVE IN answers.
    fn answer(&self, body: &[u8]) -> Vec<u8> {
        let mut answer = self.generation.to_be_bytes().to_vec();
        answer.extend(len32(body.len()));
        answer.extend(body);
        answer
    }
}

/// READ KEYS.
pub(super) fn read_keys(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let state = *unit.reservations();
    let keys: Vec<u8> = state.key.iter().flat_map(|key| key.to_be_bytes()).collect();
    data_in(state.answer(&keys), command.cdb.be16(7).into())
}

/// READ RESERVATION.
pub(super) fn read_reservation(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let state = *unit.reservations();
    let body = state.held.map_or_else(Vec::new, |held| {
        let mut body = vec![0; 16];
        put(&mut body, 0, &state.key.unwrap_or(0).to_be_bytes());
        put(&mut body, 13, &[held]);
        body
    });
    data_in(state.answer(&body), command.cdb.be16(7).into())
}

/// REPORT CAPABILITIES: all types, and nothing beyond the initiator's own.
pub(super) fn report_capabilities(_: &LogicalUnit, command: &Command<'_>) -> Outcome {
    const TYPE_MASK_VALID: u8 = 0x80;
    let mask = TYPES.iter().fold(0, |mask, (_, bit)| mask | bit);
    let mut answer = vec![0, 8, 0, TYPE_MASK_VALID, 0, 0, 0, 0];
    put(&mut answer, 4, &mask.to_be_bytes());
    data_in(answer, command.cdb.be16(7).into())
}

/// READ FULL STATUS.
pub(super) fn read_full_status(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    /// Bytes of a TransportID. There is none for virtio: the initiator is shown as a SAS port, as other
    /// virtio targets do, with an address that is locally assigned.
    const TRANSPORT_ID: usize = 24;
    const SAS: u8 = 6;
    const LOCALLY_ASSIGNED: u64 = 3 << 60;
    let state = *unit.reservations();
    let body = state.key.map_or_else(Vec::new, |key| {
        let mut body = vec![0; 24 + TRANSPORT_ID];
        put(&mut body, 0, &key.to_be_bytes());
        put(&mut body, 12, &[u8::from(state.held.is_some()), state.held.unwrap_or(0)]);
        put(&mut body, 18, &1u16.to_be_bytes()); // relative target port
        put(&mut body, 20, &len32(TRANSPORT_ID));
        put(&mut body, 24, &[SAS]);
        put(&mut body, 28, &(LOCALLY_ASSIGNED | 1).to_be_bytes());
        body
    });
    data_in(state.answer(&body), command.cdb.be16(7).into())
}
