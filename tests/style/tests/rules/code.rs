//! Rules on code: unsafe modules, circles of imports, type names.

use style::rules::{code, names};

use super::unsafe_modules::UNSAFE_MODULES;
use super::{WORKSPACE, assert_none};

#[test]
fn unsafe_code_lives_in_few_named_modules() {
    let remedy = "wrap the call in a module that tests/style/tests/rules/unsafe_modules.rs names";
    assert_none("unsafe", &code::unsafe_code(&WORKSPACE, UNSAFE_MODULES), remedy);
}

#[test]
fn no_imports_run_in_a_circle() {
    let remedy = "move what two files share into a third below both (`make measure SHOW=circles`)";
    assert_none("circles", &code::circles(&WORKSPACE), remedy);
}

#[test]
fn no_two_types_of_a_package_share_a_name() {
    assert_none("type names", &names::duplicates(&WORKSPACE), "name each type for its own purpose");
}

#[test]
fn nothing_is_logged_under_a_lock() {
    let remedy = "release the lock first: a log call formats, and may wait for another lock";
    let packages = ["vmm", "devices", "block"];
    // One connection at a time uses the device, and the program's end waits for it anyway.
    let uncontended = ["VhostUserBlock"];
    let found = code::logs_under_lock(&WORKSPACE, &packages, &uncontended);
    assert_none("log calls", &found, remedy);
}
