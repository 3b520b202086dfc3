//! Verbs that are killed at each system call that changes something.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};

use block::{CacheMode, DiskOptions, LayeredDisk};

use super::layer_file::{Slot, read_disk};
use super::program::{copy_of, error_of, info, layer, names, succeed};

/// The system calls that change something.
const CHANGES: &str = "pwrite64,write,fsync,fdatasync,linkat,rename,renameat2,ftruncate,fallocate,\
                       unlink,unlinkat,fchmod,fchown,utimensat,fsetxattr";

/// A system call of a verb: its name, and how many of this name there are up to it.
type Change = (String, usize);

/// The changes of a verb, in order. The folder is left as the verb leaves it.
fn changes(folder: &Path, verb: &[&str]) -> Vec<Change> {
    let log = tempfile::NamedTempFile::new().unwrap();
    let trace = ["-qq", "-e", &format!("trace={CHANGES}"), "-o", log.path().to_str().unwrap()];
    let output = strace(folder, &trace, verb);
    assert!(output.status.success(), "{verb:?}: {}", error_of(&output));
    let mut changes: Vec<Change> = Vec::new();
    for line in fs::read_to_string(log.path()).unwrap().lines() {
        let Some((call, _)) = line.split_once('(') else { continue };
        // The process is first.
        let name = call.split_whitespace().next_back().unwrap_or_default().to_owned();
        let before = changes.iter().filter(|(other, _)| *other == name).count();
        changes.push((name, before + 1));
    }
    changes
}

/// Runs a verb and kills it when it is about to make a change.
fn kill(folder: &Path, verb: &[&str], (name, count): &Change) {
    let inject = format!("inject={name}:signal=KILL:when={count}");
    let output = strace(folder, &["-qq", "-o", "/dev/null", "-e", &inject], verb);
    let status = output.status;
    let is_killed = status.signal() == Some(9) || status.code() == Some(128 + 9);
    assert!(is_killed, "{verb:?} at {name} {count}: {status}: {}", error_of(&output));
}

pub(crate) fn strace(folder: &Path, options: &[&str], verb: &[&str]) -> Output {
    let mut strace = Command::new("strace");
    strace.args(["-f"]).args(options).arg(env!("CARGO_BIN_EXE_bulkhead")).arg("layer").args(verb);
    strace.current_dir(folder).output().expect("strace, which this test needs")
}

/// A verb that is killed.
pub(crate) struct Kill<'v> {
    pub(crate) verb: &'v [&'v str],
    /// The layer that is changed.
    pub(crate) top: &'v str,
    /// The disk reads the same as its base afterwards.
    pub(crate) drops_changes: bool,
    /// Layers that may not be usable afterwards.
    pub(crate) victims: &'v [&'v str],
    /// Files that are there afterwards only.
    pub(crate) makes: &'v [&'v str],
    /// Files that are gone afterwards.
    pub(crate) removes: &'v [&'v str],
    /// Fewest changes of the verb.
    pub(crate) changes: usize,
}

pub(crate) const KILL: Kill<'static> = Kill {
    verb: &[],
    top: "top.layer",
    drops_changes: false,
    victims: &[],
    makes: &[],
    removes: &[],
    changes: 3,
};

impl Kill<'_> {
    /// Kills the verb at each change, and calls `look` with the folder that is left, before the
    /// verb runs again, and `finished` afterwards.
    pub(crate) fn run(&self, origin: &Path, look: impl Fn(&Path), finished: impl Fn(&Path)) {
        let top = origin.join(self.top);
        let before = read_disk(&top);
        let base = Slot::of(&top).unwrap().base(&top);
        let mut after = before.clone();
        if self.drops_changes {
            let size = after.as_ref().unwrap().len();
            after = read_disk(&base);
            after.as_mut().unwrap().resize(size, 0);
        }
        let victims = self.victims.iter().map(|name| (*name, read_disk(&origin.join(name))));
        let victims: Vec<_> = victims.collect();
        let mut expected = names(origin);
        expected.extend(self.makes.iter().map(ToString::to_string));
        expected.retain(|name| !self.removes.contains(&name.as_str()));

        let changes = changes(copy_of(origin).path(), self.verb);
        assert!(changes.len() >= self.changes, "{:?}: {changes:?}", self.verb);
        for change in changes {
            let copy = copy_of(origin);
            let folder = copy.path();
            kill(folder, self.verb, &change);
            let what = format!("{:?} killed at {change:?}", self.verb);
            let disk = |when: &str, is_over: bool| {
                let top = folder.join(self.top);
                // A layer that was removed is in its base.
                let base = folder.join(base.strip_prefix(origin).unwrap());
                let found = read_disk(if top.exists() { &top } else { &base });
                let is_after = found == after;
                assert!(is_after || (!is_over && found == before), "{what}: {when}");
                if top.exists() && found.is_some() {
                    self.open(folder, &what);
                }
            };
            disk("left", false);
            for (name, content) in &victims {
                let is_usable = info(folder, name).1;
                let found = read_disk(&folder.join(name));
                assert!(!is_usable || found == *content, "{what}: {name} reads otherwise");
            }
            look(folder);
            let again = layer(folder, self.verb);
            let was_done = names(folder) == expected && !again.status.success();
            let may_be_done = !self.makes.is_empty() || !self.removes.is_empty();
            assert!(
                again.status.success() || (was_done && may_be_done),
                "{what}: again: {}",
                error_of(&again)
            );
            disk("finished", true);
            finished(folder);
            assert_eq!(names(folder), expected, "{what}");
            if folder.join(self.top).exists() {
                let (levels, is_well) = info(folder, self.top);
                assert!(is_well, "{what}: {levels:?}");
                assert!(levels.iter().all(|level| level["commit_interrupted"] != true), "{what}");
            }
        }
    }

    /// Opens the layer as a machine does.
    fn open(&self, folder: &Path, what: &str) {
        let top = folder.join(self.top);
        let base = Slot::of(&top).unwrap().base(&top);
        let options = DiskOptions::new(CacheMode::WriteBack).read_only();
        let opened = LayeredDisk::open(&top, &base, &options);
        opened.unwrap_or_else(|error| panic!("{what}: {error}"));
    }
}

impl Kill<'_> {
    /// As [`Kill::run`], for a base that was moved: until the verb is done the base is missing.
    pub(crate) fn run_moved(&self, origin: &Path, expected: &Option<Vec<u8>>) {
        let changes = changes(copy_of(origin).path(), self.verb);
        assert!(changes.len() >= self.changes, "{:?}: {changes:?}", self.verb);
        for change in changes {
            let copy = copy_of(origin);
            kill(copy.path(), self.verb, &change);
            let found = read_disk(&copy.path().join("top.layer"));
            assert!(found.is_none() || found == *expected, "{change:?}");
            succeed(copy.path(), self.verb);
            assert!(read_disk(&copy.path().join("top.layer")) == *expected, "{change:?}");
            assert!(info(copy.path(), "top.layer").1);
            assert_eq!(names(copy.path()), names(origin));
        }
    }
}
