//! TOML syntax, tables, unknown keys and types.

use super::*;

#[test]
fn only_syntax_errors_are_reported_in_invalid_toml() {
    assert_data_eq!(
        report("memory = 2GiB\nfoo = [1\nbar = 2\n[x]\n[x]\n"),
        str![[r#"
not valid TOML: string values must be quoted
  2GiB  <- needs quotes
  write "2GiB"
not valid TOML: missing comma between array elements
    <- expected `,`

"#]]
    );
    assert_data_eq!(
        report("a = 1\na = 2\n"),
        str![[r#"
not valid TOML: duplicate key
  a  <- duplicate
  keep one of the two

"#]]
    );
}

#[test]
fn missing_tables() {
    assert_data_eq!(
        report(""),
        str![[r#"
the configuration has no `[machine]`
  (file)
  add `[machine]`, and below it `memory = "1GiB"`
the configuration has no `[kernel]`
  (file)
  add `[kernel]`, and below it `image = "vmlinuz"`

"#]]
    );
}

#[test]
fn misplaced_and_unknown_tables() {
    assert_data_eq!(
        report("[[machine]]\n[[kernel]]\n[disk]\nid='a'\n[netz]\n[x]\n"),
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
}

#[test]
fn values_instead_of_tables() {
    assert_data_eq!(
        report("machine = 1\nkernel = []\ndisk = 'a'\nnet = [1]\nconsole = true"),
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
}

#[test]
fn missing_keys() {
    assert_data_eq!(
        report("[machine]\n[kernel]\n[[disk]]\n[[net]]\n[console]\n"),
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
        report_with_base("[[disk]]\nid='a'\npath='a'\nread_only=true\ncolour=1\n"),
        str![[r#"
unknown key `read_only`
  read_only  <- did you mean `readonly`?
  the keys of [[disk]] are: id, path, base, create, cache, ephemeral, ephemeral_limit, bus, controller, target, lun, readonly, queues, serial, block_size, engine, on_enospc, hold_deadline, discard, detect_zeroes, format, lock, copy_memory, stable_copies, record, record_limit, thin
unknown key `colour`
  colour  <- not a key of [[disk]]
  the keys of [[disk]] are: id, path, base, create, cache, ephemeral, ephemeral_limit, bus, controller, target, lun, readonly, queues, serial, block_size, engine, on_enospc, hold_deadline, discard, detect_zeroes, format, lock, copy_memory, stable_copies, record, record_limit, thin

"#]]
    );
}

#[test]
fn wrong_types_in_machine_and_kernel() {
    let text = "[machine]\nvcpus='2'\nmemory=true\nshutdown_grace=[]\n[kernel]\nimage=1\n\
                initramfs={}\ncmdline=1.5\n";
    assert_data_eq!(
        report(text),
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

"#]]
    );
}

#[test]
fn wrong_types_in_disks_and_nets() {
    let text = "[[disk]]\nid=1\npath=1\ncache=1\nbus=1\nreadonly='yes'\n\
                queues='1'\nserial=1979-05-27\nblock_size='512'\nengine=1\non_enospc=true\n\
                hold_deadline=5\ndiscard=1\ndetect_zeroes=false\nthin=1\n[[net]]\ntap=1\nmac=1\n";
    assert_data_eq!(
        report_with_base(text),
        str![[r#"
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
