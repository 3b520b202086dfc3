//! READ CAPACITY (10) and (16) (SBC-3 §5.16, §5.17).

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::command::{Command, Outcome, data_in};
use super::unit::LogicalUnit;

/// READ CAPACITY (10) parameter data (SBC-3 §5.16.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Immutable, IntoBytes)]
struct ReadCapacity10 {
    returned_logical_block_address: U32,
    logical_block_length: U32,
}

/// READ CAPACITY (16) parameter data (SBC-3 §5.17.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Immutable, IntoBytes)]
struct ReadCapacity16 {
    returned_logical_block_address: U64,
    logical_block_length: U32,
    /// P_TYPE and PROT_EN: no protection information.
    protection: u8,
    /// LOGICAL BLOCKS PER PHYSICAL BLOCK EXPONENT in the lower half.
    exponents: u8,
    /// LBPME, LBPRZ and LOWEST ALIGNED LOGICAL BLOCK ADDRESS.
    provisioning: U16,
    reserved: [u8; 16],
}

const LBPME: u16 = 0x8000;
const LBPRZ: u16 = 0x4000;

/// READ CAPACITY (10). A last block beyond 32 bits is reported as all ones: the initiator then uses
/// the long form.
pub(super) fn read_capacity_10(unit: &LogicalUnit, _: &Command<'_>) -> Outcome {
    let data = ReadCapacity10 {
        returned_logical_block_address: u32::try_from(unit.last_block()).unwrap_or(u32::MAX).into(),
        logical_block_length: unit.block_bytes().into(),
    };
    data_in(data.as_bytes().to_vec(), size_of_val(&data) as u64)
}

/// READ CAPACITY (16).
pub(super) fn read_capacity_16(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let per_physical = (unit.geometry().physical_block / unit.block_bytes().max(1)).max(1);
    let exponent = u8::try_from(per_physical.ilog2()).unwrap_or(0);
    let provisioning = match unit.discard() {
        Some(discard) if discard.reads_zero => LBPME | LBPRZ,
        Some(_) => LBPME,
        None => 0,
    };
    let data = ReadCapacity16 {
        returned_logical_block_address: unit.last_block().into(),
        logical_block_length: unit.block_bytes().into(),
        protection: 0,
        exponents: exponent & 0xf,
        provisioning: provisioning.into(),
        reserved: [0; 16],
    };
    data_in(data.as_bytes().to_vec(), command.cdb.be32(10).into())
}
