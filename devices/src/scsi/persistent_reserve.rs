//! PERSISTENT RESERVE IN and OUT (SPC-4 §6.15, §6.16).

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::bytes::{len16, len32};
use super::command::{Command, Outcome, data_in, good_after, with_header};
use super::reservations::{self, Reservations, ReserveOut};
use super::sense::Sense;
use super::unit::LogicalUnit;

/// Reservation types and their bits in the PERSISTENT RESERVATION TYPE MASK: all of SPC-4.
const TYPES: [(u8, u16); 6] =
    [(1, 0x0200), (3, 0x0800), (5, 0x2000), (6, 0x4000), (7, 0x8000), (8, 0x0001)];

/// The PERSISTENT RESERVE OUT parameter list (SPC-4 §6.16.3).
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
struct ReserveOutList {
    reservation_key: U64,
    service_action_reservation_key: U64,
    obsolete: [u8; 4],
    /// SPEC_I_PT, ALL_TG_PT and APTPL.
    flags: u8,
    reserved: [u8; 3],
}

/// The header of PERSISTENT RESERVE IN parameter data (SPC-4 §6.15).
#[repr(C)]
#[derive(Clone, Copy, Debug, Immutable, IntoBytes)]
struct ReserveInHeader {
    prgeneration: U32,
    additional_length: U32,
}

/// READ RESERVATION parameter data (SPC-4 §6.15.3).
#[repr(C)]
#[derive(Clone, Copy, Debug, FromZeros, Immutable, IntoBytes)]
struct ReservationDescriptor {
    reservation_key: U64,
    obsolete: U32,
    reserved: u8,
    scope_type: u8,
    obsolete_length: U16,
}

/// REPORT CAPABILITIES parameter data (SPC-4 §6.15.4).
#[repr(C)]
#[derive(Clone, Copy, Debug, FromZeros, Immutable, IntoBytes)]
struct ReserveCapabilities {
    length: U16,
    flags: [u8; 2],
    persistent_reservation_type_mask: U16,
    reserved: U16,
}

/// A full status descriptor of READ FULL STATUS (SPC-4 §6.15.5) with a TransportID of SAS.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromZeros, Immutable, IntoBytes)]
struct FullStatusDescriptor {
    reservation_key: U64,
    reserved_8: U32,
    /// ALL_TG_PT and R_HOLDER.
    flags: u8,
    scope_type: u8,
    reserved_14: [u8; 4],
    relative_target_port_identifier: U16,
    additional_descriptor_length: U32,
    protocol_identifier: u8,
    reserved_25: [u8; 3],
    sas_address: U64,
    reserved_36: [u8; 12],
}

/// PERSISTENT RESERVE OUT.
pub(super) fn reserve_out(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    use reservations::{PREEMPT, PREEMPT_AND_ABORT, RELEASE, RESERVE};
    const LIST_BYTES: u32 = 24;
    const _: () = assert!(size_of::<ReserveOutList>() == LIST_BYTES as usize);
    let cdb = command.cdb;
    let action = cdb.byte(1) & 0x1f;
    let (scope, kind) = (cdb.byte(2) >> 4, cdb.byte(2) & 0xf);
    // Other actions ignore scope and type (SPC-4 table 222).
    if matches!(action, RESERVE | RELEASE | PREEMPT | PREEMPT_AND_ABORT) {
        if scope != 0 {
            return Err(cdb.invalid_bit(2, 7).into());
        }
        if !TYPES.iter().any(|(known, _)| *known == kind) {
            return Err(cdb.invalid_bit(2, 3).into());
        }
    }
    if cdb.be32(5) != LIST_BYTES {
        return Err(Sense::PARAMETER_LIST_LENGTH_ERROR.into());
    }
    let list = command.parameters(LIST_BYTES.into())?;
    let list =
        ReserveOutList::ref_from_bytes(&list).map_err(|_| Sense::PARAMETER_LIST_LENGTH_ERROR)?;
    // SPEC_I_PT, ALL_TG_PT and APTPL are not in REPORT CAPABILITIES.
    if let Some(bit) = [3, 2, 0].into_iter().find(|bit| list.flags >> bit & 1 == 1) {
        return Err(Sense::invalid_parameter(20, Some(bit)).into());
    }
    let (key, action_key) = (list.reservation_key.get(), list.service_action_reservation_key.get());
    unit.reservations().apply(ReserveOut { action, kind, key, action_key })?;
    good_after(LIST_BYTES.into())
}

/// The answer of a PERSISTENT RESERVE IN with `body` after the header.
fn reserve_in(state: &Reservations, body: &[u8], command: &Command<'_>) -> Outcome {
    let header = ReserveInHeader {
        prgeneration: state.generation().into(),
        additional_length: len32(body.len()).into(),
    };
    data_in(with_header(&header, body), command.cdb.be16(7).into())
}

/// READ KEYS.
pub(super) fn read_keys(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let state = *unit.reservations();
    let keys: Vec<u8> = state.key().iter().flat_map(|key| key.to_be_bytes()).collect();
    reserve_in(&state, &keys, command)
}

/// READ RESERVATION.
pub(super) fn read_reservation(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let state = *unit.reservations();
    let Some(held) = state.held() else { return reserve_in(&state, &[], command) };
    let descriptor = ReservationDescriptor {
        reservation_key: state.key().unwrap_or(0).into(),
        scope_type: held,
        ..FromZeros::new_zeroed()
    };
    reserve_in(&state, descriptor.as_bytes(), command)
}

/// REPORT CAPABILITIES: all types, no optional feature.
pub(super) fn report_capabilities(_: &LogicalUnit, command: &Command<'_>) -> Outcome {
    /// TMV: the type mask is valid.
    const TYPE_MASK_VALID: u8 = 0x80;
    let capabilities = ReserveCapabilities {
        length: len16(size_of::<ReserveCapabilities>()).into(),
        flags: [0, TYPE_MASK_VALID],
        persistent_reservation_type_mask: TYPES.iter().fold(0, |mask, (_, bit)| mask | bit).into(),
        reserved: 0.into(),
    };
    data_in(capabilities.as_bytes().to_vec(), command.cdb.be16(7).into())
}

/// READ FULL STATUS. No TransportID exists for virtio: the initiator is reported as a SAS port with
/// a locally assigned address, as other virtio targets do.
pub(super) fn read_full_status(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    const TRANSPORT_ID_BYTES: usize = 24;
    const SAS: u8 = 6;
    const LOCALLY_ASSIGNED: u64 = 3 << 60;
    let state = *unit.reservations();
    let Some(key) = state.key() else { return reserve_in(&state, &[], command) };
    let descriptor = FullStatusDescriptor {
        reservation_key: key.into(),
        flags: state.held().is_some().into(),
        scope_type: state.held().unwrap_or(0),
        relative_target_port_identifier: 1.into(),
        additional_descriptor_length: len32(TRANSPORT_ID_BYTES).into(),
        protocol_identifier: SAS,
        sas_address: (LOCALLY_ASSIGNED | 1).into(),
        ..FromZeros::new_zeroed()
    };
    reserve_in(&state, descriptor.as_bytes(), command)
}
