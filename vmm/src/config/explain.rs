//! What a disk promises, in plain words. Pure.
//!
//! The words are chosen by the table of `block::CacheMode` alone, so that they cannot promise anything else.

use block::{CacheMode, Durability, FlushAction};

use super::{DiskConfig, MachineConfig};

/// Where a line breaks.
const WIDTH: usize = 100;
/// Where what is said of a subject begins.
const INDENT: usize = 24;

/// A paragraph for each disk.
pub(super) fn explain(machine: &MachineConfig) -> String {
    machine.disks.iter().map(paragraph).collect()
}

pub(super) fn paragraph(disk: &DiskConfig) -> String {
    let DiskConfig { id, cache, readonly, .. } = disk;
    let lines = if *readonly {
        vec![("the guest is told", "the disk is read-only: nothing of it can be lost".to_owned())]
    } else {
        promises(*cache)
    };
    let head = format!("\n  disk {id}, cache mode {cache}\n");
    head + &lines.iter().map(|(subject, text)| wrapped(subject, text)).collect::<String>()
}

/// Subjects, and what is true of them.
pub(super) fn promises(cache: CacheMode) -> Vec<(&'static str, String)> {
    let mut promises = vec![
        ("a completed write", completed_write(cache)),
        ("a flush", flush(cache).to_owned()),
        ("the guest is told", told(cache).to_owned()),
        ("a power cut loses", power_cut(cache).to_owned()),
    ];
    if is_unsafe(cache) {
        promises.insert(0, ("UNSAFE", "only for data you can make again".to_owned()));
    }
    promises
}

fn is_unsafe(cache: CacheMode) -> bool {
    cache.flush_action() == FlushAction::Ignore
}

fn completed_write(cache: CacheMode) -> String {
    let way = if cache.is_direct() {
        "past the host's page cache"
    } else {
        "through the host's page cache"
    };
    match (cache.write_durability(), cache.is_direct()) {
        (Durability::Durable, _) => {
            format!("is on stable storage, {way} (RWF_DSYNC)")
        }
        (Durability::Volatile, true) => format!(
            "has gone {way} to the storage, where it may still be in a volatile cache; it survives the end \
             of bulkhead, however it comes"
        ),
        (Durability::Volatile, false) => {
            "is in the host's page cache; it survives the end of bulkhead, \
                                          however it comes, but not that of the host"
                .to_owned()
        }
    }
}

fn flush(cache: CacheMode) -> &'static str {
    match (cache.flush_action(), cache.write_durability()) {
        (FlushAction::Ignore, _) => "is answered at once and does nothing",
        (FlushAction::Sync, Durability::Durable) => {
            "has nothing left to do: every completed write is on stable storage"
        }
        (FlushAction::Sync, Durability::Volatile) => {
            "puts every write completed before it on stable storage (fdatasync); once that has failed, each \
             later flush fails too, because the host may have dropped the data"
        }
    }
}

fn told(cache: CacheMode) -> &'static str {
    if !cache.has_write_cache() {
        return "the disk has no write cache, so there is nothing to flush";
    }
    if is_unsafe(cache) {
        return "the disk has a write cache that it can flush, which is not true";
    }
    "the disk has a write cache, so it flushes where it needs to; it may switch the cache off: that \
     flushes, and each write begun afterwards is on stable storage when it completes (one in flight meanwhile may not be)"
}

fn power_cut(cache: CacheMode) -> &'static str {
    match (cache.flush_action(), cache.write_durability()) {
        (FlushAction::Ignore, _) => {
            "any write since the guest started, flushed or not, and so possibly all that is on the disk"
        }
        (FlushAction::Sync, Durability::Volatile) => {
            "at most the writes that no completed flush came after, in any order"
        }
        (FlushAction::Sync, Durability::Durable) => "no completed write",
    }
}

/// `text` in lines, indented, with `subject` before the first.
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
    use super::*;

    /// Each promise against the table, one by one.
    #[test]
    fn the_words_follow_the_table() {
        for cache in CacheMode::ALL {
            let promises = promises(cache);
            let said = |subject: &str| {
                let found = promises.iter().find(|(name, _)| *name == subject);
                found.map(|(_, text)| text.as_str()).unwrap()
            };
            let durable = cache.write_durability() == Durability::Durable;
            assert_eq!(said("a completed write").contains("on stable storage"), durable, "{cache}");
            assert_eq!(said("a power cut loses") == "no completed write", durable, "{cache}");
            assert_eq!(
                said("a completed write").contains("past the host's"),
                cache.is_direct(),
                "{cache}"
            );
            assert_eq!(
                said("the guest is told").contains("no write cache"),
                !cache.has_write_cache()
            );
            let ignored = cache.flush_action() == FlushAction::Ignore;
            assert_eq!(said("a flush").contains("does nothing"), ignored, "{cache}");
            assert_eq!(promises.iter().any(|(name, _)| *name == "UNSAFE"), ignored, "{cache}");
        }
    }

    #[test]
    fn lines_fit_a_terminal() {
        let text = wrapped("subject", &"word ".repeat(60));
        assert!(text.lines().all(|line| line.len() <= WIDTH), "{text}");
        assert!(text.lines().skip(1).all(|line| line.starts_with(&" ".repeat(INDENT))), "{text}");
        assert_eq!(text.matches("word").count(), 60);
    }
}
