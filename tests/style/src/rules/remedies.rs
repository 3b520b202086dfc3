//! The rule on commands that messages advise: a user runs them as root, on the files of guests.
//!
//! Reads every string literal of production code, so that no way to print a text escapes it. A
//! command is a code span in backticks, a literal that starts with the name of a program, or a page
//! of section 1 or 8 of the manual. Names that `format!` replaces are `{}`.

use std::collections::BTreeSet;

use super::Violation;
use crate::Workspace;
use crate::source::Source;

/// A command that messages may advise, as its template, and the reason that it harms nothing.
pub type Advised = (&'static str, &'static str);

/// Programs of Linux hosts. A text that starts with one, or has one before an option, is a command.
#[rustfmt::skip]
const PROGRAMS: &[&str] = &[
    "apt", "awk", "badblocks", "blkdiscard", "blkzone", "blockdev", "btrfs", "bunzip2", "bzip2",
    "cat", "chattr", "chgrp", "chmod", "chown", "cp", "cryptsetup", "curl", "dd", "debugfs",
    "depmod", "dmesg", "dmsetup", "dnf", "drbdadm", "e2fsck", "echo", "eject", "fallocate",
    "fdisk", "findmnt", "fsck", "fsfreeze", "fstrim", "fuser", "gdisk", "gunzip", "gzip",
    "hdparm", "insmod", "install", "ip", "kill", "killall", "kpartx", "ln", "losetup", "ls",
    "lsblk", "lsof", "lvchange", "lvconvert", "lvcreate", "lvextend", "lvremove", "lvs", "lz4",
    "mdadm", "mkdir", "mkfs", "mknod", "mkswap", "modprobe", "mount", "mv", "namei", "nvme",
    "parted", "pkill", "pvcreate", "qemu-img", "qemu-nbd", "resize2fs", "rm", "rmdir", "rmmod",
    "sed", "setfacl", "setfattr", "sgdisk", "shred", "stat", "sudo", "swapoff", "sysctl",
    "systemctl", "tee", "touch", "truncate", "udevadm", "ulimit", "umount", "unxz", "unzstd",
    "usermod", "wipefs", "xz", "zfs", "zpool", "zstd",
];

/// A command in a text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    command: String,
    line: usize,
}

/// Commands of texts in production code that are not in `advised`, and entries of `advised` that no
/// text has.
pub fn unlisted_commands(workspace: &Workspace, advised: &[Advised]) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut used = BTreeSet::new();
    for package in workspace.production() {
        for source in package.sources.iter().filter(|source| !source.is_test) {
            for Found { command, line } in commands(source) {
                if advised.iter().any(|(listed, _)| *listed == command) {
                    used.insert(command);
                    continue;
                }
                let text = format!("advises `{command}`");
                found.push(Violation::new(package.name(), &source.path, line, text));
            }
        }
    }
    let unused = advised.iter().filter(|(listed, _)| !used.contains(*listed));
    found.extend(unused.map(|(listed, _)| {
        Violation::new("", "the list", 0, format!("no text advises `{listed}`: remove it"))
    }));
    found
}

/// The commands in the literals of a file.
fn commands(source: &Source) -> Vec<Found> {
    let literals = source.literals.iter().filter(|literal| !source.is_test_line(literal.line));
    literals
        .flat_map(|literal| {
            // Byte strings are no texts.
            let text = syn::parse_str::<syn::LitStr>(&literal.text).map(|text| text.value());
            let commands = text.map(|text| commands_in(&text)).unwrap_or_default();
            commands.into_iter().map(|command| Found { command, line: literal.line })
        })
        .collect()
}

fn commands_in(text: &str) -> Vec<String> {
    let text = templates(text);
    let mut commands = Vec::new();
    let mut outside = String::new();
    for (at, part) in text.split('`').enumerate() {
        if at % 2 == 0 {
            outside.push_str(part);
            // A span separates words.
            outside.push_str(" ` ");
        } else if is_command_span(part) {
            commands.push(part.to_owned());
        }
    }
    if text.contains('`') {
        commands.extend(bare_commands(&outside));
    } else if is_command_line(&text) {
        commands.push(text.clone());
    } else {
        commands.extend(bare_commands(&text));
    }
    commands.extend(manual_pages(&text));
    commands
}

/// Whether a code span is a command: of several words, unless they are a setting; or the name of a
/// program. Other single words are keys and names.
fn is_command_span(span: &str) -> bool {
    let is_setting = span.contains(" = ") || span.starts_with('[');
    let has_words = span.split_whitespace().nth(1).is_some();
    !is_setting && (has_words || is_program(span))
}

/// Whether a text without code spans is a command as a whole.
fn is_command_line(text: &str) -> bool {
    let mut words = text.split_whitespace();
    let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let is_option = second.starts_with('-') && second.len() > 1;
    !second.is_empty() && (is_program(first) || (first == "{}" && is_option))
}

/// Programs with an option in running text.
fn bare_commands(text: &str) -> Vec<String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let pairs = words.windows(2).filter_map(|pair| match pair {
        [program, option] if is_program(program) && option.starts_with('-') => {
            Some(format!("{program} {option}"))
        }
        _ => None,
    });
    pairs.collect()
}

/// Pages of the sections for commands, such as `truncate(1)`.
fn manual_pages(text: &str) -> Vec<String> {
    let is_name = |letter: char| letter.is_ascii_alphanumeric() || "_-.".contains(letter);
    let sections = ["(1)", "(8)"].into_iter();
    let pages = sections.flat_map(|section| text.match_indices(section));
    pages
        .filter_map(|(at, section)| {
            let before = text.get(..at)?;
            let name = before.rsplit(|letter| !is_name(letter)).next()?;
            (!name.is_empty()).then(|| format!("{name}{section}"))
        })
        .collect()
}

fn is_program(word: &str) -> bool {
    let word = word.trim_end_matches([',', ';', ':', '.']);
    PROGRAMS.contains(&word) || word.starts_with("mkfs.")
}

/// The text with `{}` for each name that `format!` replaces.
fn templates(text: &str) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, inside)) = rest.split_once('{') {
        let Some((name, after)) = inside.split_once('}') else { break };
        result.push_str(before);
        let is_name = |letter: char| letter.is_ascii_alphanumeric() || "_:?#".contains(letter);
        if name.chars().all(is_name) {
            result.push_str("{}");
            rest = after;
        } else {
            result.push('{');
            rest = inside;
        }
    }
    result.push_str(rest);
    result
}

#[cfg(test)]
mod tests {
    use super::commands_in;

    #[test]
    fn commands_are_found_in_each_form() {
        for (text, command) in [
            ("create it with `truncate -s 10G {path}`", "truncate -s 10G {}"),
            ("run `wipefs`", "wipefs"),
            ("a `future-tool --now {x:?}`", "future-tool --now {}"),
            ("`sudo rm -rf {}`, then retry", "sudo rm -rf {}"),
            ("dd if=/dev/zero of={path}", "dd if=/dev/zero of={}"),
            ("{program} -dc <{from} >{copy}", "{} -dc <{} >{}"),
            ("{directory} is missing: mkdir -p {directory}", "mkdir -p"),
            ("`x` is missing: mkdir -p {directory}", "mkdir -p"),
            ("give it a size with truncate(1)", "truncate(1)"),
            ("(mkfs.ext4(8))", "mkfs.ext4(8)"),
        ] {
            assert_eq!(commands_in(text), [command], "{text}");
        }
    }

    #[test]
    fn other_texts_are_no_commands() {
        for text in [
            "write `readonly = true`",
            "`[[disk]]` without `path`",
            "mount it without the option `volatile`",
            "remove `queues`, or `{key}`",
            "see open(2) and xattr(7)",
            "zfs",
            "{what}: a disk",
            "{\"drain\": true}",
        ] {
            assert_eq!(commands_in(text), Vec::<String>::new(), "{text}");
        }
    }
}
