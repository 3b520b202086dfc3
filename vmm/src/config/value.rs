//! Readers of values: from one TOML value to one checked Rust value. Pure.
//!
//! A reader knows neither its key nor the place in the text. [`InvalidValue`] is the part of a
//! diagnostic that depends on the value alone.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use block::{EphemeralPlace, Named};
use toml::de::{DeTable, DeValue};

/// The reason a value is invalid. The message reads "`key` {problem}".
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InvalidValue {
    pub(super) problem: String,
    pub(super) label: String,
    pub(super) help: Option<String>,
}

impl InvalidValue {
    pub(super) fn new(
        problem: impl Into<String>,
        label: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self { problem: problem.into(), label: label.into(), help: Some(help.into()) }
    }

    /// A value of the wrong TOML type. `TableReader` adds the help, from the key's example.
    pub(super) fn wrong_type(expected: &str, found: &DeValue<'_>) -> Self {
        let label = match found.type_str() {
            kind @ ("integer" | "array") => format!("this is an {kind}"),
            kind => format!("this is a {kind}"),
        };
        Self { problem: format!("must be {expected}"), label, help: None }
    }
}

/// The result of a reader.
pub(super) type Read<T> = Result<T, InvalidValue>;

pub(super) fn boolean(value: &DeValue<'_>) -> Read<bool> {
    value.as_bool().ok_or_else(|| InvalidValue::wrong_type("true or false", value))
}

pub(super) fn string<'v>(value: &'v DeValue<'_>) -> Read<&'v str> {
    value.as_str().ok_or_else(|| InvalidValue::wrong_type("a string", value))
}

pub(super) fn integer(value: &DeValue<'_>, range: RangeInclusive<u16>) -> Read<u16> {
    let integer =
        value.as_integer().ok_or_else(|| InvalidValue::wrong_type("an integer", value))?;
    let number = u16::from_str_radix(integer.as_str(), integer.radix()).ok();
    number.filter(|number| range.contains(number)).ok_or_else(|| {
        let (min, max) = (range.start(), range.end());
        InvalidValue::new(
            "is out of range",
            format!("must be {min} to {max}"),
            format!("write a number from {min} to {max}"),
        )
    })
}

/// A nested table.
pub(super) fn table<'v>(value: &'v DeValue<'v>) -> Read<&'v DeTable<'v>> {
    value.as_table().ok_or_else(|| InvalidValue::wrong_type("a table", value))
}

/// A percentage such as "80%", from 1 to 99.
pub(super) fn percent(value: &DeValue<'_>) -> Read<u8> {
    let invalid = |label: &str| {
        let help = "write a percentage from \"1%\" to \"99%\", such as \"80%\"";
        InvalidValue::new("is not a percentage", label, help)
    };
    if value.as_integer().is_some() {
        return Err(invalid("a bare number"));
    }
    let Some(number) = string(value)?.strip_suffix('%') else {
        return Err(invalid("without a `%`"));
    };
    let percent = number.trim_end().parse().ok().filter(|percent| (1..=99).contains(percent));
    percent.ok_or_else(|| invalid("not from 1 to 99"))
}

/// The logical block size of a disk, in bytes.
pub(super) fn block_size(value: &DeValue<'_>) -> Read<u32> {
    let integer =
        value.as_integer().ok_or_else(|| InvalidValue::wrong_type("512 or 4096", value))?;
    match integer.as_str() {
        "512" => Ok(512),
        "4096" => Ok(4096),
        _ => {
            let help = "write 512 or 4096";
            Err(InvalidValue::new("is not a valid block size", "must be 512 or 4096", help))
        }
    }
}

/// One of the variants of an enum, by its name.
pub(super) fn named<T: Named>(value: &DeValue<'_>) -> Read<T> {
    let names: Vec<&str> = T::ALL.iter().map(|variant| variant.name()).collect();
    let name = one_of(value, &names)?;
    T::from_name(name).ok_or_else(|| InvalidValue::wrong_type("a known name", value))
}

/// One word of a short list.
pub(super) fn one_of<'l>(value: &DeValue<'_>, words: &[&'l str]) -> Read<&'l str> {
    let text = string(value)?;
    words.iter().find(|word| **word == text).copied().ok_or_else(|| {
        let list = words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
        let label = match closest_word(text, words) {
            Some(word) => format!("did you mean \"{word}\"?"),
            None => "not a valid value".to_owned(),
        };
        InvalidValue::new("has an unknown value", label, format!("write one of {list}"))
    })
}

/// The candidate closest to a mistyped word, if any is close.
pub(super) fn closest_word<'l>(word: &str, candidates: &[&'l str]) -> Option<&'l str> {
    let word = word.to_lowercase();
    let limit = word.chars().count().div_ceil(3);
    candidates
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, candidate), *candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// A number without its unit. `meant` is the likely value.
pub(super) fn missing_unit(meant: &str) -> InvalidValue {
    let help = format!("write a unit, such as \"{meant}\"");
    InvalidValue::new("has no unit", "a bare number", help)
}

/// A time such as "30s".
pub(super) fn duration(value: &DeValue<'_>) -> Read<Duration> {
    const EXPECTED: &str = "a time such as \"30s\"";
    if let Some(number) = value.as_integer() {
        return Err(missing_unit(&format!("{}s", number.as_str())));
    }
    let text = value.as_str().ok_or_else(|| InvalidValue::wrong_type(EXPECTED, value))?;
    let (number, unit) = split_number(text);
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "" if !number.is_empty() => return Err(missing_unit(&format!("{number}s"))),
        _ => {
            return Err(InvalidValue::new(
                "is not a time",
                "expected a whole number and a unit",
                "write a time such as \"30s\"; the units are ms, s and m",
            ));
        }
    };
    scaled(number, millis, EXPECTED).map(Duration::from_millis)
}

/// Splits "2 GiB" into "2" and "GiB".
pub(super) fn split_number(text: &str) -> (&str, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    (number, unit.trim_start_matches(' '))
}

/// `number` times `scale`.
pub(super) fn scaled(number: &str, scale: u64, expected: &str) -> Read<u64> {
    let help = format!("write {expected}");
    if number.is_empty() {
        return Err(InvalidValue::new("has no number", "a unit alone", help));
    }
    let product = number.parse::<u64>().ok().and_then(|number| number.checked_mul(scale));
    product.ok_or_else(|| InvalidValue::new("is too large", "does not fit in 64 bits", help))
}

/// A path, relative to `folder`.
pub(super) fn path(value: &DeValue<'_>, folder: &Path) -> Read<PathBuf> {
    let text = string(value)?;
    if text.is_empty() {
        let help = "write a path; a relative path starts at this file's directory";
        return Err(InvalidValue::new("is empty", "no path", help));
    }
    if text.contains('\0') {
        let help = "remove the `\\u0000`";
        return Err(InvalidValue::new("contains a NUL character", "not a path", help));
    }
    Ok(folder.join(text))
}

/// Where the changes of an ephemeral disk are kept: in memory for true, or in a folder; `None` for
/// false.
pub(super) fn ephemeral(value: &DeValue<'_>, folder: &Path) -> Read<Option<EphemeralPlace>> {
    match value.as_bool() {
        Some(true) => Ok(Some(EphemeralPlace::Memory)),
        Some(false) => Ok(None),
        None if value.as_str().is_some() => Ok(Some(EphemeralPlace::Folder(path(value, folder)?))),
        None => Err(InvalidValue::wrong_type("true, false or a folder", value)),
    }
}

/// `sun_path` of `sockaddr_un`, without the final NUL.
const SOCKET_PATH_MAX: usize = 108 - 1;

/// The path of a Unix socket, relative to `folder`.
pub(super) fn socket_path(value: &DeValue<'_>, folder: &Path) -> Read<PathBuf> {
    let path = path(value, folder)?;
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_MAX {
        return Err(InvalidValue::new(
            "is too long for a socket",
            format!("{length} bytes including this file's directory"),
            format!("write a path of at most {SOCKET_PATH_MAX} bytes"),
        ));
    }
    Ok(path)
}

/// `COMMAND_LINE_SIZE` of x86 in Linux, which counts the final NUL.
const CMDLINE_MAX: usize = 2048 - 1;

/// The kernel's command line.
pub(super) fn cmdline(value: &DeValue<'_>) -> Read<String> {
    let text = string(value)?;
    if text.contains('\0') {
        let (label, help) = ("the kernel stops reading at the NUL", "remove the `\\u0000`");
        return Err(InvalidValue::new("contains a NUL character", label, help));
    }
    if text.len() > CMDLINE_MAX {
        let help = format!("shorten it to {CMDLINE_MAX} bytes; Linux ignores the rest");
        return Err(InvalidValue::new("is too long", format!("{} bytes", text.len()), help));
    }
    Ok(text.to_owned())
}

/// Capacity of virtio-blk `GET_ID` (Virtio 1.2 §5.2.6).
const ID_MAX: usize = 20;

/// The name of a disk.
pub(super) fn id(value: &DeValue<'_>) -> Read<String> {
    let text = string(value)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if let Some(invalid) = text.chars().find(|c| !allowed(*c)) {
        let help = "use only letters, digits, `.`, `_` and `-`";
        return Err(invalid_character(invalid, help));
    }
    name_of_length(text, ID_MAX)
}

/// The disk's serial number.
pub(super) fn serial(value: &DeValue<'_>) -> Read<String> {
    let text = string(value)?;
    if let Some(invalid) = text.chars().find(|c| !c.is_ascii_graphic() && *c != ' ') {
        return Err(invalid_character(invalid, "use only printable ASCII"));
    }
    name_of_length(text, ID_MAX)
}

fn invalid_character(invalid: char, help: &str) -> InvalidValue {
    let label = format!("`{}` is not allowed", invalid.escape_debug());
    InvalidValue::new("contains an invalid character", label, help)
}

/// `IFNAMSIZ`, without the final NUL.
const TAP_MAX: usize = 15;

/// The name of a TAP device, by the rules of the kernel's `dev_valid_name`.
pub(super) fn tap(value: &DeValue<'_>) -> Read<String> {
    let text = string(value)?;
    let is_invalid = |c: char| matches!(c, '/' | ':') || !c.is_ascii_graphic();
    if text.contains(is_invalid) || text == "." || text == ".." {
        let (label, help) = ("not a network device name", "write a name such as \"tap0\"");
        return Err(InvalidValue::new("has an invalid name", label, help));
    }
    name_of_length(text, TAP_MAX)
}

fn name_of_length(text: &str, max: usize) -> Read<String> {
    let help = || format!("write 1 to {max} characters");
    match text.len() {
        0 => Err(InvalidValue::new("is empty", "no name", help())),
        length if length > max => {
            Err(InvalidValue::new("is too long", format!("{length} characters"), help()))
        }
        _ => Ok(text.to_owned()),
    }
}

/// An Ethernet address.
pub(super) fn mac(value: &DeValue<'_>) -> Read<[u8; 6]> {
    const HELP: &str = "write six pairs of hexadecimal digits, such as \"02:00:00:00:00:01\"";
    let invalid = |label: &str| InvalidValue::new("is not a MAC address", label, HELP);
    let text = string(value)?;
    let mut mac = [0; 6];
    let mut pairs = text.split(':');
    for byte in &mut mac {
        let pair = pairs.next().filter(|pair| pair.len() == 2 && !pair.starts_with('+'));
        *byte = pair
            .and_then(|pair| u8::from_str_radix(pair, 16).ok())
            .ok_or_else(|| invalid("expected six bytes"))?;
    }
    if pairs.next().is_some() {
        return Err(invalid("more than six bytes"));
    }
    let [first, rest @ ..] = mac;
    if first & 1 != 0 {
        let unicast = display_mac([first & !1, rest[0], rest[1], rest[2], rest[3], rest[4]]);
        let help = format!("write an even first byte, such as \"{unicast}\"");
        return Err(InvalidValue::new("is a multicast address", "not valid for a device", help));
    }
    if mac == [0; 6] {
        return Err(InvalidValue::new("is all zero", "not valid for a device", HELP));
    }
    Ok(mac)
}

/// A locally administered address derived from the TAP's name, stable across versions.
pub(super) fn derived_mac(tap: &str) -> [u8; 6] {
    // FNV-1a: the hashes of the standard library may change between its versions.
    let hash = tap.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let [a, b, c, d, e, ..] = hash.to_be_bytes();
    [0x02, a, b, c, d, e]
}

/// An Ethernet address in text.
pub(crate) fn display_mac([a, b, c, d, e, f]: [u8; 6]) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}
