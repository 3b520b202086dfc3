//! What each guard says. `SNAPSHOTS=overwrite cargo test -p vmm` rewrites the expected text; read
//! the difference before you commit it.

mod any_text;
mod control;
mod devices;
mod host;
mod scsi;

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use proptest::prelude::*;
use rustix::io::Errno;
use snapbox::{assert_data_eq, str};
use tempfile::TempDir;

use self::host::Lab;
use super::host::{Host, check_direct, mem_available};
use super::report::{Diagnostic, Place, Severity};
use super::{Report, check, parse, value};

/// The shortest configuration.
const BASE: &str = "[machine]\nmemory='64MiB'\n[kernel]\nimage='vmlinuz'\n";

/// One line each: what is underlined, what is said of it, what to do.
fn lines(text: &str, mut diagnostics: Vec<Diagnostic>) -> String {
    diagnostics.sort_by_key(|d| match &d.place {
        Place::Text(label) => label.span.start,
        Place::File | Place::Host => usize::MAX,
    });
    let line = |d: &Diagnostic| {
        let severity = if d.severity == Severity::Warning { "warning: " } else { "" };
        let place = match &d.place {
            Place::Text(label) => {
                let shown: String = text[label.span.clone()].chars().take(40).collect();
                format!("\n  {shown}  <- {}", label.text)
            }
            Place::File => "\n  (file)".to_owned(),
            Place::Host => "\n  (host)".to_owned(),
        };
        let related = d.related.as_ref().map_or(String::new(), |label| {
            format!("\n  {}  <- {}", &text[label.span.clone()], label.text)
        });
        let help = d.help.as_ref().map_or(String::new(), |help| format!("\n  {help}"));
        format!("{severity}{}{place}{related}{help}\n", d.message)
    };
    diagnostics.iter().map(line).collect()
}

/// What the text alone tells.
fn said(text: &str) -> String {
    lines(text, parse::parse(text, Path::new("")).1)
}

fn said_after_base(text: &str) -> String {
    said(&format!("{BASE}{text}"))
}

#[test]
fn the_shortest_configuration_gets_the_defaults() {
    let (source, diagnostics) = parse::parse(BASE, Path::new("/vm"));
    assert_eq!(diagnostics, []);
    assert_data_eq!(
        format!("{:#?}", source.unwrap().build().unwrap()),
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

#[test]
fn everything_given_is_taken() {
    let text = "
        machine = { vcpus = 2, memory = '1 GiB', shutdown_grace = '1500ms' }
        kernel = { image = '/k', initramfs = 'i', cmdline = 'quiet' }
        disk = [{ id = 'a', path = 'a.img', cache = 'none', bus = 'virtio-blk',
                  readonly = true, queues = 2, serial = 'S 1', block_size = 4096,
                  engine = 'threads', on_enospc = 'hold', hold_deadline = '1m',
                  discard = 'ignore', detect_zeroes = 'on', thin = { soft_limit = '80%' } }]
        net = [{ tap = 'tap0', mac = '02:00:00:00:00:01' }, { tap = 'tap1' }]
        console = { socket = 'c' }";
    let (source, diagnostics) = parse::parse(text, Path::new("/vm"));
    assert_eq!(diagnostics, []);
    assert_data_eq!(
        format!("{:#?}", source.unwrap().build().unwrap()),
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
    disks: [
        DiskConfig {
            id: "a",
            path: "/vm/a.img",
            bus: VirtioBlk,
            cache: None,
            readonly: true,
            queues: 2,
            serial: "S 1",
            block_size: Some(
                4096,
            ),
            engine: Threads,
            on_enospc: Hold {
                deadline: 60s,
            },
            discard: false,
            detect_zeroes: On,
            soft_limit: Some(
                80,
            ),
        },
    ],
    controllers: [],
    nets: [
        NetConfig {
            tap: "tap0",
            mac: [
                2,
                0,
                0,
                0,
                0,
                1,
            ],
        },
        NetConfig {
            tap: "tap1",
            mac: [
                2,
                217,
                99,
                253,
                239,
                7,
            ],
        },
    ],
    console: Socket(
        "/vm/c",
    ),
    control: None,
}
"#]]
    );
}

#[test]
fn a_summary_has_no_control_characters() {
    let text = format!("{BASE}cmdline = \"a\\u001b[31m\\nb\"");
    let machine = parse::parse(&text, Path::new("")).0.unwrap().build().unwrap();
    let summary = check::summary(Path::new("vm\x1b.toml"), &machine);
    assert!(summary.contains("a\u{fffd}[31m\u{fffd}b"), "{summary}");
    assert!(!summary.contains('\x1b'), "{summary:?}");
}

#[test]
fn syntax_errors_hide_the_rest() {
    assert_data_eq!(
        said("memory = 2GiB\nfoo = [1\nbar = 2\n[x]\n[x]\n"),
        str![[r#"
not valid TOML: string values must be quoted
  2GiB  <- needs quotes
  write "2GiB"
not valid TOML: missing comma between array elements
    <- expected `,`

"#]]
    );
    assert_data_eq!(
        said("a = 1\na = 2\n"),
        str![[r#"
not valid TOML: duplicate key
  a  <- given before
  keep one of the two

"#]]
    );
}

#[test]
fn tables() {
    assert_data_eq!(
        said(""),
        str![[r#"
the configuration has no `[machine]`
  (file)
  add `[machine]`, and below it `memory = "1GiB"`
the configuration has no `[kernel]`
  (file)
  add `[kernel]`, and below it `image = "vmlinuz"`

"#]]
    );
    assert_data_eq!(
        said("[[machine]]\n[[kernel]]\n[disk]\nid='a'\n[netz]\n[x]\n"),
        str![[r#"
`machine` must be one table
  [[machine]]  <- this is a list of tables
  write `[machine]` once, and its keys below
`kernel` must be one table
  [[kernel]]  <- this is a list of tables
  write `[kernel]` once, and its keys below
`disk` must be a list of tables
  [disk]  <- this is a single table
  write `[[disk]]`, once for each
unknown table `netz`
  netz  <- did you mean `net`?
  the tables of a configuration are: machine, kernel, disk, scsi, net, console, control
unknown table `x`
  x  <- not a table of a configuration
  the tables of a configuration are: machine, kernel, disk, scsi, net, console, control

"#]]
    );
    assert_data_eq!(
        said("machine = 1\nkernel = []\ndisk = 'a'\nnet = [1]\nconsole = true"),
        str![[r#"
`machine` must be one table
  1  <- this is a value
  write `[machine]` once, and its keys below
`kernel` must be one table
  []  <- this is a list of tables
  write `[kernel]` once, and its keys below
`disk` must be a list of tables
  'a'  <- this is a value
  write `[[disk]]`, once for each
`net` must be a list of tables
  1  <- this is a value
  write `[[net]]`, once for each
`console` must be one table
  true  <- this is a value
  write `[console]` once, and its keys below

"#]]
    );
    assert_data_eq!(
        said("[machine]\n[kernel]\n[[disk]]\n[[net]]\n[console]\n"),
        str![[r#"
`[machine]` has no `memory`
  [machine]  <- needs `memory`
  add `memory = "1GiB"`
`[kernel]` has no `image`
  [kernel]  <- needs `image`
  add `image = "vmlinuz"`
`[[disk]]` has no `id`
  [[disk]]  <- needs `id`
  add `id = "root"`
`[[disk]]` has no `path`
  [[disk]]  <- needs `path`
  add `path = "root.img"`
`[[net]]` has no `tap`
  [[net]]  <- needs `tap`
  add `tap = "tap0"`

"#]]
    );
}

#[test]
fn unknown_keys() {
    assert_data_eq!(
        said_after_base("[[disk]]\nid='a'\npath='a'\nread_only=true\ncolour=1\n"),
        str![[r#"
unknown key `read_only`
  read_only  <- did you mean `readonly`?
  the keys of [[disk]] are: id, path, cache, bus, controller, target, lun, readonly, queues, serial, block_size, engine, on_enospc, hold_deadline, discard, detect_zeroes, thin
unknown key `colour`
  colour  <- not a key of [[disk]]
  the keys of [[disk]] are: id, path, cache, bus, controller, target, lun, readonly, queues, serial, block_size, engine, on_enospc, hold_deadline, discard, detect_zeroes, thin

"#]]
    );
}

#[test]
fn types() {
    let text = "[machine]\nvcpus='2'\nmemory=true\nshutdown_grace=[]\n[kernel]\nimage=1\n\
                initramfs={}\ncmdline=1.5\n[[disk]]\nid=1\npath=1\ncache=1\nbus=1\nreadonly='yes'\n\
                queues='1'\nserial=1979-05-27\nblock_size='512'\nengine=1\non_enospc=true\n\
                hold_deadline=5\ndiscard=1\ndetect_zeroes=false\nthin=1\n[[net]]\ntap=1\nmac=1\n";
    assert_data_eq!(
        said(text),
        str![[r#"
`vcpus` must be an integer
  '2'  <- this is a string
  write `vcpus = 2`
`memory` must be a size such as "512MiB"
  true  <- this is a boolean
  write `memory = "1GiB"`
`shutdown_grace` must be a time such as "30s"
  []  <- this is an array
  write `shutdown_grace = "30s"`
`image` must be a string
  1  <- this is an integer
  write `image = "vmlinuz"`
`initramfs` must be a string
  {}  <- this is a table
  write `initramfs = "initramfs.img"`
`cmdline` must be a string
  1.5  <- this is a float
  write `cmdline = "console=ttyS0"`
`id` must be a string
  1  <- this is an integer
  write `id = "root"`
`path` must be a string
  1  <- this is an integer
  write `path = "root.img"`
`cache` must be a string
  1  <- this is an integer
  write `cache = "writeback"`
`bus` must be a string
  1  <- this is an integer
  write `bus = "virtio-scsi"`
`readonly` must be true or false
  'yes'  <- this is a string
  write `readonly = true`
`queues` must be an integer
  '1'  <- this is a string
  write `queues = 1`
`serial` must be a string
  1979-05-27  <- this is a datetime
  write `serial = "A1B2C3"`
`block_size` must be 512 or 4096
  '512'  <- this is a string
  write `block_size = 4096`
`engine` must be a string
  1  <- this is an integer
  write `engine = "auto"`
`on_enospc` must be a string
  true  <- this is a boolean
  write `on_enospc = "hold"`
`hold_deadline` has no unit
  5  <- a bare number
  write a unit, such as "5s"
`discard` must be a string
  1  <- this is an integer
  write `discard = "unmap"`
`detect_zeroes` must be a string
  false  <- this is a boolean
  write `detect_zeroes = "unmap"`
`thin` must be a table
  1  <- this is an integer
  write `thin = { soft_limit = "80%" }`
`tap` must be a string
  1  <- this is an integer
  write `tap = "tap0"`
`mac` must be a string
  1  <- this is an integer
  write `mac = "02:00:00:00:00:01"`

"#]]
    );
}

#[test]
fn thin_disks() {
    let disk = "[[disk]]\nid='a'\npath='a'\n";
    let text = "discard='no'\ndetect_zeroes='yes'\n[disk.thin]\nsoft_limit='100%'\nlimit=1\n";
    assert_data_eq!(
        said_after_base(&format!("{disk}{text}")),
        str![[r#"
`discard` has an unknown value
  'no'  <- not one of its values
  write one of "unmap", "ignore"
`detect_zeroes` has an unknown value
  'yes'  <- not one of its values
  write one of "off", "on", "unmap"
`soft_limit` is no share
  '100%'  <- not from 1 to 99
  write a share from "1%" to "99%", such as "80%"
unknown key `limit`
  limit  <- not a key of [disk.thin]
  the keys of [disk.thin] are: soft_limit

"#]]
    );
    let text = "discard='ignore'\ndetect_zeroes='unmap'\n[disk.thin]\nsoft_limit=80\n";
    assert_data_eq!(
        said_after_base(&format!("{disk}{text}")),
        str![[r#"
`detect_zeroes = "unmap"` with `discard = "ignore"`
  'unmap'  <- no space is given back
  write `detect_zeroes = "on"`, or `discard = "unmap"`
`soft_limit` is no share
  80  <- a bare number
  write a share from "1%" to "99%", such as "80%"

"#]]
    );
    assert_data_eq!(
        said_after_base(&format!("{disk}[disk.thin]\n")),
        str![[r#"
`[disk.thin]` has no `soft_limit`
  [disk.thin]  <- needs `soft_limit`
  add `soft_limit = "80%"`

"#]]
    );
    for share in ["1%", "80 %", "99%"] {
        let text = format!("{disk}thin={{soft_limit='{share}'}}\n");
        assert_eq!(said_after_base(&text), "", "{share}");
    }
}

#[test]
fn what_a_disk_can_be_is_named() {
    let disk = "[[disk]]\nid='a'\npath='a'\n";
    assert_data_eq!(
        said_after_base(&format!(
            "{disk}block_size=1024\nengine='io-uring'\non_enospc='wait'\nhold_deadline='5m'\n"
        )),
        str![[r#"
`block_size` is no block size
  1024  <- must be 512 or 4096
  write 512 or 4096
`engine` has an unknown value
  'io-uring'  <- did you mean "io_uring"?
  write one of "auto", "io_uring", "threads"
`on_enospc` has an unknown value
  'wait'  <- not one of its values
  write one of "report", "hold"
`hold_deadline` without `on_enospc = "hold"`
  '5m'  <- nothing is held
  write `on_enospc = "hold"`, or leave `hold_deadline` out

"#]]
    );
    assert_eq!(said_after_base(&format!("{disk}on_enospc='hold'\n")), "");
    assert_eq!(said_after_base(&format!("{disk}on_enospc='hold'\nhold_deadline='90s'\n")), "");
}

fn memory(value: &str) -> String {
    said(&format!("[machine]\nmemory={value}\n[kernel]\nimage='k'"))
}

#[test]
fn memory_sizes() {
    for good in ["'32MiB'", "'32 MiB'", "'1TiB'", "'32768KiB'"] {
        assert_eq!(memory(good), "");
    }
    let bad = [
        "2048",
        "2147483648",
        "'2048'",
        "'2GB'",
        "'2G'",
        "'2gib'",
        "''",
        "'GiB'",
        "'1.5GiB'",
        "'-1GiB'",
        "'1XiB'",
        "'ééé'",
        "'99999999TiB'",
        "'99999999999999999999GiB'",
        "'30MiB'",
        "'33MiB'",
        "0",
    ];
    assert_data_eq!(
        bad.map(memory).concat(),
        str![[r#"
`memory` has no unit
  2048  <- a bare number
  write a unit, such as "2048MiB"
`memory` has no unit
  2147483648  <- a bare number
  write a unit, such as "2GiB"
`memory` has no unit
  '2048'  <- a bare number
  write a unit, such as "2048MiB"
`memory` has an unknown unit
  '2GB'  <- `GB` is not `GiB`
  write "2GiB"; sizes count in powers of 1024
`memory` has an unknown unit
  '2G'  <- `G` is not `GiB`
  write "2GiB"; sizes count in powers of 1024
`memory` has an unknown unit
  '2gib'  <- `gib` is not `GiB`
  write "2GiB"; sizes count in powers of 1024
`memory` is not a size
  ''  <- expected a whole number and a unit
  write a size such as "512MiB" or "2GiB"; the units are KiB, MiB, GiB and TiB
`memory` has no number
  'GiB'  <- a unit alone
  write a size such as "512MiB"
`memory` is not a size
  '1.5GiB'  <- expected a whole number and a unit
  write a size such as "512MiB" or "2GiB"; the units are KiB, MiB, GiB and TiB
`memory` is not a size
  '-1GiB'  <- expected a whole number and a unit
  write a size such as "512MiB" or "2GiB"; the units are KiB, MiB, GiB and TiB
`memory` is not a size
  '1XiB'  <- expected a whole number and a unit
  write a size such as "512MiB" or "2GiB"; the units are KiB, MiB, GiB and TiB
`memory` is not a size
  'ééé'  <- expected a whole number and a unit
  write a size such as "512MiB" or "2GiB"; the units are KiB, MiB, GiB and TiB
`memory` is too large
  '99999999TiB'  <- does not fit in 64 bits
  write a size such as "512MiB"
`memory` is too large
  '99999999999999999999GiB'  <- does not fit in 64 bits
  write a size such as "512MiB"
`memory` is too small to boot Linux
  '30MiB'  <- 30 MiB
  write "32MiB" or more
`memory` is not a multiple of 2 MiB
  '33MiB'  <- 33 MiB
  write "34MiB" or more
`memory` has no unit
  0  <- a bare number
  write a unit, such as "512MiB"

"#]]
    );
}

#[test]
fn times() {
    let grace = |value| {
        said(&format!("[machine]\nmemory='64MiB'\nshutdown_grace={value}\n[kernel]\nimage='k'"))
    };
    for good in ["'0s'", "'2m'", "'1500ms'"] {
        assert_eq!(grace(good), "");
    }
    assert_data_eq!(
        ["30", "'30'", "'30 sec'", "'s'", "'99999999999999999999s'"].map(grace).concat(),
        str![[r#"
`shutdown_grace` has no unit
  30  <- a bare number
  write a unit, such as "30s"
`shutdown_grace` has no unit
  '30'  <- a bare number
  write a unit, such as "30s"
`shutdown_grace` is not a time
  '30 sec'  <- expected a whole number and a unit
  write a time such as "30s"; the units are ms, s and m
`shutdown_grace` has no number
  's'  <- a unit alone
  write a time such as "30s"
`shutdown_grace` is too large
  '99999999999999999999s'  <- does not fit in 64 bits
  write a time such as "30s"

"#]]
    );
}

#[test]
fn the_examples_are_right() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let examples = fs::read_dir(root.join("resources/examples")).unwrap();
    let mut texts: Vec<String> =
        examples.map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap()).collect();
    let reference = fs::read_to_string(root.join("docs/config.md")).unwrap();
    let blocks = reference.split("```toml\n").skip(1);
    texts.extend(blocks.map(|block| block.split("```").next().unwrap().to_owned()));
    assert!(texts.len() > 2);
    for text in texts {
        assert_eq!(said(&text), "", "{text}");
    }
}
