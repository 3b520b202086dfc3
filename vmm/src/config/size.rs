//! Sizes: reading `"512MiB"`, and writing sizes for messages. Pure.

use std::ops::RangeInclusive;

use toml::de::DeValue;

use super::limits::{
    CONSOLE_FILE_MAX, CONSOLE_FILE_MIN, EPHEMERAL_MAX, EPHEMERAL_MIN, RECORD_MAX, RECORD_MIN,
};
use super::value::{InvalidValue, Read, missing_unit, scaled, split_number};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The units of a size, in ascending order.
const UNITS: [(&str, u64); 4] = [("KiB", KIB), ("MiB", MIB), ("GiB", 1 << 30), ("TiB", 1 << 40)];

const EXPECTED: &str = "a size such as \"512MiB\"";

/// A size in bytes, such as "512MiB".
pub(super) fn size(value: &DeValue<'_>) -> Read<u64> {
    if let Some(number) = value.as_integer() {
        return Err(missing_size_unit(number.as_str()));
    }
    parse(value.as_str().ok_or_else(|| InvalidValue::wrong_type(EXPECTED, value))?)
}

/// The size on a command line, such as "512MiB", in bytes.
///
/// # Errors
///
/// What is wrong with the text.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    parse(text).map_err(|invalid| {
        let help = invalid.help.map_or(String::new(), |help| format!("; {help}"));
        format!("the size {}{help}", invalid.problem)
    })
}

fn parse(text: &str) -> Read<u64> {
    let (number, unit) = split_number(text);
    if unit.is_empty() && !number.is_empty() {
        return Err(missing_size_unit(number));
    }
    if let Some((_, scale)) = UNITS.iter().find(|(name, _)| *name == unit) {
        return scaled(number, *scale, EXPECTED);
    }
    let letter = unit.get(..1).map(str::to_ascii_uppercase).unwrap_or_default();
    let meant = UNITS.iter().find(|(name, _)| name.starts_with(&letter));
    match (meant, unit.to_ascii_lowercase().get(1..)) {
        (Some((name, _)), Some("" | "b" | "ib")) if !number.is_empty() => Err(InvalidValue::new(
            "has an unknown unit",
            format!("`{unit}` is not `{name}`"),
            format!("write \"{number}{name}\"; units are powers of 1024"),
        )),
        _ => Err(InvalidValue::new(
            "is not a size",
            "expected a whole number and a unit",
            "write a size such as \"512MiB\" or \"2GiB\"; the units are KiB, MiB, GiB and TiB",
        )),
    }
}

fn missing_size_unit(number: &str) -> InvalidValue {
    let meant = match number.parse() {
        // A multiple of 1 MiB was probably meant in bytes, a small number in MiB.
        Ok(bytes @ MIB..) if bytes.is_multiple_of(MIB) => exact_size(bytes),
        Ok(mib @ 1..) => format!("{mib}MiB"),
        Ok(0) | Err(_) => "512MiB".to_owned(),
    };
    missing_unit(&meant)
}

/// A size in TOML, with the largest unit that divides it.
pub(super) fn exact_size(bytes: u64) -> String {
    let unit =
        UNITS.iter().rev().find(|(_, scale)| bytes >= *scale && bytes.is_multiple_of(*scale));
    match unit {
        Some((name, scale)) => format!("{}{name}", bytes / scale),
        None => format!("{bytes} bytes"),
    }
}

/// A size in messages, rounded down to one decimal.
pub(crate) fn human_size(bytes: u64) -> String {
    match UNITS.iter().rev().find(|(_, scale)| bytes >= *scale) {
        Some((name, scale)) if bytes.is_multiple_of(*scale) => format!("{} {name}", bytes / scale),
        Some((name, scale)) => {
            let tenths = u128::from(bytes) * 10 / u128::from(*scale);
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
        None if bytes == 1 => "1 byte".to_owned(),
        None => format!("{bytes} bytes"),
    }
}

/// Granularity of guest memory: the size of a large page.
pub(super) const MEMORY_STEP: u64 = 2 * MIB;
/// Current Linux kernels do not reach their first process with less.
const MEMORY_MIN: u64 = 32 * MIB;

/// The size of guest memory.
pub(super) fn memory(value: &DeValue<'_>) -> Read<u64> {
    let bytes = size(value)?;
    let invalid = |problem, minimum| {
        let help = format!("write \"{}\" or more", exact_size(minimum));
        InvalidValue::new(problem, human_size(bytes), help)
    };
    if bytes < MEMORY_MIN {
        return Err(invalid("is too small to boot Linux", MEMORY_MIN));
    }
    if !bytes.is_multiple_of(MEMORY_STEP) {
        let above = bytes.checked_next_multiple_of(MEMORY_STEP).unwrap_or(MEMORY_MIN);
        return Err(invalid("is not a multiple of 2 MiB", above));
    }
    Ok(bytes)
}

/// The memory for copies of a disk's data. The minimum holds the largest single request.
pub(super) fn copy_memory(value: &DeValue<'_>) -> Read<u64> {
    within(size(value)?, MIB..=1024 * MIB)
}

/// The limit of a console file.
pub(super) fn console_file(value: &DeValue<'_>) -> Read<u64> {
    within(size(value)?, CONSOLE_FILE_MIN..=CONSOLE_FILE_MAX)
}

/// The limit of the changes of an ephemeral disk.
pub(super) fn ephemeral_limit(value: &DeValue<'_>) -> Read<u64> {
    within(size(value)?, EPHEMERAL_MIN..=EPHEMERAL_MAX)
}

/// The limit of the log of a recorded disk.
pub(super) fn record_limit(value: &DeValue<'_>) -> Read<u64> {
    within(size(value)?, RECORD_MIN..=RECORD_MAX)
}

fn within(bytes: u64, range: RangeInclusive<u64>) -> Read<u64> {
    if range.contains(&bytes) {
        return Ok(bytes);
    }
    let (least, most) = (exact_size(*range.start()), exact_size(*range.end()));
    let help = format!("write a size from \"{least}\" to \"{most}\"");
    Err(InvalidValue::new("is out of range", human_size(bytes), help))
}
