//! Files that do not exist: the likely reason, and a remedy that harms nothing.
//!
//! Nothing is created below `/dev`: a regular file there takes the name of the device that appears
//! later. A missing directory may be that of a file system that is not mounted.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use block::shell_path;

use crate::config::report::Span;
use crate::config::source::DiskTable;

/// Help for a relative path.
const RELATIVE: &str = "a relative path starts at this file's directory";
/// Help for `~`, which only shells expand.
const TILDE: &str = "write the path of the home directory: `~` is expanded by shells only";

/// How long a start waits for the nodes of its disks, which udev makes.
const DEVICE_WAIT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Symbolic links to follow from a path (Linux's `MAXSYMLINKS`).
const LINKS_MAX: usize = 40;

/// Waits for missing devices of a start. One log line for all of them.
pub(in crate::config) fn await_devices(disks: &[DiskTable]) {
    await_devices_for(disks, DEVICE_WAIT);
}

fn await_devices_for(disks: &[DiskTable], limit: Duration) {
    let images = disks.iter().filter_map(|disk| Some(disk.image()?.0));
    let paths = images.chain(disks.iter().filter_map(|disk| disk.base.as_deref()));
    let mut missing: Vec<_> = paths.filter(|path| is_missing(path) && is_device(path)).collect();
    if missing.is_empty() {
        return;
    }
    let names: Vec<_> = missing.iter().map(|path| path.display().to_string()).collect();
    tracing::warn!("waiting up to {} s for {}", limit.as_secs(), names.join(", "));
    let start = Instant::now();
    while !missing.is_empty() && start.elapsed() < limit {
        thread::sleep(POLL_INTERVAL);
        missing.retain(|path| is_missing(path));
    }
}

fn is_missing(path: &Path) -> bool {
    path.metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Whether `path` is that of a device, present or not: below `/dev`, also by way of a link. The
/// file systems for files there are none of devices.
fn is_device(path: &Path) -> bool {
    let target = target(path);
    let has_files =
        ["/dev/shm", "/dev/hugepages", "/dev/mqueue"].iter().any(|dir| target.starts_with(dir));
    target.starts_with("/dev") && !has_files
}

/// Whether a file can be created at `path` by a user.
fn is_creatable(path: &Path) -> bool {
    !is_device(path) && !["/proc", "/sys"].iter().any(|dir| target(path).starts_with(dir))
}

/// The path that links lead to, which may be missing.
fn target(path: &Path) -> PathBuf {
    let mut path = path.to_path_buf();
    for _ in 0..LINKS_MAX {
        let directory = path.parent().map(|parent| match parent.as_os_str().is_empty() {
            true => Path::new("."),
            false => parent,
        });
        if let (Some(directory), Some(name)) = (directory, path.file_name())
            && let Ok(directory) = directory.canonicalize()
        {
            path = directory.join(name);
        }
        let Ok(link) = fs::read_link(&path) else { break };
        path = path.parent().map_or_else(|| link.clone(), |directory| directory.join(&link));
    }
    path
}

/// The directory of `path`, if it does not exist.
pub(super) fn missing_directory(path: &Path) -> Option<&Path> {
    path.parent().filter(|directory| !directory.as_os_str().is_empty() && !directory.is_dir())
}

/// Whether the path at `span` is written as a relative one: it has the directory of the file in
/// front of its text. Escapes in the text may hide that.
pub(super) fn is_relative(path: &Path, span: &Span) -> bool {
    !path.is_absolute() || path.as_os_str().len() > span.len().saturating_sub("''".len())
}

fn has_tilde(path: &Path) -> bool {
    let is_tilde = |part: Component<'_>| match part {
        Component::Normal(name) => name.as_encoded_bytes().starts_with(b"~"),
        _ => false,
    };
    path.components().any(is_tilde)
}

/// A missing file, directory or device, and the remedy.
pub(super) struct Missing {
    pub(super) label: String,
    pub(super) help: String,
}

impl Missing {
    fn new(label: impl Into<String>, help: impl Into<String>) -> Self {
        Self { label: label.into(), help: help.into() }
    }

    /// For a file that is read. With `create`, the size of an image that the user may create.
    pub(super) fn file(path: &Path, span: &Span, create: Option<&str>) -> Self {
        if let Ok(link) = fs::read_link(path) {
            let help = match is_device(path) {
                true => device_help(path),
                false => "correct the link, or name another file".to_owned(),
            };
            return Self::new(
                format!("a link to `{}`, which does not exist", link.display()),
                help,
            );
        }
        if is_device(path) {
            return Self::new("no such device", device_help(path));
        }
        if let Some(directory) = missing_directory(path) {
            return Self::directory(path, span, directory, is_relative(path, span));
        }
        let help = match create {
            _ if has_tilde(path) => TILDE.to_owned(),
            // A file that has appeared meanwhile is not cut off.
            Some(size) if is_creatable(path) => {
                format!("create it with `truncate -s '>{size}' {}`", shell_path(path))
            }
            _ => path_help(path, span),
        };
        Self::new("no such file", help)
    }

    /// For the directory of a file; with `can_create`, the help says how to create it.
    pub(super) fn directory(path: &Path, span: &Span, directory: &Path, can_create: bool) -> Self {
        let label = format!("the directory `{}` does not exist", directory.display());
        Self::new(label, directory_help(path, span, directory, can_create))
    }
}

/// Help for a missing directory; with `can_create`, also how to create it.
fn directory_help(path: &Path, span: &Span, directory: &Path, can_create: bool) -> String {
    if has_tilde(path) {
        return TILDE.to_owned();
    }
    if is_device(directory) {
        return "choose another path".to_owned();
    }
    let reason = match is_relative(path, span) {
        true => RELATIVE,
        false => "see `findmnt` whether its file system is mounted",
    };
    match can_create && is_creatable(directory) {
        true => format!("{reason}; or create it with `mkdir -p {}`", shell_path(directory)),
        false => reason.to_owned(),
    }
}

/// Help for a path that cannot be opened.
pub(super) fn path_help(path: &Path, span: &Span) -> String {
    match is_relative(path, span) {
        _ if has_tilde(path) => TILDE.to_owned(),
        true => RELATIVE.to_owned(),
        false => format!("`namei -l {}` shows each part of the path", shell_path(path)),
    }
}

/// Help for a device that does not exist.
fn device_help(path: &Path) -> String {
    let family = match () {
        () if path.starts_with("/dev/zvol") => "`zfs list -t volume` lists the volumes, ",
        () if path.starts_with("/dev/mapper") => "`dmsetup ls` lists the mapped devices, ",
        () => "",
    };
    format!(
        "{family}`lsblk` lists the devices and `udevadm info --export-db` their links; the driver \
         of the device may have to be loaded (modprobe(8))"
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn devices_are_known_by_their_path() {
        let folder = tempfile::tempdir().unwrap();
        let link = |name: &str, to: &str| {
            let path = folder.path().join(name);
            symlink(to, &path).unwrap();
            path
        };
        for path in ["/dev/sdz", "/dev/vg0/data", "/dev/zvol/tank/a", "/tmp/../dev/sdz"] {
            assert!(is_device(Path::new(path)), "{path}");
            assert!(!is_creatable(Path::new(path)), "{path}");
        }
        assert!(is_device(&link("disk", "/dev/sdz")));
        assert!(is_device(&link("again", "disk")));
        assert!(is_device(&link("devices", "/dev").join("sdz")));
        for path in ["/dev/shm/a.img", "/vm/dev/a.img", "/devices", "dev/sdz"] {
            assert!(!is_device(Path::new(path)), "{path}");
        }
        assert!(!is_device(&link("loop", "loop")), "the end of a circle is not known");
        assert!(!is_creatable(Path::new("/proc/sys/a")));
        assert!(is_creatable(&folder.path().join("new")));
    }

    #[test]
    fn a_relative_path_is_longer_than_its_text() {
        assert!(!is_relative(Path::new("/vm/a.img"), &(10..10 + "'/vm/a.img'".len())));
        assert!(is_relative(Path::new("/vm/a.img"), &(10..10 + "'a.img'".len())));
        assert!(is_relative(Path::new("a.img"), &(10..10 + "'a.img'".len())));
    }

    fn disk(path: &Path) -> DiskTable {
        let mut disk = DiskTable::new(0..1);
        disk.path = path.to_path_buf();
        disk.keys.record("path", Some(0..1));
        disk
    }

    /// The time of a wait for `path`.
    fn wait(path: &Path) -> Duration {
        let start = Instant::now();
        await_devices_for(&[disk(path)], Duration::from_millis(400));
        start.elapsed()
    }

    #[test]
    fn a_start_waits_for_a_device_until_it_appears() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        assert!(wait(&path) < Duration::from_millis(100), "a file is not awaited");
        assert!(wait(Path::new("/dev/null")) < Duration::from_millis(100), "it exists");
        symlink("/dev/bulkhead-test-absent", &path).unwrap();
        assert!(wait(&path) >= Duration::from_millis(400), "a device is awaited");
        let link = path.clone();
        let udev = thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            fs::remove_file(&link).unwrap();
            symlink("/dev/null", &link).unwrap();
        });
        let waited = wait(&path);
        udev.join().unwrap();
        assert!(waited < Duration::from_millis(350), "it has appeared: {waited:?}");
    }
}
