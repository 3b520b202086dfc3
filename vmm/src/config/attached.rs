//! A disk to attach to a running machine: one `[[disk]]`, from a file, or as JSON in a request to
//! the control socket.

use std::path::Path;

use block::EphemeralPlace;

use super::host::Purpose;
use super::model::{DiskConfig, ScsiAddress};
use super::report::{Diagnostic, Report, Span};
use super::source::{BusKind, DiskTable};
use super::text::ConfigText;
use super::{build, host, parse, scsi};
use serde_json::Value;

/// A request to attach a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AttachRequest {
    /// The disk's name.
    pub(crate) id: String,
    /// Its other keys, an object. Its paths are absolute.
    pub(crate) keys: Value,
}

/// Reads the file at `path` and checks its text. The report holds warnings.
///
/// # Errors
///
/// The report of every problem found.
pub(crate) fn load(path: &Path) -> Result<(AttachRequest, Report), Report> {
    let file = ConfigText::read(path)?;
    let (disk, diagnostics) = parsed(&file.text, file.folder);
    let request = disk.and_then(|disk| request(&disk, &file.text));
    let report = Report::new(file.name, file.text, diagnostics);
    match request {
        Some(request) if !report.has_errors() => Ok((request, report)),
        _ => Err(report),
    }
}

fn request(disk: &DiskTable, text: &str) -> Option<AttachRequest> {
    let mut file: Value = toml::from_str(text).ok()?;
    let mut keys = file.get_mut("disk")?.get_mut(0)?.take();
    let object = keys.as_object_mut()?;
    for (key, path, _) in paths(disk) {
        let path = std::path::absolute(path).ok()?;
        object.insert(key.to_owned(), path.to_str()?.into());
    }
    let id = object.remove("id")?.as_str()?.to_owned();
    Some(AttachRequest { id, keys })
}

/// A disk that this host can attach to a machine.
#[derive(Debug)]
pub(crate) struct AttachableDisk(DiskTable);

impl AttachableDisk {
    /// Reads and checks a request against this host.
    ///
    /// # Errors
    ///
    /// The report of every problem found. Warnings alone are no error and go to the log.
    pub(crate) fn new(AttachRequest { id, mut keys }: AttachRequest) -> Result<Self, Report> {
        let report = |text: String, diagnostics| Report::new(id.clone(), text, diagnostics);
        let invalid = |why: String| {
            let error = Diagnostic::error(format!("the keys of the disk are invalid: {why}"));
            let help = "send an object with the keys of `[[disk]]`, without `id`";
            report(String::new(), vec![error.in_file().help(help)])
        };
        let object = keys.as_object_mut().ok_or_else(|| invalid("not an object".to_owned()))?;
        if object.insert("id".to_owned(), id.as_str().into()).is_some() {
            return Err(invalid("`id` is given twice, in the path and in the body".to_owned()));
        }
        let file = serde_json::json!({ "disk": [keys] });
        let text = toml::to_string(&file).map_err(|error| invalid(error.to_string()))?;
        let (disk, mut diagnostics) = parsed(&text, Path::new(""));
        if let Some(disk) = &disk {
            let relative = require_absolute_paths(disk);
            diagnostics.extend(relative.or_else(|| {
                host::await_devices(std::slice::from_ref(disk));
                host::check_disk(disk, Purpose::Start)
            }));
        }
        let report = report(text, diagnostics);
        match disk {
            Some(disk) if !report.has_errors() => {
                report.log_warnings();
                Ok(Self(disk))
            }
            _ => Err(report),
        }
    }

    /// The disk's name.
    pub(crate) fn id(&self) -> &str {
        &self.0.options.id
    }

    /// The requested number of queues.
    pub(crate) fn queues(&self) -> Option<u16> {
        self.0.queues
    }

    /// The disk's address, given or the lowest free one.
    ///
    /// # Errors
    ///
    /// The requested address, which is taken.
    pub(crate) fn address(
        &self,
        is_taken: impl Fn(ScsiAddress) -> bool,
    ) -> Result<ScsiAddress, ScsiAddress> {
        scsi::free_address(&self.0, is_taken)
    }

    /// The disk at `address`, of a guest with `vcpus` processors.
    pub(crate) fn build(self, vcpus: u16, address: ScsiAddress) -> Option<DiskConfig> {
        build::disk(self.0, vcpus, Some(address))
    }
}

fn parsed(text: &str, folder: &Path) -> (Option<DiskTable>, Vec<Diagnostic>) {
    let (disk, mut diagnostics) = parse::parse_attached(text, folder);
    diagnostics.extend(disk.as_ref().and_then(require_virtio_scsi));
    (disk, diagnostics)
}

/// A virtio-blk disk is a PCI device, and the bus has no hotplug slots.
fn require_virtio_scsi(disk: &DiskTable) -> Option<Diagnostic> {
    (disk.bus != BusKind::VirtioScsi).then(|| {
        Diagnostic::error("a virtio-blk disk cannot be attached to a running machine")
            .at(disk.header.clone(), "is on virtio-blk")
            .help("write `bus = \"virtio-scsi\"`")
    })
}

/// The paths of a disk, with the names and the places of their keys.
fn paths(disk: &DiskTable) -> Vec<(&'static str, &Path, Span)> {
    let folder = match &disk.ephemeral {
        Some(EphemeralPlace::Folder(folder)) => Some(folder.as_path()),
        Some(EphemeralPlace::Memory) | None => None,
    };
    let image = disk.image().map(|(path, _)| path);
    let (base, log) = (disk.base.as_deref(), disk.record.as_deref());
    let paths = [("path", image), ("base", base), ("ephemeral", folder), ("record", log)];
    let paths = paths.into_iter();
    paths.filter_map(|(key, path)| Some((key, path?, disk.keys.span(key)?))).collect()
}

/// The machine does not know the directory of the client's file.
fn require_absolute_paths(disk: &DiskTable) -> Option<Diagnostic> {
    let (key, _, span) = paths(disk).into_iter().find(|(_, path, _)| !path.is_absolute())?;
    let error = Diagnostic::error(format!("`{key}` is relative"));
    let error = error.at(span, "the machine does not know the directory");
    Some(error.help("write an absolute path"))
}
