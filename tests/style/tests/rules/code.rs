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
