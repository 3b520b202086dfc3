//! Each rule on a workspace in memory that violates it.

use std::path::PathBuf;

use super::{Violation, code, dependencies, glossary, layout, names, remedies, words};
use crate::Workspace;
use crate::document::Document;
use crate::package::Package;
use crate::phrases::Phrases;
use crate::source::Source;

const PHRASES: &str = r#"
promises = ["LATER"]
[measured]
"so blue" = "blue"
[others]
"#;

/// A workspace of one package `block` with the given `src/lib.rs` and other files.
fn workspace(lib: &str, files: &[(&str, &str)]) -> Workspace {
    package("block", "", [&[("src/lib.rs", lib)], files].concat().as_slice())
}

fn package(name: &str, dependencies: &str, files: &[(&str, &str)]) -> Workspace {
    let manifest = format!("[package]\nname = \"{name}\"\n[dependencies]\n{dependencies}");
    let source = |(path, text): &(&str, &str)| {
        Source::parse(&format!("{name}/{path}"), (*text).to_owned()).unwrap()
    };
    let package = Package::new(name, &manifest, files.iter().map(source).collect()).unwrap();
    Workspace { root: PathBuf::new(), packages: vec![package], documents: Vec::new(), locked: 0 }
}

fn with_page(mut workspace: Workspace, path: &str, text: &str) -> Workspace {
    workspace.documents.push(Document::new(path.to_owned(), text.to_owned()).unwrap());
    workspace
}

fn phrases() -> Phrases {
    Phrases::parse(PHRASES).unwrap()
}

/// Violations as `path:line`.
fn places(violations: &[Violation]) -> Vec<String> {
    violations.iter().map(|one| format!("{}:{}", one.path, one.line)).collect()
}

#[test]
fn a_file_without_module_comment_is_found() {
    let workspace = workspace("//! Owns.\nmod a;\n", &[("src/a.rs", "// Not a module comment.\n")]);
    assert_eq!(places(&layout::without_module_comment(&workspace)), ["block/src/a.rs:0"]);
}

#[test]
fn a_file_of_501_lines_is_found() {
    let most = "//! Long.\n".repeat(500);
    let more = "//! Long.\n".repeat(501);
    let workspace = workspace("mod a; mod b;", &[("src/a.rs", &most), ("src/b.rs", &more)]);
    assert_eq!(places(&layout::long_files(&workspace)), ["block/src/b.rs:0"]);
}

#[test]
fn a_file_that_nothing_declares_is_found() {
    let workspace = workspace("mod a; mod gone;", &[("src/a.rs", ""), ("src/b.rs", "")]);
    assert_eq!(places(&layout::orphans(&workspace)), ["block/src/b.rs:0", "block/src/lib.rs:0"]);
}

#[test]
fn a_function_of_61_lines_is_found() {
    let function =
        |name, lines: usize| format!("fn {name}() {{\n{}}}\n", "g();\n".repeat(lines - 2));
    let workspace = workspace(&[function("a", 60), function("b", 61)].concat(), &[]);
    assert_eq!(places(&code::long_functions(&workspace)), ["block/src/lib.rs:61"]);
}

#[test]
fn unsafe_code_outside_of_the_list_is_found() {
    let lib = "mod a;\nfn f() { unsafe { g() } }\n#[cfg(test)]\nmod tests { unsafe fn h() {} }";
    let workspace = workspace(lib, &[("src/a.rs", "// No unsafe { here }.\n")]);
    let found = code::unsafe_code(&workspace, &[]);
    assert_eq!(places(&found), ["block/src/lib.rs:2"]);
    assert_eq!(code::unsafe_code(&workspace, &["block/src/lib.rs"]), []);
}

#[test]
fn a_listed_module_without_unsafe_code_is_found() {
    let workspace = workspace("fn f() {}", &[]);
    let found = code::unsafe_code(&workspace, &["block/src/lib.rs", "block/src/gone.rs"]);
    assert_eq!(places(&found), ["block/src/lib.rs:0", "block/src/gone.rs:0"]);
}

#[test]
fn a_circle_is_found_with_its_uses() {
    let a = ("src/a.rs", "use crate::B;\npub struct A(B);");
    let workspace = workspace("mod a;\npub struct B;\nfn f(_: a::A) {}", &[a]);
    let found = code::circles(&workspace);
    assert_eq!(found.len(), 1);
    assert!(found[0].text.contains("block/src/a.rs:1 uses B of block/src/lib.rs"), "{}", found[0]);
    assert!(found[0].text.contains("block/src/lib.rs:3 uses A of block/src/a.rs"), "{}", found[0]);
}

#[test]
fn types_of_one_name_are_found() {
    let lib = "mod a;\nstruct Twin;\nstruct Single;\n#[cfg(test)]\nmod tests { struct Single; }";
    let workspace = workspace(lib, &[("src/a.rs", "type Twin = u8;\nfn f() { enum Other {} }")]);
    assert_eq!(places(&names::duplicates(&workspace)), ["block/src/lib.rs:2", "block/src/a.rs:1"]);
}

#[test]
fn a_phrase_is_found_in_comments_strings_and_pages() {
    let lib = "/// It is so\n/// blue.\nconst A: &str = \"so blue\"; // so `blue`\n";
    let page = "# So blue\n\n`so blue`\n";
    let workspace = with_page(workspace(lib, &[]), "README.md", page);
    let found = words::phrases(&workspace, &phrases());
    assert_eq!(places(&found), ["block/src/lib.rs:1", "block/src/lib.rs:3", "README.md:1"]);
    assert_eq!(found[0].text, "`so blue`: use blue");
}

#[test]
fn a_promise_is_found() {
    let workspace = workspace("// LATER: more.\nfn later() {}\nconst LATERAL: u8 = 1;\n", &[]);
    assert_eq!(places(&words::promises(&workspace, &phrases())), ["block/src/lib.rs:1"]);
}

#[test]
fn a_comment_of_101_columns_is_found() {
    let comment = |columns: usize| format!("// {}\n", "é".repeat(columns - 3));
    let address = format!("// https://{}\n", "a".repeat(100));
    let workspace = workspace(&[comment(100), comment(101), address].concat(), &[]);
    assert_eq!(places(&words::wide_comments(&workspace)), ["block/src/lib.rs:2"]);
}

#[test]
fn a_line_of_121_columns_of_a_page_is_found() {
    let wide = "a".repeat(121);
    let page = format!("{wide}\n| {wide} |\n```\n{wide}\n```\n    {wide}\n{}\n", "a".repeat(120));
    let workspace = with_page(workspace("", &[]), "README.md", &page);
    assert_eq!(places(&words::wide_prose(&workspace)), ["README.md:1"]);
}

#[test]
fn a_dependency_against_the_direction_is_found() {
    let files = [("src/lib.rs", "")];
    let found = |dependencies| dependencies::reversed(&package("block", dependencies, &files));
    assert_eq!(places(&found("devices.workspace = true\n")), ["block/Cargo.toml:0"]);
    assert_eq!(places(&found("kvm-ioctls = \"1\"\n")), ["block/Cargo.toml:0"]);
    assert_eq!(found("libc = \"1\"\n"), []);
}

const HEAD: &str = "# Glossary\n\n| word | meaning | clause | instead of |\n|---|---|---|---|\n";

#[test]
fn disorder_of_the_glossary_is_found() {
    let disorder = |rows: &str| {
        let page = format!("{HEAD}{rows}");
        let workspace = with_page(workspace("", &[]), glossary::GLOSSARY, &page);
        places(&glossary::disorder(&workspace))
    };
    assert_eq!(disorder("| chain | A | | |\n| Kick | B | | |\n"), Vec::<String>::new());
    assert_eq!(disorder("| kick | A | | |\n| chain | B | | |\n"), ["docs/glossary.md:6"]);
    assert_eq!(disorder("| chain | A | | |\n| chain | B | | |\n"), ["docs/glossary.md:6"]);
    assert_eq!(disorder("| chain | A |\n"), ["docs/glossary.md:5"]);
    assert_eq!(disorder(""), ["docs/glossary.md:0"]);
    assert_eq!(places(&glossary::disorder(&workspace("", &[]))), ["docs/glossary.md:0"]);
}

#[test]
fn a_retired_name_is_found() {
    let retired = |names: &str| {
        let lib = "mod plain;\nmod kept;\nstruct Ask;\nfn news() {}\nfn plain() {}\n";
        let files = [("src/plain.rs", ""), ("src/kept/mod.rs", "")];
        let page = format!("{HEAD}| word | A | | {names} |\n");
        let workspace = with_page(workspace(lib, &files), glossary::GLOSSARY, &page);
        places(&glossary::retired_names(&workspace))
    };
    assert_eq!(retired("`Ask`"), ["block/src/lib.rs:3"]);
    assert_eq!(retired("`news()`"), ["block/src/lib.rs:4"]);
    assert_eq!(retired("`plain.rs`"), ["block/src/plain.rs:0"]);
    assert_eq!(retired("`plain()`"), ["block/src/lib.rs:5"]);
    assert_eq!(retired("`plain`"), ["block/src/lib.rs:5", "block/src/plain.rs:0"]);
    assert_eq!(retired("`kept/`"), ["block/src/kept/:0"]);
    assert_eq!(retired("`block::Ask`, `vmm::news()`"), ["block/src/lib.rs:3"]);
    assert_eq!(retired("`ask`, `new`, `Plain`, `kept.rs`"), Vec::<String>::new());
}

#[test]
fn an_advised_command_that_is_not_listed_is_found() {
    let lib = "fn f() { help(\"create it with `truncate -s 10G {path}`\"); }\n\
               const A: &str = \"see `lsblk`\";\n// `rm -r /`\n\
               #[cfg(test)]\nmod tests { const B: &str = \"`rm -r /`\"; }\n";
    let workspace = workspace(lib, &[]);
    let found = remedies::unlisted_commands(&workspace, &[("lsblk", "reads")]);
    assert_eq!(places(&found), ["block/src/lib.rs:1"]);
    assert_eq!(found[0].text, "advises `truncate -s 10G {}`");
    let listed = [("lsblk", "reads"), ("truncate -s 10G {}", "none"), ("ls", "reads")];
    assert_eq!(places(&remedies::unlisted_commands(&workspace, &listed)), ["the list:0"]);
}
