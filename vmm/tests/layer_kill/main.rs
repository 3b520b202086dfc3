//! The verbs of `bulkhead layer` that change layers, killed at each system call that changes
//! something: the disk reads as before or as after, and the same command finishes.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a failed helper fails its test

mod kill;
mod layer_file;
mod order;
mod program;

use std::cell::Cell;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use block::{CacheMode, DiskOptions, LayeredDisk};
use kill::{KILL, Kill};
use layer_file::{BLOCK, Slot, answer, answered, read_disk};
use program::{fail, info, succeed};
use serde_json::Value;
use tempfile::TempDir;

/// A raw image of `size` bytes with blocks full of a byte.
fn raw(path: &Path, size: u64, blocks: &[(u64, u8)]) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for &(block, byte) in blocks {
        let at = block * BLOCK as u64;
        let bytes = usize::try_from((size - at).min(BLOCK as u64)).unwrap();
        file.write_all_at(&vec![byte; bytes], at).unwrap();
    }
    file.sync_all().unwrap();
}

/// A folder with
/// - `top.layer` and `victim.layer` over `mid.layer` over `base.img`,
/// - `raw.layer` and `raw-victim.layer` over `plain.img`,
/// - `fresh.layer`, on which none stands, over `other.img`.
fn origin() -> TempDir {
    let folder = tempfile::tempdir_in(fixtures::scratch()).unwrap();
    let path = |name: &str| folder.path().join(name);
    // The last block is partial.
    raw(
        &path("base.img"),
        40 * 4096 + 512,
        &[(0, 1), (1, 1), (2, 1), (3, 1), (20, 0), (39, 1), (40, 1)],
    );
    raw(&path("plain.img"), 24 * 4096 + 1024, &[(0, 2), (1, 2), (5, 2), (24, 2)]);
    raw(&path("other.img"), 60 * 4096, &[(0, 1), (1, 9), (41, 9), (59, 9)]);
    for (base, size, name) in [
        ("base.img", None, "mid.layer"),
        ("mid.layer", Some("256KiB"), "top.layer"),
        ("mid.layer", None, "victim.layer"),
        ("plain.img", Some("128KiB"), "raw.layer"),
        ("plain.img", None, "raw-victim.layer"),
        ("other.img", None, "fresh.layer"),
    ] {
        let size = size.map(|size| format!("--size={size}"));
        let size: Vec<_> = size.as_deref().into_iter().collect();
        succeed(folder.path(), &[&["create", "--base", base, name], &size[..]].concat());
        match name {
            "mid.layer" => answer(&path(name), &[(1, 3), (2, 0), (7, 3), (12, 0)]),
            "top.layer" => answer(&path(name), &[(3, 4), (7, 0), (9, 4), (40, 4), (63, 4)]),
            "raw.layer" => answer(&path(name), &[(1, 5), (5, 0), (8, 5), (24, 5), (31, 5)]),
            "victim.layer" | "raw-victim.layer" => answer(&path(name), &[(2, 6)]),
            _ => answer(&path(name), &[(1, 7), (4, 7), (50, 0)]),
        }
    }
    folder
}

fn nothing(_: &Path) {}

#[test]
fn a_freeze_is_done_or_not() {
    let origin = origin();
    let kill = Kill { verb: &["freeze", "top.layer"], ..KILL };
    kill.run(origin.path(), nothing, |folder| {
        assert_eq!(info(folder, "top.layer").0[0]["frozen"], true);
    });
    let folder = origin.path();
    let content = |json: &str| serde_json::from_str::<Value>(json).unwrap()["content"].clone();
    let first = succeed(folder, &["freeze", "--json", "top.layer"]);
    let again = succeed(folder, &["freeze", "--json", "top.layer"]);
    assert_eq!(content(&first), content(&again));
    let error = fail(folder, &["reset", "top.layer"]);
    assert!(error.contains("it is frozen"), "{error}");
    // Layers over it would read the same.
    succeed(folder, &["commit", "--force", "top.layer"]);
    let again = succeed(folder, &["freeze", "--json", "top.layer"]);
    assert_eq!(content(&first), content(&again));
}

#[test]
fn a_reset_drops_all_or_nothing() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let origin = origin();
    let top = origin.path().join("top.layer");
    fs::set_permissions(&top, fs::Permissions::from_mode(0o640)).unwrap();
    let verb = &["reset", "top.layer"];
    let kill = Kill { verb, drops_changes: true, changes: 8, ..KILL };
    let uuid = Slot::of(&top).unwrap().uuid().to_owned();
    kill.run(origin.path(), nothing, |folder| {
        let top = folder.join("top.layer");
        assert_eq!(answered(&top), 0);
        let metadata = top.metadata().unwrap();
        assert_eq!(metadata.mode() & 0o7777, 0o640);
        assert_ne!(Slot::of(&top).unwrap().uuid(), uuid);
        assert!(metadata.blocks() * 512 <= 64 << 10, "{}", metadata.blocks());
    });
}

#[test]
fn a_rebase_keeps_what_the_disk_reads() {
    let origin = origin();
    let verb = |base| ["rebase", "--base", base, "top.layer"];
    // A level is dropped.
    let kill = Kill { verb: &verb("base.img"), changes: 6, ..KILL };
    kill.run(origin.path(), nothing, |folder| {
        assert_eq!(info(folder, "top.layer").0.len(), 2);
        // Those of both layers, without the zero block that the base has too.
        assert_eq!(answered(&folder.join("top.layer")), 5 + 2);
    });
    for (base, levels) in [("other.img", 2), ("fresh.layer", 3)] {
        let kill = Kill { verb: &verb(base), changes: 8, ..KILL };
        kill.run(origin.path(), nothing, |folder| {
            assert_eq!(info(folder, "top.layer").0.len(), levels);
        });
    }
    let folder = origin.path();
    let error = fail(folder, &["rebase", "--base", "other.img", "raw.layer"]);
    assert!(error.contains("whose end it would cut off"), "{error}");
    let error = fail(folder, &["rebase", "--base", "other.img", "mid.layer"]);
    assert!(error.contains("it is frozen"), "{error}");
    for base in ["top.layer", "mid.layer"] {
        let error = fail(folder, &["rebase", "--base", base, "mid.layer"]);
        assert!(error.contains("stands on it, and cannot be its base too"), "{error}");
    }
}

#[test]
fn a_base_that_was_moved_is_found() {
    let origin = origin();
    let folder = origin.path();
    let expected = read_disk(&folder.join("top.layer"));
    fs::rename(folder.join("base.img"), folder.join("moved.img")).unwrap();
    let error = fail(folder, &["rebase", "--base", "plain.img", "mid.layer"]);
    let differs = "base.img is missing, and plain.img is not the same one: 99328 bytes instead of";
    assert!(error.contains(differs), "{error}");
    for verb in ["reset", "info", "commit"] {
        let error = fail(folder, &[verb, "top.layer"]);
        assert!(error.contains("`bulkhead layer rebase --base NEW_PATH "), "{error}");
    }
    let verb = &["rebase", "--base", "moved.img", "mid.layer"];
    Kill { verb, top: "mid.layer", changes: 2, ..KILL }.run_moved(folder, &expected);

    // A layer that was moved too, and a copy of its base.
    succeed(folder, verb);
    fs::create_dir(folder.join("sub")).unwrap();
    fs::rename(folder.join("mid.layer"), folder.join("sub/mid.layer")).unwrap();
    succeed(folder, &["rebase", "--base", "moved.img", "sub/mid.layer"]);
    succeed(folder, &["rebase", "--base", "sub/mid.layer", "top.layer"]);
    assert_eq!(read_disk(&folder.join("top.layer")), expected);
    assert!(info(folder, "top.layer").1);
    // A copy that has not the modification time: the error has the command that sets it.
    fs::copy(folder.join("moved.img"), folder.join("copy.img")).unwrap();
    fs::remove_file(folder.join("moved.img")).unwrap();
    let rebase = &["rebase", "--base", "copy.img", "sub/mid.layer"];
    let error = fail(folder, rebase);
    let touch = error.split('`').find(|part| part.starts_with("touch -d ")).unwrap();
    let touched = Command::new("sh").args(["-c", touch]).current_dir(folder).status().unwrap();
    assert!(touched.success(), "{touch}");
    succeed(folder, rebase);
    assert_eq!(read_disk(&folder.join("top.layer")), expected);
}

#[test]
fn an_image_is_complete_or_missing() {
    use std::os::unix::fs::MetadataExt;
    let origin = origin();
    let expected = read_disk(&origin.path().join("top.layer")).unwrap();
    let kill = Kill {
        verb: &["flatten", "top.layer", "flat.img"],
        makes: &["flat.img"],
        changes: 6,
        ..KILL
    };
    let image = |folder: &Path| folder.join("flat.img");
    kill.run(
        origin.path(),
        |folder| {
            let found = fs::read(image(folder)).ok();
            assert!(found.is_none_or(|found| found == expected));
        },
        |folder| assert!(fs::read(image(folder)).unwrap() == expected),
    );
    // 0, 1, 3, 9, 39, 40, 63, and a block of metadata. Block 20 has zeroes in the base, of which a
    // copy of the folder makes a hole.
    succeed(origin.path(), kill.verb);
    assert!(image(origin.path()).metadata().unwrap().blocks() * 512 <= 8 * 4096);
    let error = fail(origin.path(), kill.verb);
    assert!(error.contains("flat.img: it exists already"), "{error}");
}

/// The states that a commit was left in, each with its count.
#[derive(Debug, Default)]
struct Seen {
    merging: Cell<u32>,
    half_written: Cell<u32>,
    whole: Cell<u32>,
}

/// In each state the other verbs refuse what they must not do, and no layer is made over a base
/// that is half-written.
fn look_at_merge(folder: &Path, seen: &Seen) {
    let count = |cell: &Cell<u32>| cell.set(cell.get() + 1);
    let (levels, _) = info(folder, "top.layer");
    let [is_merging, is_half_written] = [0, 1].map(|at| levels[at]["commit_interrupted"] == true);
    let is_changed = !info(folder, "victim.layer").1;
    if is_merging {
        count(&seen.merging);
        for verb in [
            &["freeze", "top.layer"][..],
            &["reset", "top.layer"],
            &["rebase", "--base", "base.img", "top.layer"],
        ] {
            let error = fail(folder, verb);
            let command = "run `bulkhead layer commit top.layer` again first";
            assert!(error.contains(command), "{error}");
        }
    }
    let create = &["create", "--base", "mid.layer", "late.layer"];
    if is_half_written {
        count(&seen.half_written);
        assert!(is_merging && is_changed);
        let error = fail(folder, create);
        assert!(error.contains("a commit into it was interrupted"), "{error}");
    } else if is_merging && is_changed {
        // The base is whole. Another layer stands on it before the commit is run again.
        count(&seen.whole);
        succeed(folder, create);
    }
}

#[test]
fn a_commit_into_a_layer_merges_all_or_continues() {
    let origin = origin();
    let kill = Kill {
        verb: &["commit", "--force", "top.layer"],
        victims: &["victim.layer"],
        changes: 14,
        ..KILL
    };
    let seen = Seen::default();
    kill.run(
        origin.path(),
        |folder| look_at_merge(folder, &seen),
        |folder| {
            assert_eq!(answered(&folder.join("top.layer")), 0);
            // Those of both.
            assert_eq!(answered(&folder.join("mid.layer")), 8);
            let (levels, _) = info(folder, "top.layer");
            assert_eq!(
                (&levels[1]["frozen"], &levels[1]["size_bytes"]),
                (&true.into(), &262_144.into())
            );
            assert!(!info(folder, "victim.layer").1);
            let late = folder.join("late.layer");
            if late.exists() {
                assert!(!info(folder, "late.layer").1);
                fs::remove_file(late).unwrap();
            }
        },
    );
    let seen = [seen.merging, seen.half_written, seen.whole].map(Cell::into_inner);
    assert!(seen.iter().all(|seen| *seen >= 2), "{seen:?}");
}

#[test]
fn a_commit_into_an_image_merges_all_or_continues() {
    let origin = origin();
    for remove in [false, true] {
        let mut verb = vec!["commit", "--force", "raw.layer"];
        verb.extend(remove.then_some("--remove"));
        let kill = Kill {
            verb: &verb,
            top: "raw.layer",
            victims: &["raw-victim.layer"],
            removes: if remove { &["raw.layer"] } else { &[] },
            changes: 12,
            ..KILL
        };
        let expected = read_disk(&origin.path().join("raw.layer"));
        kill.run(origin.path(), nothing, |folder| {
            assert_eq!(read_disk(&folder.join("plain.img")), expected);
            assert!(remove || answered(&folder.join("raw.layer")) == 0);
            assert!(!info(folder, "raw-victim.layer").1);
        });
    }
}

#[test]
fn a_commit_breaks_no_other_layer_without_force() {
    let origin = origin();
    let folder = origin.path();
    let content = |name: &str| fs::read(folder.join(name)).unwrap();
    let before = ["mid.layer", "top.layer", "base.img"].map(content);
    for verb in [&["commit", "top.layer"][..], &["commit", "--remove", "top.layer"]] {
        let error = fail(folder, verb);
        assert!(error.contains("could not be used afterwards: victim.layer;"), "{error}");
    }
    assert!(["mid.layer", "top.layer", "base.img"].map(content) == before);

    fs::remove_file(folder.join("victim.layer")).unwrap();
    fs::set_permissions(folder.join("mid.layer"), permissions(0o400)).unwrap();
    let error = fail(folder, &["commit", "top.layer"]);
    assert!(error.contains("its mode forbids writes"), "{error}");
    fs::set_permissions(folder.join("mid.layer"), permissions(0o600)).unwrap();
    let used = File::open(folder.join("mid.layer")).unwrap();
    let locked = LayeredDisk::open(
        &folder.join("mid.layer"),
        &folder.join("base.img"),
        &DiskOptions::new(CacheMode::WriteBack).read_only(),
    );
    let error = fail(folder, &["commit", "top.layer"]);
    assert!(error.contains("mid.layer: in use by process"), "{error}");
    drop((locked, used));
    assert!(["mid.layer", "top.layer", "base.img"].map(content) == before);
    // A layer in the folder of the base, which is another one.
    let elsewhere = tempfile::tempdir_in(fixtures::scratch()).unwrap();
    let base = folder.join("plain.img");
    let own = elsewhere.path().join("own.layer");
    succeed(elsewhere.path(), &["create", "--base", base.to_str().unwrap(), "own.layer"]);
    answer(&own, &[(0, 8)]);
    let error = fail(elsewhere.path(), &["commit", "own.layer"]);
    let named = [folder.join("raw-victim.layer"), folder.join("raw.layer")];
    let named = named.map(|path| path.display().to_string()).join(", ");
    assert!(error.contains(&format!("could not be used afterwards: {named};")), "{error}");

    // A layer that does not know yet that its base was moved.
    let moved = tempfile::tempdir_in(fixtures::scratch()).unwrap();
    let moved = moved.path();
    fs::write(moved.join("old.img"), vec![1; 1 << 20]).unwrap();
    for name in ["one.layer", "other.layer"] {
        succeed(moved, &["create", "--base", "old.img", name]);
        answer(&moved.join(name), &[(0, 8)]);
    }
    fs::rename(moved.join("old.img"), moved.join("new.img")).unwrap();
    succeed(moved, &["rebase", "--base", "new.img", "one.layer"]);
    let error = fail(moved, &["commit", "one.layer"]);
    assert!(error.contains("could not be used afterwards: other.layer;"), "{error}");

    succeed(folder, &["commit", "top.layer"]);
    // An empty one changes nothing, and nothing has to be refused.
    let (base, top) = (content("mid.layer"), content("top.layer"));
    succeed(folder, &["create", "--base", "mid.layer", "victim.layer"]);
    succeed(folder, &["commit", "top.layer"]);
    assert!(content("mid.layer") == base && content("top.layer") == top);
    assert!(info(folder, "victim.layer").1);
}

fn permissions(mode: u32) -> fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(mode)
}
