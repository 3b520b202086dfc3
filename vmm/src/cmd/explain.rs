//! The durability that a disk promises, in plain words.
//!
//! The words follow from the table in `block::CacheMode`, so that they cannot promise more, and
//! from the storage below the disk, which may keep less.

use block::{
    CacheMode, Durability, FlushAction, FlushPromise, HostCache, StableCopies, StoreFacts, Survey,
};

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
        let flush = store.as_ref().map_or(FlushPromise::Unknown, StoreFacts::flush_promise);
        promises(cache, flush, &DataPath::new(cache, &store))
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
        lines
            .extend(store.host_cache.as_ref().map(|cache| ("the host's cache", host_cache(cache))));
    }
    lines
}

fn host_cache(HostCache { storey, cache, is_certain }: &HostCache) -> String {
    let (storey, verb) = (sanitize(storey), if *is_certain { "serves" } else { "may serve" });
    format!("{storey} {verb} direct I/O from the host's {cache}")
}

/// The way of a write to the storage.
enum DataPath {
    PageCache,
    Direct,
    /// Direct I/O that this cache of the host serves.
    DirectInto(&'static str),
    /// Direct I/O that this cache of the host may serve.
    PerhapsInto(&'static str),
}

impl DataPath {
    fn new(cache: CacheMode, store: &Result<StoreFacts, String>) -> Self {
        match store.as_ref().map(|store| &store.host_cache) {
            _ if !cache.is_direct() => Self::PageCache,
            Ok(None) => Self::Direct,
            Ok(Some(HostCache { cache, is_certain: true, .. })) => Self::DirectInto(cache),
            Ok(Some(HostCache { cache, .. })) => Self::PerhapsInto(cache),
            Err(_) => Self::PerhapsInto("page cache"),
        }
    }
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
fn promises(cache: CacheMode, store: FlushPromise, path: &DataPath) -> Vec<(&'static str, String)> {
    let mut promises = if store == FlushPromise::NotKept && !is_unsafe(cache) {
        vec![
            ("a completed write", "can be lost at a power cut".to_owned()),
            ("a flush", "is executed (fdatasync), but its storage does not keep it".to_owned()),
            ("a power cut loses", "any write, flushed or not".to_owned()),
        ]
    } else {
        vec![
            ("a completed write", completed_write(cache, path)),
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

fn completed_write(cache: CacheMode, path: &DataPath) -> String {
    const SURVIVES: &str = "it survives the exit or a crash of bulkhead";
    if cache.write_durability() == Durability::Durable {
        let path = match path {
            DataPath::PageCache => "through the host's page cache".to_owned(),
            DataPath::Direct => "past the host's page cache".to_owned(),
            DataPath::DirectInto(cache) => format!("through the host's {cache}"),
            DataPath::PerhapsInto(cache) => format!("perhaps through the host's {cache}"),
        };
        return format!("is on stable storage, {path} (RWF_DSYNC)");
    }
    match path {
        DataPath::PageCache => {
            format!("is in the host's page cache; {SURVIVES}, but not a crash of the host")
        }
        DataPath::Direct => format!(
            "has reached the storage past the host's page cache, possibly only its volatile cache; \
             {SURVIVES}"
        ),
        DataPath::DirectInto(cache) => {
            format!("is in the host's {cache}; {SURVIVES}, but not a crash of the host")
        }
        DataPath::PerhapsInto(cache) => format!(
            "is in the host's {cache} or has reached the storage, possibly only its volatile \
             cache; {SURVIVES}, perhaps not a crash of the host"
        ),
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
            let path = if cache.is_direct() { DataPath::Direct } else { DataPath::PageCache };
            let promises = promises(cache, FlushPromise::Kept, &path);
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
                let promises = promises(cache, store, &DataPath::PageCache);
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

    /// No cache of the host that serves direct I/O is bypassed.
    #[test]
    fn a_cache_of_the_host_is_named() {
        for &cache in CacheMode::ALL.iter().filter(|cache| cache.is_direct()) {
            let cached = |is_certain| {
                let storey = "zfs on /tank\u{1b}".to_owned();
                let host_cache = Some(HostCache { storey, cache: "ARC", is_certain });
                Ok(StoreFacts { host_cache, ..StoreFacts::default() })
            };
            let write = |store: &Result<StoreFacts, String>| {
                completed_write(cache, &DataPath::new(cache, store))
            };
            let is_volatile = cache.write_durability() == Durability::Volatile;
            for (store, expected) in [
                (
                    cached(true),
                    if is_volatile { "is in the host's ARC; it" } else { "through the host's ARC" },
                ),
                (
                    cached(false),
                    if is_volatile {
                        "is in the host's ARC or"
                    } else {
                        "perhaps through the host's ARC"
                    },
                ),
                (
                    Err(String::new()),
                    if is_volatile { "is in the host's page cache or" } else { "perhaps through" },
                ),
            ] {
                let text = write(&store);
                assert!(text.contains(expected) && !text.contains("past"), "{text}");
                let Ok(store) = store else { continue };
                let lines = caveats(&store, cache);
                let (_, line) = lines.iter().find(|(name, _)| *name == "the host's cache").unwrap();
                assert!(line.starts_with("zfs on /tank\u{fffd} "), "{line}");
                let is_certain = store.host_cache.unwrap().is_certain;
                assert_eq!(line.contains("may serve"), !is_certain, "{line}");
            }
            let bypassed = Ok(StoreFacts::default());
            assert!(write(&bypassed).contains("past the host's page cache"));
            assert_eq!(caveats(&StoreFacts::default(), cache).len(), 1);
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
