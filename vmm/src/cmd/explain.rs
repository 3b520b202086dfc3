//! The durability that a disk promises, in plain words.
//!
//! The words follow from the table in `block::CacheMode`, so that they cannot promise more, and
//! from the storage below the disk, which may keep less.

use block::{
    BaseFacts, CacheMode, Durability, EphemeralPlace, FlushAction, FlushPromise, HostCache,
    StableCopies, StoreFacts, Survey, stores_below,
};

use crate::config::{DiskConfig, EphemeralChanges, MachineConfig, human_size};
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
    if let Some(changes) = &disk.ephemeral {
        let lines = ephemeral(changes);
        let lines = lines.iter().map(|(subject, text)| wrapped(subject, text));
        return format!("\n  disk {id}, ephemeral\n") + &lines.collect::<String>();
    }
    let store = store_of(disk);
    let mut lines = if disk.options.read_only {
        vec![("the guest sees", "a read-only disk: no write can be lost".to_owned())]
    } else {
        let flush = store.as_ref().map_or(FlushPromise::Unknown, StoreFacts::flush_promise);
        promises(cache, flush, &DataPath::new(cache, &store), survival(disk))
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

/// The promises of an ephemeral disk.
fn ephemeral(EphemeralChanges { place, limit }: &EphemeralChanges) -> Vec<(&'static str, String)> {
    let write = match place {
        EphemeralPlace::Memory => "is in the memory of the host".to_owned(),
        EphemeralPlace::Folder(folder) => {
            let folder = sanitize(&folder.display().to_string());
            format!("is in a file without a name in {folder}, or in the host's page cache")
        }
    };
    let lost = "loses all changes, also if it is killed: the next start begins with the base again";
    let mut lines = vec![
        ("a completed write", write),
        ("a flush", flush(CacheMode::Unsafe).to_owned()),
        ("the guest sees", guest_view(CacheMode::Unsafe).to_owned()),
        ("bulkhead's end", lost.to_owned()),
    ];
    lines.extend(limit.map(|bytes| {
        let bytes = human_size(bytes);
        ("its changes are", format!("limited to {bytes}; a write that exceeds it fails (ENOSPC)"))
    }));
    lines
}

/// The consequences of the storage of a disk, or the reason that they are unknown.
fn store_of(disk: &DiskConfig) -> Result<StoreFacts, String> {
    let DiskConfig { path, base, options, .. } = disk.clone();
    let query = HostQuery::start(move || {
        let stack = Survey::open(&path, options.block_size)?.stack()?;
        let bases = base.map(|base| stores_below(&base, &options)).unwrap_or_default();
        Ok::<_, block::OpenError>(StoreFacts { bases, ..StoreFacts::new(&stack, &options) })
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
    lines.extend(store.bases.iter().flat_map(|base| base_caveats(base, cache)));
    if cache.is_direct() {
        lines.push(("direct I/O", direct_io(store)));
        lines
            .extend(store.host_cache.as_ref().map(|cache| ("the host's cache", host_cache(cache))));
    }
    lines
}

/// The problems of the storage of a base, and the copies that reads of it need.
fn base_caveats(
    BaseFacts { path, store }: &BaseFacts,
    cache: CacheMode,
) -> Vec<(&'static str, String)> {
    let path = sanitize(&path.display().to_string());
    let problems = store.flush_problems.iter();
    let lost = problems.filter(|problem| problem.flush == FlushPromise::NotKept).map(|problem| {
        let (name, what) = (sanitize(&problem.storey), sanitize(&problem.what));
        ("its base", format!("is lost at a power cut, and the disk with it: {path}: {name} {what}"))
    });
    let has_copies = [&store.copied, &store.not_copied].iter().any(|copies| copies.reads.is_some());
    let copies = (cache.is_direct() && has_copies).then(|| direct_io(store));
    let copies = copies.map(|copies| ("its base", format!("{path}: {copies}")));
    lost.chain(copies).collect()
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

const SURVIVES: &str = "it survives the exit or a crash of bulkhead";

/// How a completed write that is not flushed survives this program. A layer that is not served to
/// another monitor has the bits of first writes in the memory of this one.
fn survival(disk: &DiskConfig) -> &'static str {
    if disk.base.is_none() || disk.options.survives_kill {
        SURVIVES
    } else {
        "it survives the exit of bulkhead, but not a crash (SIGKILL) if it was the first write of \
         its block"
    }
}

/// Subjects, and a statement on each.
fn promises(
    cache: CacheMode,
    store: FlushPromise,
    path: &DataPath,
    survival: &str,
) -> Vec<(&'static str, String)> {
    let mut promises = if store == FlushPromise::NotKept && !is_unsafe(cache) {
        vec![
            ("a completed write", "can be lost at a power cut".to_owned()),
            ("a flush", "is executed (fdatasync), but its storage does not keep it".to_owned()),
            ("a power cut loses", "any write, flushed or not".to_owned()),
        ]
    } else {
        vec![
            ("a completed write", completed_write(cache, path, survival)),
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

fn completed_write(cache: CacheMode, path: &DataPath, survival: &str) -> String {
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
            format!("is in the host's page cache; {survival}, but not a crash of the host")
        }
        DataPath::Direct => format!(
            "has reached the storage past the host's page cache, possibly only its volatile cache; \
             {survival}"
        ),
        DataPath::DirectInto(cache) => {
            format!("is in the host's {cache}; {survival}, but not a crash of the host")
        }
        DataPath::PerhapsInto(cache) => format!(
            "is in the host's {cache} or has reached the storage, possibly only its volatile \
             cache; {survival}, perhaps not a crash of the host"
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
            let promises = promises(cache, FlushPromise::Kept, &path, SURVIVES);
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
                let promises = promises(cache, store, &DataPath::PageCache, SURVIVES);
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
                completed_write(cache, &DataPath::new(cache, store), SURVIVES)
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
    fn a_base_that_a_power_cut_empties_takes_the_disk_with_it() {
        let problem = block::Problem {
            storey: "/tmp".to_owned(),
            what: "is a tmpfs".to_owned(),
            remedy: None,
            flush: FlushPromise::NotKept,
            is_supposed: false,
        };
        let reads = Some("btrfs".to_owned());
        let copied = StableCopies { writes: None, reads };
        let store = StoreFacts { flush_problems: vec![problem], copied, ..StoreFacts::default() };
        let bases = vec![BaseFacts { path: "base\u{1b}".into(), store }];
        let store = StoreFacts { bases, ..StoreFacts::default() };
        assert_eq!(store.flush_promise(), FlushPromise::NotKept);
        let lost = "is lost at a power cut, and the disk with it: base\u{fffd}: /tmp is a tmpfs";
        let buffered = caveats(&store, CacheMode::WriteBack);
        assert_eq!(buffered, [("its base", lost.to_owned())]);
        let direct = caveats(&store, CacheMode::None);
        let copies = "base\u{fffd}: reads go through a copy";
        assert!(direct[1].0 == "its base" && direct[1].1.starts_with(copies), "{direct:?}");
    }

    #[test]
    fn lines_fit_the_width() {
        let text = wrapped("subject", &"word ".repeat(60));
        assert!(text.lines().all(|line| line.len() <= WIDTH), "{text}");
        assert!(text.lines().skip(1).all(|line| line.starts_with(&" ".repeat(INDENT))), "{text}");
        assert_eq!(text.matches("word").count(), 60);
    }
}
