//! Names of merged layers, right and wrong, in the headers of disks that are opened.

use std::fs::File;
use std::path::PathBuf;

use tempfile::TempDir;

use super::super::super::info::header_at;
use super::super::super::uuid::Uuid;
use super::*;
use crate::{CacheMode, DiskOptions, LayeredDisk, create_layer};

const SIZE: u64 = 1 << 20;
const OTHER: Uuid = Uuid([9; 16]);

struct Folder(TempDir);

impl Folder {
    /// A raw image, the layer `vm.a.layer` over it as if it was merged, and the disk `vm.layer`
    /// over `base`.
    fn new(base: &str) -> Self {
        let folder = Self(tempfile::tempdir_in(fixtures::scratch()).unwrap());
        File::create(folder.path("raw")).unwrap().set_len(SIZE).unwrap();
        create_layer(&folder.path("vm.a.layer"), &folder.path("raw"), None).unwrap();
        let merge = Some(Uuid([4; 16]));
        folder.change("vm.a.layer", |header| Header { frozen: Some(OTHER), merge, ..header });
        std::fs::copy(folder.path("vm.a.layer"), folder.path("copy.layer")).unwrap();
        create_layer(&folder.path("middle.layer"), &folder.path("vm.a.layer"), None).unwrap();
        create_layer(&folder.path("vm.layer"), &folder.path(base), None).unwrap();
        if base != "middle.layer" {
            std::fs::remove_file(folder.path("middle.layer")).unwrap();
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn change(&self, name: &str, change: impl FnOnce(Header) -> Header) {
        let path = self.path(name);
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let header = change(read_header(&file, &path).unwrap()).next();
        write_header(&file, &header).unwrap();
    }

    /// Opens the disk with the name of a merged layer. Returns whether a layer was removed or
    /// changed.
    fn retires(&self, name: &str, frozen: Uuid) -> bool {
        self.change("vm.layer", |header| Header { merged: Some((name.into(), frozen)), ..header });
        let before = std::fs::read(self.path(name)).unwrap();
        let options = DiskOptions::new(CacheMode::WriteBack);
        drop(LayeredDisk::open(&self.path("vm.layer"), &self.path("raw"), &options).unwrap());
        assert_eq!(header_at(&self.path("vm.layer")).unwrap().merged, None);
        let is_there = self.path(name).symlink_metadata().is_ok();
        !is_there || std::fs::read(self.path(name)).unwrap() != before
    }
}

#[test]
fn a_merged_layer_is_removed() {
    assert!(Folder::new("raw").retires("vm.a.layer", OTHER));
}

#[test]
fn a_stale_name_of_another_layer_removes_nothing() {
    assert!(!Folder::new("raw").retires("vm.a.layer", Uuid([8; 16])));
}

#[test]
fn a_layer_that_is_not_merged_is_not_removed() {
    let folder = Folder::new("raw");
    folder.change("vm.a.layer", |header| Header { merge: None, ..header });
    assert!(!folder.retires("vm.a.layer", OTHER));
}

#[test]
fn a_layer_on_which_the_disk_stands_is_not_removed() {
    assert!(!Folder::new("vm.a.layer").retires("vm.a.layer", OTHER), "directly");
    assert!(!Folder::new("middle.layer").retires("vm.a.layer", OTHER), "by another layer");
    assert!(!Folder::new("copy.layer").retires("vm.a.layer", OTHER), "on a copy of it");
}

#[test]
fn a_link_to_a_layer_is_not_followed() {
    let folder = Folder::new("raw");
    std::fs::create_dir(folder.path("elsewhere")).unwrap();
    let there = folder.path("elsewhere/a.layer");
    std::fs::rename(folder.path("vm.a.layer"), &there).unwrap();
    std::os::unix::fs::symlink(&there, folder.path("vm.a.layer")).unwrap();
    // It would be kept, with another header.
    create_layer(&folder.path("middle.layer"), &folder.path("vm.a.layer"), None).unwrap();
    assert!(!folder.retires("vm.a.layer", OTHER));
    assert!(there.exists());
}

#[test]
fn nothing_is_removed_for_a_disk_that_cannot_be_opened() {
    let folder = Folder::new("raw");
    let merged = Some(("vm.a.layer".into(), OTHER));
    folder.change("vm.layer", |header| Header { merged, ..header });
    File::options().write(true).open(folder.path("raw")).unwrap().set_len(2 * SIZE).unwrap();
    let options = DiskOptions::new(CacheMode::WriteBack);
    let result = LayeredDisk::open(&folder.path("vm.layer"), &folder.path("raw"), &options);
    assert!(result.unwrap_err().to_string().contains("has changed"));
    assert!(folder.path("vm.a.layer").exists());
}

/// It was moved while its machine runs, for example: others could stand on the layer unseen.
#[test]
fn a_layer_is_kept_if_the_disk_over_it_is_not_found() {
    let folder = Folder::new("raw");
    let path = folder.path("vm.a.layer");
    let file = RawFile::open_container(&path, &write_options()).unwrap();
    let header = read_header(file.file(), &path).unwrap();
    let mut layer = ChangedTop { path: path.clone(), file: file.into(), header };
    let base = layer.header.base.clone();
    std::fs::rename(folder.path("vm.layer"), folder.path("moved.layer")).unwrap();
    assert!(retire(&mut layer, &folder.path("vm.layer"), &base).is_err() && path.exists());
    let retired = retire(&mut layer, &folder.path("moved.layer"), &base).unwrap();
    assert_eq!((retired, path.exists()), (Retired::Removed, false));
    assert_eq!(retire(&mut layer, &folder.path("vm.layer"), &base).unwrap(), Retired::Removed);
}
