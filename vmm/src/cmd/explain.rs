//! The durability that a disk promises, in plain words. Pure.
//!
//! The words follow from the table in `block::CacheMode` alone, so they cannot promise more.

use block::{CacheMode, Durability, FlushAction};

use crate::config::{DiskConfig, MachineConfig};

/// Width of a line.
const WIDTH: usize = 100;
/// Indentation of the text.
const INDENT: usize = 24;

/// A paragraph for each disk.
pub(super) fn machine(machine: &MachineConfig) -> String {
    machine.disks.iter().map(disk).collect()
}

/// A paragraph for one disk.
pub(super) fn disk(disk: &DiskConfig) -> String {
    let (id, cache) = (disk.id(), disk.options.cache);
    let lines = if disk.options.read_only {
        vec![("the guest sees", "a read-only disk: no write can be lost".to_owned())]
    } else {
        promises(cache)
    };
    let head = format!("\n  disk {id}, cache mode {cache}\n");
    head + &lines.iter().map(|(subject, text)| wrapped(subject, text)).collect::<String>()
}

/// Subjects, and a statement on each.
fn promises(cache: CacheMode) -> Vec<(&'static str, String)> {
    let mut promises = vec![
        ("a completed write", completed_write(cache)),
        ("a flush", flush(cache).to_owned()),
        ("the guest sees", guest_view(cache).to_owned()),
        ("a power cut loses", power_cut(cache).to_owned()),
    ];
    if is_unsafe(cache) {
        promises.insert(0, ("UNSAFE", "use it only for data that can be recreated".to_owned()));
    }
    promises
}

fn is_unsafe(cache: CacheMode) -> bool {
    cache.flush_action() == FlushAction::Ignore
}

fn completed_write(cache: CacheMode) -> String {
    let path = if cache.is_direct() {
        "past the host's page cache"
    } else {
        "through the host's page cache"
    };
    match (cache.write_durability(), cache.is_direct()) {
        (Durability::Durable, _) => format!("is on stable storage, {path} (RWF_DSYNC)"),
        (Durability::Volatile, true) => format!(
            "has reached the storage {path}, possibly only its volatile cache; it survives the exit \
             or a crash of bulkhead"
        ),
        (Durability::Volatile, false) => {
            "is in the host's page cache; it survives the exit or a crash of bulkhead, but not a \
             crash of the host"
                .to_owned()
        }
    }
}

fn flush(cache: CacheMode) -> &'static str {
    match (cache.flush_action(), cache.write_durability()) {
        (FlushAction::Ignore, _) => "completes at once and has no effect",
        (FlushAction::Sync, Durability::Durable) => {
            "has nothing to do: every completed write is on stable storage"
        }
        (FlushAction::Sync, Durability::Volatile) => {
            "makes every write completed before it durable (fdatasync); after a failed flush every \
             later flush fails too, because the host may have dropped the data"
        }
    }
}

fn guest_view(cache: CacheMode) -> &'static str {
    if !cache.has_write_cache() {
        return "no write cache, so there is nothing to flush";
    }
    if is_unsafe(cache) {
        return "a write cache that it can flush, although flushes have no effect";
    }
    "a write cache, and flushes it as needed; it may disable the cache, which flushes it: every \
     write submitted afterwards is on stable storage when it completes (a write in flight \
     meanwhile may not be)"
}

fn power_cut(cache: CacheMode) -> &'static str {
    match (cache.flush_action(), cache.write_durability()) {
        (FlushAction::Ignore, _) => {
            "any write since the guest started, flushed or not, and so possibly the whole disk"
        }
        (FlushAction::Sync, Durability::Volatile) => {
            "only writes that no completed flush followed, in any order"
        }
        (FlushAction::Sync, Durability::Durable) => "no completed write",
    }
}

/// `text` in indented lines, with `subject` before the first.
fn wrapped(subject: &str, text: &str) -> String {
    let (mut out, mut line) = (String::new(), format!("    {subject:<width$}", width = INDENT - 4));
    for word in text.split_whitespace() {
        if line.len() + 1 + word.len() > WIDTH {
            out += &(line.trim_end().to_owned() + "\n");
            line = " ".repeat(INDENT);
        }
        line += word;
        line.push(' ');
    }
    out + line.trim_end() + "\n"
}

#[cfg(test)]
mod tests {
    use block::Named;

    use super::*;

    #[test]
    fn each_promise_matches_the_cache_mode() {
        for &cache in CacheMode::ALL {
            let promises = promises(cache);
            let text_of = |subject: &str| {
                let found = promises.iter().find(|(name, _)| *name == subject);
                found.map(|(_, text)| text.as_str()).unwrap()
            };
            let durable = cache.write_durability() == Durability::Durable;
            let write = text_of("a completed write");
            assert_eq!(write.contains("on stable storage"), durable, "{cache}");
            assert_eq!(write.contains("past the host's"), cache.is_direct(), "{cache}");
            assert_eq!(text_of("a power cut loses") == "no completed write", durable, "{cache}");
            let guest = text_of("the guest sees");
            assert_eq!(guest.contains("no write cache"), !cache.has_write_cache());
            let ignored = cache.flush_action() == FlushAction::Ignore;
            assert_eq!(text_of("a flush").contains("no effect"), ignored, "{cache}");
            assert_eq!(promises.iter().any(|(name, _)| *name == "UNSAFE"), ignored, "{cache}");
        }
    }

    #[test]
    fn lines_fit_the_width() {
        let text = wrapped("subject", &"word ".repeat(60));
        assert!(text.lines().all(|line| line.len() <= WIDTH), "{text}");
        assert!(text.lines().skip(1).all(|line| line.starts_with(&" ".repeat(INDENT))), "{text}");
        assert_eq!(text.matches("word").count(), 60);
    }
}
