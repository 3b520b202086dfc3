//! Rules on files and packages.

use style::rules::{dependencies, layout};

use super::{WORKSPACE, assert_none};

#[test]
fn each_file_opens_with_a_module_comment() {
    let remedy = "say in `//!` what the file owns, which thread runs it, what it must never do";
    assert_none("module comment", &layout::without_module_comment(&WORKSPACE), remedy);
}

#[test]
fn no_file_is_too_long() {
    assert_none("file length", &layout::long_files(&WORKSPACE), "divide the file by purpose");
}

#[test]
fn each_file_belongs_to_its_package() {
    let remedy = "delete a file that no target includes; share code by a crate, not by `#[path]`";
    assert_none("module tree", &layout::orphans(&WORKSPACE), remedy);
}

#[test]
fn dependencies_run_one_way() {
    let remedy = "vmm → devices → block, only vmm knows KVM, none depends on a crate for tests";
    assert_none("dependencies", &dependencies::reversed(&WORKSPACE), remedy);
}
