//! Rules on comments, messages and documents.

use style::rules::words;

use super::{PHRASES, WORKSPACE, assert_none};

#[test]
fn no_banned_phrase_is_used() {
    let remedy =
        "use a noun and the term of the field; tests/style/phrases.toml lists replacements";
    assert_none("phrases", &words::phrases(&WORKSPACE, &PHRASES), remedy);
}

#[test]
fn no_work_is_left_unfinished() {
    assert_none(
        "promises",
        &words::promises(&WORKSPACE, &PHRASES),
        "finish the work or open an issue",
    );
}

#[test]
fn no_comment_is_too_wide() {
    assert_none("comment width", &words::wide_comments(&WORKSPACE), "wrap the comment");
}

#[test]
fn no_page_is_too_wide() {
    assert_none("page width", &words::wide_prose(&WORKSPACE), "wrap the paragraph");
}
