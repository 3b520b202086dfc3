//! Persistent reservations of a unit (SPC-4 §5.12) for the single initiator.
//!
//! The holder of a reservation is the initiator itself, so that no other command conflicts with it.
//! Reservations end with the program (PTPL_C = 0); a request to keep them is refused.

use super::failure::Failure;
use super::sense::Sense;

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
    /// The registered key, not zero; `None` without registration.
    key: Option<u64>,
    /// The type of the reservation held.
    held: Option<u8>,
    generation: u32,
}

/// A PERSISTENT RESERVE OUT.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReserveOut {
    /// The service action.
    pub(super) action: u8,
    /// The reservation type.
    pub(super) kind: u8,
    /// RESERVATION KEY.
    pub(super) key: u64,
    /// SERVICE ACTION RESERVATION KEY.
    pub(super) action_key: u64,
}

impl Reservations {
    /// The registered key.
    pub(super) fn key(&self) -> Option<u64> {
        self.key
    }

    /// The type of the reservation held.
    pub(super) fn held(&self) -> Option<u8> {
        self.held
    }

    /// PRGENERATION.
    pub(super) fn generation(&self) -> u32 {
        self.generation
    }

    /// Applies a command. A command that fails changes nothing.
    pub(super) fn apply(&mut self, command: ReserveOut) -> Result<(), Failure> {
        if command.action != REGISTER_AND_IGNORE && command.key != self.key.unwrap_or(0) {
            return Err(Failure::Conflict);
        }
        // All other actions require a registration.
        if !matches!(command.action, REGISTER | REGISTER_AND_IGNORE) && self.key.is_none() {
            return Err(Failure::Conflict);
        }
        match command.action {
            REGISTER | REGISTER_AND_IGNORE => self.register(command.action_key),
            RESERVE => return self.reserve(command.kind),
            RELEASE => return self.release(command.kind),
            CLEAR => {
                *self = Self { generation: self.generation, ..Self::default() };
                self.increment_generation();
            }
            _ => return self.preempt(command),
        }
        Ok(())
    }

    fn increment_generation(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// Key zero ends the registration and, with the only holder, the reservation.
    fn register(&mut self, key: u64) {
        self.key = (key != 0).then_some(key);
        if key == 0 {
            self.held = None;
        }
        self.increment_generation();
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

    /// The only registration that can be preempted is the initiator's own (SPC-4 §5.12.11.4).
    fn preempt(&mut self, command: ReserveOut) -> Result<(), Failure> {
        /// Types held by all registrants.
        const ALL_REGISTRANTS: [u8; 2] = [7, 8];
        let held_by_all = self.held.is_some_and(|held| ALL_REGISTRANTS.contains(&held));
        match command.action_key {
            // Preempts all other registrations: none exists.
            0 if held_by_all => self.held = Some(command.kind),
            0 => return Err(Sense::invalid_parameter(8, None).into()),
            key if Some(key) != self.key => return Err(Failure::Conflict),
            // The holder stays registered and holds the new type.
            _ if self.held.is_some() => self.held = Some(command.kind),
            _ => self.key = None,
        }
        self.increment_generation();
        Ok(())
    }
}
