//! The resolver, on packages in memory.

use super::{Circle, circles, uses};
use crate::package::Package;
use crate::source::Source;

const MANIFEST: &str = "[package]\nname = \"small\"\n";

fn package(files: &[(&str, &str)]) -> Package {
    let source = |(path, text): &(&str, &str)| {
        Source::parse(&format!("small/{path}"), (*text).to_owned()).unwrap()
    };
    let package = Package::new("small", MANIFEST, files.iter().map(source).collect()).unwrap();
    assert_eq!(package.tree.missing, []);
    package
}

/// Uses as `file:line Item file`, without `src/` and `.rs`.
fn used(files: &[(&str, &str)]) -> Vec<String> {
    let package = package(files);
    let scopes: Vec<_> = package.sources.iter().map(|source| &source.scopes).collect();
    let name = |file: usize| {
        let path = package.sources[file].path.trim_start_matches("small/");
        path.trim_start_matches("src/").trim_end_matches(".rs").to_owned()
    };
    let found = uses(&scopes, &package.tree, &package.manifest.library());
    found
        .iter()
        .map(|one| format!("{}:{} {} {}", name(one.from), one.line, one.item, name(one.to)))
        .collect()
}

fn found(files: &[(&str, &str)]) -> Vec<Circle> {
    package(files).circles()
}

#[test]
fn an_import_is_a_use_and_a_mod_line_is_none() {
    let files = [
        ("src/lib.rs", "mod a;\nmod b;"),
        ("src/a.rs", "use crate::b::B;\nuse std::fmt::Debug;\nstruct A(B);"),
        ("src/b.rs", "pub struct B;"),
    ];
    assert_eq!(used(&files), ["a:1 B b"]);
}

#[test]
fn a_chain_of_reexports_leads_to_the_definition() {
    let files = [
        ("src/lib.rs", "mod a;\nmod b;\npub use b::B;"),
        ("src/a.rs", "use crate::B;"),
        ("src/b/mod.rs", "mod c;\npub(crate) use c::B;"),
        ("src/b/c/mod.rs", "mod d;\npub use self::d::*;"),
        ("src/b/c/d.rs", "pub struct B;"),
    ];
    assert_eq!(used(&files), ["a:1 B b/c/d"]);
}

#[test]
fn a_reexport_under_another_name_leads_to_the_definition() {
    let files = [
        ("src/lib.rs", "mod a;\nmod b;\npub use b::B as Other;"),
        ("src/a.rs", "use crate::Other as Mine;\nfn f(_: Mine) {}"),
        ("src/b.rs", "pub struct B;"),
    ];
    assert_eq!(used(&files), ["a:1 B b"]);
}

#[test]
fn the_file_of_a_reexport_uses_the_item_if_it_names_it() {
    let files = [
        ("src/lib.rs", "mod b;\npub use b::B;\npub use b::C;\nfn f(_: B) {}"),
        ("src/b.rs", "pub struct B;\npub struct C;"),
    ];
    assert_eq!(used(&files), ["lib:4 B b"]);
}

#[test]
fn names_in_nested_groups_each_count_at_their_line() {
    let files = [
        ("src/lib.rs", "mod a;\nmod b;\nmod c;"),
        ("src/a.rs", "use crate::{\n    b::{self, B},\n    c::{C, D as E},\n};\nfn f() { b::g() }"),
        ("src/b.rs", "pub struct B;\npub fn g() {}"),
        ("src/c.rs", "pub struct C;\npub struct D;"),
    ];
    assert_eq!(used(&files), ["a:2 B b", "a:5 g b", "a:3 C c", "a:3 D c"]);
}

#[test]
fn self_and_super_are_followed() {
    let files = [
        ("src/lib.rs", "mod a;\npub struct Root;"),
        ("src/a/mod.rs", "mod b;\nmod c;\npub struct A;\nfn f() { self::b::g() }"),
        ("src/a/b.rs", "pub fn g() { super::c::h(super::A, super::super::Root) }"),
        ("src/a/c.rs", "use super::super::a::A;\npub fn h(_: A, _: crate::Root) {}"),
    ];
    let expected = [
        "a/mod:4 g a/b",
        "a/b:1 Root lib",
        "a/b:1 A a/mod",
        "a/b:1 h a/c",
        "a/c:2 Root lib",
        "a/c:1 A a/mod",
    ];
    let mut found = used(&files);
    found.sort();
    let mut expected = expected.map(str::to_owned);
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn inline_modules_are_scopes_of_their_file() {
    let files = [
        (
            "src/lib.rs",
            "mod a {\n    pub mod b;\n    pub struct A;\n    mod c { use super::b::B; }\n}",
        ),
        ("src/a/b.rs", "use super::A;\npub struct B(A);"),
    ];
    assert_eq!(used(&files), ["lib:4 B a/b", "a/b:1 A lib"]);
}

#[test]
fn variants_belong_to_the_file_of_their_enum() {
    let files = [
        ("src/lib.rs", "mod a;\nmod b;\nmod c;"),
        ("src/a.rs", "use crate::c::Kind::*;\nfn f() -> u8 { match g() { One => 1, _ => 2 } }"),
        ("src/b.rs", "use crate::c;\nfn f() { c::Kind::Two; }"),
        ("src/c.rs", "pub enum Kind { One, Two }"),
    ];
    assert_eq!(used(&files), ["a:1 Kind c", "b:2 Kind c"]);
}

#[test]
fn a_glob_counts_only_the_names_used() {
    let files = [
        ("src/lib.rs", "mod a;\nmod b;\nmod c;"),
        ("src/a.rs", "use crate::b::*;\nfn f(_: B) { g(1) }"),
        ("src/b.rs", "pub use crate::c::*;\npub struct B;\npub struct Unused;"),
        ("src/c.rs", "pub fn g(_: u8) {}\npub fn unused() {}"),
    ];
    assert_eq!(used(&files), ["a:2 B b", "a:2 g c"]);
}

#[test]
fn cfg_test_code_is_ignored() {
    let files = [
        ("src/lib.rs", "mod a;\nmod b;"),
        (
            "src/a.rs",
            "#[cfg(test)]\nuse crate::b::B;\n#[cfg(test)]\nmod tests { use crate::b::B; }\n\
             struct S { #[cfg(test)] b: crate::b::B }\n\
             impl S { #[cfg(test)] fn f(_: crate::b::B) {} }",
        ),
        ("src/b.rs", "pub struct B;\n#[cfg(test)]\nmod tests;"),
        ("src/b/tests.rs", "use crate::a::S;"),
    ];
    assert_eq!(used(&files), Vec::<String>::new());
}

#[test]
fn paths_in_macros_and_attributes_count() {
    let files = [
        ("src/lib.rs", "mod a;\nmod b;"),
        (
            "src/a.rs",
            "use crate::b;\nfn f(b: u8) { println!(\"{}\", b::ONE + x.b::<u8>()) }\n\
             #[arg(value_parser = crate::b::parse)]\nstruct S;",
        ),
        ("src/b.rs", "pub const ONE: u8 = 1;\npub fn parse() {}"),
    ];
    assert_eq!(used(&files), ["a:2 ONE b", "a:3 parse b"]);
}

#[test]
fn a_macro_in_textual_scope_is_resolved() {
    let files = [
        ("src/lib.rs", "#[macro_use]\nmod a;\nmod b;"),
        ("src/a.rs", "macro_rules! twice { ($e:expr) => { ($e, $e) } }"),
        ("src/b.rs", "fn f() { twice!(1); println!(\"\"); }"),
    ];
    assert_eq!(used(&files), ["b:1 twice a"]);
}

#[test]
fn an_import_in_a_function_is_local_to_it() {
    let files = [
        ("src/lib.rs", "mod a;\nmod b;"),
        ("src/a.rs", "fn f() { use crate::b::*; g() }\nfn g() {}\nfn h() { g() }"),
        ("src/b.rs", "pub fn g() {}"),
    ];
    assert_eq!(used(&files), ["a:1 g b"]);
}

#[test]
fn a_local_variable_is_no_use_of_a_function_of_its_name() {
    let files = [
        ("src/lib.rs", "mod b;\npub use b::g;\nfn f(g: u8) -> u8 { g + h(g) }\nfn h(_: u8) {}"),
        ("src/b.rs", "pub fn g() {}"),
    ];
    assert_eq!(used(&files), Vec::<String>::new());
}

#[test]
fn binaries_and_tests_import_the_library_by_name() {
    let files = [
        ("src/lib.rs", "mod a;\npub use a::A;"),
        ("src/a.rs", "pub struct A;"),
        ("src/main.rs", "use small::A;"),
        ("tests/t.rs", "fn f(_: small::A) {}"),
    ];
    assert_eq!(used(&files), ["main:1 A a", "tests/t:1 A a"]);
}

#[test]
fn cyclic_reexports_terminate() {
    let files = [
        ("src/lib.rs", "mod a;\nmod b;\nfn f() { a::x() }"),
        ("src/a.rs", "pub use crate::b::*;"),
        ("src/b.rs", "pub use crate::a::*;"),
    ];
    assert_eq!(used(&files), Vec::<String>::new());
}

#[test]
fn two_files_that_use_each_other_are_a_circle() {
    let files = [
        ("src/lib.rs", "mod a;\nmod b;\nmod c;"),
        ("src/a.rs", "use crate::b::B;\npub struct A(B);"),
        ("src/b.rs", "pub struct B;\nfn f(_: crate::a::A, _: crate::c::C) {}"),
        ("src/c.rs", "pub struct C;"),
    ];
    let found = found(&files);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].folder, None);
    assert_eq!(found[0].members, ["small/src/a.rs", "small/src/b.rs"]);
    let expected =
        ["small/src/a.rs:1 uses B of small/src/b.rs", "small/src/b.rs:2 uses A of small/src/a.rs"];
    assert_eq!(found[0].uses, expected);
    assert_eq!(found[0].cuts.len(), 1);
    let text = found[0].to_string();
    assert!(text.contains("\n  * small/src/"), "{text}");
}

#[test]
fn a_module_that_uses_its_child_and_is_used_by_it_is_a_circle() {
    let files = [
        ("src/lib.rs", "mod a;"),
        ("src/a/mod.rs", "mod b;\npub struct A;\nfn f() { b::g() }"),
        ("src/a/b.rs", "use super::A;\npub fn g() {}"),
    ];
    assert_eq!(found(&files).len(), 1);
}

#[test]
fn folders_may_form_a_circle_that_no_files_form() {
    let files = [
        ("src/lib.rs", "mod a;\nmod b;"),
        ("src/a/mod.rs", "pub mod low;\npub mod high;"),
        ("src/a/low.rs", "pub struct Low;"),
        ("src/a/high.rs", "use crate::b::B;"),
        ("src/b.rs", "use crate::a::low::Low;\npub struct B;"),
    ];
    let found = found(&files);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].folder.as_deref(), Some("small/src"));
    assert_eq!(found[0].members, ["a/", "b.rs"]);
}

#[test]
fn a_graph_without_circles_has_none() {
    assert_eq!(circles(&["a/b.rs", "a/c.rs"], &[]), []);
}
