//! The configuration of a machine: from a TOML file to values that are known to work here.
//!
//! A file goes through [`parse`] (what it says), [`rules`] (whether it agrees with itself) and
//! [`host`] (whether this host can do it). Each adds its findings to one [`Report`]. Only `host`
//! and [`inspect`] touch anything outside the text.

pub(crate) mod attached;
pub(crate) mod check;
pub(crate) mod disk_file;
mod explain;
mod host;
mod parse;
pub(crate) mod report;
mod rules;
mod scsi;
mod syntax;
mod table;
#[cfg(test)]
mod tests;
mod value;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use block::{CacheMode, DetectZeroes, EngineKind, OnEnospc};

use host::Host;
pub(crate) use host::same_image;
use report::Diagnostic;
pub(crate) use report::Report;
pub(crate) use scsi::ScsiPlace;
pub(crate) use value::human_size;

/// A machine which this host can run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MachineConfig {
    /// Virtual processors, 1 to 254.
    pub(crate) vcpus: u8,
    /// Guest memory, a multiple of 2 MiB.
    pub(crate) memory_bytes: u64,
    /// How long the guest may take to power off once asked.
    pub(crate) shutdown_grace: Duration,
    /// What boots.
    pub(crate) kernel: KernelConfig,
    /// Disks in the order of the file.
    pub(crate) disks: Vec<DiskConfig>,
    /// SCSI controllers by their numbers, with and without disks.
    pub(crate) controllers: Vec<ControllerConfig>,
    /// Network devices in the order of the file.
    pub(crate) nets: Vec<NetConfig>,
    /// Where the serial console goes.
    pub(crate) console: ConsoleConfig,
    /// The socket the machine is controlled by.
    pub(crate) control: Option<PathBuf>,
}

/// What boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KernelConfig {
    /// A bzImage or an x86-64 ELF file.
    pub(crate) image: PathBuf,
    /// The initial RAM disk.
    pub(crate) initramfs: Option<PathBuf>,
    /// The command line, at most 2047 bytes and without NUL.
    pub(crate) cmdline: String,
}

/// One disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskConfig {
    /// Its name, unique in the machine.
    pub(crate) id: String,
    /// The image file or block device.
    pub(crate) path: PathBuf,
    /// What the guest sees it on.
    pub(crate) bus: Bus,
    /// When a write is durable.
    pub(crate) cache: CacheMode,
    /// Whether the guest may only read it.
    pub(crate) readonly: bool,
    /// Request queues, at least 1 and at most one per vCPU.
    pub(crate) queues: u16,
    /// What the guest reads as its serial number, at most 20 bytes of ASCII.
    pub(crate) serial: String,
    /// The guest's block, 512 or 4096 bytes, where it is not left to the kind of disk.
    pub(crate) block_size: Option<u32>,
    /// Which engine serves it.
    pub(crate) engine: EngineKind,
    /// What becomes of writes that the host has no space for.
    pub(crate) on_enospc: OnEnospc,
    /// Whether the guest may give space back.
    pub(crate) discard: bool,
    /// What becomes of writes of nothing but zeroes.
    pub(crate) detect_zeroes: DetectZeroes,
    /// So many percent used of the space of what stores it are told to the guest.
    pub(crate) soft_limit: Option<u8>,
}

#[cfg(test)]
impl DiskConfig {
    /// A disk "data" with one queue and nothing else asked for.
    pub(crate) fn plain(path: &Path, bus: Bus) -> Self {
        Self {
            id: "data".into(),
            path: path.into(),
            bus,
            cache: CacheMode::WriteBack,
            readonly: false,
            queues: 1,
            serial: "data".into(),
            block_size: None,
            engine: EngineKind::Auto,
            on_enospc: OnEnospc::Report,
            discard: true,
            detect_zeroes: DetectZeroes::Off,
            soft_limit: None,
        }
    }
}

/// One SCSI controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ControllerConfig {
    /// Its number, from 0.
    pub(crate) number: u8,
    /// Request queues.
    pub(crate) queues: u16,
}

/// What carries a disk to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bus {
    /// virtio-blk over PCI.
    VirtioBlk,
    /// A place on a virtio-scsi controller.
    VirtioScsi(ScsiPlace),
}

/// One network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NetConfig {
    /// The tap device of the host.
    pub(crate) tap: String,
    /// The guest's Ethernet address.
    pub(crate) mac: [u8; 6],
}

/// Where the serial console goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ConsoleConfig {
    /// The terminal `bulkhead` runs on.
    Stdio,
    /// Appended to a file; nothing to read.
    File(PathBuf),
    /// A Unix socket that `bulkhead` listens on.
    Socket(PathBuf),
    /// Nowhere.
    Off,
}

/// Reads, parses and checks the configuration at `path` against this host.
///
/// # Errors
///
/// The report of every problem found. Warnings alone are no error and go to the log.
pub(crate) fn load(path: &Path) -> Result<MachineConfig, Report> {
    match inspect(path) {
        (Some(config), report) => {
            report.log_warnings();
            Ok(config)
        }
        (None, report) => Err(report),
    }
}

/// A size as the configuration has it, such as "512MiB", in bytes.
///
/// # Errors
///
/// What is wrong with it.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    value::size(&toml::de::DeValue::String(text.into())).map_err(|wrong| {
        let help = wrong.help.map_or(String::new(), |help| format!("; {help}"));
        format!("it {}{help}", wrong.what)
    })
}

/// The control socket that the configuration at `path` names, of a machine or disk that may be up already: the
/// host is not asked whether it could run another one.
///
/// # Errors
///
/// The report of every problem found in the text.
pub(crate) fn control_socket(path: &Path) -> Result<Option<PathBuf>, Report> {
    if let Some(file) = disk_file::parsed(path) {
        return file.map(|file| file.control);
    }
    let (source, _) = parsed(path)?;
    Ok(source.control.map(toml::Spanned::into_inner))
}

/// The disk called `id` of the configuration at `path`, of a machine that may run already.
///
/// # Errors
///
/// The report of every problem found in the text, or that it has no such disk.
pub(crate) fn disk(path: &Path, id: &str) -> Result<DiskConfig, Report> {
    let (disks, text) = match disk_file::parsed(path) {
        Some(file) => (vec![file?.disk], String::new()),
        None => {
            let (source, text) = parsed(path)?;
            (source.build().map(|machine| machine.disks).unwrap_or_default(), text)
        }
    };
    let ids: Vec<_> = disks.iter().map(|disk| format!("`{}`", disk.id)).collect();
    let help = match ids.as_slice() {
        [] => "it describes no disk".to_owned(),
        ids => format!("its disks are {}", ids.join(", ")),
    };
    disks.into_iter().find(|disk| disk.id == id).ok_or_else(|| {
        let missing = Diagnostic::error(format!("there is no disk `{id}`")).in_file().help(help);
        Report::new(path.display().to_string(), text, vec![missing])
    })
}

/// A configuration without an error in its text, and the text.
fn parsed(path: &Path) -> Result<(parse::Source, String), Report> {
    let name = path.display().to_string();
    let text = match read(path) {
        Ok(text) => text,
        Err(diagnostic) => return Err(Report::new(name, String::new(), vec![diagnostic])),
    };
    let (source, diagnostics) = parse::parse(&text, path.parent().unwrap_or(Path::new("")));
    let report = Report::new(name, text.clone(), diagnostics);
    match source {
        Some(source) if !report.has_errors() => Ok((source, text)),
        _ => Err(report),
    }
}

/// The machine, where there is no error, and all that is to be said about it.
fn inspect(path: &Path) -> (Option<MachineConfig>, Report) {
    let name = path.display().to_string();
    match read(path) {
        Ok(text) if parse::is_disk(&text) => {
            let diagnostic = Diagnostic::error("this is the configuration of a disk, not of a machine")
                .in_file()
                .help("serve it to another monitor with `bulkhead serve`, or write `[[disk]]` and `[machine]`");
            (None, Report::new(name, text, vec![diagnostic]))
        }
        Ok(text) => {
            let folder = path.parent().unwrap_or(Path::new(""));
            inspect_text(name, text, folder, &Host::probe())
        }
        Err(diagnostic) => (None, Report::new(name, String::new(), vec![diagnostic])),
    }
}

fn inspect_text(
    name: String,
    text: String,
    folder: &Path,
    host: &Host,
) -> (Option<MachineConfig>, Report) {
    let (source, mut diagnostics) = parse::parse(&text, folder);
    if let Some(source) = &source {
        host.check(source, &mut diagnostics);
    }
    let report = Report::new(name, text, diagnostics);
    let config = source.filter(|_| !report.has_errors()).and_then(parse::Source::build);
    (config, report)
}

/// More than any configuration has; `bulkhead run /dev/zero` must end.
const FILE_MAX: u64 = 1 << 20;

fn read(path: &Path) -> Result<String, Diagnostic> {
    let cannot =
        |why: String| Diagnostic::error(format!("cannot read the configuration: {why}")).in_file();
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => cannot("no such file".to_owned()),
        io::ErrorKind::IsADirectory => {
            cannot("it is a directory".to_owned()).help("name a .toml file in it")
        }
        _ => cannot(error.to_string()),
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > FILE_MAX) {
        return Err(cannot("it is larger than 1 MiB".to_owned()));
    }
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        cannot(format!("it is not UTF-8 from byte {offset} on")).help("save the file as UTF-8 text")
    })
}
