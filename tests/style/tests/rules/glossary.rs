//! Rules on docs/glossary.md and on the names it retires.

use style::rules::glossary;

use super::{WORKSPACE, assert_none};

#[test]
fn the_glossary_is_sorted_and_unique() {
    assert_none("glossary", &glossary::disorder(&WORKSPACE), "its introduction defines its rows");
}

#[test]
fn no_retired_name_is_used() {
    let remedy = "use the word of the glossary";
    assert_none("retired names", &glossary::retired_names(&WORKSPACE), remedy);
}
