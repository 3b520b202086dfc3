//! Whether a file that is to be a raw disk holds another image format. Control thread, or a query
//! that can be abandoned: reading the file may block.
//!
//! A guest may write any bytes to its disk, also the signature of a format, and must not be locked
//! out by that. So an image that a disk has opened for writing is marked as raw, by an extended
//! attribute, before the guest can write to it. Only a start marks, and only a writable disk.
//!
//! The attribute belongs to the file, not to its content, and survives `cp NEW IMAGE`. So its value
//! is the size of the file, and only a file of this size is marked. A disk that grows renews it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, XattrFlags, fgetxattr, fsetxattr, fsync};
use rustix::io::Errno;

use crate::host_file::{FileKind, HostFile, reopen, without_access_times};
use crate::image_format::ImageFormat;
use crate::shell::shell_path;
use crate::{DiskFormat, DiskOptions, OpenError};

/// The mark of an image that is raw, whatever its first bytes: its size in bytes, as decimal
/// digits.
const MARK: &str = "user.bulkhead.raw";

/// The format of an image as far as its bytes show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbedFormat {
    /// The format whose signature it has.
    pub found: Option<ImageFormat>,
    /// A disk has opened it for writing as a raw image, with its present size.
    pub is_marked: bool,
    /// It is a block device, which cannot be marked.
    is_device: bool,
}

/// The consequence of an image's format for a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FormatVerdict {
    /// It is served.
    Raw,
    /// It is served, but probably by mistake.
    Suspect {
        /// The problem, without a subject.
        problem: String,
        /// The remedy.
        remedy: String,
    },
    /// It is refused.
    Foreign {
        /// Its format.
        format: ImageFormat,
        /// How to convert it.
        remedy: String,
    },
}

impl ProbedFormat {
    /// Reads the first 33 KiB and the last 512 bytes of `file`. Changes nothing, and no access time
    /// if the host allows that. May block.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub fn of(file: &File) -> io::Result<Self> {
        let is_device = file.metadata()?.file_type().is_block_device();
        // Another description: that of a disk may bypass the page cache, which needs alignment.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = without_access_times(reopen(file, flags)?);
        let size = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))?;
        let head = read_at(&file, 0, ImageFormat::HEAD_BYTES)?;
        let tail = match size.checked_sub(ImageFormat::TAIL_BYTES as u64) {
            Some(start) => read_at(&file, start, ImageFormat::TAIL_BYTES)?,
            None => Vec::new(),
        };
        let found = ImageFormat::detect(&head, &tail);
        Ok(Self { found, is_marked: !is_device && mark(&file) == Some(size), is_device })
    }

    /// Whether it is served as a raw disk whatever its signature says.
    #[must_use]
    pub fn is_known_raw(&self) -> bool {
        self.is_device || self.is_marked
    }

    /// The consequence for a disk at `path`. Looks for a free name beside it if it is refused.
    #[must_use]
    pub fn verdict(&self, path: &Path, options: &DiskOptions) -> FormatVerdict {
        let Some(format) = self.found.filter(|_| options.format == DiskFormat::Auto) else {
            return FormatVerdict::Raw;
        };
        if format == ImageFormat::Iso9660 && !options.read_only {
            return FormatVerdict::Suspect {
                problem: "holds an ISO 9660 file system, which no system writes".to_owned(),
                remedy:
                    "write `readonly = true`, or `format = \"raw\"` if the guest may overwrite \
                         it"
                    .to_owned(),
            };
        }
        if format.is_content() {
            return FormatVerdict::Raw;
        }
        if self.is_device {
            return FormatVerdict::Suspect {
                problem: format!("has the signature of {format}, and is served as a raw disk"),
                remedy: format!(
                    "see `qemu-img info {}`; write `format = \"raw\"` if a guest wrote it",
                    shell_path(path)
                ),
            };
        }
        if self.is_marked {
            return FormatVerdict::Suspect {
                problem: format!(
                    "has the signature of {format}, and is served as a raw disk, as it was before"
                ),
                remedy: "write `format = \"raw\"` if its guest wrote that; else convert it"
                    .to_owned(),
            };
        }
        if format == ImageFormat::Layer {
            let remedy = "name its base with `base`".to_owned();
            return FormatVerdict::Foreign { format, remedy };
        }
        let command = format.conversion(path, &free_name(path)).unwrap_or_default();
        let remedy = format!(
            "make a raw copy with `{command}`, or write `format = \"raw\"` to serve its bytes as \
             they are"
        );
        FormatVerdict::Foreign { format, remedy }
    }
}

/// Refuses another format than raw. Reads the image, so that the caller holds its lock: a read may
/// block behind a write of a process that was killed, and the lock says so.
///
/// Whether the image is known to be raw, so that it may be marked: not one that cannot be read, as
/// the mark would hide its format from all later starts.
///
/// # Errors
///
/// The image is refused. One that cannot be read is not.
pub(super) fn require_raw(
    file: &File,
    path: &Path,
    options: &DiskOptions,
) -> Result<bool, OpenError> {
    if options.format == DiskFormat::Raw {
        return Ok(true);
    }
    let disk = options.id.as_str();
    let probed = match ProbedFormat::of(file) {
        Ok(probed) => probed,
        Err(error) => {
            tracing::warn!(
                disk,
                "its format is not known: its first blocks cannot be read: {error}"
            );
            return Ok(false);
        }
    };
    match probed.verdict(path, options) {
        FormatVerdict::Raw => Ok(true),
        FormatVerdict::Suspect { problem, remedy } => {
            tracing::warn!(disk, remedy, "{} {problem}", path.display());
            Ok(true)
        }
        FormatVerdict::Foreign { format, remedy } => {
            Err(OpenError::Foreign { path: path.into(), format, remedy })
        }
    }
}

/// The refusal of an image that is unsuitable for another reason, if its format is the better one.
pub(super) fn prefer_format(file: &File, path: &Path, error: OpenError) -> OpenError {
    let options = DiskOptions::new(crate::CacheMode::WriteBack);
    let is_better = matches!(error, OpenError::Unsuitable { .. });
    let probed = is_better.then(|| ProbedFormat::of(file).ok()).flatten();
    match probed.map(|probed| probed.verdict(path, &options)) {
        Some(FormatVerdict::Foreign { format, remedy }) => {
            OpenError::Foreign { path: path.into(), format, remedy }
        }
        _ => error,
    }
}

/// Marks the image of a writable disk as raw, and makes that durable: may block, but not if it is
/// marked already. A failure is no error but logged: `format = "raw"` has the same effect.
pub(super) fn mark_raw(host: &HostFile) {
    let size = host.limits.geometry.capacity;
    if is_markable(host) && mark(&host.file) != Some(size) {
        set_mark(host, size);
    }
}

/// Renews the mark of a disk that grows from `before` to `size` bytes. An image that has no mark,
/// or another one, gets none.
pub(super) fn renew_mark(host: &HostFile, before: u64, size: u64) {
    if is_markable(host) && before != size && mark(&host.file) == Some(before) {
        set_mark(host, size);
    }
}

fn is_markable(host: &HostFile) -> bool {
    host.kind == FileKind::Regular && !host.options.read_only
}

fn set_mark(host: &HostFile, size: u64) {
    let value = size.to_string();
    // After a power cut the image may have a signature that the guest has flushed.
    let set = fsetxattr(&host.file, MARK, value.as_bytes(), XattrFlags::empty())
        .and_then(|()| fsync(&host.file));
    let Err(errno) = set else { return };
    let disk = host.name();
    let remedy = "write `format = \"raw\"`: else a later start refuses the disk if its guest \
                  writes the signature of another format";
    match errno {
        _ if host.options.format == DiskFormat::Raw => {}
        Errno::OPNOTSUPP => tracing::info!(
            disk,
            remedy,
            "the image is not marked as raw: its file system has no extended attributes"
        ),
        _ => tracing::warn!(disk, remedy, "the image is not durably marked as raw: {errno}"),
    }
}

/// The size in the mark of a file. `None` if it has none, or some other value.
fn mark(file: &File) -> Option<u64> {
    // The longest size has 20 digits.
    let mut value = [0_u8; 24];
    let length = fgetxattr(file, MARK, &mut value[..]).ok()?;
    std::str::from_utf8(value.get(..length)?).ok()?.parse().ok()
}

/// Reads up to `bytes` bytes from an offset, less at the end of the file.
fn read_at(file: &File, start: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; bytes];
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pread(file, rest, start + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    buffer.truncate(filled);
    Ok(buffer)
}

/// A name for a copy of the file that is not taken.
pub fn free_name(path: &Path) -> PathBuf {
    let name = |suffix: String| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let names = (0..100).map(|number| match number {
        0 => name(".raw".to_owned()),
        number => name(format!(".raw.{number}")),
    });
    let mut free = names.filter(|name| {
        name.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    });
    free.next().unwrap_or_else(|| name(format!(".raw.{}", std::process::id())))
}
