//! The rules of CONTRIBUTING.md that a machine can check.

use std::fs;
use std::path::{Path, PathBuf};

/// Lines above which a room is usually two rooms.
const LONGEST_FILE: usize = 600;

/// The only modules that may hold `unsafe`, each for one reason.
const UNSAFE_MODULES: &[&str] = &[
    "block/src/host_io/compare.rs",
    "block/src/host_io/host_call.rs",
    "block/src/page.rs",
    "block/src/segment.rs",
    "block/src/sys.rs",
    "block/src/threads/calls.rs",
    "block/src/uring/mod.rs",
    "block/src/uring/ring.rs",
    "devices/src/event.rs",
    "devices/src/scsi/scratch.rs",
    "devices/src/guest_memory.rs",
    "devices/src/virtqueue/chain.rs",
    "devices/src/virtio/net/tap.rs",
    "devices/src/virtqueue/ring_memory.rs",
    "vmm/src/kvm/failure.rs",
    "vmm/src/kvm/mod.rs",
    "vmm/src/sys.rs",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All Rust files of the workspace, as paths from its root, with their text.
fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders: Vec<_> =
        ["block", "devices", "vmm", "tests"].iter().map(|member| root().join(member)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the tree") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name =
                    path.strip_prefix(root()).expect("a path of the tree").display().to_string();
                found.push((name, fs::read_to_string(&path).expect("UTF-8")));
            }
        }
    }
    assert!(found.len() > 20, "the sources were not found");
    found
}

/// The sources for which `broken` holds.
fn offenders(broken: impl Fn(&str, &str) -> bool) -> Vec<String> {
    sources().into_iter().filter(|(name, text)| broken(name, text)).map(|(name, _)| name).collect()
}

#[test]
fn each_file_opens_with_what_it_owns() {
    let silent = offenders(|_, text| !text.starts_with("//! "));
    assert!(silent.is_empty(), "without a module comment: {silent:#?}");
}

#[test]
fn no_file_is_too_long() {
    let long = offenders(|_, text| text.lines().count() > LONGEST_FILE);
    assert!(long.is_empty(), "over {LONGEST_FILE} lines: {long:#?}");
}

#[test]
fn no_promises_are_left_in_the_code() {
    let words = ["TODO", "FIXME", "XXX", "HACK"];
    let promising = offenders(|name, text| {
        name != "tests/tests/style.rs" && words.iter().any(|word| text.contains(word))
    });
    assert!(promising.is_empty(), "promises: {promising:#?}");
}

#[test]
fn unsafe_code_lives_in_few_named_modules() {
    let unnamed = offenders(|name, text| {
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let forms = ["{", "fn ", "impl", "extern", "trait"].map(|form| format!("unsafe {form}"));
        let has_unsafe = code.into_iter().any(|line| forms.iter().any(|form| line.contains(form)));
        has_unsafe
            && !name.starts_with("tests/")
            && !name.contains("/tests/")
            && !name.contains("/examples/")
            && !UNSAFE_MODULES.contains(&name)
    });
    assert!(unnamed.is_empty(), "unsafe outside of the named modules: {unnamed:#?}");
}

/// Dependencies run one way: vmm → devices → block, and only vmm knows KVM.
#[test]
fn dependencies_run_one_way() {
    let manifest =
        |member: &str| fs::read_to_string(root().join(member).join("Cargo.toml")).unwrap();
    let forbidden_in = [
        ("block", &["devices", "vmm", "kvm-ioctls", "kvm-bindings", "vm-memory"][..]),
        ("devices", &["vmm", "kvm-ioctls", "kvm-bindings"]),
    ];
    for (member, forbidden) in forbidden_in {
        let text = manifest(member);
        let dependencies = text.split("[dependencies]").nth(1).unwrap();
        let dependencies = dependencies.split("\n[").next().unwrap();
        let names = dependencies.lines().filter_map(|line| line.split(['.', ' ', '=']).next());
        for name in names {
            assert!(!forbidden.contains(&name), "{member} depends on {name}");
        }
    }
}
