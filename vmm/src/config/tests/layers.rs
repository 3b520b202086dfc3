//! Checks of layers and their bases.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::*;

/// A folder with an image "base", a layer "a" over it, and a layer "b" over "a".
fn host() -> HostFixture {
    let host = HostFixture::new();
    host.file("base", 1 << 20);
    let path = |name: &str| host.folder.path().join(name);
    block::create_layer(&path("a"), &path("base"), None).unwrap();
    block::create_layer(&path("b"), &path("a"), Some(2 << 20)).unwrap();
    host
}

fn report(host: &HostFixture, keys: &str) -> String {
    host.report_with_base(&format!("[[disk]]\nid='a'\n{keys}"))
}

#[test]
fn usable_layers() {
    let host = host();
    for keys in [
        "path='b'\nbase='a'\n",
        "path='a'\nbase='base'\nreadonly=true\n",
        "path='b'\nbase='base'\n",
        "path='new'\nbase='b'\ncreate=true\n",
    ] {
        assert_eq!(report(&host, keys), "", "{keys}");
    }
}

#[test]
fn layers_that_cannot_be_used() {
    let host = host();
    host.file("other", 1 << 20);
    let keys = [
        "path='a'\n",
        "path='a'\nbase='base'\n",
        "path='b'\nbase='other'\n",
        "path='b'\nbase='absent'\n",
        "path='absent'\nbase='a'\n",
        "path='other'\nbase='a'\n",
        "path='other'\ncreate=true\n",
    ];
    assert_data_eq!(
        keys.map(|keys| report(&host, keys)).concat(),
        str![[r#"
the disk image `/vm/a` is not a raw image
  'a'  <- has the signature of a layer
  name its base with `base`
the layer `/vm/a` is frozen
  'a'  <- other layers may stand on it
  make a new layer over it, or write `readonly = true`
the base `/vm/other` is not that of the layer
  'other'  <- the layer stands on `/vm/a`
  'b'  <- the layer
  name that one; or to put the layer on this base, with the same content, run `bulkhead layer rebase --base /vm/other /vm/b`
the base `/vm/absent` does not exist
  'absent'  <- no such file
  a relative path starts at this file's directory
the layer `/vm/absent` does not exist
  'absent'  <- no such file
  make it with `bulkhead layer create --base /vm/a /vm/absent`, or write `create = true`
the layer `/vm/other` cannot be used
  'other'  <- /vm/other: it is not a layer: neither of its two headers has the signature
  name a layer that was made with `bulkhead layer create`
`create = true` without `base`
  true  <- there is nothing to make a layer over
  name the image below the layer with `base`, or remove `create`

"#]]
    );
}

#[test]
fn a_base_that_has_changed() {
    let host = host();
    let base = File::options().write(true).open(host.folder.path().join("base")).unwrap();
    base.write_all_at(&[1], 0).unwrap();
    let damaged = File::options().write(true).open(host.folder.path().join("b")).unwrap();
    assert_data_eq!(
        report(&host, "path='b'\nbase='a'\n"),
        str![[r#"
the layer `/vm/b` stands on a base that has changed
  'b'  <- `/vm/base`: other content
  'a'  <- the base
  restore it, or make a new layer

"#]]
    );
    damaged.write_all_at(&[1; 8192], 0).unwrap();
    assert_data_eq!(
        report(&host, "path='b'\nbase='a'\n"),
        str![[r#"
the layer `/vm/b` cannot be used
  'b'  <- /vm/b: it is not a layer: neither of its two headers has the signature
  name a layer that was made with `bulkhead layer create`

"#]]
    );
}

#[test]
fn a_file_that_one_disk_writes_and_another_stands_on() {
    let host = host();
    block::create_layer(&host.folder.path().join("c"), &host.folder.path().join("b"), None)
        .unwrap();
    let second = |keys: &str| format!("path='c'\nbase='b'\n[[disk]]\nid='b'\n{keys}");
    for shared in ["path='base'\nreadonly=true\n", "path='new'\nbase='b'\ncreate=true\n"] {
        assert_eq!(report(&host, &second(shared)), "", "{shared}");
    }
    let keys = [
        second("path='base'\n"),
        "path='base'\n[[disk]]\nid='b'\npath='c'\nbase='b'\n".to_owned(),
        "path='new'\nbase='b'\ncreate=true\n[[disk]]\nid='b'\npath='./new'\nbase='a'\ncreate=true\n"
            .to_owned(),
        "path='c'\nbase='b'\n[[disk]]\nid='b'\npath='c'\nbase='b'\n".to_owned(),
        "path='new'\nbase='base'\ncreate=true\n[console]\nfile='base'\n".to_owned(),
    ];
    assert_data_eq!(
        keys.map(|keys| report(&host, &keys)).concat(),
        str![[r#"
the disk image `/vm/base` is written, but another disk stands on it
  'base'  <- is written
  'b'  <- stands on `/vm/base`, which must never change
  write `readonly = true`, or make a layer over it for this disk, too
the disk image `/vm/base` is written, but another disk stands on it
  'base'  <- is written
  'b'  <- stands on `/vm/base`, which must never change
  write `readonly = true`, or make a layer over it for this disk, too
the layer `/vm/./new` is used twice
  './new'  <- second use
  'new'  <- first use
  give each disk its own layer
the disk image `/vm/c` is used twice
  'c'  <- second use
  'c'  <- first use
  give each disk its own image, or set `readonly = true` on both
the console file `/vm/base` is the image of a disk
  'base'  <- output would overwrite the disk
  'base'  <- the image
  name another file for the console

"#]]
    );
}
