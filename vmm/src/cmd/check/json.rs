//! The configuration as JSON. `config` lists the keys of a disk, so that none can be missing.

use std::fs::File;

use serde_json::{Value, json};

use crate::config::disk_file::DiskFile;
use crate::config::needs::{EnginePolicy, ResourceNeeds};
use crate::config::{
    self, ConsoleConfig, DiskConfig, KernelConfig, KernelFormat, MachineConfig, Report,
    display_mac, image_size, kernel_format_of,
};
use crate::process_limits::ProcessLimits;

pub(super) fn machine_file(machine: Option<&MachineConfig>, report: &Report) -> String {
    let answer = json!({
        "ok": machine.is_some(),
        "machine": machine.map(machine_json),
        "needs": machine.map(|machine| needs_json(EnginePolicy::probe().machine(machine))),
        "diagnostics": report.to_json(),
    });
    format!("{answer:#}\n")
}

pub(super) fn disk_file(file: Option<&DiskFile>, report: &Report) -> String {
    let control = file.and_then(|file| file.control.as_deref());
    let answer = json!({
        "ok": file.is_some(),
        "disk": file.map(|file| disk_json(&file.disk)),
        "control": control.map(|path| path.display().to_string()),
        "needs": file.map(|file| {
            needs_json(EnginePolicy::probe().served_disk(&file.disk, control.is_some()))
        }),
        "diagnostics": report.to_json(),
    });
    format!("{answer:#}\n")
}

fn needs_json(needs: ResourceNeeds) -> Value {
    needs.to_json(&ProcessLimits::probe())
}

fn machine_json(machine: &MachineConfig) -> Value {
    let MachineConfig {
        vcpus,
        memory_bytes,
        shutdown_grace,
        kernel,
        disks,
        controllers,
        nets,
        console,
        control,
    } = machine;
    let KernelConfig { image, initramfs, cmdline } = kernel;
    let (console, console_path) = match console {
        ConsoleConfig::Stdio => ("stdio", None),
        ConsoleConfig::File { path, .. } => ("file", Some(path)),
        ConsoleConfig::Socket(path) => ("socket", Some(path)),
        ConsoleConfig::Off => ("off", None),
    };
    json!({
        "vcpus": vcpus,
        "memory_bytes": memory_bytes,
        "shutdown_grace_ms": u64::try_from(shutdown_grace.as_millis()).ok(),
        "kernel": {
            "image": image.display().to_string(),
            "format": kernel_format_of(image).map(KernelFormat::name),
            "initramfs": initramfs.as_ref().map(|path| path.display().to_string()),
            "cmdline": cmdline,
        },
        "disks": disks.iter().map(disk_json).collect::<Value>(),
        "scsi": controllers.iter().map(|scsi| json!({
            "controller": scsi.number,
            "queues": scsi.queues,
        })).collect::<Value>(),
        "nets": nets.iter().map(|net| json!({
            "tap": net.tap,
            "mac": display_mac(net.mac),
        })).collect::<Value>(),
        "console": { "mode": console, "path": console_path.map(|path| path.display().to_string()) },
        "control": control.as_ref().map(|path| path.display().to_string()),
    })
}

fn disk_json(disk: &DiskConfig) -> Value {
    let mut keys = config::disk_to_json(disk);
    keys.insert("size_bytes".to_owned(), json!(image_bytes(disk)));
    keys.into()
}

/// The size of the disk's image, if it can be read.
pub(super) fn image_bytes(disk: &DiskConfig) -> Option<u64> {
    match &disk.base {
        None => image_size(&File::open(&disk.path).ok()?).ok(),
        Some(base) if disk.ephemeral.is_some() || !disk.path.exists() => {
            block::probe_base(base).ok()
        }
        Some(_) => block::layer_size(&disk.path).ok(),
    }
}
