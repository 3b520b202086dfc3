//! Disks: their keys, and `check --json`.

use super::*;
use crate::config::disk_keys::{DISK_KEYS, THIN_KEYS};

#[test]
fn thin_disks() {
    let disk = "[[disk]]\nid='a'\npath='a'\n";
    let text = "discard='no'\ndetect_zeroes='yes'\n[disk.thin]\nsoft_limit='100%'\nlimit=1\n";
    assert_data_eq!(
        report_with_base(&format!("{disk}{text}")),
        str![[r#"
`discard` has an unknown value
  'no'  <- not a valid value
  write one of "unmap", "ignore"
`detect_zeroes` has an unknown value
  'yes'  <- not a valid value
  write one of "off", "on", "unmap"
`soft_limit` is not a percentage
  '100%'  <- not from 1 to 99
  write a percentage from "1%" to "99%", such as "80%"
unknown key `limit`
  limit  <- not a key of [disk.thin]
  the keys of [disk.thin] are: soft_limit

"#]]
    );
    let text = "discard='ignore'\ndetect_zeroes='unmap'\n[disk.thin]\nsoft_limit=80\n";
    assert_data_eq!(
        report_with_base(&format!("{disk}{text}")),
        str![[r#"
`detect_zeroes = "unmap"` with `discard = "ignore"`
  'unmap'  <- no space can be freed
  write `detect_zeroes = "on"`, or `discard = "unmap"`
`soft_limit` is not a percentage
  80  <- a bare number
  write a percentage from "1%" to "99%", such as "80%"

"#]]
    );
    assert_data_eq!(
        report_with_base(&format!("{disk}[disk.thin]\n")),
        str![[r#"
`[disk.thin]` has no `soft_limit`
  [disk.thin]  <- needs `soft_limit`
  add `soft_limit = "80%"`

"#]]
    );
    for share in ["1%", "80 %", "99%"] {
        let text = format!("{disk}thin={{soft_limit='{share}'}}\n");
        assert_eq!(report_with_base(&text), "", "{share}");
    }
}

#[test]
fn invalid_values_of_disk_keys() {
    let disk = "[[disk]]\nid='a'\npath='a'\n";
    assert_data_eq!(
        report_with_base(&format!(
            "{disk}block_size=1024\nengine='io-uring'\non_enospc='wait'\nhold_deadline='5m'\n"
        )),
        str![[r#"
`block_size` is not a valid block size
  1024  <- must be 512 or 4096
  write 512 or 4096
`engine` has an unknown value
  'io-uring'  <- did you mean "io_uring"?
  write one of "auto", "io_uring", "threads"
`on_enospc` has an unknown value
  'wait'  <- not a valid value
  write one of "report", "hold"
`hold_deadline` without `on_enospc = "hold"`
  '5m'  <- has no effect: writes are not held
  write `on_enospc = "hold"`, or remove `hold_deadline`

"#]]
    );
    assert_eq!(report_with_base(&format!("{disk}on_enospc='hold'\n")), "");
    assert_eq!(report_with_base(&format!("{disk}on_enospc='hold'\nhold_deadline='90s'\n")), "");
}

#[test]
fn disabled_lock_is_a_warning() {
    let disk = "[[disk]]\nid='a'\npath='a'\nlock=";
    assert_eq!(report_with_base(&format!("{disk}'on'\n")), "");
    assert_data_eq!(
        report_with_base(&format!("{disk}'off'\n")),
        str![[r#"
warning: `lock = "off"` does not keep other machines off the image
  'off'  <- a second machine that writes the image destroys its data
  write "on", unless the file system of the image has no locks

"#]]
    );
}

/// Every key of a disk, each with a value that is not the default. Those of an ephemeral disk do
/// not fit the others.
const ALL_KEYS: &str = "[[disk]]
id = 'all'
path = 'all.img'
base = 'base.img'
create = true
cache = 'none'
bus = 'virtio-scsi'
controller = 1
target = 2
lun = 3
readonly = true
queues = 2
serial = 'S 1'
block_size = 4096
engine = 'threads'
on_enospc = 'hold'
hold_deadline = '1m'
discard = 'ignore'
detect_zeroes = 'on'
format = 'raw'
lock = 'off'
copy_memory = '8MiB'
stable_copies = 'on'
thin = { soft_limit = '80%' }
[[disk]]
id = 'changes'
base = 'base.img'
ephemeral = 'folder'
ephemeral_limit = '2GiB'
record = 'changes.log'
record_limit = '10GiB'
[[disk]]
id = 'default'
path = 'default.img'
";

#[test]
fn check_json_shows_the_value_of_every_disk_key() {
    for key in DISK_KEYS.iter().chain(&THIN_KEYS) {
        assert!(ALL_KEYS.contains(&format!("{} = ", key.name)), "{} is not tested", key.name);
    }
    let text = format!("[machine]\nvcpus=4\nmemory='64MiB'\n[kernel]\nimage='k'\n{ALL_KEYS}");
    let (source, diagnostics) = parse::parse_machine(&text, Path::new(""));
    assert!(diagnostics.iter().all(|d| d.severity == Severity::Warning), "{diagnostics:?}");
    let disks = source.map(build::machine).unwrap().unwrap().disks;
    let [all, changes, default] = disks.as_slice() else { panic!("{disks:?}") };
    let (mut all, changes) = (disk_keys::to_json(all), disk_keys::to_json(changes));
    let default = disk_keys::to_json(default);
    assert_eq!((&changes["path"], &changes["cache"]), (&serde_json::Value::Null, &"unsafe".into()));
    for name in ["ephemeral", "ephemeral_limit_bytes", "record", "record_limit_bytes"] {
        all[name] = changes[name].clone();
    }
    for (name, value) in &all {
        assert_ne!(Some(value), default.get(name), "{name}");
    }
    assert_data_eq!(
        format!("{:#}", serde_json::Value::from(all)),
        str![[r#"
{
  "base": "base.img",
  "block_size": 4096,
  "bus": "virtio-scsi",
  "cache": "none",
  "copy_memory_bytes": 8388608,
  "create": true,
  "detect_zeroes": "on",
  "discard": "ignore",
  "engine": "threads",
  "ephemeral": "folder",
  "ephemeral_limit_bytes": 2147483648,
  "format": "raw",
  "hold_deadline_ms": 60000,
  "id": "all",
  "lock": "off",
  "on_enospc": "hold",
  "path": "all.img",
  "queues": 2,
  "readonly": true,
  "record": "changes.log",
  "record_limit_bytes": 10737418240,
  "scsi": {
    "controller": 1,
    "lun": 3,
    "target": 2
  },
  "serial": "S 1",
  "soft_limit_percent": 80,
  "stable_copies": "on"
}
"#]]
    );
}
