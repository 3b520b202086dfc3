//! Checks of ephemeral disks.

use std::path::PathBuf;

use block::{CacheMode, EphemeralPlace};

use super::*;
use crate::config::EphemeralChanges;

fn report_of(keys: &str) -> String {
    report_with_base(&format!("[[disk]]\nid='a'\n{keys}"))
}

#[test]
fn keys_of_an_ephemeral_disk() {
    assert_eq!(report_of("base='b'\nephemeral=true\n"), "");
    assert_eq!(report_of("base='b'\nephemeral='/var/tmp'\nephemeral_limit='2GiB'\n"), "");
    assert_eq!(report_of("path='a'\nephemeral=false\n"), "");
}

#[test]
fn keys_that_do_not_fit_an_ephemeral_disk() {
    let keys = [
        "ephemeral=true\n",
        "base='b'\nephemeral=false\n",
        "base='b'\nephemeral=1\n",
        "base='b'\npath='a'\nephemeral=true\n",
        "base='b'\ncreate=true\nephemeral=true\n",
        "base='b'\ncache='none'\nephemeral=true\n",
        "base='b'\nreadonly=true\nephemeral=true\n",
        "base='b'\non_enospc='hold'\nephemeral=true\n",
        "base='b'\nephemeral=true\n[disk.thin]\nsoft_limit='80%'\n",
        "path='a'\nephemeral_limit='1GiB'\n",
        "base='b'\nephemeral=true\nephemeral_limit='1KiB'\n",
    ];
    assert_data_eq!(
        keys.map(report_of).concat(),
        str![[r#"
`ephemeral` without `base`
  true  <- there is nothing to start from
  name the image below the disk with `base`
`ephemeral = false` without `path`
  false  <- the disk has no file
  add `path = "root.img"`, or write `ephemeral = true`
`ephemeral` must be true, false or a folder
  1  <- this is an integer
  write `ephemeral = true`
`path` with `ephemeral`
  'a'  <- an ephemeral disk has no file of its own
  true  <- the disk is ephemeral
  remove `path`, or `ephemeral` if the disk is to be kept
`create` with `ephemeral`
  true  <- an ephemeral disk is made at each start
  true  <- the disk is ephemeral
  remove `create`, or `ephemeral` if the disk is to be kept
`cache` with `ephemeral`
  'none'  <- nothing is to survive, so that there is no cache mode
  true  <- the disk is ephemeral
  remove `cache`, or `ephemeral` if the disk is to be kept
`readonly` with `ephemeral`
  true  <- a disk that is not written has no changes to lose
  true  <- the disk is ephemeral
  remove `readonly`, or `ephemeral` if the disk is to be kept
`on_enospc` with `ephemeral`
  'hold'  <- the writes of an ephemeral disk are not held
  true  <- the disk is ephemeral
  remove `on_enospc`, or `ephemeral` if the disk is to be kept
`soft_limit` with `ephemeral`
  '80%'  <- the limit of the changes is `ephemeral_limit`
  true  <- the disk is ephemeral
  remove `soft_limit`, or `ephemeral` if the disk is to be kept
`ephemeral_limit` without `ephemeral`
  '1GiB'  <- limits nothing
  write `ephemeral = true`, or remove `ephemeral_limit`
`ephemeral_limit` is out of range
  '1KiB'  <- 1 KiB
  write a size from "1MiB" to "64TiB"

"#]]
    );
}

#[test]
fn an_ephemeral_disk_has_no_path_and_ignores_flushes() {
    let disk = |keys: &str| {
        let text = format!("{BASE}[[disk]]\nid='a'\nbase='b'\n{keys}");
        let (source, diagnostics) = parse::parse_machine(&text, Path::new("/vm"));
        assert_eq!(diagnostics, []);
        build::machine(source.unwrap()).unwrap().disks.remove(0)
    };
    for (keys, place, limit) in [
        ("ephemeral=true\n", EphemeralPlace::Memory, Some(1 << 30)),
        ("ephemeral=true\nephemeral_limit='2GiB'\n", EphemeralPlace::Memory, Some(2 << 30)),
        ("ephemeral='tmp'\n", EphemeralPlace::Folder("/vm/tmp".into()), None),
    ] {
        let disk = disk(keys);
        assert_eq!(disk.ephemeral, Some(EphemeralChanges { place, limit }), "{keys}");
        assert_eq!((&disk.path, disk.file()), (&PathBuf::new(), Path::new("/vm/b")));
        assert_eq!(disk.options.cache, CacheMode::Unsafe);
    }
}

#[test]
fn an_ephemeral_disk_that_the_host_cannot_make() {
    let host = HostFixture::new();
    host.file("base", 1 << 20);
    host.content("qcow", b"QFI\xfb\0\0\0\x03");
    fs::create_dir(host.folder.path().join("folder")).unwrap();
    let report = |keys: &str| {
        host.report_with_base(&format!("[[disk]]\nid='a'\nephemeral_limit='64MiB'\n{keys}"))
    };
    let two = "base='base'\nephemeral=true\n[[disk]]\nid='b'\nbase='base'\n\
               ephemeral=true\nephemeral_limit='64MiB'\n";
    for keys in [two, "base='base'\nephemeral='folder'\n"] {
        assert_eq!(report(keys), "", "{keys}");
    }
    let keys = [
        "base='absent'\nephemeral=true\n",
        "base='qcow'\nephemeral=true\n",
        "base='base'\nephemeral='absent'\n",
        "base='base'\nephemeral=true\n[[disk]]\nid='b'\npath='base'\n",
    ];
    assert_data_eq!(
        keys.map(report).concat(),
        str![[r#"
the base `/vm/absent` does not exist
  'absent'  <- no such file
  a relative path starts at this file's directory
the base `/vm/qcow` cannot have an ephemeral disk over it
  'qcow'  <- /vm/qcow: not a raw image but qcow2; make a raw copy with `qemu-img convert -f qcow2 -O raw /vm/qcow /vm/qcow.raw`, or write `format = "raw"` to serve its bytes as they are
  name another base
`/vm/absent` is no folder for the changes of a disk
  'absent'  <- not a folder
  name a folder that exists, or write `ephemeral = true`
the disk image `/vm/base` is written, but another disk stands on it
  'base'  <- is written
  'base'  <- stands on `/vm/base`, which must never change
  write `readonly = true`, or make a layer over it for this disk, too

"#]]
    );
}

#[test]
fn an_ephemeral_disk_needs_the_descriptors_of_a_layer() {
    let host = HostFixture::new();
    host.file("base", 1 << 20);
    let needs = |keys: &str| {
        let text = format!("{BASE}[[disk]]\nid='a'\nbase='base'\n{keys}");
        let (source, _) = parse::parse_machine(&text, host.folder.path());
        host.facts.engines.machine(&build::machine(source.unwrap()).unwrap())
    };
    assert_eq!(needs("ephemeral=true\n"), needs("path='new'\ncreate=true\n"));
}
