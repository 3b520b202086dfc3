//! The rule on commands that messages advise.

use style::rules::remedies;

use super::advised_commands::ADVISED_COMMANDS;
use super::{WORKSPACE, assert_none};

#[test]
fn each_advised_command_is_listed() {
    let remedy = "advise a command that harms no data, and list it with the reason in \
                  tests/style/tests/rules/advised_commands.rs";
    assert_none("commands", &remedies::unlisted_commands(&WORKSPACE, ADVISED_COMMANDS), remedy);
}

/// A command that may change the size of a file names a copy, or only grows it.
#[test]
fn no_listed_command_cuts_off_a_file() {
    for (command, reason) in ADVISED_COMMANDS {
        assert!(!reason.is_empty(), "{command} has no reason");
        let is_copy = command.starts_with("cp ");
        let grows = command.contains("truncate -s '>");
        assert!(!command.contains("truncate") || is_copy || grows, "{command}");
        for harmful in ["rm ", "dd ", "mkfs", "wipefs", "blkdiscard", "mv ", "mknod"] {
            let mut words = command.split_inclusive(' ');
            assert!(!words.any(|word| word.starts_with(harmful)), "{command}");
        }
    }
}
