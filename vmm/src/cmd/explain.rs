//! The durability that a disk promises, in plain words.
//!
//! The words follow from the table in `block::CacheMode`, so that they cannot promise more, and
//! from the storage below the disk, which may keep less.

use block::{CacheMode, Durability, FlushAction, FlushPromise, StableCopies, StoreFacts, Survey};

use crate::config::{DiskConfig, MachineConfig};
use crate::host_query::HostQuery;
use crate::sanitize::sanitize;

/// Width of a line.
const WIDTH: usize = 100;
/// Indentation of the text.
const INDENT: usize = 24;
/// Subject of the statements on the storage below a disk.
const STORAGE: &str = "its storage";

/// A paragraph for each disk.
pub(super) fn machine(machine: &MachineConfig) -> String {
    machine.disks.iter().map(disk).collect()
}

/// A paragraph for one disk.
pub(super) fn disk(disk: &DiskConfig) -> String {
    let (id, cache) = (disk.id(), disk.options.cache);
    let store = store_of(disk);
    let mut lines = if disk.options.read_only {
        vec![("the guest sees", "a read-only disk: no write can be lost".to_owned())]
    } else {
        promises(cache, store.as_ref().map_or(FlushPromise::Unknown, StoreFacts::flush_promise))
    };
    match store {
        Ok(store) => lines.extend(caveats(&store, cache)),
        Err(reason) => {
            lines.push((STORAGE, format!("could not be learned: {}", sanitize(&reason))));
        }
    }
    let head = format!("\n  disk {id}, cache mode {cache}\n");
    head + &lines.iter().map(|(subject, text)| wrapped(subject, text)).collect::<String>()
}

/// The consequences of the storage of a disk, or the reason that they are unknown.
fn store_of(disk: &DiskConfig) -> Result<StoreFacts, String> {
    let (path, options) = (disk.path.clone(), disk.options.clone());
    let query = HostQuery::start(move || {
        let stack = Survey::open(&path, options.block_size)?.stack()?;
        Ok::<_, block::OpenError>(StoreFacts::new(&stack, &options))
    });
    let answer = query.answer().map_err(|error| error.to_string())?;
    answer.map_err(|error| error.to_string())
}

/// The problems of the storage with the promises of the cache mode, and the copies that it needs.
fn caveats(store: &StoreFacts, cache: CacheMode) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    for problem in &store.flush_problems {
        let (name, what) = (sanitize(&problem.storey), sanitize(&problem.what));
        let lost = match problem.flush {
            FlushPromise::Kept => continue,
            FlushPromise::Unknown => "whether it keeps flushed data cannot be known",
            FlushPromise::NotKept => "it does not keep flushed data",
        };
        lines.push((STORAGE, format!("{lost}: {name} {what}")));
    }
    if cache.is_direct() {
        lines.push(("direct I/O", direct_io(store)));
    }
    lines
}

fn direct_io(store: &StoreFacts) -> String {
    let all = |copies: &StableCopies| {
        let StableCopies { writes, reads } = copies;
        match (writes, reads) {
            (None, None) => None,
            (Some(reason), Some(_)) => Some(("reads and writes", sanitize(reason))),
            (Some(reason), None) => Some(("writes", sanitize(reason))),
            (None, Some(reason)) => Some(("reads", sanitize(reason))),
        }
    };
    if let Some((transfers, reason)) = all(&store.not_copied) {
        return format!(
            "UNSAFE: {transfers} use the guest's memory, which it may change meanwhile ({reason})"
        );
    }
    match all(&store.copied) {
        Some((transfers, reason)) => format!(
            "{transfers} go through a copy that the guest cannot change meanwhile ({reason})"
        ),
        None => "goes to and from the guest's memory without a copy".to_owned(),
    }
}

/// Subjects, and a statement on each.
fn promises(cache: CacheMode, store: FlushPromise) -> Vec<(&'static str, String)> {
    let mut promises = if store == FlushPromise::NotKept && !is_unsafe(cache) {
        vec![
            ("a completed write", "can be lost at a power cut".to_owned()),
            ("a flush", "is executed (fdatasync), but its storage does not keep it".to_owned()),
            ("a power cut loses", "any write, flushed or not".to_owned()),
        ]
    } else {
        vec![
            ("a completed write", completed_write(cache)),
            ("a flush", flush(cache).to_owned()),
            ("the guest sees", guest_view(cache).to_owned()),
            ("a power cut loses", power_cut(cache).to_owned()),
        ]
    };
    if store == FlushPromise::Unknown && !is_unsafe(cache) {
        promises.push(("all of this holds", "only if its storage keeps flushed data".to_owned()));
    }
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
            let promises = promises(cache, FlushPromise::Kept);
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

    /// Also while the storage does not answer.
    #[test]
    fn storage_that_keeps_no_flush_takes_the_promises_back() {
        for &cache in CacheMode::ALL {
            for (store, condition) in [(FlushPromise::NotKept, 0), (FlushPromise::Unknown, 1)] {
                let promises = promises(cache, store);
                let words = format!("{promises:?}");
                let conditions = words.matches("only if its storage").count();
                assert_eq!(conditions, if is_unsafe(cache) { 0 } else { condition }, "{words}");
                if store == FlushPromise::NotKept && !is_unsafe(cache) {
                    let kept = ["stable storage", "durable", "only writes", "no completed write"];
                    assert!(!kept.iter().any(|word| words.contains(word)), "{words}");
                    assert!(words.contains("any write, flushed or not"), "{words}");
                }
            }
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
