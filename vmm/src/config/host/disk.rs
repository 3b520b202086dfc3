//! Disk images: type, size, permissions, and the requirements of cache mode and soft limit.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::sync::mpsc::Sender;

use block::{
    FormatVerdict, ImageLocking, LateEnospc, ProbedFormat, SpaceProbe, StoreFacts, Survey,
    WRONG_LINK_REMEDY, WrongLink, free_name, shell_path, stores_below, wrong_link,
};
use rustix::fs::{Access, AtFlags, CWD, OFlags, accessat};
use rustix::io::Errno;

use super::ephemeral::check_ephemeral;
use super::file::NamedFile;
use super::layer::{check_layer, is_to_be_made};
use super::purpose::Purpose;
use super::record::check_log;
use crate::config::report::Diagnostic;
use crate::config::source::DiskTable;
use crate::host_query::{HostQuery, LIMIT};
use crate::process;
use crate::store_warning::{StoreWarning, store_warnings};

const IMAGE: &str = "disk image";
const IMAGE_HELP: &str = "name an image file, or a block device such as /dev/zvol/tank/root";

/// The unit of a disk's size.
const SECTOR: u64 = 512;

pub(in crate::config) fn check_disk(disk: &DiskTable, purpose: Purpose) -> Option<Diagnostic> {
    check_files(disk, purpose).or_else(|| check_log(disk))
}

fn check_files(disk: &DiskTable, purpose: Purpose) -> Option<Diagnostic> {
    if let (Some(place), Some(base)) = (&disk.ephemeral, &disk.base) {
        return check_ephemeral(disk, place, base, purpose);
    }
    let (path, span) = disk.image()?;
    let image = NamedFile { purpose: IMAGE, path, span, create: Some("10G") };
    if let Some(base) = &disk.base {
        return check_layer(disk, base, purpose)
            .or_else(|| if is_to_be_made(disk) { None } else { check_use(disk, &image) });
    }
    match image.open() {
        Ok(file) => check_type(&image, &file)
            .or_else(|| check_link(&image, &file))
            .or_else(|| check_format(disk, &image, &file, purpose))
            .or_else(|| check_size(disk, &image, &file))
            .or_else(|| check_use(disk, &image)),
        Err(diagnostic) => Some(diagnostic),
    }
}

/// Whether the file can be used as the configuration has it.
fn check_use(disk: &DiskTable, image: &NamedFile<'_>) -> Option<Diagnostic> {
    check_writable(disk, image)
        .or_else(|| check_direct(disk))
        .or_else(|| check_soft_limit(disk, image))
}

/// Checks the images for a command that must not hang. The error is that of an image whose host
/// does not answer: no other check may access it.
pub(super) fn query_disks(disks: &[DiskTable]) -> Vec<Result<Vec<Diagnostic>, Diagnostic>> {
    let queries: Vec<_> = disks
        .iter()
        .map(|disk| {
            let disk = disk.clone();
            HostQuery::stream(LIMIT, move |answers| query_disk(&disk, answers))
        })
        .collect();
    let answers = queries.into_iter().zip(disks);
    answers
        .map(|(mut query, disk)| {
            let first = query.next().map_err(|error| unanswered(disk, &error))?;
            let mut diagnostics = first.unwrap_or_default();
            // A warning that takes too long is none.
            while let Ok(Some(warnings)) = query.next() {
                diagnostics.extend(warnings);
            }
            Ok(diagnostics)
        })
        .collect()
}

/// Sends the error of a disk, or else its warnings.
fn query_disk(disk: &DiskTable, answers: &Sender<Vec<Diagnostic>>) {
    let error = check_disk(disk, Purpose::Report);
    let is_suitable = error.is_none();
    // The caller may have stopped waiting.
    let _ = answers.send(error.into_iter().collect());
    if is_suitable {
        let _ = answers.send(check_holder(disk).into_iter().collect());
        let _ = answers.send(suspect_format(disk).into_iter().collect());
        let _ = answers.send(check_store(disk));
    }
}

fn unanswered(disk: &DiskTable, error: &io::Error) -> Diagnostic {
    let (path, span) = disk.file().unwrap_or((&disk.path, disk.header.clone()));
    let path = path.display();
    let problem = Diagnostic::error(format!("the {IMAGE} `{path}` could not be checked"));
    let problem = problem.at(span, error.to_string());
    problem.help("see whether its store hangs: `dmesg` has the host's errors")
}

/// Whether another process holds the image. A start does not check that: it retries for a second,
/// as the holder may just have been killed.
fn check_holder(disk: &DiskTable) -> Option<Diagnostic> {
    let (path, span) = disk.file()?;
    let image = NamedFile { purpose: IMAGE, path, span, create: None };
    let file = image.open().ok()?;
    // The base of an ephemeral disk is only read.
    let read_only = disk.options.read_only || disk.ephemeral.is_some();
    let holder = block::image_holder(&file, read_only).ok()??;
    let holder = holder.pid.map_or_else(|| "another process".to_owned(), process::describe);
    let message = format!("the {IMAGE} `{}` is in use", image.path.display());
    let in_use = Diagnostic::warning(message).at(image.span, format!("{holder} holds it"));
    Some(in_use.help(match disk.options.lock {
        ImageLocking::On => "a start is refused until that process ends",
        ImageLocking::Off => "end it: a second machine that writes the image destroys its data",
    }))
}

/// Warnings of a store that does not keep a flush, and of direct I/O that it cannot take without
/// copies. A start logs the same. An error of one for which `on_enospc = "hold"` holds nothing,
/// which a start refuses.
fn check_store(disk: &DiskTable) -> Vec<Diagnostic> {
    // No part of an ephemeral disk is to be kept.
    let image = disk.image().filter(|_| disk.ephemeral.is_none());
    let Some((path, span)) = image else { return Vec::new() };
    let stack = Survey::open(path, disk.options.block_size).and_then(|disk| disk.stack());
    let facts = stack.map(|stack| StoreFacts::new(&stack, &disk.options));
    let base = disk.base.as_deref();
    let bases = base.map(|base| stores_below(base, &disk.options)).unwrap_or_default();
    // A layer that is to be made has no storage yet.
    let facts = StoreFacts { bases, ..facts.unwrap_or_default() };
    let warnings = store_warnings(&facts, disk.options.cache);
    let diagnostic = |StoreWarning { problem, remedy }| {
        let message = format!("the {IMAGE} `{}` is not safe on its storage", disk.path.display());
        let warning = Diagnostic::warning(message).at(span.clone(), problem);
        match remedy {
            Some(remedy) => warning.help(remedy),
            None => warning,
        }
    };
    let late_enospc = facts.late_enospc.as_ref().and_then(|late| check_hold(disk, late));
    late_enospc.into_iter().chain(warnings.into_iter().map(diagnostic)).collect()
}

/// Whether the store accepts writes before it has space for them.
fn check_hold(disk: &DiskTable, late: &LateEnospc) -> Option<Diagnostic> {
    let LateEnospc { is_certain: true, storey } = late else { return None };
    let hold = disk.keys.span("on_enospc")?;
    let (cache, direct) = (disk.options.cache, disk.options.cache.direct_equivalent());
    let error = Diagnostic::error(format!(
        "`on_enospc = \"hold\"` does not work with cache mode \"{cache}\" on thin storage"
    ));
    let error = error.at(hold, "no write can be held");
    let accepts = format!("{storey} accepts writes before it has space");
    let span = disk.keys.span("cache").or_else(|| disk.image().map(|(_, span)| span))?;
    let help = format!("write `cache = \"{direct}\"`, or `on_enospc = \"report\"`");
    Some(error.related(span, accepts).help(help))
}

fn check_type(image: &NamedFile<'_>, file: &File) -> Option<Diagnostic> {
    let kind = file.metadata().ok()?.file_type();
    let is_disk = kind.is_file() || kind.is_block_device();
    let problem = "is neither a regular file nor a block device";
    (!is_disk).then(|| image.error(problem, "not a disk").help(IMAGE_HELP))
}

/// Whether a link leads to the volume that it names.
fn check_link(image: &NamedFile<'_>, file: &File) -> Option<Diagnostic> {
    let WrongLink { link, named, found } = wrong_link(image.path, file)?;
    let label = format!("`{}` names {named}, but leads to {found}", link.display());
    Some(image.error("is another volume than its link names", label).help(WRONG_LINK_REMEDY))
}

/// Whether the image has another format than raw. A start reads no block of an image that it has
/// not locked: the read could wait for a write of a killed process, and the lock tells that. So it
/// checks the format when it opens the disk, and here only that of an image that is refused anyway.
fn check_format(
    disk: &DiskTable,
    image: &NamedFile<'_>,
    file: &File,
    purpose: Purpose,
) -> Option<Diagnostic> {
    let is_refused = || !image_size(file).is_ok_and(|size| size.is_multiple_of(SECTOR));
    let probed = match purpose {
        Purpose::Report => ProbedFormat::of(file).ok()?,
        Purpose::Start if is_refused() => {
            let file = file.try_clone().ok()?;
            HostQuery::start(move || ProbedFormat::of(&file)).answer().ok()?.ok()?
        }
        Purpose::Start => return None,
    };
    match probed.verdict(image.path, &disk.options) {
        FormatVerdict::Foreign { format, remedy } => {
            let label = format!("has the signature of {format}");
            Some(image.error("is not a raw image", label).help(remedy))
        }
        FormatVerdict::Raw | FormatVerdict::Suspect { .. } => None,
    }
}

/// The warning of an image that is served as a raw one, probably by mistake. A start logs it.
fn suspect_format(disk: &DiskTable) -> Option<Diagnostic> {
    let (path, span) = disk.image()?;
    let image = NamedFile { purpose: IMAGE, path, span, create: None };
    let probed = ProbedFormat::of(&image.open().ok()?).ok()?;
    let FormatVerdict::Suspect { problem, remedy } = probed.verdict(path, &disk.options) else {
        return None;
    };
    let message = format!("the {IMAGE} `{}` {problem}", path.display());
    Some(Diagnostic::warning(message).at(image.span, "probably by mistake").help(remedy))
}

fn check_size(disk: &DiskTable, image: &NamedFile<'_>, file: &File) -> Option<Diagnostic> {
    let is_file = file.metadata().ok()?.is_file();
    let path = shell_path(image.path);
    let size = match image_size(file) {
        Ok(0) => {
            let help = match is_file {
                // A file that has got data meanwhile is not cut off.
                true => format!("give it a size with `truncate -s '>10G' {path}`"),
                false => format!("see `lsblk {path}`: it has no medium, or no backing file"),
            };
            return Some(image.error("is empty", "0 bytes").help(help));
        }
        Ok(size) => size,
        Err(error) => {
            return Some(image.error("has no size", error.to_string()).help(IMAGE_HELP));
        }
    };
    let block = disk.options.block_size.map_or(SECTOR, u64::from);
    if size.is_multiple_of(block) {
        return None;
    }
    // The file may be anything, so that its own size stays.
    let copy = || {
        let copy = shell_path(&free_name(image.path));
        format!("cp --sparse=always {path} {copy} && truncate -s %{block} {copy}")
    };
    let help = match (is_file, block) {
        (true, SECTOR) => format!("use a copy that is rounded up: `{}`", copy()),
        (true, _) => {
            format!("write `block_size = {SECTOR}`, or use a copy that is rounded up: `{}`", copy())
        }
        (false, _) => format!("write `block_size = {SECTOR}`, or resize the device"),
    };
    let problem = format!("is not a multiple of {block} bytes");
    Some(image.error(&problem, format!("{size} bytes")).help(help))
}

fn check_writable(disk: &DiskTable, image: &NamedFile<'_>) -> Option<Diagnostic> {
    if disk.options.read_only || disk.keys.is_invalid("readonly") {
        return None;
    }
    let errno = accessat(CWD, image.path, Access::WRITE_OK, AtFlags::EACCESS).err()?;
    let path = image.path.display();
    Some(
        Diagnostic::error(format!("no permission to write the {IMAGE} `{path}`"))
            .at(image.span.clone(), io::Error::from(errno).to_string())
            .help("grant yourself write permission, or write `readonly = true`"),
    )
}

/// Whether the host reports the free space of the backing store.
fn check_soft_limit(disk: &DiskTable, image: &NamedFile<'_>) -> Option<Diagnostic> {
    let limit = disk.keys.span("soft_limit")?;
    let file = image.open().ok()?;
    let label = match SpaceProbe::of(&file).and_then(|probe| probe.measure(&file)) {
        Ok(Some(_)) => return None,
        Ok(None) => "the host does not report its free space".to_owned(),
        Err(error) => error.to_string(),
    };
    Some(
        Diagnostic::error("`soft_limit` is not supported for this disk")
            .at(limit, label)
            .related(image.span.clone(), "the disk's backing store")
            .help("remove `[disk.thin]`, or use an image file or a ZFS volume"),
    )
}

/// Whether the file system supports a cache mode that bypasses the page cache.
pub(in crate::config) fn check_direct(disk: &DiskTable) -> Option<Diagnostic> {
    let (path, _) = disk.image()?;
    let cache = disk.keys.span("cache").filter(|_| disk.options.cache.is_direct())?;
    let direct = OFlags::DIRECT.bits().cast_signed();
    let error = OpenOptions::new().read(true).custom_flags(direct).open(path).err()?;
    (Errno::from_io_error(&error) == Some(Errno::INVAL)).then(|| {
        Diagnostic::error(format!("the file system of `{}` lacks O_DIRECT", path.display()))
            .at(cache, "needs O_DIRECT")
            .help("write \"writeback\" or \"writethrough\"")
    })
}

/// The size of an image file or a block device, in bytes.
pub(crate) fn image_size(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}
