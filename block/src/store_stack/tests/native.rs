//! Stacks of this host: loop devices over file systems. Needs root.

use std::fs::File;
use std::path::Path;

use fixtures::host::{Loop, Mount, sh};
use fixtures::{Formatted, needs, scratch};
use tempfile::TempDir;

use crate::store_stack::{FlushPromise, StableCopies, StoreStack, StoreyKind};

fn stack(path: &Path) -> StoreStack {
    StoreStack::of(&File::open(path).unwrap()).unwrap()
}

#[test]
fn ext4_and_xfs_need_no_copies_of_their_own() {
    if !needs::root() {
        return;
    }
    for (format, fs_type) in
        [(&["mkfs.ext4", "-q", "-F"][..], "ext4"), (&["mkfs.xfs", "-q"], "xfs")]
    {
        let store = Formatted::new(format, "noatime");
        let found = stack(&store.file("disk"));
        let StoreyKind::FileSystem(file_system) = &found.root.kind else { panic!("{found:?}") };
        assert_eq!(file_system.fs_type, fs_type);
        assert!(file_system.has_option("noatime"), "{file_system:?}");
        assert_eq!(found.root.name, store.path().to_str().unwrap());
        let [device] = found.root.below.as_slice() else { panic!("{found:?}") };
        let StoreyKind::Loop { file, direct, .. } = &device.kind else { panic!("{found:?}") };
        assert_eq!(*file, store.image().to_str().unwrap());
        assert_eq!(*direct, Some(false));
        assert_eq!(device.below.len(), 1);
        assert_eq!(found.stable_copies(), StableCopies::default());
    }
}

#[test]
fn btrfs_needs_copies_except_for_no_cow_files() {
    if !needs::root() {
        return;
    }
    let store = Formatted::new(&["mkfs.btrfs", "-q"], "noatime");
    let plain = store.file("plain");
    let no_cow = store.file("no-cow");
    sh("chattr", &["+C", no_cow.to_str().unwrap()]);
    for file in [&plain, &no_cow] {
        Formatted::fill(file, 1 << 20);
    }
    let reason = Some(format!("btrfs checksums on {}", store.path().display()));
    let copies = stack(&plain).stable_copies();
    assert_eq!((copies.writes, copies.reads), (reason.clone(), reason.clone()));
    let found = stack(&no_cow);
    assert_eq!(found.stable_copies(), StableCopies::default(), "{found:?}");
    assert!(matches!(found.root.below[0].kind, StoreyKind::Loop { .. }), "{found:?}");

    let buffered = Loop::new(&plain);
    assert_eq!(stack(&buffered.0).stable_copies(), StableCopies::default());
    let direct = Loop::with_large_sectors(&plain);
    assert_eq!(stack(&direct.0).stable_copies().writes, reason);
}

#[test]
fn no_cow_on_dup_needs_copies_of_writes() {
    if !needs::root() {
        return;
    }
    let store = Formatted::new(&["mkfs.btrfs", "-q", "--data", "dup"], "noatime");
    let no_cow = store.file("no-cow");
    sh("chattr", &["+C", no_cow.to_str().unwrap()]);
    let copies = stack(&no_cow).stable_copies();
    assert_eq!(copies.writes, Some(format!("btrfs dup on {}", store.path().display())));
    assert_eq!(copies.reads, None);
}

#[test]
fn tmpfs_needs_no_copies() {
    if !needs::root() {
        return;
    }
    let store = Mount::new("tmpfs", "size=8m");
    let file = store.file(1 << 20);
    let found = stack(&file);
    assert_eq!(found.stable_copies(), StableCopies::default());
    let device = Loop::new(&file);
    let [backing] = &stack(&device.0).root.below[..] else { panic!() };
    assert_eq!(*backing, found.root);
}

#[test]
fn a_deleted_backing_file_is_unknown() {
    if !needs::root() {
        return;
    }
    let folder = TempDir::new_in(scratch()).unwrap();
    let image = folder.path().join("image");
    File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let device = Loop::with_large_sectors(&image);
    std::fs::remove_file(&image).unwrap();
    let found = stack(&device.0);
    assert!(matches!(found.root.below[0].kind, StoreyKind::Unknown(_)), "{found:?}");
    assert!(found.stable_copies().writes.unwrap().contains("(deleted)"));
}

/// The problems of a file's own file system, as this kernel shows its options.
fn own_problems(store: &Formatted) -> Vec<String> {
    let problems = stack(&store.file("disk")).root.problems();
    problems.into_iter().map(|problem| problem.what).collect()
}

#[test]
fn mounts_without_barriers_are_found() {
    if !needs::root() {
        return;
    }
    let lie = "is mounted without barriers over a volatile cache, and flushes nothing";
    for (format, option) in [
        (&["mkfs.ext4", "-q", "-F"][..], "barrier=0"),
        (&["mkfs.ext4", "-q", "-F"], "nobarrier"),
        (&["mkfs.btrfs", "-q"], "nobarrier"),
    ] {
        assert_eq!(own_problems(&Formatted::new(format, option)), [lie], "{format:?}");
    }
    for (format, option) in [
        (&["mkfs.ext4", "-q", "-F"][..], "barrier=1"),
        (&["mkfs.ext4", "-q", "-F"], "data=writeback"),
        (&["mkfs.btrfs", "-q"], "nodatasum"),
        (&["mkfs.xfs", "-q"], "noatime"),
    ] {
        assert_eq!(own_problems(&Formatted::new(format, option)), <[&str; 0]>::default());
    }
}

#[test]
fn a_loop_device_set_to_write_through_is_found() {
    if !needs::root() {
        return;
    }
    let store = Formatted::new(&["mkfs.ext4", "-q", "-F"], "noatime");
    let file = store.file("disk");
    Formatted::fill(&file, 1 << 20);
    let device = Loop::new(&file);
    let promise = || stack(&device.0).root.problems().into_iter().map(|problem| problem.flush);
    assert_eq!(promise().next(), None);
    let lie = device.write_through();
    assert_eq!(promise().next(), Some(FlushPromise::NotKept));
    // The remedy.
    drop(lie);
    assert_eq!(promise().next(), None);
}

#[test]
fn a_volatile_overlay_is_found() {
    if !needs::root() {
        return;
    }
    let layers = Mount::new("tmpfs", "size=8m");
    for folder in ["upper", "work", "lower"] {
        std::fs::create_dir(layers.path().join(folder)).unwrap();
    }
    let path = |name: &str| layers.path().join(name).display().to_string();
    let [upper, work, lower] = ["upper", "work", "lower"].map(path);
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let honest = Mount::new("overlay", &options);
    let found = stack(&honest.file(1 << 20));
    assert_eq!(found.root.problems(), []);
    assert_eq!(found.root.below[0].name, layers.path().to_str().unwrap());
    drop(honest);
    let volatile = Mount::new("overlay", &format!("{options},volatile"));
    let problems = stack(&volatile.file(1 << 20)).root.problems();
    assert_eq!(problems[0].flush, FlushPromise::NotKept);
}
