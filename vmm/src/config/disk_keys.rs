//! The keys of `[[disk]]`: for each its name, how it is read, and how `check --json` shows it.
//! Pure.
//!
//! A key that `block` evaluates is a field of `block::DiskOptions` and one entry here. It cannot be
//! missing in `check --json`, because that shows every entry.

use std::path::Path;
use std::time::Duration;

use block::{CacheMode, EphemeralPlace, Named, OnEnospc};
use devices::virtio::Address;
use serde_json::{Map, Value, json};
use toml::de::DeValue;

use super::limits::{CONTROLLER_MAX, LUN_MAX, TARGET_MAX, VCPUS_MAX};
use super::model::{DiskBus, DiskConfig, ScsiAddress};
use super::size;
use super::source::{BusKind, DiskTable};
use super::table::TableReader;
use super::value::{self, Read};

/// One key of `[[disk]]`.
pub(super) struct DiskKey {
    pub(super) name: &'static str,
    /// A valid value in TOML, for messages.
    example: &'static str,
    required: bool,
    /// Reads the value into the disk; a path is relative to the given folder.
    read: fn(&mut DiskTable, &DeValue<'_>, &Path) -> Read<()>,
    /// Name and value in `check --json`. Several keys may share one.
    json: (&'static str, fn(&DiskConfig) -> Value),
}

/// The keys of `[[disk]]`, in the order in which messages list them.
pub(super) const DISK_KEYS: [DiskKey; 27] = [
    // The disk's name, unique in the machine.
    DiskKey {
        name: "id",
        example: "\"root\"",
        required: true,
        read: |disk, value, _| set(&mut disk.options.id, value::id(value)),
        json: ("id", |disk| json!(disk.id())),
    },
    // The image file or block device. An ephemeral disk has none.
    DiskKey {
        name: "path",
        example: "\"root.img\"",
        required: true,
        read: |disk, value, folder| set(&mut disk.path, value::path(value, folder)),
        json: ("path", |disk| match disk.ephemeral {
            None => json!(disk.path.display().to_string()),
            Some(_) => Value::Null,
        }),
    },
    // The base of the layer in `path`.
    DiskKey {
        name: "base",
        example: "\"debian.img\"",
        required: false,
        read: |disk, value, folder| set(&mut disk.base, value::path(value, folder).map(Some)),
        json: ("base", |disk| json!(disk.base.as_ref().map(|base| base.display().to_string()))),
    },
    // Whether the layer is made if it does not exist.
    DiskKey {
        name: "create",
        example: "true",
        required: false,
        read: |disk, value, _| set(&mut disk.create, value::boolean(value)),
        json: ("create", |disk| json!(disk.create)),
    },
    // The cache mode: when a completed write is durable.
    DiskKey {
        name: "cache",
        example: "\"writeback\"",
        required: false,
        read: |disk, value, _| set(&mut disk.options.cache, value::named(value)),
        json: ("cache", |disk| json!(disk.options.cache.name())),
    },
    // Where changes of the disk are kept until the end of the program, if they are not kept for
    // longer. Follows `cache`, whose value it replaces.
    DiskKey {
        name: "ephemeral",
        example: "true",
        required: false,
        read: |disk, value, folder| {
            disk.ephemeral = value::ephemeral(value, folder)?;
            if disk.ephemeral.is_some() {
                disk.options.cache = CacheMode::Unsafe;
            }
            Ok(())
        },
        json: ("ephemeral", |disk| match disk.ephemeral.as_ref().map(|changes| &changes.place) {
            None => json!(false),
            Some(EphemeralPlace::Memory) => json!(true),
            Some(EphemeralPlace::Folder(folder)) => json!(folder.display().to_string()),
        }),
    },
    // The most bytes of these changes.
    DiskKey {
        name: "ephemeral_limit",
        example: "\"1GiB\"",
        required: false,
        read: |disk, value, _| {
            set(&mut disk.ephemeral_limit, size::ephemeral_limit(value).map(Some))
        },
        json: ("ephemeral_limit_bytes", |disk| {
            json!(disk.ephemeral.as_ref().and_then(|changes| changes.limit))
        }),
    },
    // The guest's interface to the disk.
    DiskKey {
        name: "bus",
        example: "\"virtio-scsi\"",
        required: false,
        read: |disk, value, _| set(&mut disk.bus, value::named(value)),
        json: ("bus", |disk| match disk.bus {
            DiskBus::VirtioBlk => json!(BusKind::VirtioBlk.name()),
            DiskBus::VirtioScsi(_) => json!(BusKind::VirtioScsi.name()),
        }),
    },
    // The SCSI controller, by number.
    DiskKey {
        name: "controller",
        example: "0",
        required: false,
        read: |disk, value, _| number(&mut disk.controller, value, CONTROLLER_MAX),
        json: ("scsi", scsi_json),
    },
    // The target on the controller.
    DiskKey {
        name: "target",
        example: "0",
        required: false,
        read: |disk, value, _| number(&mut disk.target, value, TARGET_MAX),
        json: ("scsi", scsi_json),
    },
    // The logical unit number; the lowest free one by default.
    DiskKey {
        name: "lun",
        example: "0",
        required: false,
        read: |disk, value, _| number(&mut disk.lun, value, LUN_MAX),
        json: ("scsi", scsi_json),
    },
    // Whether writes are refused.
    DiskKey {
        name: "readonly",
        example: "true",
        required: false,
        read: |disk, value, _| set(&mut disk.options.read_only, value::boolean(value)),
        json: ("readonly", |disk| json!(disk.options.read_only)),
    },
    // Request queues.
    DiskKey {
        name: "queues",
        example: "1",
        required: false,
        read: |disk, value, _| {
            set(&mut disk.queues, value::integer(value, 1..=VCPUS_MAX).map(Some))
        },
        json: ("queues", |disk| json!(disk.queues)),
    },
    // The serial number that the guest reads; the id by default.
    DiskKey {
        name: "serial",
        example: "\"A1B2C3\"",
        required: false,
        read: |disk, value, _| set(&mut disk.serial, value::serial(value).map(Some)),
        json: ("serial", |disk| json!(disk.serial)),
    },
    // The logical block size; by default that of the device, and 512 for a file.
    DiskKey {
        name: "block_size",
        example: "4096",
        required: false,
        read: |disk, value, _| {
            set(&mut disk.options.block_size, value::block_size(value).map(Some))
        },
        json: ("block_size", |disk| json!(disk.options.block_size)),
    },
    // The I/O engine.
    DiskKey {
        name: "engine",
        example: "\"auto\"",
        required: false,
        read: |disk, value, _| set(&mut disk.options.engine, value::named(value)),
        json: ("engine", |disk| json!(disk.options.engine.name())),
    },
    // Whether a write that fails with ENOSPC or EDQUOT is reported or held.
    DiskKey {
        name: "on_enospc",
        example: "\"hold\"",
        required: false,
        read: |disk, value, _| {
            disk.options.on_enospc = match value::one_of(value, &["report", "hold"])? {
                "hold" => OnEnospc::Hold { deadline: HOLD_DEADLINE },
                _ => OnEnospc::Report,
            };
            Ok(())
        },
        json: ("on_enospc", |disk| match disk.options.on_enospc {
            OnEnospc::Report => json!("report"),
            OnEnospc::Hold { .. } => json!("hold"),
        }),
    },
    // How long a write is held. Follows `on_enospc`, whose value it completes.
    DiskKey {
        name: "hold_deadline",
        example: "\"5m\"",
        required: false,
        read: |disk, value, _| {
            let read = value::duration(value)?;
            if let OnEnospc::Hold { deadline } = &mut disk.options.on_enospc {
                *deadline = read;
            }
            Ok(())
        },
        json: ("hold_deadline_ms", |disk| match disk.options.on_enospc {
            OnEnospc::Report => Value::Null,
            OnEnospc::Hold { deadline } => json!(u64::try_from(deadline.as_millis()).ok()),
        }),
    },
    // Whether the guest may discard.
    DiskKey {
        name: "discard",
        example: "\"unmap\"",
        required: false,
        read: |disk, value, _| {
            disk.options.discard = value::one_of(value, &["unmap", "ignore"])? == "unmap";
            Ok(())
        },
        json: ("discard", |disk| json!(if disk.options.discard { "unmap" } else { "ignore" })),
    },
    // Whether a write of zeroes becomes a zeroing, and whether that frees space.
    DiskKey {
        name: "detect_zeroes",
        example: "\"unmap\"",
        required: false,
        read: |disk, value, _| {
            let read = value::named(value);
            set(&mut disk.options.detect_zeroes, read)
        },
        json: ("detect_zeroes", |disk| json!(disk.options.detect_zeroes.name())),
    },
    // Whether an image of another format is refused.
    DiskKey {
        name: "format",
        example: "\"raw\"",
        required: false,
        read: |disk, value, _| set(&mut disk.options.format, value::named(value)),
        json: ("format", |disk| json!(disk.options.format.name())),
    },
    // Whether the image is locked.
    DiskKey {
        name: "lock",
        example: "\"on\"",
        required: false,
        read: |disk, value, _| set(&mut disk.options.lock, value::named(value)),
        json: ("lock", |disk| json!(disk.options.lock.name())),
    },
    // Memory for copies of the guest's data.
    DiskKey {
        name: "copy_memory",
        example: "\"4MiB\"",
        required: false,
        read: |disk, value, _| set(&mut disk.options.copy_memory, size::copy_memory(value)),
        json: ("copy_memory_bytes", |disk| json!(disk.options.copy_memory)),
    },
    // Which direct transfers are copied.
    DiskKey {
        name: "stable_copies",
        example: "\"auto\"",
        required: false,
        read: |disk, value, _| set(&mut disk.options.stable_copies, value::named(value)),
        json: ("stable_copies", |disk| json!(disk.options.stable_copies.name())),
    },
    // The log of what passes the disk.
    DiskKey {
        name: "record",
        example: "\"disk.log\"",
        required: false,
        read: |disk, value, folder| set(&mut disk.record, value::path(value, folder).map(Some)),
        json: ("record", |disk| {
            json!(disk.record.as_ref().map(|log| log.path.display().to_string()))
        }),
    },
    // The most bytes of this log.
    DiskKey {
        name: "record_limit",
        example: "\"10GiB\"",
        required: false,
        read: |disk, value, _| set(&mut disk.record_limit, size::record_limit(value).map(Some)),
        json: ("record_limit_bytes", |disk| json!(disk.record.as_ref().and_then(|log| log.limit))),
    },
    // The table of `THIN_KEYS`.
    DiskKey {
        name: "thin",
        example: "{ soft_limit = \"80%\" }",
        required: false,
        read: |_, value, _| value::table(value).map(drop),
        json: ("soft_limit_percent", soft_limit_json),
    },
];

/// The keys of `[disk.thin]`.
pub(super) const THIN_KEYS: [DiskKey; 1] = [
    // Usage of the backing store, in percent, at which the guest is warned.
    DiskKey {
        name: "soft_limit",
        example: "\"80%\"",
        required: true,
        read: |disk, value, _| set(&mut disk.options.soft_limit, value::percent(value).map(Some)),
        json: ("soft_limit_percent", soft_limit_json),
    },
];

const HOLD_DEADLINE: Duration = Duration::from_secs(5 * 60);

fn set<T>(field: &mut T, value: Read<T>) -> Read<()> {
    *field = value?;
    Ok(())
}

fn number(field: &mut Option<u16>, value: &DeValue<'_>, max: u16) -> Read<()> {
    set(field, value::integer(value, 0..=max).map(Some))
}

fn scsi_json(disk: &DiskConfig) -> Value {
    disk.scsi_address().map_or(Value::Null, |scsi| {
        let ScsiAddress { controller, address: Address { target, lun } } = scsi;
        json!({ "controller": controller, "target": target, "lun": lun })
    })
}

fn soft_limit_json(disk: &DiskConfig) -> Value {
    json!(disk.options.soft_limit)
}

/// Reads `keys` of `table` into `disk`.
pub(super) fn read<'t>(
    table: &mut TableReader<'t, '_>,
    keys: &[DiskKey],
    disk: &mut DiskTable,
    folder: &Path,
) {
    for key in keys {
        let read = |value: &'t DeValue<'t>| (key.read)(disk, value, folder);
        // The rules check an ephemeral disk.
        let is_required = key.required && !(key.name == "path" && table.has("ephemeral"));
        let value = if is_required {
            table.required(key.name, key.example, read)
        } else {
            table.optional(key.name, key.example, read)
        };
        if table.has(key.name) {
            disk.keys.record(key.name, value.map(|value| value.span()));
        }
    }
}

/// Every key of a disk, as `check --json` shows it.
pub(crate) fn to_json(disk: &DiskConfig) -> Map<String, Value> {
    let keys = DISK_KEYS.iter().chain(&THIN_KEYS);
    keys.map(|DiskKey { json: (name, value), .. }| ((*name).to_owned(), value(disk))).collect()
}
