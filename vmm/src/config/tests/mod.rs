//! The diagnostics of each check. `SNAPSHOTS=overwrite cargo test -p vmm` rewrites the expected
//! text; read the difference before you commit it.

mod any_text;
mod control;
mod devices;
mod disk_memory;
mod disks;
mod ephemeral;
mod host;
mod images;
mod layers;
mod numbers;
mod record;
mod scsi;
mod tables;

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use proptest::prelude::*;
use rustix::io::Errno;
use snapbox::{assert_data_eq, str};
use tempfile::TempDir;

use self::host::HostFixture;
use super::host::{Host, Purpose, check_direct, check_disk};
use super::report::{Diagnostic, Location, Severity};
use super::{MachineConfig, Report, build, disk_keys, parse, size, value};

/// The shortest configuration.
const BASE: &str = "[machine]\nmemory='64MiB'\n[kernel]\nimage='vmlinuz'\n";

/// Each diagnostic as message, marked text with its label, and help.
fn lines(text: &str, mut diagnostics: Vec<Diagnostic>) -> String {
    diagnostics.sort_by_key(|d| match &d.location {
        Location::Text(label) => label.span.start,
        Location::File | Location::Host => usize::MAX,
    });
    let line = |d: &Diagnostic| {
        let severity = if d.severity == Severity::Warning { "warning: " } else { "" };
        let location = match &d.location {
            Location::Text(label) => {
                let shown: String = text[label.span.clone()].chars().take(40).collect();
                format!("\n  {shown}  <- {}", label.text)
            }
            Location::File => "\n  (file)".to_owned(),
            Location::Host => "\n  (host)".to_owned(),
        };
        let related = d.related.as_ref().map_or(String::new(), |label| {
            format!("\n  {}  <- {}", &text[label.span.clone()], label.text)
        });
        let help = d.help.as_ref().map_or(String::new(), |help| format!("\n  {help}"));
        format!("{severity}{}{location}{related}{help}\n", d.message)
    };
    diagnostics.iter().map(line).collect()
}

/// The diagnostics of a machine's file, without those of the host.
fn report(text: &str) -> String {
    lines(text, parse::parse_machine(text, Path::new("")).1)
}

/// The diagnostics of [`BASE`] followed by `text`.
fn report_with_base(text: &str) -> String {
    report(&format!("{BASE}{text}"))
}

#[test]
fn the_shortest_configuration_gets_the_defaults() {
    let (source, diagnostics) = parse::parse_machine(BASE, Path::new("/vm"));
    assert_eq!(diagnostics, []);
    assert_data_eq!(
        format!("{:#?}", source.map(build::machine).unwrap().unwrap()),
        str![[r#"
MachineConfig {
    vcpus: 1,
    memory_bytes: 67108864,
    shutdown_grace: 30s,
    kernel: KernelConfig {
        image: "/vm/vmlinuz",
        initramfs: None,
        cmdline: "console=ttyS0",
    },
    disks: [],
    controllers: [],
    nets: [],
    console: Stdio,
    control: None,
}
"#]]
    );
}

/// A value for every key of a machine with a virtio-blk disk.
const ALL_VALUES: &str = "
    machine = { vcpus = 2, memory = '1 GiB', shutdown_grace = '1500ms' }
    kernel = { image = '/k', initramfs = 'i', cmdline = 'quiet' }
    disk = [{ id = 'a', path = 'a.img', cache = 'none', bus = 'virtio-blk',
              readonly = true, queues = 2, serial = 'S 1', block_size = 4096,
              engine = 'threads', on_enospc = 'hold', hold_deadline = '1m',
              discard = 'ignore', detect_zeroes = 'on', thin = { soft_limit = '80%' } }]
    net = [{ tap = 'tap0', mac = '02:00:00:00:00:01' }, { tap = 'tap1' }]
    console = { socket = 'c' }";

fn machine_with_all_values() -> MachineConfig {
    let (source, diagnostics) = parse::parse_machine(ALL_VALUES, Path::new("/vm"));
    assert_eq!(diagnostics, []);
    source.map(build::machine).unwrap().unwrap()
}

#[test]
fn every_value_of_the_machine_is_used() {
    let machine = machine_with_all_values();
    let nets: Vec<_> = machine.nets.iter().map(|net| (&*net.tap, net.mac)).collect();
    let derived = [2, 217, 99, 253, 239, 7];
    assert_eq!(nets, [("tap0", [2, 0, 0, 0, 0, 1]), ("tap1", derived)]);
    assert_data_eq!(
        format!("{:#?}", MachineConfig { disks: vec![], nets: vec![], ..machine }),
        str![[r#"
MachineConfig {
    vcpus: 2,
    memory_bytes: 1073741824,
    shutdown_grace: 1.5s,
    kernel: KernelConfig {
        image: "/k",
        initramfs: Some(
            "/vm/i",
        ),
        cmdline: "quiet",
    },
    disks: [],
    controllers: [],
    nets: [],
    console: Socket(
        "/vm/c",
    ),
    control: None,
}
"#]]
    );
}

#[test]
fn every_value_of_a_disk_is_used() {
    assert_data_eq!(
        format!("{:#?}", machine_with_all_values().disks),
        str![[r#"
[
    DiskConfig {
        path: "/vm/a.img",
        base: None,
        create: false,
        ephemeral: None,
        bus: VirtioBlk,
        queues: 2,
        record: None,
        serial: "S 1",
        options: DiskOptions {
            id: "a",
            cache: None,
            read_only: true,
            block_size: Some(
                4096,
            ),
            format: Auto,
            lock: On,
            engine: Threads,
            on_enospc: Hold {
                deadline: 60s,
            },
            soft_limit: Some(
                80,
            ),
            discard: false,
            detect_zeroes: On,
            copy_memory: 4194304,
            stable_copies: Auto,
            survives_kill: false,
        },
    },
]
"#]]
    );
}

#[test]
fn examples_and_documentation_are_valid() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let examples = fs::read_dir(root.join("resources/examples")).unwrap();
    let mut texts: Vec<String> =
        examples.map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap()).collect();
    let reference = fs::read_to_string(root.join("docs/config.md")).unwrap();
    let blocks = reference.split("```toml\n").skip(1);
    texts.extend(blocks.map(|block| block.split("```").next().unwrap().to_owned()));
    assert!(texts.len() > 2);
    for text in texts {
        assert_eq!(report(&text), "", "{text}");
    }
}

#[test]
fn the_reference_describes_every_disk_key() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let reference = fs::read_to_string(root.join("docs/config.md")).unwrap();
    let openapi = fs::read_to_string(root.join("resources/openapi.json")).unwrap();
    let openapi: serde_json::Value = serde_json::from_str(&openapi).unwrap();
    let attached = &openapi["components"]["schemas"]["NewDisk"]["properties"];
    for key in disk_keys::DISK_KEYS {
        let row = format!("| `{}` |", key.name);
        let is_described = reference.contains(&row) || key.name == "thin";
        assert!(is_described, "docs/config.md lacks {row}");
        let is_described = attached.get(key.name).is_some() || key.name == "id";
        assert!(is_described, "openapi.json lacks {}", key.name);
    }
    for key in disk_keys::THIN_KEYS {
        let row = format!("| `[disk.thin]` `{}` |", key.name);
        assert!(reference.contains(&row), "docs/config.md lacks {row}");
        let is_described = attached["thin"]["properties"].get(key.name).is_some();
        assert!(is_described, "openapi.json lacks thin.{}", key.name);
    }
}
