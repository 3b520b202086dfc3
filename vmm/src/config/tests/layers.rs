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
        "path='b'\nbase='base'\n",
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
  'a'  <- other layers stand on it
  make a new layer over it, or write `readonly = true`
the base `/vm/base` is not that of the layer
  'base'  <- the layer stands on `/vm/a`
  'b'  <- the layer
  name that one
the base `/vm/absent` does not exist
  'absent'  <- no such file
  a relative path starts at this file's directory
the layer `/vm/absent` does not exist
  'absent'  <- no such file
  make it with `bulkhead layer create --base /vm/a /vm/absent`, or write `create = true`
the layer `/vm/other` cannot be used
  'other'  <- /vm/other: it is not a layer: neither of its two headers has the signature
  name a layer that was made with `bulkhead layer create`; neither it nor its base may move
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
  name a layer that was made with `bulkhead layer create`; neither it nor its base may move

"#]]
    );
}
