//! `bulkhead check`: shows the machine a configuration describes, or what is wrong with it.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use devices::virtio::Address;
use serde_json::{Value, json};

use super::disk_file::{self, DiskFile};
use super::host::{KernelFormat, image_size, kernel_format_of};
use super::value::{display_mac, human_size};
use super::{
    Bus, ConsoleConfig, ControllerConfig, DiskConfig, MachineConfig, Report, ScsiPlace, explain,
    inspect, parse, read,
};
use crate::sanitize::sanitize;

/// What is shown of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A line for each part.
    Summary,
    /// The same, and what each disk promises.
    Explained,
    /// For programs.
    Json,
}

/// The machine can run.
const GOOD: u8 = 0;
/// It cannot.
const CONFIG_ERROR: u8 = 2;

/// Checks the configuration at `path`, says what it found, and returns the exit code.
///
/// # Errors
///
/// Standard output cannot be written.
pub(crate) fn check(path: &Path, form: Form) -> io::Result<u8> {
    if let Ok(text) = read(path)
        && parse::is_disk(&text)
    {
        return check_disk(path, text, form);
    }
    let (machine, report) = inspect(path);
    let mut stdout = io::stdout().lock();
    if form == Form::Json {
        writeln!(stdout, "{:#}", to_json(machine.as_ref(), &report))?;
    } else {
        report.print();
        if let Some(machine) = &machine {
            stdout.write_all(summary(path, machine).as_bytes())?;
        }
    }
    if let (Form::Explained, Some(machine)) = (form, &machine) {
        stdout.write_all(explain::explain(machine).as_bytes())?;
    }
    stdout.flush()?;
    Ok(if machine.is_some() { GOOD } else { CONFIG_ERROR })
}

/// As [`check`], for a file that describes one disk.
fn check_disk(path: &Path, text: String, form: Form) -> io::Result<u8> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let (file, report) = disk_file::inspect(path.display().to_string(), text, folder);
    let mut stdout = io::stdout().lock();
    if form == Form::Json {
        let json = json!({
            "ok": file.is_some(),
            "disk": file.as_ref().map(|file| disk_json(&file.disk)),
            "control": file.as_ref().and_then(|file| file.control.as_deref()).map(display),
            "diagnostics": report.to_json(),
        });
        writeln!(stdout, "{json:#}")?;
    } else {
        report.print();
        if let Some(file) = &file {
            stdout.write_all(disk_summary(path, file).as_bytes())?;
        }
    }
    if let (Form::Explained, Some(file)) = (form, &file) {
        stdout.write_all(file.promises().as_bytes())?;
    }
    stdout.flush()?;
    Ok(if file.is_some() { GOOD } else { CONFIG_ERROR })
}

fn display(path: &Path) -> String {
    path.display().to_string()
}

fn disk_summary(path: &Path, file: &DiskFile) -> String {
    let mut rows = vec![
        ("disk", disk_row(&file.disk, file.disk.id.len())),
        ("queues", file.disk.queues.to_string()),
    ];
    rows.extend(file.control.iter().map(|path| ("control", display(path))));
    titled(&format!("{} is ready to serve", path.display()), rows)
}

pub(super) fn summary(path: &Path, machine: &MachineConfig) -> String {
    let kernel = &machine.kernel;
    let format = kernel_format_of(&kernel.image).map_or("", KernelFormat::name);
    let mut rows = vec![
        ("vcpus", machine.vcpus.to_string()),
        ("memory", human_size(machine.memory_bytes)),
        ("kernel", format!("{}  {format}", kernel.image.display())),
    ];
    rows.extend(kernel.initramfs.iter().map(|path| ("initramfs", path.display().to_string())));
    rows.push(("cmdline", kernel.cmdline.clone()));
    let id_width = machine.disks.iter().map(|disk| disk.id.len()).max().unwrap_or(0);
    rows.extend(machine.disks.iter().map(|disk| ("disk", disk_row(disk, id_width))));
    rows.extend(machine.controllers.iter().filter(|scsi| is_empty(machine, scsi)).map(|scsi| {
        let queues = if scsi.queues == 1 { "queue" } else { "queues" };
        ("scsi", format!("controller {}  {} {queues}, no disk yet", scsi.number, scsi.queues))
    }));
    let nets = machine.nets.iter();
    rows.extend(nets.map(|net| ("net", format!("{}  {}", net.tap, display_mac(net.mac)))));
    rows.push(("console", console_row(&machine.console)));
    rows.extend(machine.control.iter().map(|path| ("control", path.display().to_string())));

    titled(&format!("{} is ready to run", path.display()), rows)
}

fn is_empty(machine: &MachineConfig, scsi: &ControllerConfig) -> bool {
    let on_it = |disk: &DiskConfig| matches!(disk.bus, Bus::VirtioScsi(place) if place.controller == scsi.number);
    !machine.disks.iter().any(on_it)
}

fn titled(title: &str, rows: Vec<(&str, String)>) -> String {
    let mut out = format!("{}\n\n", sanitize(title));
    for (name, value) in rows {
        out += &format!("  {name:<9}  {}\n", sanitize(&value));
    }
    out
}

fn disk_row(disk: &DiskConfig, id_width: usize) -> String {
    let size = disk_bytes(disk).map_or_else(|| "?".to_owned(), human_size);
    let access = if disk.readonly { "ro" } else { "rw" };
    let DiskConfig { id, cache, path, .. } = disk;
    let cache = cache.name();
    let path = path.display();
    let place = match disk.bus {
        Bus::VirtioBlk => String::new(),
        Bus::VirtioScsi(ScsiPlace { controller, address: Address { target, lun } }) => {
            format!("  scsi {controller}:{target}:{lun}")
        }
    };
    format!("{id:<id_width$}  {size:>9}  {cache:<12}  {access}  {path}{place}")
}

fn disk_bytes(disk: &DiskConfig) -> Option<u64> {
    image_size(&File::open(&disk.path).ok()?).ok()
}

fn console_row(console: &ConsoleConfig) -> String {
    match console {
        ConsoleConfig::Stdio => "this terminal".to_owned(),
        ConsoleConfig::File(path) => format!("file {}", path.display()),
        ConsoleConfig::Socket(path) => format!("socket {}", path.display()),
        ConsoleConfig::Off => "off".to_owned(),
    }
}

fn to_json(machine: Option<&MachineConfig>, report: &Report) -> Value {
    json!({
        "ok": machine.is_some(),
        "machine": machine.map(machine_json),
        "diagnostics": report.to_json(),
    })
}

fn machine_json(machine: &MachineConfig) -> Value {
    let kernel = &machine.kernel;
    let (console, console_path) = match &machine.console {
        ConsoleConfig::Stdio => ("stdio", None),
        ConsoleConfig::File(path) => ("file", Some(path)),
        ConsoleConfig::Socket(path) => ("socket", Some(path)),
        ConsoleConfig::Off => ("off", None),
    };
    json!({
        "vcpus": machine.vcpus,
        "memory_bytes": machine.memory_bytes,
        "shutdown_grace_ms": u64::try_from(machine.shutdown_grace.as_millis()).ok(),
        "kernel": {
            "image": kernel.image.display().to_string(),
            "format": kernel_format_of(&kernel.image).map(KernelFormat::name),
            "initramfs": kernel.initramfs.as_ref().map(|path| path.display().to_string()),
            "cmdline": kernel.cmdline,
        },
        "disks": machine.disks.iter().map(disk_json).collect::<Value>(),
        "scsi": machine.controllers.iter().map(|scsi| json!({
            "controller": scsi.number,
            "queues": scsi.queues,
        })).collect::<Value>(),
        "nets": machine.nets.iter().map(|net| json!({
            "tap": net.tap,
            "mac": display_mac(net.mac),
        })).collect::<Value>(),
        "console": { "mode": console, "path": console_path.map(|path| path.display().to_string()) },
        "control": machine.control.as_ref().map(|path| path.display().to_string()),
    })
}

fn disk_json(disk: &DiskConfig) -> Value {
    let (bus, place) = match disk.bus {
        Bus::VirtioBlk => ("virtio-blk", None),
        Bus::VirtioScsi(ScsiPlace { controller, address: Address { target, lun } }) => {
            let place = json!({ "controller": controller, "target": target, "lun": lun });
            ("virtio-scsi", Some(place))
        }
    };
    json!({
        "id": disk.id,
        "path": disk.path.display().to_string(),
        "size_bytes": disk_bytes(disk),
        "bus": bus,
        "scsi": place,
        "cache": disk.cache.name(),
        "readonly": disk.readonly,
        "queues": disk.queues,
        "serial": disk.serial,
        "block_size": disk.block_size,
        "engine": disk.engine.name(),
        "discard": if disk.discard { "unmap" } else { "ignore" },
        "detect_zeroes": disk.detect_zeroes.name(),
        "soft_limit_percent": disk.soft_limit,
    })
}
