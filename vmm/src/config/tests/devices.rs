//! vCPUs, kernel, disks, nets and console.

use super::*;

#[test]
fn invalid_vcpus_and_queues() {
    let vcpus = |value| {
        report(&format!(
            "[machine]\nmemory='64MiB'\nvcpus={value}\n[kernel]\nimage='k'\n[[disk]]\nid='a'\npath='a'\nqueues=4\n"
        ))
    };
    for good in ["4", "254", "0x10"] {
        assert_eq!(vcpus(good), "");
    }
    // An invalid `vcpus` does not make the queues invalid.
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
`queues` exceeds the number of vCPUs
  4  <- a guest uses at most one queue per vCPU
  2  <- `vcpus` is 2
  write at most 2, or remove `queues`

"#]]
    );
    assert_data_eq!(
        report_with_base(
            "[[disk]]\nid='a'\npath='a'\nqueues=2\n[[disk]]\nid='b'\npath='b'\nqueues=0\n"
        ),
        str![[r#"
`queues` exceeds the number of vCPUs
  2  <- a guest uses at most one queue per vCPU
  [machine]  <- `vcpus` is 1
  write at most 1, or remove `queues`
`queues` is out of range
  0  <- must be 1 to 254
  write a number from 1 to 254

"#]]
    );
}

#[test]
fn invalid_cmdlines() {
    let cmdline = |text: &str| {
        report(&format!("[machine]\nmemory='64MiB'\n[kernel]\nimage='k'\ncmdline=\"{text}\""))
    };
    assert_eq!(cmdline(&"x".repeat(2047)), "");
    assert_data_eq!(
        cmdline(&"x".repeat(2048)) + &cmdline("a\\u0000b"),
        str![[r#"
`cmdline` is too long
  "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx  <- 2048 bytes
  shorten it to 2047 bytes; Linux ignores the rest
`cmdline` contains a NUL character
  "a/u0000b"  <- the kernel stops reading at the NUL
  remove the `/u0000`

"#]]
    );
}

#[test]
fn invalid_disk_ids() {
    let id = |id: &str| report_with_base(&format!("[[disk]]\npath='a'\nid=\"{id}\"\n"));
    for good in ["a", "root-1.x_y", &"x".repeat(20)] {
        assert_eq!(id(good), "");
    }
    assert_data_eq!(
        ["", "a b", "é", &"x".repeat(21)].map(id).concat(),
        str![[r#"
`id` is empty
  ""  <- no name
  write 1 to 20 characters
`id` contains an invalid character
  "a b"  <- ` ` is not allowed
  use only letters, digits, `.`, `_` and `-`
`id` contains an invalid character
  "é"  <- `é` is not allowed
  use only letters, digits, `.`, `_` and `-`
`id` is too long
  "xxxxxxxxxxxxxxxxxxxxx"  <- 21 characters
  write 1 to 20 characters

"#]]
    );
}

#[test]
fn invalid_serial_numbers() {
    let serial = |serial: &str| {
        report_with_base(&format!("[[disk]]\npath='a'\nid='a'\nserial=\"{serial}\"\n"))
    };
    for good in ["a", "root-1.x_y", &"x".repeat(20)] {
        assert_eq!(serial(good), "");
    }
    assert_data_eq!(
        ["", "é", "a\\u0000", &"x".repeat(21)].map(serial).concat(),
        str![[r#"
`serial` is empty
  ""  <- no name
  write 1 to 20 characters
`serial` contains an invalid character
  "é"  <- `é` is not allowed
  use only printable ASCII
`serial` contains an invalid character
  "a/u0000"  <- `/0` is not allowed
  use only printable ASCII
`serial` is too long
  "xxxxxxxxxxxxxxxxxxxxx"  <- 21 characters
  write 1 to 20 characters

"#]]
    );
}

#[test]
fn invalid_disk_paths_and_repeated_ids() {
    assert_data_eq!(
        report_with_base("[[disk]]\npath=''\nid='a'\n[[disk]]\npath=\"a\\u0000\"\nid='a'\n"),
        str![[r#"
`path` is empty
  ''  <- no path
  write a path; a relative path starts at this file's directory
`path` contains a NUL character
  "a/u0000"  <- not a path
  remove the `/u0000`
the id `a` is used twice
  'a'  <- second use
  'a'  <- first use
  give each its own `id`

"#]]
    );
}

#[test]
fn unknown_words_in_disks() {
    assert_data_eq!(
        report_with_base(
            "[[disk]]\npath='a'\nid='a'\ncache='writback'\nbus='scsi'\n[[disk]]\npath='b'\nid='b'\ncache='fast'\nbus='virtio-scsi'\n[[disk]]\npath='c'\nid='c'\ncache='unsafe'\n"
        ),
        str![[r#"
`cache` has an unknown value
  'writback'  <- did you mean "writeback"?
  write one of "none", "directsync", "writethrough", "writeback", "unsafe"
`bus` has an unknown value
  'scsi'  <- not a valid value
  write one of "virtio-blk", "virtio-scsi"
`cache` has an unknown value
  'fast'  <- not a valid value
  write one of "none", "directsync", "writethrough", "writeback", "unsafe"
warning: `cache = "unsafe"` ignores the guest's flushes
  'unsafe'  <- a host crash loses data that the guest has flushed
  write "writeback" for a disk whose data matters

"#]]
    );
}

#[test]
fn invalid_mac_addresses() {
    let mac = |mac: &str| report_with_base(&format!("[[net]]\ntap='t'\nmac='{mac}'\n"));
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
  '53:54:00:12:34:56'  <- not valid for a device
  write an even first byte, such as "52:54:00:12:34:56"
`mac` is all zero
  '00:00:00:00:00:00'  <- not valid for a device
  write six pairs of hexadecimal digits, such as "02:00:00:00:00:01"

"#]]
    );
}

#[test]
fn invalid_tap_names() {
    let tap = |tap: &str| report_with_base(&format!("[[net]]\ntap='{tap}'\n"));
    assert_eq!(tap("vm-tap.0_12345x"), "");
    assert_data_eq!(
        ["", "a/b", "a b", "..", "sixteen-letters0"].map(tap).concat(),
        str![[r#"
`tap` is empty
  ''  <- no name
  write 1 to 15 characters
`tap` has an invalid name
  'a/b'  <- not a network device name
  write a name such as "tap0"
`tap` has an invalid name
  'a b'  <- not a network device name
  write a name such as "tap0"
`tap` has an invalid name
  '..'  <- not a network device name
  write a name such as "tap0"
`tap` is too long
  'sixteen-letters0'  <- 16 characters
  write 1 to 15 characters

"#]]
    );
}

#[test]
fn repeated_taps_and_mac_addresses() {
    assert_data_eq!(
        report_with_base(
            "[[net]]\ntap='t'\nmac='02:00:00:00:00:0a'\n[[net]]\ntap='t'\nmac='02:00:00:00:00:0A'\n"
        ),
        str![[r#"
the tap `t` is used twice
  't'  <- second use
  't'  <- first use
  give each its own `tap`
the mac `02:00:00:00:00:0a` is used twice
  '02:00:00:00:00:0A'  <- second use
  '02:00:00:00:00:0a'  <- first use
  give each its own `mac`

"#]]
    );
}

#[test]
fn derived_mac_is_stable() {
    assert_eq!(value::display_mac(value::derived_mac("tap0")), "02:d9:63:fc:ef:07");
    assert_ne!(value::derived_mac("tap0"), value::derived_mac("tap1"));
}

#[test]
fn invalid_consoles() {
    assert_eq!(report_with_base("[console]\nmode='off'"), "");
    assert_data_eq!(
        report_with_base("[console]\nmode='of'\n"),
        str![[r#"
`mode` has an unknown value
  'of'  <- did you mean "off"?
  write one of "stdio", "off"

"#]]
    );
    assert_data_eq!(
        report_with_base("[console]\nsocket='s'\nfile='f'\n"),
        str![[r#"
`[console]` has two destinations
  'f'  <- the second
  's'  <- the first
  keep one of `file`, `socket` and `mode`

"#]]
    );
    assert_data_eq!(
        report_with_base("[console]\nfile_limit='1MiB'\n"),
        str![[r#"
`file_limit` without `file`
  '1MiB'  <- limits no file
  add `file = "console.log"`, or remove `file_limit`

"#]]
    );
    assert_data_eq!(
        report_with_base("[console]\nfile='f'\nfile_limit='1KiB'\n"),
        str![[r#"
`file_limit` is out of range
  '1KiB'  <- 1 KiB
  write a size from "64KiB" to "1TiB"

"#]]
    );
    let socket = |length| report_with_base(&format!("[console]\nsocket='{}'", "s".repeat(length)));
    assert_eq!(socket(107), "");
    assert_data_eq!(
        socket(108),
        str![[r#"
`socket` is too long for a socket
  'sssssssssssssssssssssssssssssssssssssss  <- 108 bytes including this file's directory
  write a path of at most 107 bytes

"#]]
    );
}

#[test]
fn too_many_pci_devices() {
    let devices = |count| {
        let nets: String = (1..count).map(|n| format!("[[net]]\ntap='t{n}'\n")).collect();
        report_with_base(&format!("{nets}[[disk]]\nid='last'\npath='a'\n"))
    };
    assert_eq!(devices(30), "");
    assert_data_eq!(
        devices(31),
        str![[r#"
31 disks, controllers and nets do not fit on the PCI bus
  [[disk]]  <- no free slot from here on
  keep at most 30 of them, or put disks on one controller with `bus = "virtio-scsi"`

"#]]
    );
}
