//! From the tables of a file to the configuration: fills in the defaults. Pure.

use block::{DiskOptions, RecordOptions};
use toml::Spanned;

use super::limits::{VCPUS_MAX, default_queues};
use super::model::{
    ConsoleConfig, DiskBus, DiskConfig, EphemeralChanges, KernelConfig, MachineConfig, NetConfig,
    ScsiAddress,
};
use super::scsi;
use super::source::{ConsoleTable, DiskTable, KernelTable, MachineSource, NetTable};

const CMDLINE: &str = "console=ttyS0";

/// The machine of a file; `None` where a value is missing or invalid.
pub(super) fn machine(source: MachineSource) -> Option<MachineConfig> {
    let vcpus = source.machine.vcpus?.into_inner();
    let controllers = scsi::controllers(&source.disks, &source.controllers, vcpus);
    let addresses = scsi::addresses(&source.disks);
    let disks = source.disks.into_iter().zip(addresses);
    Some(MachineConfig {
        vcpus: u8::try_from(vcpus).ok()?,
        memory_bytes: source.machine.memory?.into_inner(),
        shutdown_grace: source.machine.shutdown_grace,
        kernel: kernel(source.kernel)?,
        disks: disks.map(|(table, address)| disk(table, vcpus, address)).collect::<Option<_>>()?,
        controllers,
        nets: source.nets.into_iter().map(net).collect::<Option<_>>()?,
        console: console(source.console),
        control: source.control.map(Spanned::into_inner),
    })
}

fn kernel(table: KernelTable) -> Option<KernelConfig> {
    Some(KernelConfig {
        image: table.image?.into_inner(),
        initramfs: table.initramfs.map(Spanned::into_inner),
        cmdline: table.cmdline.unwrap_or_else(|| CMDLINE.to_owned()),
    })
}

/// A disk of a guest with `vcpus` processors; `address` is that of a SCSI disk.
pub(super) fn disk(
    table: DiskTable,
    vcpus: u16,
    address: Option<ScsiAddress>,
) -> Option<DiskConfig> {
    table.keys.span("id")?;
    table.keys.span(if table.ephemeral.is_some() { "base" } else { "path" })?;
    if table.keys.has_invalid() {
        return None;
    }
    let limit = table.changes_limit();
    let record = table.record.clone();
    let record = record.map(|path| RecordOptions { path, limit: table.record_limit });
    let DiskTable { path, base, create, ephemeral, queues, serial, options, .. } = table;
    Some(DiskConfig {
        path,
        base,
        create,
        ephemeral: ephemeral.map(|place| EphemeralChanges { place, limit }),
        bus: address.map_or(DiskBus::VirtioBlk, DiskBus::VirtioScsi),
        queues: queues.unwrap_or(default_queues(vcpus)),
        record,
        serial: serial.unwrap_or_else(|| options.id.clone()),
        options,
    })
}

/// A disk that is served without a machine: the number of the guest's vCPUs is not known, and the
/// guest lives on when this program is killed.
pub(super) fn served_disk(table: DiskTable) -> Option<DiskConfig> {
    let served = disk(table, VCPUS_MAX, None)?;
    let options = DiskOptions { survives_kill: true, ..served.options };
    Some(DiskConfig { options, ..served })
}

fn net(table: NetTable) -> Option<NetConfig> {
    Some(NetConfig { mac: table.mac()?, tap: table.tap?.into_inner() })
}

fn console(table: ConsoleTable) -> ConsoleConfig {
    match table {
        ConsoleTable::Stdio => ConsoleConfig::Stdio,
        ConsoleTable::File { path, limit } => {
            ConsoleConfig::File { path: path.into_inner(), limit }
        }
        ConsoleTable::Socket(path) => ConsoleConfig::Socket(path.into_inner()),
        ConsoleTable::Off => ConsoleConfig::Off,
    }
}
