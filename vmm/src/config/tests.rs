//! What each guard says. `SNAPSHOTS=overwrite cargo test -p vmm` rewrites the expected text; read
//! the difference before you commit it.

mod control;

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use proptest::prelude::*;
use rustix::io::Errno;
use snapbox::{assert_data_eq, str};
use tempfile::TempDir;

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
                  engine = 'threads', on_enospc = 'hold', hold_deadline = '1m' }]
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
            on_no_space: Hold {
                deadline: 60s,
            },
        },
    ],
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
  the tables of a configuration are: machine, kernel, disk, net, console, control
unknown table `x`
  x  <- not a table of a configuration
  the tables of a configuration are: machine, kernel, disk, net, console, control

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
  the keys of [[disk]] are: id, path, cache, bus, readonly, queues, serial, block_size, engine, on_enospc, hold_deadline
unknown key `colour`
  colour  <- not a key of [[disk]]
  the keys of [[disk]] are: id, path, cache, bus, readonly, queues, serial, block_size, engine, on_enospc, hold_deadline

"#]]
    );
}

#[test]
fn types() {
    let text = "[machine]\nvcpus='2'\nmemory=true\nshutdown_grace=[]\n[kernel]\nimage=1\n\
                initramfs={}\ncmdline=1.5\n[[disk]]\nid=1\npath=1\ncache=1\nbus=1\nreadonly='yes'\n\
                queues='1'\nserial=1979-05-27\nblock_size='512'\nengine=1\non_enospc=true\n\
                hold_deadline=5\n[[net]]\ntap=1\nmac=1\n";
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
  write `bus = "virtio-blk"`
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
fn vcpus_and_queues() {
    let vcpus = |value| {
        said(&format!(
            "[machine]\nmemory='64MiB'\nvcpus={value}\n[kernel]\nimage='k'\n[[disk]]\nid='a'\npath='a'\nqueues=4\n"
        ))
    };
    for good in ["4", "254", "0x10"] {
        assert_eq!(vcpus(good), "");
    }
    // A refused count is no ground to refuse the queues.
    assert_data_eq!(
        ["0", "255", "-1", "99999999999", "2"].map(vcpus).concat(),
        str![[r#"
`vcpus` is out of range
  0  <- must be 1 to 254
  write a number from 1 to 254
`vcpus` is out of range
  255  <- must be 1 to 254
  write a number from 1 to 254
`vcpus` is out of range
  -1  <- must be 1 to 254
  write a number from 1 to 254
`vcpus` is out of range
  99999999999  <- must be 1 to 254
  write a number from 1 to 254
`queues` is more than the vCPUs
  4  <- a guest uses at most one queue per vCPU
  2  <- `vcpus` is 2
  write at most 2, or leave `queues` out

"#]]
    );
    assert_data_eq!(
        said_after_base(
            "[[disk]]\nid='a'\npath='a'\nqueues=2\n[[disk]]\nid='b'\npath='b'\nqueues=0\n"
        ),
        str![[r#"
`queues` is more than the vCPUs
  2  <- a guest uses at most one queue per vCPU
  [machine]  <- `vcpus` is 1
  write at most 1, or leave `queues` out
`queues` is out of range
  0  <- must be 1 to 254
  write a number from 1 to 254

"#]]
    );
}

#[test]
fn kernel() {
    let cmdline = |text: &str| {
        said(&format!("[machine]\nmemory='64MiB'\n[kernel]\nimage='k'\ncmdline=\"{text}\""))
    };
    assert_eq!(cmdline(&"x".repeat(2047)), "");
    assert_data_eq!(
        cmdline(&"x".repeat(2048)) + &cmdline("a\\u0000b"),
        str![[r#"
`cmdline` is too long
  "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx  <- 2048 bytes
  shorten it to 2047 bytes; Linux ignores the rest
`cmdline` has a NUL character
  "a/u0000b"  <- the kernel would stop reading at the NUL
  remove the `/u0000`

"#]]
    );
}

#[test]
fn disk_names() {
    let id = |id: &str| said_after_base(&format!("[[disk]]\npath='a'\nid=\"{id}\"\n"));
    let serial = |serial: &str| {
        said_after_base(&format!("[[disk]]\npath='a'\nid='a'\nserial=\"{serial}\"\n"))
    };
    for good in ["a", "root-1.x_y", &"x".repeat(20)] {
        assert_eq!(id(good) + &serial(good), "");
    }
    assert_data_eq!(
        ["", "a b", "é", &"x".repeat(21)].map(id).concat(),
        str![[r#"
`id` is empty
  ""  <- no name
  write 1 to 20 characters
`id` has a character which is not allowed
  "a b"  <- ` ` is not allowed
  write only letters, digits, `.`, `_` and `-`
`id` has a character which is not allowed
  "é"  <- `é` is not allowed
  write only letters, digits, `.`, `_` and `-`
`id` is too long
  "xxxxxxxxxxxxxxxxxxxxx"  <- 21 characters
  write 1 to 20 characters

"#]]
    );
    assert_data_eq!(
        ["", "é", "a\\u0000", &"x".repeat(21)].map(serial).concat(),
        str![[r#"
`serial` is empty
  ""  <- no name
  write 1 to 20 characters
`serial` has a character which is not allowed
  "é"  <- `é` is not allowed
  write only printable ASCII
`serial` has a character which is not allowed
  "a/u0000"  <- `/0` is not allowed
  write only printable ASCII
`serial` is too long
  "xxxxxxxxxxxxxxxxxxxxx"  <- 21 characters
  write 1 to 20 characters

"#]]
    );
    assert_data_eq!(
        said_after_base("[[disk]]\npath=''\nid='a'\n[[disk]]\npath=\"a\\u0000\"\nid='a'\n"),
        str![[r#"
`path` is empty
  ''  <- no path
  write a path; a relative one starts at the folder of this file
`path` has a NUL character
  "a/u0000"  <- not a path
  remove the `/u0000`
the id `a` is used twice
  'a'  <- and here again
  'a'  <- first here
  give each its own `id`

"#]]
    );
}

#[test]
fn disk_words() {
    assert_data_eq!(
        said_after_base(
            "[[disk]]\npath='a'\nid='a'\ncache='writback'\nbus='scsi'\n[[disk]]\npath='b'\nid='b'\ncache='fast'\nbus='virtio-scsi'\n[[disk]]\npath='c'\nid='c'\ncache='unsafe'\n"
        ),
        str![[r#"
`cache` has an unknown value
  'writback'  <- did you mean "writeback"?
  write one of "none", "directsync", "writethrough", "writeback", "unsafe"
`bus` has an unknown value
  'scsi'  <- not one of its values
  write one of "virtio-blk"
`cache` has an unknown value
  'fast'  <- not one of its values
  write one of "none", "directsync", "writethrough", "writeback", "unsafe"
`bus` virtio-scsi is not available yet
  'virtio-scsi'  <- still to come
  write "virtio-blk", or leave `bus` out
warning: `cache = "unsafe"` ignores the guest's flushes
  'unsafe'  <- a host crash loses data the guest believes safe
  write "writeback" for a disk you want to keep

"#]]
    );
}

#[test]
fn nets() {
    let mac = |mac: &str| said_after_base(&format!("[[net]]\ntap='t'\nmac='{mac}'\n"));
    assert_eq!(mac("52:54:00:AB:cd:ef"), "");
    let bad = [
        "",
        "52:54:00:12:34",
        "52:54:00:12:34:56:78",
        "52-54-00-12-34-56",
        "5:54:00:12:34:56",
        "+5:54:00:12:34:56",
        "53:54:00:12:34:56",
        "00:00:00:00:00:00",
    ];
    assert_data_eq!(
        bad.map(mac).concat(),
        str![[r#"
`mac` is not a MAC address
  ''  <- expected six bytes
  write six pairs of hexadecimal digits, such as "02:00:00:00:00:01"
`mac` is not a MAC address
  '52:54:00:12:34'  <- expected six bytes
  write six pairs of hexadecimal digits, such as "02:00:00:00:00:01"
`mac` is not a MAC address
  '52:54:00:12:34:56:78'  <- more than six bytes
  write six pairs of hexadecimal digits, such as "02:00:00:00:00:01"
`mac` is not a MAC address
  '52-54-00-12-34-56'  <- expected six bytes
  write six pairs of hexadecimal digits, such as "02:00:00:00:00:01"
`mac` is not a MAC address
  '5:54:00:12:34:56'  <- expected six bytes
  write six pairs of hexadecimal digits, such as "02:00:00:00:00:01"
`mac` is not a MAC address
  '+5:54:00:12:34:56'  <- expected six bytes
  write six pairs of hexadecimal digits, such as "02:00:00:00:00:01"
`mac` is a multicast address
  '53:54:00:12:34:56'  <- no device can have it
  write an even first byte, such as "52:54:00:12:34:56"
`mac` is all zero
  '00:00:00:00:00:00'  <- no device can have it
  write six pairs of hexadecimal digits, such as "02:00:00:00:00:01"

"#]]
    );
    let tap = |tap: &str| said_after_base(&format!("[[net]]\ntap='{tap}'\n"));
    assert_eq!(tap("vm-tap.0_12345x"), "");
    assert_data_eq!(
        ["", "a/b", "a b", "..", "sixteen-letters0"].map(tap).concat(),
        str![[r#"
`tap` is empty
  ''  <- no name
  write 1 to 15 characters
`tap` has an invalid name
  'a/b'  <- no name of a network device
  write a name such as "tap0"
`tap` has an invalid name
  'a b'  <- no name of a network device
  write a name such as "tap0"
`tap` has an invalid name
  '..'  <- no name of a network device
  write a name such as "tap0"
`tap` is too long
  'sixteen-letters0'  <- 16 characters
  write 1 to 15 characters

"#]]
    );
    assert_data_eq!(
        said_after_base(
            "[[net]]\ntap='t'\nmac='02:00:00:00:00:0a'\n[[net]]\ntap='t'\nmac='02:00:00:00:00:0A'\n"
        ),
        str![[r#"
the tap `t` is used twice
  't'  <- and here again
  't'  <- first here
  give each its own `tap`
the mac `02:00:00:00:00:0a` is used twice
  '02:00:00:00:00:0A'  <- and here again
  '02:00:00:00:00:0a'  <- first here
  give each its own `mac`

"#]]
    );
}

#[test]
fn a_derived_mac_never_changes() {
    assert_eq!(value::display_mac(value::derived_mac("tap0")), "02:d9:63:fc:ef:07");
    assert_ne!(value::derived_mac("tap0"), value::derived_mac("tap1"));
}

#[test]
fn console() {
    assert_eq!(said_after_base("[console]\nmode='off'"), "");
    assert_data_eq!(
        said_after_base("[console]\nmode='of'\n"),
        str![[r#"
`mode` has an unknown value
  'of'  <- did you mean "off"?
  write one of "stdio", "off"

"#]]
    );
    assert_data_eq!(
        said_after_base("[console]\nsocket='s'\nfile='f'\n"),
        str![[r#"
`[console]` names two places
  'f'  <- and the second
  's'  <- the first
  keep one of `file`, `socket` and `mode`

"#]]
    );
    let socket = |length| said_after_base(&format!("[console]\nsocket='{}'", "s".repeat(length)));
    assert_eq!(socket(107), "");
    assert_data_eq!(
        socket(108),
        str![[r#"
`socket` is too long for a socket
  'sssssssssssssssssssssssssssssssssssssss  <- 108 bytes with the folder of this file
  write a path of at most 107 bytes

"#]]
    );
}

#[test]
fn the_pci_bus_is_finite() {
    let devices = |count| {
        let nets: String = (1..count).map(|n| format!("[[net]]\ntap='t{n}'\n")).collect();
        said_after_base(&format!("{nets}[[disk]]\nid='last'\npath='a'\n"))
    };
    assert_eq!(devices(30), "");
    assert_data_eq!(
        devices(31),
        str![[r#"
31 disks and nets do not fit on the PCI bus
  [[disk]]  <- no slot is left from here on
  keep at most 30 disks and nets together

"#]]
    );
}

/// A folder with a kernel and a disk, on a host which has all they need.
struct Lab {
    folder: TempDir,
    host: Host,
}

impl Lab {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let net_devices = folder.path().join("net");
        let lab = Self {
            host: Host { kvm: Ok(64), cpus: 8, available_bytes: Some(1 << 30), net_devices },
            folder,
        };
        let kernel = lab.file("vmlinuz", 0x400);
        kernel.write_all_at(b"\x55\xaa", 0x1fe).unwrap();
        kernel.write_all_at(b"HdrS", 0x202).unwrap();
        lab.file("root.img", 4096);
        lab
    }

    fn file(&self, name: &str, length: u64) -> fs::File {
        let file = fs::File::create(self.folder.path().join(name)).unwrap();
        file.set_len(length).unwrap();
        file
    }

    fn content(&self, name: &str, content: &[u8]) {
        fs::write(self.folder.path().join(name), content).unwrap();
    }

    fn said(&self, text: &str) -> String {
        let (source, mut diagnostics) = parse::parse(text, self.folder.path());
        self.host.check(&source.unwrap(), &mut diagnostics);
        lines(text, diagnostics).replace(self.folder.path().to_str().unwrap(), "/vm")
    }

    fn said_after_base(&self, text: &str) -> String {
        self.said(&format!("{BASE}{text}"))
    }
}

#[test]
fn a_good_machine_is_let_through() {
    let text = "[[disk]]\nid='a'\npath='root.img'\n[[net]]\ntap='tap0'\n[console]\nfile='c.log'\n";
    let lab = Lab::new();
    fs::create_dir_all(lab.folder.path().join("net/tap0")).unwrap();
    lab.content("net/tap0/tun_flags", b"0x1002\n");
    assert_eq!(lab.said_after_base(text), "");
}

#[test]
fn kvm() {
    let said = |kvm| {
        let mut lab = Lab::new();
        lab.host.kvm = kvm;
        lab.said("[machine]\nvcpus=8\nmemory='64MiB'\n[kernel]\nimage='vmlinuz'\n")
    };
    let cases = [Err(Errno::NOENT), Err(Errno::ACCESS), Err(Errno::BUSY), Ok(4)];
    assert_data_eq!(
        cases.map(said).concat(),
        str![[r#"
this host has no /dev/kvm
  (host)
  switch on virtualization in the firmware, then `modprobe kvm_intel` or `modprobe kvm_amd`; inside a virtual machine, switch on nesting
you may not open /dev/kvm
  (host)
  join its group with `sudo usermod -aG kvm $USER`, then log in again
cannot open /dev/kvm: Device or resource busy (os error 16)
  (host)
  see whether another hypervisor holds the processor's virtualization
`vcpus` is more than KVM gives one machine
  8  <- KVM on this host gives 4
  write at most 4

"#]]
    );
}

#[test]
fn more_than_the_host_has() {
    let text = "[machine]\nvcpus=9\nmemory='1026MiB'\n[kernel]\nimage='vmlinuz'\n";
    assert_data_eq!(
        Lab::new().said(text),
        str![[r#"
warning: `vcpus` is more than this host has
  9  <- the host has 8
  write at most 8 for full speed
`memory` is more than the host has free
  '1026MiB'  <- 1026 MiB asked, 1024 MiB available
  write at most "1GiB", or free memory on the host

"#]]
    );
    assert_eq!(Lab::new().said(&text.replace("1026", "1024").replace('9', "8")), "");
}

#[test]
fn kernel_images() {
    let lab = Lab::new();
    let elf = |machine| [b"\x7fELF\x02\x01".as_slice(), &[0; 12], &[machine, 0]].concat();
    lab.content("good-elf", &elf(62));
    lab.content("arm-elf", &elf(183));
    lab.content("arm64", &[[0; 0x38].as_slice(), b"ARM\x64"].concat());
    lab.content("gzip", b"\x1f\x8b\x08");
    lab.content("zstd", b"\x28\xb5\x2f\xfd");
    lab.content("xz", b"\xfd7zXZ\0");
    lab.content("efi", b"MZ");
    lab.content("text", b"#!/bin/sh");
    lab.content("no-boot-flag", &[[0; 0x202].as_slice(), b"HdrS"].concat());
    lab.content("empty", b"");
    fs::create_dir(lab.folder.path().join("folder")).unwrap();
    let said = |image| lab.said(&format!("[machine]\nmemory='64MiB'\n[kernel]\nimage='{image}'"));
    assert_eq!(said("good-elf"), "");
    let bad = [
        "arm-elf",
        "arm64",
        "gzip",
        "zstd",
        "xz",
        "efi",
        "text",
        "no-boot-flag",
        "empty",
        "folder",
        "absent",
        "no/folder",
        "text/below",
    ];
    assert_data_eq!(
        bad.map(said).concat(),
        str![[r#"
`/vm/arm-elf` is not a kernel Bulkhead can boot
  'arm-elf'  <- this is an ELF file, but not for x86-64
  name an x86-64 bzImage, such as /boot/vmlinuz, or an uncompressed vmlinux
`/vm/arm64` is not a kernel Bulkhead can boot
  'arm64'  <- this is a kernel for arm64
  name an x86-64 bzImage, such as /boot/vmlinuz, or an uncompressed vmlinux
`/vm/gzip` is not a kernel Bulkhead can boot
  'gzip'  <- this is a gzip file
  unpack it with `gunzip`
`/vm/zstd` is not a kernel Bulkhead can boot
  'zstd'  <- this is a zstd file
  unpack it with `unzstd`
`/vm/xz` is not a kernel Bulkhead can boot
  'xz'  <- this is an xz file
  unpack it with `unxz`
`/vm/efi` is not a kernel Bulkhead can boot
  'efi'  <- this is an EFI program without a Linux setup header
  name an x86-64 bzImage, such as /boot/vmlinuz, or an uncompressed vmlinux
`/vm/text` is not a kernel Bulkhead can boot
  'text'  <- this is neither a bzImage nor an x86-64 ELF file
  name an x86-64 bzImage, such as /boot/vmlinuz, or an uncompressed vmlinux
`/vm/no-boot-flag` is not a kernel Bulkhead can boot
  'no-boot-flag'  <- this is neither a bzImage nor an x86-64 ELF file
  name an x86-64 bzImage, such as /boot/vmlinuz, or an uncompressed vmlinux
`/vm/empty` is not a kernel Bulkhead can boot
  'empty'  <- this is an empty file
  name an x86-64 bzImage, such as /boot/vmlinuz, or an uncompressed vmlinux
the kernel image `/vm/folder` is a directory
  'folder'  <- a directory
  name a file in it
the kernel image `/vm/absent` does not exist
  'absent'  <- no such file
  a relative path starts at the folder of this file
the kernel image `/vm/no/folder` does not exist
  'no/folder'  <- there is no folder `/vm/no`
  a relative path starts at the folder of this file; or create it with `mkdir -p /vm/no`
cannot open the kernel image `/vm/text/below`
  'text/below'  <- Not a directory (os error 20)
  a relative path starts at the folder of this file

"#]]
    );
    assert_data_eq!(
        lab.said_after_base("initramfs='empty'"),
        str![[r#"
the initramfs `/vm/empty` is empty
  'empty'  <- 0 bytes
  name a cpio archive, or leave `initramfs` out

"#]]
    );
}

#[test]
fn disk_images() {
    let lab = Lab::new();
    lab.file("odd", 1000);
    lab.file("empty", 0);
    let said = |path| lab.said_after_base(&format!("[[disk]]\nid='a'\npath='{path}'\n"));
    let bad = ["odd", "empty", ".", "absent", "/dev/null", "/proc/version"];
    assert_data_eq!(
        bad.map(said).concat(),
        str![[r#"
the disk image `/vm/odd` is not a multiple of 512 bytes
  'odd'  <- 1000 bytes
  round it up with `truncate -s %512 /vm/odd`
the disk image `/vm/empty` is empty
  'empty'  <- 0 bytes
  give it a size with `truncate -s 10G /vm/empty`
the disk image `/vm/.` is a directory
  '.'  <- a directory
  name a file in it
the disk image `/vm/absent` does not exist
  'absent'  <- no such file
  create it with `truncate -s 10G /vm/absent`
the disk image `/dev/null` is no file and no block device
  '/dev/null'  <- not a disk
  name an image file, or a block device such as /dev/zvol/tank/root
the disk image `/proc/version` does not tell its size
  '/proc/version'  <- Invalid argument (os error 22)
  name an image file, or a block device such as /dev/zvol/tank/root

"#]]
    );
}

#[test]
fn rights() {
    let lab = Lab::new();
    for (name, mode) in [("secret", 0o000), ("fixed", 0o444)] {
        let file = lab.file(name, 4096);
        file.set_permissions(fs::Permissions::from_mode(mode)).unwrap();
    }
    if fs::File::open(lab.folder.path().join("secret")).is_ok() {
        eprintln!("skipped: root may do everything");
        return;
    }
    assert_data_eq!(
        lab.said_after_base("[[disk]]\nid='a'\npath='secret'\n[[disk]]\nid='b'\npath='fixed'\n"),
        str![[r#"
you may not read the disk image `/vm/secret`
  'secret'  <- permission denied
  see `ls -l /vm/secret`, and grant yourself the right to read it
you may not write the disk image `/vm/fixed`
  'fixed'  <- Permission denied (os error 13)
  grant yourself the right to write it, or write `readonly = true`

"#]]
    );
}

#[test]
fn one_image_for_two_disks() {
    let lab = Lab::new();
    let root = lab.folder.path().join("root.img");
    fs::hard_link(&root, lab.folder.path().join("other.img")).unwrap();
    let said = |first: &str, second: &str| {
        lab.said_after_base(&format!(
            "[[disk]]\nid='a'\npath='root.img'\n{first}\n[[disk]]\nid='b'\npath='other.img'\n{second}\n"
        ))
    };
    assert_data_eq!(
        said("", ""),
        str![[r#"
the disk image `/vm/other.img` is used twice
  'other.img'  <- the same image again
  'root.img'  <- first used here
  give each disk its own image, or set `readonly = true` on both

"#]]
    );
    assert_ne!(said("readonly=true", ""), "");
    assert_ne!(said("", "readonly=true"), "");
    assert_eq!(said("readonly=true", "readonly=true"), "");
}

#[test]
fn a_file_system_without_o_direct() {
    // Only the mode is looked at: a file of /proc has no size, and is no disk for another reason.
    let said = |cache: &str| {
        let text = format!("{BASE}[[disk]]\nid='a'\npath='/proc/self/status'\ncache='{cache}'\n");
        let (source, _) = parse::parse(&text, Path::new(""));
        let disk = source.unwrap().disks.remove(0);
        lines(&text, check_direct(&disk, disk.path.as_ref().unwrap()).into_iter().collect())
    };
    assert_eq!(said("writeback"), "");
    assert_data_eq!(
        said("directsync"),
        str![[r#"
the file system of `/proc/self/status` cannot bypass the page cache
  'directsync'  <- needs O_DIRECT
  write "writeback" or "writethrough"

"#]]
    );
}

#[test]
fn taps() {
    let lab = Lab::new();
    fs::create_dir_all(lab.folder.path().join("net/eth0")).unwrap();
    fs::create_dir_all(lab.folder.path().join("net/tun0")).unwrap();
    lab.content("net/tun0/tun_flags", b"0x1001\n");
    let text = "[[net]]\ntap='tap0'\n[[net]]\ntap='eth0'\n[[net]]\ntap='tun0'\n";
    assert_data_eq!(
        lab.said_after_base(text),
        str![[r#"
the host has no tap `tap0`
  'tap0'  <- no such network device
  create it with `sudo ip tuntap add dev tap0 mode tap user $USER` and `sudo ip link set tap0 up`
`eth0` is not a tap
  'eth0'  <- a network device of another kind
  name a tap, such as `ip tuntap add dev tap0 mode tap` creates
`tun0` is not a tap
  'tun0'  <- a network device of another kind
  name a tap, such as `ip tuntap add dev tap0 mode tap` creates

"#]]
    );
}

#[test]
fn console_places() {
    let lab = Lab::new();
    fs::create_dir(lab.folder.path().join("folder")).unwrap();
    let said = |line: &str| lab.said_after_base(&format!("[console]\n{line}\n"));
    assert_eq!(said("socket='new.sock'"), "");
    let bad = ["file='no/c.log'", "file='folder'", "socket='root.img'", "socket='no/c.sock'"];
    assert_data_eq!(
        bad.map(said).concat(),
        str![[r#"
cannot create the console file `/vm/no/c.log`
  'no/c.log'  <- there is no folder `/vm/no`
  a relative path starts at the folder of this file; or create it with `mkdir -p /vm/no`
cannot create the console file `/vm/folder`
  'folder'  <- not a file
  choose another path, or remove what is there
cannot create the console socket `/vm/root.img`
  'root.img'  <- something else has this name
  choose another path, or remove what is there
cannot create the console socket `/vm/no/c.sock`
  'no/c.sock'  <- there is no folder `/vm/no`
  a relative path starts at the folder of this file; or create it with `mkdir -p /vm/no`

"#]]
    );
}

#[test]
fn meminfo() {
    let text = "MemTotal:       32768 kB\nMemAvailable:    1024 kB\n";
    assert_eq!(mem_available(text), Some(1 << 20));
    assert_eq!(mem_available("MemTotal: 1 kB\n"), None);
    assert_eq!(mem_available("MemAvailable: 99999999999999999 kB\n"), None);
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

/// Text which the grammar mostly accepts, so that the checks behind it see strange values.
fn almost_config() -> impl Strategy<Value = String> {
    let header = prop::sample::select(vec![
        "[machine]",
        "[kernel]",
        "[[disk]]",
        "[[net]]",
        "[console]",
        "[disk]",
        "[[machine]]",
        "[é]",
    ]);
    let key = prop::sample::select(vec![
        "vcpus",
        "memory",
        "shutdown_grace",
        "image",
        "cmdline",
        "id",
        "path",
        "cache",
        "readonly",
        "queues",
        "serial",
        "block_size",
        "engine",
        "on_enospc",
        "hold_deadline",
        "tap",
        "mac",
        "file",
        "socket",
        "mode",
        "\"\"",
        "x.y",
        "é",
    ]);
    let value = prop_oneof![
        "[0-9]{1,30}([KMGT]?i?B|s|ms)?".prop_map(|text| format!("\"{text}\"")),
        "\\PC{0,40}".prop_map(|text| format!("{text:?}")),
        "[0-9]{1,30}",
        Just("true".to_owned()),
        Just("[1, {a = 2}]".to_owned()),
        Just("1979-05-27".to_owned()),
        Just("'02:00:00:00:00:01'".to_owned()),
        Just("\"\"\"\r\n\t\u{1f980}\"\"\"".to_owned()),
    ];
    let entry = (key, value).prop_map(|(key, value)| format!("{key} = {value}"));
    let table = (header, prop::collection::vec(entry, 0..4))
        .prop_map(|(header, entries)| format!("{header}\n{}\n", entries.join("\n")));
    prop::collection::vec(table, 0..6).prop_map(|tables| tables.concat())
}

proptest! {
    /// Nothing panics, each span lies in the text, and a source without an error is complete.
    #[test]
    fn any_text_gets_a_report(text in prop_oneof![any::<String>(), almost_config(), "[\\[\\]={}\"'#a\r\n\u{feff}é]{0,60}"]) {
        let (source, diagnostics) = parse::parse(&text, Path::new(""));
        for diagnostic in &diagnostics {
            let primary = match &diagnostic.place {
                Place::Text(label) => Some(label),
                Place::File | Place::Host => None,
            };
            for label in primary.into_iter().chain(diagnostic.related.as_deref()) {
                prop_assert!(text.get(label.span.clone()).is_some(), "{label:?}");
            }
        }
        let failed = diagnostics.iter().any(|d| d.severity == Severity::Error);
        prop_assert_eq!(failed, source.and_then(parse::Source::build).is_none());
        let report = Report::new("vm.toml".to_owned(), text, diagnostics);
        let shown = report.to_string();
        prop_assert!(!shown.contains(|c: char| c.is_control() && c != '\n'), "{shown:?}");
        report.to_json();
    }

    #[test]
    fn a_size_is_read_as_it_is_written(bytes in (1_u64..1 << 30).prop_map(|kib| kib << 10)) {
        let text = value::exact_size(bytes);
        let read = value::size(&toml::de::DeValue::String(text.into()));
        prop_assert_eq!(read, Ok(bytes));
    }
}
