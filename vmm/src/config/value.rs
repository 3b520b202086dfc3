//! Values: from one TOML value to one checked value of our own.
//!
//! A reader here knows neither the key it reads for nor the span it stands at; [`Wrong`] is the part
//! of a diagnostic which it can tell.

use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

/// Why a value is refused. The message reads "`key` {what}".
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) what: String,
    pub(super) label: String,
    pub(super) help: Option<String>,
}

impl Wrong {
    fn new(what: impl Into<String>, label: impl Into<String>, help: impl Into<String>) -> Self {
        Self { what: what.into(), label: label.into(), help: Some(help.into()) }
    }

    /// A wrong type. The table reader, which knows an example of the key, gives the help.
    pub(super) fn kind(expected: &str, found: &DeValue<'_>) -> Self {
        let found = match found.type_str() {
            "table" => "this is a table".to_owned(),
            kind @ ("integer" | "array") => format!("this is an {kind}"),
            kind => format!("this is a {kind}"),
        };
        Self { what: format!("must be {expected}"), label: found, help: None }
    }
}

pub(super) type Read<T> = Result<T, Wrong>;

pub(super) fn boolean(value: &DeValue<'_>) -> Read<bool> {
    value.as_bool().ok_or_else(|| Wrong::kind("true or false", value))
}

pub(super) fn string<'v>(value: &'v DeValue<'_>) -> Read<&'v str> {
    value.as_str().ok_or_else(|| Wrong::kind("a string", value))
}

pub(super) fn integer(value: &DeValue<'_>, range: RangeInclusive<u16>) -> Read<u16> {
    let integer = value.as_integer().ok_or_else(|| Wrong::kind("an integer", value))?;
    let number = u16::from_str_radix(integer.as_str(), integer.radix()).ok();
    number.filter(|number| range.contains(number)).ok_or_else(|| {
        let (min, max) = (range.start(), range.end());
        Wrong::new(
            "is out of range",
            format!("must be {min} to {max}"),
            format!("write a number from {min} to {max}"),
        )
    })
}

/// A table within a table.
pub(super) fn table<'v>(value: &'v DeValue<'v>) -> Read<&'v DeTable<'v>> {
    value.as_table().ok_or_else(|| Wrong::kind("a table", value))
}

/// A share such as "80%", from 1 to 99.
pub(super) fn percent(value: &DeValue<'_>) -> Read<u8> {
    let wrong = |label: &str| {
        let help = "write a share from \"1%\" to \"99%\", such as \"80%\"";
        Wrong::new("is no share", label, help)
    };
    if value.as_integer().is_some() {
        return Err(wrong("a bare number"));
    }
    let Some(number) = string(value)?.strip_suffix('%') else { return Err(wrong("without a `%`")) };
    let share = number.trim_end().parse().ok().filter(|share| (1..=99).contains(share));
    share.ok_or_else(|| wrong("not from 1 to 99"))
}

/// The block of a disk, in bytes.
pub(super) fn block_size(value: &DeValue<'_>) -> Read<u32> {
    let integer = value.as_integer().ok_or_else(|| Wrong::kind("512 or 4096", value))?;
    match integer.as_str() {
        "512" => Ok(512),
        "4096" => Ok(4096),
        _ => Err(Wrong::new("is no block size", "must be 512 or 4096", "write 512 or 4096")),
    }
}

/// One word of a short list.
pub(super) fn one_of<'l>(value: &DeValue<'_>, words: &[&'l str]) -> Read<&'l str> {
    let text = string(value)?;
    words.iter().find(|word| **word == text).copied().ok_or_else(|| {
        let list = words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
        let label = match did_you_mean(text, words) {
            Some(word) => format!("did you mean \"{word}\"?"),
            None => "not one of its values".to_owned(),
        };
        Wrong::new("has an unknown value", label, format!("write one of {list}"))
    })
}

/// The candidate a mistyped word most likely stands for.
pub(super) fn did_you_mean<'l>(word: &str, candidates: &[&'l str]) -> Option<&'l str> {
    let word = word.to_lowercase();
    let limit = word.chars().count().div_ceil(3);
    candidates
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, candidate), *candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The units of a size, the smallest first.
const SIZE_UNITS: [(&str, u64); 4] =
    [("KiB", KIB), ("MiB", MIB), ("GiB", 1 << 30), ("TiB", 1 << 40)];

/// A size in bytes, such as "512MiB".
pub(super) fn size(value: &DeValue<'_>) -> Read<u64> {
    if let Some(number) = value.as_integer() {
        return Err(no_size_unit(number.as_str()));
    }
    let text = value.as_str().ok_or_else(|| Wrong::kind("a size such as \"512MiB\"", value))?;
    let (number, unit) = split_number(text);
    if unit.is_empty() && !number.is_empty() {
        return Err(no_size_unit(number));
    }
    if let Some((_, scale)) = SIZE_UNITS.iter().find(|(name, _)| *name == unit) {
        return scaled(number, *scale, "a size such as \"512MiB\"");
    }
    let letter = unit.get(..1).map(str::to_ascii_uppercase).unwrap_or_default();
    let meant = SIZE_UNITS.iter().find(|(name, _)| name.starts_with(&letter));
    match (meant, unit.to_ascii_lowercase().get(1..)) {
        (Some((name, _)), Some("" | "b" | "ib")) if !number.is_empty() => Err(Wrong::new(
            "has an unknown unit",
            format!("`{unit}` is not `{name}`"),
            format!("write \"{number}{name}\"; sizes count in powers of 1024"),
        )),
        _ => Err(Wrong::new(
            "is not a size",
            "expected a whole number and a unit",
            "write a size such as \"512MiB\" or \"2GiB\"; the units are KiB, MiB, GiB and TiB",
        )),
    }
}

fn no_size_unit(number: &str) -> Wrong {
    let meant = match number.parse() {
        // A round number of MiB was meant in bytes, a small one in MiB.
        Ok(bytes @ MIB..) if bytes.is_multiple_of(MIB) => exact_size(bytes),
        Ok(mib @ 1..) => format!("{mib}MiB"),
        Ok(0) | Err(_) => "512MiB".to_owned(),
    };
    no_unit(&meant)
}

fn no_unit(meant: &str) -> Wrong {
    Wrong::new("has no unit", "a bare number", format!("write a unit, such as \"{meant}\""))
}

/// A time such as "30s".
pub(super) fn duration(value: &DeValue<'_>) -> Read<Duration> {
    const EXPECTED: &str = "a time such as \"30s\"";
    if let Some(number) = value.as_integer() {
        return Err(no_unit(&format!("{}s", number.as_str())));
    }
    let text = value.as_str().ok_or_else(|| Wrong::kind(EXPECTED, value))?;
    let (number, unit) = split_number(text);
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "" if !number.is_empty() => return Err(no_unit(&format!("{number}s"))),
        _ => {
            return Err(Wrong::new(
                "is not a time",
                "expected a whole number and a unit",
                "write a time such as \"30s\"; the units are ms, s and m",
            ));
        }
    };
    scaled(number, millis, EXPECTED).map(Duration::from_millis)
}

/// Splits "2 GiB" into "2" and "GiB".
fn split_number(text: &str) -> (&str, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    (number, unit.trim_start_matches(' '))
}

fn scaled(number: &str, scale: u64, expected: &str) -> Read<u64> {
    if number.is_empty() {
        let help = format!("write {expected}");
        return Err(Wrong::new("has no number", "a unit alone", help));
    }
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(scale)).ok_or_else(|| {
        Wrong::new("is too large", "does not fit in 64 bits", format!("write {expected}"))
    })
}

/// A size as the configuration writes it, with the largest unit that divides it.
pub(super) fn exact_size(bytes: u64) -> String {
    let unit =
        SIZE_UNITS.iter().rev().find(|(_, scale)| bytes >= *scale && bytes.is_multiple_of(*scale));
    match unit {
        Some((name, scale)) => format!("{}{name}", bytes / scale),
        None => format!("{bytes} bytes"),
    }
}

/// A size for people, rounded down to a tenth.
pub(crate) fn human_size(bytes: u64) -> String {
    match SIZE_UNITS.iter().rev().find(|(_, scale)| bytes >= *scale) {
        Some((name, scale)) if bytes.is_multiple_of(*scale) => format!("{} {name}", bytes / scale),
        Some((name, scale)) => {
            let tenths = u128::from(bytes) * 10 / u128::from(*scale);
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
        None if bytes == 1 => "1 byte".to_owned(),
        None => format!("{bytes} bytes"),
    }
}

/// The guest's memory is mapped in pages of this size where the host can.
pub(super) const MEMORY_STEP: u64 = 2 * MIB;
/// Below this, no Linux kernel of today gets to its first process.
const MEMORY_MIN: u64 = 32 * MIB;

pub(super) fn memory(value: &DeValue<'_>) -> Read<u64> {
    let bytes = size(value)?;
    let wrong = |what, meant| {
        Wrong::new(what, human_size(bytes), format!("write \"{}\" or more", exact_size(meant)))
    };
    if bytes < MEMORY_MIN {
        return Err(wrong("is too small to boot Linux", MEMORY_MIN));
    }
    if !bytes.is_multiple_of(MEMORY_STEP) {
        let above = bytes.checked_next_multiple_of(MEMORY_STEP).unwrap_or(MEMORY_MIN);
        return Err(wrong("is not a multiple of 2 MiB", above));
    }
    Ok(bytes)
}

/// A path, not empty.
pub(super) fn path<'v>(value: &'v DeValue<'_>) -> Read<&'v str> {
    let text = string(value)?;
    if text.is_empty() {
        let help = "write a path; a relative one starts at the folder of this file";
        return Err(Wrong::new("is empty", "no path", help));
    }
    if text.contains('\0') {
        return Err(Wrong::new("has a NUL character", "not a path", "remove the `\\u0000`"));
    }
    Ok(text)
}

/// `COMMAND_LINE_SIZE` of x86 in Linux, which counts the final NUL.
const CMDLINE_MAX: usize = 2048 - 1;

pub(super) fn cmdline(value: &DeValue<'_>) -> Read<String> {
    let text = string(value)?;
    if text.contains('\0') {
        let label = "the kernel would stop reading at the NUL";
        return Err(Wrong::new("has a NUL character", label, "remove the `\\u0000`"));
    }
    if text.len() > CMDLINE_MAX {
        let help = format!("shorten it to {CMDLINE_MAX} bytes; Linux ignores the rest");
        return Err(Wrong::new("is too long", format!("{} bytes", text.len()), help));
    }
    Ok(text.to_owned())
}

/// What virtio-blk `GET_ID` can carry (Virtio 1.2 §5.2.6).
const ID_MAX: usize = 20;

/// The name of a disk.
pub(super) fn id(value: &DeValue<'_>) -> Read<String> {
    let text = string(value)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if let Some(odd) = text.chars().find(|c| !plain(*c)) {
        let label = format!("`{}` is not allowed", odd.escape_debug());
        let help = "write only letters, digits, `.`, `_` and `-`";
        return Err(Wrong::new("has a character which is not allowed", label, help));
    }
    name_length(text, ID_MAX)
}

/// What the guest reads as the disk's serial number.
pub(super) fn serial(value: &DeValue<'_>) -> Read<String> {
    let text = string(value)?;
    if let Some(odd) = text.chars().find(|c| !c.is_ascii_graphic() && *c != ' ') {
        let label = format!("`{}` is not allowed", odd.escape_debug());
        return Err(Wrong::new(
            "has a character which is not allowed",
            label,
            "write only printable ASCII",
        ));
    }
    name_length(text, ID_MAX)
}

/// `IFNAMSIZ`, less the final NUL.
const TAP_MAX: usize = 15;

/// The name of a tap device, as the kernel's `dev_valid_name` has it.
pub(super) fn tap(value: &DeValue<'_>) -> Read<String> {
    let text = string(value)?;
    let odd = |c: char| matches!(c, '/' | ':') || !c.is_ascii_graphic();
    if text.contains(odd) || text == "." || text == ".." {
        let label = "no name of a network device";
        return Err(Wrong::new("has an invalid name", label, "write a name such as \"tap0\""));
    }
    name_length(text, TAP_MAX)
}

fn name_length(text: &str, max: usize) -> Read<String> {
    let help = || format!("write 1 to {max} characters");
    match text.len() {
        0 => Err(Wrong::new("is empty", "no name", help())),
        length if length > max => {
            Err(Wrong::new("is too long", format!("{length} characters"), help()))
        }
        _ => Ok(text.to_owned()),
    }
}

/// An Ethernet address.
pub(super) fn mac(value: &DeValue<'_>) -> Read<[u8; 6]> {
    const HELP: &str = "write six pairs of hexadecimal digits, such as \"02:00:00:00:00:01\"";
    let text = string(value)?;
    let mut mac = [0; 6];
    let mut pairs = text.split(':');
    for byte in &mut mac {
        let pair = pairs.next().filter(|pair| pair.len() == 2 && !pair.starts_with('+'));
        *byte = pair
            .and_then(|pair| u8::from_str_radix(pair, 16).ok())
            .ok_or_else(|| Wrong::new("is not a MAC address", "expected six bytes", HELP))?;
    }
    if pairs.next().is_some() {
        return Err(Wrong::new("is not a MAC address", "more than six bytes", HELP));
    }
    let [first, rest @ ..] = mac;
    if first & 1 != 0 {
        let fixed = display_mac([first & !1, rest[0], rest[1], rest[2], rest[3], rest[4]]);
        let help = format!("write an even first byte, such as \"{fixed}\"");
        return Err(Wrong::new("is a multicast address", "no device can have it", help));
    }
    if mac == [0; 6] {
        return Err(Wrong::new("is all zero", "no device can have it", HELP));
    }
    Ok(mac)
}

/// The locally administered address of a net which names none: always the same for one tap.
pub(super) fn derived_mac(tap: &str) -> [u8; 6] {
    // FNV-1a: the hashes of the standard library may change between its versions.
    let hash = tap.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let [a, b, c, d, e, ..] = hash.to_be_bytes();
    [0x02, a, b, c, d, e]
}

/// An Ethernet address as people write it.
pub(super) fn display_mac([a, b, c, d, e, f]: [u8; 6]) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}
