//! The summary of a configuration, one line for each part.

use std::path::{Path, PathBuf};

use block::{EphemeralPlace, Named, RECORD_LOG_BYTES, RECORD_QUEUE_BYTES};
use devices::virtio::Address;

use super::json::image_bytes;
use crate::config::disk_file::DiskFile;
use crate::config::{
    ConsoleConfig, ControllerConfig, DiskConfig, EphemeralChanges, KernelFormat, MachineConfig,
    ScsiAddress, display_mac, human_size, kernel_format_of,
};
use crate::sanitize::sanitize;

pub(super) fn machine(path: &Path, machine: &MachineConfig) -> String {
    let kernel = &machine.kernel;
    let format = kernel_format_of(&kernel.image).map_or("", KernelFormat::name);
    let mut rows = vec![
        ("vcpus", machine.vcpus.to_string()),
        ("memory", human_size(machine.memory_bytes)),
        ("kernel", format!("{}  {format}", kernel.image.display())),
    ];
    rows.extend(kernel.initramfs.iter().map(|path| ("initramfs", path.display().to_string())));
    rows.push(("cmdline", kernel.cmdline.clone()));
    let id_width = machine.disks.iter().map(|disk| disk.id().len()).max().unwrap_or(0);
    for disk in &machine.disks {
        rows.push(("disk", disk_row(disk, id_width)));
        rows.extend(record_row(disk, id_width));
    }
    let empty = machine.controllers.iter().filter(|scsi| has_no_disk(machine, scsi));
    rows.extend(empty.map(|scsi| ("scsi", controller_row(scsi))));
    let nets = machine.nets.iter();
    rows.extend(nets.map(|net| ("net", format!("{}  {}", net.tap, display_mac(net.mac)))));
    rows.push(("console", console_row(&machine.console)));
    rows.extend(machine.control.iter().map(|path| ("control", path.display().to_string())));
    table(&format!("{} is ready to run", path.display()), rows)
}

pub(super) fn disk_file(path: &Path, file: &DiskFile) -> String {
    let mut rows = vec![
        ("disk", disk_row(&file.disk, file.disk.id().len())),
        ("queues", file.disk.queues.to_string()),
    ];
    rows.extend(record_row(&file.disk, file.disk.id().len()));
    rows.extend(file.control.iter().map(|path| ("control", path.display().to_string())));
    table(&format!("{} is ready to serve", path.display()), rows)
}

fn table(title: &str, rows: Vec<(&str, String)>) -> String {
    let mut out = format!("{}\n\n", sanitize(title));
    for (name, value) in rows {
        out += &format!("  {name:<9}  {}\n", sanitize(&value));
    }
    out
}

fn disk_row(disk: &DiskConfig, id_width: usize) -> String {
    let size = image_bytes(disk).map_or_else(|| "?".to_owned(), human_size);
    let access = if disk.options.read_only { "ro" } else { "rw" };
    let (id, path) = (disk.id(), disk.file().display());
    let cache = match disk.ephemeral {
        None => disk.options.cache.name(),
        Some(_) => "ephemeral",
    };
    let address = disk.scsi_address().map_or(String::new(), |scsi| {
        let ScsiAddress { controller, address: Address { target, lun } } = scsi;
        format!("  scsi {controller}:{target}:{lun}")
    });
    let base = disk.base.as_ref();
    let over = |base: &PathBuf| format!(" over {}", base.display());
    let base = match &disk.ephemeral {
        None => base.map_or_else(String::new, over),
        Some(changes) => format!("  changes {}", changes_text(changes)),
    };
    format!("{id:<id_width$}  {size:>9}  {cache:<12}  {access}  {path}{base}{address}")
}

/// The log of a recorded disk, and the memory for what is not in it yet.
fn record_row(disk: &DiskConfig, id_width: usize) -> Option<(&'static str, String)> {
    let log = disk.record.as_ref()?;
    let memory = human_size(u64::from(disk.queues) * RECORD_QUEUE_BYTES + RECORD_LOG_BYTES);
    let id = disk.id();
    let path = log.path.display();
    Some(("record", format!("{id:<id_width$}  {path}, up to {memory} of memory")))
}

/// Where the changes of an ephemeral disk are.
fn changes_text(EphemeralChanges { place, limit }: &EphemeralChanges) -> String {
    let place = match place {
        EphemeralPlace::Memory => "in memory".to_owned(),
        EphemeralPlace::Folder(folder) => format!("in {}", folder.display()),
    };
    let limit = limit.map_or_else(String::new, |bytes| format!(", {} at most", human_size(bytes)));
    place + &limit
}

fn has_no_disk(machine: &MachineConfig, scsi: &ControllerConfig) -> bool {
    let mut addresses = machine.disks.iter().filter_map(DiskConfig::scsi_address);
    addresses.all(|address| address.controller != scsi.number)
}

fn controller_row(scsi: &ControllerConfig) -> String {
    let queues = if scsi.queues == 1 { "queue" } else { "queues" };
    format!("controller {}  {} {queues}, no disk yet", scsi.number, scsi.queues)
}

fn console_row(console: &ConsoleConfig) -> String {
    match console {
        ConsoleConfig::Stdio => "this terminal".to_owned(),
        ConsoleConfig::File { path, limit } => {
            format!("file {}, rotated at {}", path.display(), human_size(*limit))
        }
        ConsoleConfig::Socket(path) => format!("socket {}", path.display()),
        ConsoleConfig::Off => "off".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::KernelConfig;

    #[test]
    fn a_summary_has_no_control_characters() {
        let kernel = KernelConfig {
            image: "vmlinuz".into(),
            initramfs: None,
            cmdline: "a\u{1b}[31m\nb".into(),
        };
        let config = MachineConfig {
            vcpus: 1,
            memory_bytes: 1 << 30,
            shutdown_grace: Duration::from_secs(1),
            kernel,
            disks: vec![],
            controllers: vec![],
            nets: vec![],
            console: ConsoleConfig::Off,
            control: None,
        };
        let summary = machine(Path::new("vm\x1b.toml"), &config);
        assert!(summary.contains("a\u{fffd}[31m\u{fffd}b"), "{summary}");
        assert!(!summary.contains('\x1b'), "{summary:?}");
    }
}
