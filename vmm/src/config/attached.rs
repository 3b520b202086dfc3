//! A disk for a machine that runs: one `[[disk]]` with the keys of a machine's configuration, from a file, or as JSON on its
//! way to the machine.

use std::path::Path;

use serde_json::Value;
use toml::Spanned;

use super::parse::{self, BusKind, Disk};
use super::report::Diagnostic;
use super::{DiskConfig, Report, ScsiPlace, host, read, scsi};

/// A disk to attach, as the machine is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// The disk's name.
    pub(crate) id: String,
    /// Its other keys, an object. Its path is whole.
    pub(crate) keys: Value,
}

/// Reads and checks the file at `path`, as far as its text tells. Warnings alone are no error, and are in the report.
///
/// # Errors
///
/// The report of every problem found.
pub(crate) fn load(path: &Path) -> Result<(Request, Report), Report> {
    let name = path.display().to_string();
    let text = read(path)
        .map_err(|diagnostic| Report::new(name.clone(), String::new(), vec![diagnostic]))?;
    let (disk, diagnostics) = parsed(&text, path.parent().unwrap_or(Path::new("")));
    let request = disk.and_then(|disk| request(&disk, &text));
    let report = Report::new(name, text, diagnostics);
    match request {
        Some(request) if !report.has_errors() => Ok((request, report)),
        _ => Err(report),
    }
}

fn request(disk: &Disk, text: &str) -> Option<Request> {
    let mut file: Value = toml::from_str(text).ok()?;
    let mut keys = file.get_mut("disk")?.get_mut(0)?.take();
    let path = std::path::absolute(disk.path.as_ref()?.get_ref()).ok()?;
    let object = keys.as_object_mut()?;
    object.insert("path".to_owned(), path.to_str()?.into());
    let id = object.remove("id")?.as_str()?.to_owned();
    Some(Request { id, keys })
}

/// A disk that this host can attach to a machine.
#[derive(Debug)]
pub(crate) struct Attachable(Disk);

impl Attachable {
    /// Reads and checks a request against this host.
    ///
    /// # Errors
    ///
    /// The report of every problem found. Warnings alone are no error and go to the log.
    pub(crate) fn new(Request { id, mut keys }: Request) -> Result<Self, Report> {
        let refused = |text: String, diagnostics| Report::new(id.clone(), text, diagnostics);
        let not_keys = |why: String| {
            let error = Diagnostic::error(format!("these are no keys of a disk: {why}"));
            refused(String::new(), vec![error.in_file().help("send an object of them")])
        };
        let object = keys.as_object_mut().ok_or_else(|| not_keys("no object".to_owned()))?;
        if object.insert("id".to_owned(), id.as_str().into()).is_some() {
            return Err(not_keys("the path names the disk, and so does `id`".to_owned()));
        }
        let file = serde_json::json!({ "disk": [keys] });
        let text = toml::to_string(&file).map_err(|error| not_keys(error.to_string()))?;
        let (disk, mut diagnostics) = parsed(&text, Path::new(""));
        if let Some(disk) = &disk {
            diagnostics
                .extend(disk.path.as_ref().and_then(only_whole).or_else(|| host::check_disk(disk)));
        }
        let report = refused(text, diagnostics);
        match disk {
            Some(disk) if !report.has_errors() => {
                report.log_warnings();
                Ok(Self(disk))
            }
            _ => Err(report),
        }
    }

    /// The request queues that it asks for.
    pub(crate) fn queues(&self) -> Option<u16> {
        self.0.queues.as_ref().map(|queues| *queues.get_ref())
    }

    /// Its place, where `is_taken` of those that it may have are none of them.
    ///
    /// # Errors
    ///
    /// The place that it asks for and cannot have.
    pub(crate) fn place(
        &self,
        is_taken: impl Fn(ScsiPlace) -> bool,
    ) -> Result<ScsiPlace, ScsiPlace> {
        scsi::place(&self.0, is_taken)
    }

    /// The disk at a place, of a guest with so many processors.
    pub(crate) fn build(self, vcpus: u16, place: ScsiPlace) -> Option<DiskConfig> {
        self.0.build(vcpus, Some(place))
    }
}

fn parsed(text: &str, folder: &Path) -> (Option<Disk>, Vec<Diagnostic>) {
    let (disk, mut diagnostics) = parse::parse_attached(text, folder);
    diagnostics.extend(disk.as_ref().and_then(only_virtio_scsi));
    (disk, diagnostics)
}

/// A virtio-blk disk is a PCI device, and the bus has no slots that open while the guest runs.
fn only_virtio_scsi(disk: &Disk) -> Option<Diagnostic> {
    (disk.bus != BusKind::VirtioScsi).then(|| {
        Diagnostic::error("a running machine takes no disk on virtio-blk")
            .at(disk.header.clone(), "is on virtio-blk")
            .help("write `bus = \"virtio-scsi\"`")
    })
}

/// The machine does not know the folder of the file.
fn only_whole(path: &Spanned<std::path::PathBuf>) -> Option<Diagnostic> {
    (!path.get_ref().is_absolute()).then(|| {
        Diagnostic::error("`path` is relative")
            .at(path.span(), "from where?")
            .help("write it from `/` on")
    })
}
