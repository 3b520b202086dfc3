//! The order in which the verbs write and sync, on which a power cut relies: data before the bits
//! that tell of it, everything before the header that relies on it, a file before its name.

use std::fs;
use std::path::Path;

use super::kill::strace;
use super::origin;
use super::program::error_of;

/// Where the data of the layers starts.
const DATA_AT: u64 = 65 << 20;

/// The writes and syncs of a verb, as a file and what is done to it. A repetition is left out.
fn steps(folder: &Path, verb: &[&str]) -> Vec<String> {
    let log = tempfile::NamedTempFile::new().unwrap();
    let calls = "trace=pwrite64,fsync,fdatasync,linkat,rename,renameat2,ftruncate,fchmod,\
                 unlink,utimensat";
    let output =
        strace(folder, &["-qq", "-y", "-e", calls, "-o", log.path().to_str().unwrap()], verb);
    assert!(output.status.success(), "{verb:?}: {}", error_of(&output));
    let mut steps: Vec<String> = Vec::new();
    for line in fs::read_to_string(log.path()).unwrap().lines() {
        let Some((call, arguments)) = line.split_once('(') else { continue };
        // A leftover that is not there.
        if line.contains(" = -1 ENOENT") {
            continue;
        }
        let call = call.split_whitespace().next_back().unwrap();
        let named = arguments.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
        let file = named.map_or("", |(path, _)| path.rsplit('/').next().unwrap());
        // A file without a name.
        let file = if file.starts_with('#') { "new" } else { file };
        let file = if folder.ends_with(file) { "folder" } else { file };
        let end = arguments.rsplit_once(')').unwrap().0;
        let number = |place: usize| end.rsplit(", ").nth(place).unwrap().parse::<u64>().unwrap();
        let part = |at: u64| match at {
            _ if !file.ends_with(".layer") => "data",
            0..8192 => "header",
            8192..DATA_AT => "map",
            _ => "data",
        };
        let step = match call {
            "pwrite64" => format!("{file} {}", part(number(0))),
            "fdatasync" => format!("{file} data sync"),
            "fsync" => format!("{file} sync"),
            "fchmod" => format!("{file} mode"),
            "ftruncate" => format!("{file} length"),
            "utimensat" => format!("{file} time"),
            name => name.to_owned(),
        };
        if steps.last() != Some(&step) {
            steps.push(step);
        }
    }
    steps
}

#[track_caller]
fn assert_order(verb: &[&str], expected: &str) {
    let origin = origin();
    let expected: Vec<_> = expected.split(',').map(str::trim).collect();
    assert_eq!(steps(origin.path(), verb), expected, "{verb:?}");
}

const REPLACED: &str =
    "new length, new data, new data sync, new mode, new sync, linkat, rename, folder sync";

#[test]
fn a_power_cut_leaves_what_a_kill_leaves() {
    assert_order(
        &["freeze", "top.layer"],
        "top.layer data sync, top.layer header, top.layer data sync",
    );
    assert_order(&["reset", "top.layer"], &format!("top.layer data sync, {REPLACED}"));
    assert_order(
        &["rebase", "--base", "other.img", "top.layer"],
        "top.layer data sync, mid.layer data sync, base.img data sync, other.img data sync,
         top.layer data, top.layer data sync, top.layer map, top.layer data sync,
         top.layer header, top.layer data sync",
    );
    assert_order(
        &["flatten", "top.layer", "flat.img"],
        "top.layer data sync, mid.layer data sync, base.img data sync,
         new length, new data, new sync, linkat, folder sync",
    );
    let merged = "top.layer data sync, mid.layer data sync, mid.layer length, top.layer header,
                  top.layer data sync, mid.layer header, mid.layer data sync, mid.layer data,
                  mid.layer data sync, mid.layer map, mid.layer data sync, mid.layer header,
                  mid.layer data sync";
    assert_order(&["commit", "--force", "top.layer"], &format!("{merged}, {REPLACED}"));
    let merged = "raw.layer data sync, plain.img data sync, raw.layer header, raw.layer data sync,
                  plain.img length, plain.img sync, plain.img time, plain.img sync,
                  plain.img data, plain.img data sync, plain.img sync";
    assert_order(&["commit", "--force", "raw.layer"], &format!("{merged}, {REPLACED}"));
    let removed = format!("{merged}, unlink, folder sync");
    assert_order(&["commit", "--force", "--remove", "raw.layer"], &removed);
}
