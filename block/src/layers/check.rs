//! Examines all files of a layered disk, without a lock and without a write. May block.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::file::{base_path, host_error};
use super::header::{Header, HeaderError, SLOT, SLOTS, decode_slot};
use super::identity::{BaseChange, BaseIdentity, BaseKind};
use super::info::open;
use super::map::LayerMap;
use super::map_file::load_map;
use super::open::{LEVELS_MAX, missing};
use super::unit::BLOCK;
use crate::host_file::{query_lock, without_access_times};
use crate::{Extent, Extents, ImageLock, OpenError};

/// The result of a check of a layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// The files that were examined, from the top down.
    pub levels: Vec<PathBuf>,
    /// From the top down.
    pub findings: Vec<CheckFinding>,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckFinding {
    /// The file.
    pub path: PathBuf,
    /// The text of the finding, with the remedy of a problem.
    pub what: String,
    /// A problem, not a remark.
    pub is_problem: bool,
}

impl CheckReport {
    /// Number of findings that are problems.
    #[must_use]
    pub fn problems(&self) -> usize {
        self.findings.iter().filter(|finding| finding.is_problem).count()
    }

    fn problem(&mut self, path: &Path, what: impl Into<String>) {
        self.findings.push(CheckFinding { path: path.into(), what: what.into(), is_problem: true });
    }

    fn remark(&mut self, path: &Path, what: impl Into<String>) {
        let what = what.into();
        self.findings.push(CheckFinding { path: path.into(), what, is_problem: false });
    }

    fn error(&mut self, path: &Path, error: &OpenError) {
        let text = error.to_string();
        let prefix = format!("{}: ", path.display());
        self.problem(path, text.strip_prefix(&prefix).unwrap_or(&text));
    }
}

/// Examines the layer at `path` and everything below it. `alive` is called now and then.
#[must_use]
pub fn check_layer(path: &Path, mut alive: impl FnMut()) -> CheckReport {
    let mut report = CheckReport::default();
    let mut next: Option<(PathBuf, Option<(PathBuf, Header)>)> = Some((path.to_owned(), None));
    while let Some((path, above)) = next.take() {
        if report.levels.len() == LEVELS_MAX {
            report
                .problem(&path, format!("is level {LEVELS_MAX}: a disk has at most {LEVELS_MAX}"));
            break;
        }
        if let Some((layer, _)) = above.as_ref().filter(|_| !path.exists()) {
            report.error(layer, &missing(layer, &path));
            break;
        }
        report.levels.push(path.clone());
        alive();
        let above = above.map(|(_, header)| header);
        match check_level(&path, above.as_ref(), &mut report, &mut alive) {
            Ok(Some(header)) => next = Some((base_path(&path, &header), Some((path, header)))),
            Ok(None) => {}
            Err(error) => report.error(&path, &error),
        }
    }
    report
}

/// Examines one file, the base of a layer with the header `above`. Returns its own header if it is
/// a layer.
fn check_level(
    path: &Path,
    above: Option<&Header>,
    report: &mut CheckReport,
    alive: &mut impl FnMut(),
) -> Result<Option<Header>, OpenError> {
    let file = without_access_times(open(path)?);
    check_users(&file, path, above.is_some(), report);
    if above.is_some_and(|above| above.base.kind != BaseKind::Layer) {
        let identity = BaseIdentity::of_raw(&file).map_err(host_error(path, "read it"))?;
        check_base(&identity, None, path, above, report);
        return Ok(None);
    }
    let Some(header) = check_slots(&file, path, report)? else { return Ok(None) };
    check_base(&header.identity(), Some(&header), path, above, report);
    check_state(&header, path, report);
    if above.is_some() && header.frozen.is_none() {
        let what = "is not frozen although a layer stands on it: a machine could write it; do not \
                    start one with it";
        report.problem(path, what);
    }
    check_content(&file, path, &header, report, alive)?;
    Ok(Some(header))
}

/// Writers of a base, and of the top.
fn check_users(file: &File, path: &Path, is_base: bool, report: &mut CheckReport) {
    let by = |pid: Option<u32>| pid.map_or_else(String::new, |pid| format!(" by process {pid}"));
    match query_lock(file) {
        Ok(ImageLock::Exclusive { pid }) if is_base => {
            let what = format!("is open for writing{}: a base must never change; end it", by(pid));
            report.problem(path, what);
        }
        Ok(ImageLock::Exclusive { pid }) => {
            let what = format!("is written{}: its last changes may be missing here", by(pid));
            report.remark(path, what);
        }
        Ok(_) => {}
        Err(error) => report.remark(path, format!("whether it is in use is unknown: {error}")),
    }
}

/// States that an interrupted command has left.
fn check_state(header: &Header, path: &Path, report: &mut CheckReport) {
    if header.merge.is_some() {
        report.problem(path, "its commit was interrupted; run `bulkhead layer commit` again");
    }
    if header.is_receiving {
        report.problem(path, "the commit of a layer into it was interrupted; run that again");
    }
    if let Some(name) = header.pending_name.as_ref().filter(|name| path.file_name() != Some(name)) {
        let name = name.display();
        report.remark(
            path,
            format!("a snapshot as {name} was interrupted: the next start completes it"),
        );
    }
}

fn check_base(
    found: &BaseIdentity,
    found_layer: Option<&Header>,
    path: &Path,
    above: Option<&Header>,
    report: &mut CheckReport,
) {
    let change = above.and_then(|above| above.base_change(found, found_layer, path));
    if let Some(BaseChange { what, remedy }) = change {
        report.problem(
            path,
            format!("has changed since the layer over it was made: {what}; {remedy}"),
        );
    }
    if above.is_some_and(|above| above.size < found.size) {
        report.problem(path, "has a larger disk than the layer over it; restore that layer");
    }
}

/// Examines both slots. Returns the header that counts.
fn check_slots(
    file: &File,
    path: &Path,
    report: &mut CheckReport,
) -> Result<Option<Header>, OpenError> {
    let mut slots = [[0; SLOT]; SLOTS];
    for (slot, at) in slots.iter_mut().zip([0, SLOT as u64]) {
        if let Err(error) = file.read_exact_at(slot, at)
            && error.kind() != std::io::ErrorKind::UnexpectedEof
        {
            return Err(host_error(path, "read its header")(error));
        }
    }
    let whole = Header::decode(slots.as_flattened().try_into().unwrap_or(&[0; SLOT * SLOTS]));
    let header = match whole {
        Ok(header) => header,
        Err(error) => {
            report.problem(path, error.to_string());
            return Ok(None);
        }
    };
    for (index, slot) in slots.iter().enumerate() {
        if let Some(what) = slot_problem(index, slot, &header) {
            report.problem(path, what);
        }
    }
    Ok(Some(header))
}

/// The problem of a slot of a file of which `header` counts.
fn slot_problem(index: usize, slot: &[u8; SLOT], header: &Header) -> Option<String> {
    let counts = header.generation;
    let is_first = counts == 1 && slot.iter().all(|byte| *byte == 0);
    match decode_slot(slot) {
        Err(_) if is_first && header.slot_at() != (index * SLOT) as u64 => None,
        Err(error) => {
            let what = if error == HeaderError::Signature { "missing" } else { "damaged" };
            // Generation 1 is written with nothing in the other slot.
            let is_newer = counts == 1 || generation_of(slot) == Some(counts.wrapping_add(1));
            let age = if is_newer { "the newer header" } else { "one of its two headers" };
            Some(format!(
                "{age}, in slot {index}, is {what}, and generation {counts} counts: a resize or a \
                 freeze may be undone, by a power cut or by damage; compare its size and state \
                 (`bulkhead layer info`) with what they were"
            ))
        }
        Ok(found) if found.slot_at() != (index * SLOT) as u64 => {
            let generation = found.generation;
            Some(format!("slot {index} has generation {generation}, whose place is the other slot"))
        }
        Ok(found) if !matches!(counts.wrapping_sub(found.generation), 0 | 1) => {
            let generation = found.generation;
            Some(format!(
                "its headers have the generations {generation} and {counts}: one was lost"
            ))
        }
        Ok(found) => has_unknown_bytes(slot, &found)
            .then(|| format!("slot {index} has bytes where the format has zeroes")),
    }
}

/// The generation of a damaged slot, as far as it can be read.
fn generation_of(slot: &[u8; SLOT]) -> Option<u64> {
    slot.get(32..40)?.try_into().ok().map(u64::from_le_bytes)
}

fn has_unknown_bytes(slot: &[u8; SLOT], header: &Header) -> bool {
    // The checksum, and the features that a reader may ignore.
    let ignored = [12..16, 24..32];
    let Ok(expected) = header.encode() else { return true };
    let bytes = slot.iter().zip(&expected).enumerate();
    bytes
        .filter(|(at, _)| !ignored.iter().any(|range| range.contains(at)))
        .any(|(_, (a, b))| a != b)
}

/// Examines the length of the file, its map, and what its data has beyond the map.
fn check_content(
    file: &File,
    path: &Path,
    header: &Header,
    report: &mut CheckReport,
    alive: &mut impl FnMut(),
) -> Result<(), OpenError> {
    let metadata = file.metadata().map_err(host_error(path, "query it"))?;
    if !metadata.is_file() {
        report.problem(path, "a layer is a regular file, not a device; copy it to one");
        return Ok(());
    }
    let (len, needed) = (metadata.len(), header.data_at() + header.size);
    if len < needed {
        let what =
            format!("was truncated: it has {len} bytes, not {needed}; restore it from a backup");
        report.problem(path, what);
    }
    if len > needed {
        let more = len - needed;
        let what = format!("is {more} bytes longer than its disk: harmless, of a growth cut short");
        report.remark(path, what);
    }
    let map = load_map(file, path, header)?;
    let beyond = map.count() - count(&map, header.size / BLOCK);
    if beyond > 0 {
        let what = format!(
            "its map is damaged: it has {beyond} blocks beyond the end of the disk; restore it from \
             a backup"
        );
        report.problem(path, what);
    }
    let unanswered = unanswered_data(file, header, &map, alive);
    let bytes = unanswered.map_err(host_error(path, "find its data"))?;
    if bytes > 0 {
        report.remark(path, format!(
            "has {bytes} bytes of data in blocks that it does not answer for: harmless leftovers of \
             writes that were cut short"
        ));
    }
    Ok(())
}

/// Number of bits of the blocks before `end`.
fn count(map: &LayerMap, end: u64) -> u64 {
    let (mut block, mut set) = (0, 0);
    while block < end {
        let (is_set, next) = map.run(block, end);
        set += if is_set { next - block } else { 0 };
        block = next;
    }
    set
}

/// Bytes of data in blocks whose bit is not set.
fn unanswered_data(
    file: &File,
    header: &Header,
    map: &LayerMap,
    alive: &mut impl FnMut(),
) -> std::io::Result<u64> {
    let (data_at, mut bytes) = (header.data_at(), 0);
    for (index, extent) in Extents::new(file, data_at, data_at + header.size).enumerate() {
        if index % 1024 == 0 {
            alive();
        }
        let Extent { range, data } = extent?;
        let (mut at, end) = (range.start.0 - data_at, range.start.0 - data_at + range.len);
        while data && at < end {
            let (is_set, next) = map.run(at / BLOCK, end.div_ceil(BLOCK));
            let next = end.min(next * BLOCK);
            bytes += if is_set { 0 } else { next - at };
            at = next;
        }
    }
    Ok(bytes)
}
