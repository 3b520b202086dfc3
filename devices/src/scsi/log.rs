//! LOG SENSE (SPC-4 §6.7): the supported pages, and logical block provisioning (SBC-3 §6.4.6).

use super::bytes::{len16, put};
use super::unit::LogicalUnit;
use super::{Command, Outcome, data_in};

const SUPPORTED: u8 = 0x00;
const PROVISIONING: u8 = 0x0c;
const ALL_SUBPAGES: u8 = 0xff;
/// PC: current cumulative values.
const CUMULATIVE: u8 = 1;

/// See the module's documentation.
pub(super) fn log_sense(unit: &LogicalUnit, command: &Command<'_>) -> Outcome {
    let cdb = command.cdb;
    if cdb.bit(1, 0) {
        return Err(cdb.wrong_bit(1, 0).into()); // SP: nothing can be saved
    }
    let (control, page, subpage) = (cdb.byte(2) >> 6, cdb.byte(2) & 0x3f, cdb.byte(3));
    let pages: &[u8] =
        if unit.backing_space().is_some() { &[SUPPORTED, PROVISIONING] } else { &[SUPPORTED] };
    if !pages.contains(&page) {
        return Err(cdb.wrong_bit(2, 5).into());
    }
    let pointer = cdb.be16(5);
    let body = match (page, subpage) {
        (SUPPORTED, 0) if pointer == 0 => pages.to_vec(),
        (SUPPORTED, ALL_SUBPAGES) if pointer == 0 => {
            pages.iter().flat_map(|page| [*page, 0]).collect()
        }
        (SUPPORTED, 0 | ALL_SUBPAGES) => return Err(cdb.wrong(5).into()),
        (_, 0) if control != CUMULATIVE => return Err(cdb.wrong_bit(2, 7).into()),
        (_, 0) => resource_counts(unit, pointer).ok_or_else(|| cdb.wrong(5))?,
        _ => return Err(cdb.wrong(3).into()),
    };
    let spf = if subpage == 0 { 0 } else { 0x40 };
    let mut answer = vec![page | spf, subpage, 0, 0];
    put(&mut answer, 2, &len16(body.len()));
    answer.extend(body);
    data_in(answer, cdb.be16(7).into())
}

/// Available and used resources in threshold sets, from parameter code `pointer` on; `None` if there is none.
fn resource_counts(unit: &LogicalUnit, pointer: u16) -> Option<Vec<u8>> {
    /// SCOPE: others use the same store.
    const SHARED: u8 = 2;
    let space = unit.backing_space()?;
    let set = unit.threshold_set();
    let available = (1_u16, space.available / set, SHARED);
    let used = (2_u16, space.used.div_ceil(set), SHARED);
    let counts = [available, used].into_iter().filter(|(code, ..)| *code >= pointer);
    let parameters: Vec<u8> = counts
        .flat_map(|(code, count, scope)| {
            let mut parameter = [0; 12];
            put(&mut parameter, 0, &code.to_be_bytes());
            put(&mut parameter, 2, &[0x03, 8]); // a binary list
            put(&mut parameter, 4, &u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes());
            put(&mut parameter, 8, &[scope]);
            parameter
        })
        .collect();
    (!parameters.is_empty()).then_some(parameters)
}
