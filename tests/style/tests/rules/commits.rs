//! The commit-msg hook, on examples and on the history.

use fixtures::needs;
use style::rules::commits::{self, History};

use super::{WORKSPACE, assert_none};

const BODY: &str = "\n\nThe reason, and how it was checked.\n";

fn complaint(message: &str) -> Option<String> {
    commits::check(&WORKSPACE.root, message).expect("the hook runs").err()
}

#[test]
fn commits_since_the_hook_pass_it() {
    match commits::history(&WORKSPACE.root).expect("git can be asked") {
        History::Read(count, violations) => {
            println!("{count} commits since the hook");
            assert_none("commits", &violations, "amend the message: `git commit --amend`");
        }
        History::Missing(reason) => needs::skip(reason),
    }
}

#[test]
fn the_hook_accepts_good_messages() {
    let long =
        format!("block: {}", "Add a word that makes this as long as a subject may just be, to");
    assert_eq!(format!("{long} c").len(), 72);
    let subjects = [
        "block: Complete a flush that was parked",
        "block, devices: Move the guest's memory map",
        "tests/style: Pass the hook's own test",
        "docs: Describe é and → in UTF-8",
        "Merge branch 'discard'",
        "\n# A comment of the editor.\n\nblock: Add a thing",
        &format!("{long} c"),
        &format!("{long} é"),
    ];
    for subject in subjects {
        assert_eq!(complaint(&format!("{subject}{BODY}")), None, "{subject}");
    }
}

#[test]
fn the_hook_rejects_bad_subjects() {
    let long = format!("block: Add {}", "x".repeat(62));
    let subjects = [
        ("Add a thing", "the subject is not"),
        ("Merge the two loops", "the subject is not"),
        ("block: add a thing", "does not start with a capital letter"),
        ("Block: Add a thing", "the subject is not"),
        ("block: Added a thing", "is not imperative"),
        ("block: Adding a thing", "is not imperative"),
        ("block: Adds a thing", "is not imperative"),
        ("block: The thing is added", "is not a verb"),
        ("block: Add a thing.", "ends with a full stop"),
        (long.as_str(), "73 columns, 72 at most"),
    ];
    for (subject, expected) in subjects {
        let complaint = complaint(&format!("{subject}{BODY}")).unwrap_or_default();
        assert!(complaint.contains(expected), "{subject}: {complaint:?}");
    }
}

#[test]
fn the_hook_requires_a_body() {
    let bodies = [
        ("", "there is no body"),
        ("\n\n", "there is no body"),
        ("\nRight below.\n", "the line after the subject is not blank"),
        ("\n\nSigned-off-by: A Person <a@example.org>\n", "there is no body"),
        ("\n\n# A comment of the editor.\n", "there is no body"),
        ("\n\n# ------------------------ >8 ------------------------\ndiff\n", "there is no body"),
    ];
    for (body, expected) in bodies {
        let complaint = complaint(&format!("block: Add a thing{body}")).unwrap_or_default();
        assert!(complaint.contains(expected), "{body:?}: {complaint:?}");
    }
}
