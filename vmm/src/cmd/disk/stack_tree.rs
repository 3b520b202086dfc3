//! The storage below a disk as a tree of text, and as JSON. Pure.

use block::{
    DmTarget, FileSystem, FlushPromise, Problem, QueueAttributes, QueueCache, StableCopies,
    StoreStack, Storey, StoreyEffects, StoreyKind, ZfsDataset,
};
use clap::builder::styling::{AnsiColor, Style};
use serde_json::{Value, json};

use crate::config::human_size;
use crate::sanitize::sanitize;

const BOLD: Style = Style::new().bold();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();
/// Width of the text, except for names that are longer.
const COLUMNS: usize = 80;
/// Least width of the text of one storey.
const COLUMNS_MIN: usize = 30;
/// Prefixes of the mount options that change the fate of data.
const OPTIONS: [&str; 14] = [
    "barrier",
    "data=",
    "fsync",
    "hard",
    "journal_",
    "nobarrier",
    "nodatacow",
    "nodatasum",
    "sec=",
    "soft",
    "sync",
    "upperdir=",
    "vers=",
    "volatile",
];

/// The consequence for a flush, as the value of a row.
pub(super) fn flush_promise(stack: &StoreStack) -> String {
    match stack.flush_promise() {
        FlushPromise::Kept => "kept, as far as the host reports".to_owned(),
        FlushPromise::Unknown => {
            format!("kept or not, which this host cannot know{}", reasons(stack))
        }
        FlushPromise::NotKept => {
            format!("{WARNING}NOT kept{WARNING:#}{}", reasons(stack))
        }
    }
}

/// The storeys with the worst promise.
fn reasons(stack: &StoreStack) -> String {
    let promise = stack.flush_promise();
    let problems = stack.problems();
    let mut names: Vec<_> =
        problems.iter().filter(|found| found.flush == promise).map(|found| &found.storey).collect();
    names.dedup();
    let more = match names.len() {
        0 | 1 => String::new(),
        count => format!(" and {} more", count - 1),
    };
    let first = names.first().map_or_else(String::new, |name| sanitize(name));
    format!(": see {first}{more} below")
}

/// The need for stable copies, as the value of a row.
pub(super) fn stable_copies(stack: &StoreStack) -> String {
    let StableCopies { writes, reads } = stack.stable_copies();
    match (writes, reads) {
        (None, None) => "needs no copies of the guest's data".to_owned(),
        (Some(writes), Some(reads)) if writes == reads => {
            format!("needs copies of data: {}", sanitize(&writes))
        }
        (writes, reads) => {
            let part = |direction: &str, reason: Option<String>| {
                reason
                    .map(|reason| format!("{direction} need copies of data: {}", sanitize(&reason)))
            };
            let parts = [part("writes", writes), part("reads", reads)];
            parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
        }
    }
}

/// The tree below the rows.
pub(super) fn draw(stack: &StoreStack) -> String {
    let mut out = "\n  The storage below, from the disk down to the devices:\n\n".to_owned();
    draw_storey(&mut out, &stack.root, "  ", "  ");
    out
}

/// Draws a storey whose first line starts with `first`, and the storeys below it with `rest`.
fn draw_storey(out: &mut String, storey: &Storey, first: &str, rest: &str) {
    let name = sanitize(&storey.name);
    let title = format!("{BOLD}{name}{BOLD:#}: {}", sanitize(&description(storey)));
    push_wrapped(out, title.split(' '), first, &format!("{rest}    "));
    // The line to the storeys below runs beside the text of this one.
    let beside = if storey.below.is_empty() { "  " } else { "│ " };
    let indent = format!("{rest}{beside}");
    push_wrapped(out, effects(storey).iter().map(String::as_str), &indent, &indent);
    for problem in storey.problems() {
        draw_problem(out, &problem, &indent);
    }
    let last = storey.below.len().saturating_sub(1);
    for (index, below) in storey.below.iter().enumerate() {
        let (branch, line) = if index == last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        draw_storey(out, below, &format!("{rest}{branch}"), &format!("{rest}{line}"));
    }
}

fn draw_problem(out: &mut String, problem: &Problem, indent: &str) {
    let what = sanitize(&problem.what);
    let (mark, what) = match problem.flush {
        FlushPromise::NotKept => ("! ", format!("{WARNING}{what}{WARNING:#}")),
        FlushPromise::Unknown => ("? ", what),
        FlushPromise::Kept => ("- ", what),
    };
    let inner = format!("{indent}  ");
    push_wrapped(out, what.split(' '), &format!("{indent}{mark}"), &inner);
    if let Some(remedy) = &problem.remedy {
        let remedy = format!("remedy: {}", sanitize(remedy));
        push_wrapped(out, remedy.split(' '), &inner, &inner);
    }
}

/// Appends words in lines, the first one after `first`, the others after `rest`.
pub(super) fn push_wrapped<'w>(
    out: &mut String,
    words: impl IntoIterator<Item = &'w str>,
    first: &str,
    rest: &str,
) {
    let width = |text: &str| anstream::adapter::strip_str(text).to_string().chars().count();
    let limit = COLUMNS.max(width(rest) + COLUMNS_MIN);
    let (mut line, mut is_start) = (first.to_owned(), true);
    for word in words {
        if !is_start && width(&line) + 1 + width(word) > limit {
            *out += &format!("{line}\n");
            (line, is_start) = (rest.to_owned(), true);
        }
        line += if is_start { "" } else { " " };
        line += word;
        is_start = false;
    }
    if !is_start {
        *out += &format!("{line}\n");
    }
}

/// The kind of a storey with its facts.
fn description(storey: &Storey) -> String {
    let with_cache = |kind: &str, cache: &Option<String>| match cache {
        Some(cache) => format!("{kind}, cache {cache}"),
        None => kind.to_owned(),
    };
    match &storey.kind {
        StoreyKind::FileSystem(found) => file_system(found),
        StoreyKind::Loop { file, .. } => format!("loop device of {file}"),
        StoreyKind::Md { level: Some(level) } => format!("md {level}"),
        StoreyKind::Md { level: None } => "md of unknown level".to_owned(),
        StoreyKind::Dm { target: DmTarget::Unknown } => "dm, unknown target".to_owned(),
        StoreyKind::Dm { target } => format!("dm {}", target.name()),
        StoreyKind::Drbd => "DRBD".to_owned(),
        StoreyKind::Volume(volume) => format!("ZFS volume{}", dataset(volume)),
        StoreyKind::Nbd => "network block device".to_owned(),
        StoreyKind::Rbd => "Ceph block device".to_owned(),
        StoreyKind::Nvme => "NVMe namespace".to_owned(),
        StoreyKind::Scsi { cache } => with_cache("SCSI disk", cache),
        StoreyKind::Virtio { cache } => with_cache("virtio disk", cache),
        StoreyKind::Partition => "partition".to_owned(),
        StoreyKind::Memory => "block device in memory".to_owned(),
        StoreyKind::Drive => "drive".to_owned(),
        StoreyKind::Other => "block device of an unknown driver".to_owned(),
        StoreyKind::Unknown(_) => "unknown".to_owned(),
    }
}

fn file_system(found: &FileSystem) -> String {
    let mut parts = vec![found.fs_type.clone()];
    if let Some(file) = &found.btrfs {
        parts.push(match file.no_cow {
            Some(true) => "file without copy-on-write and checksums".to_owned(),
            Some(false) => "file with checksums".to_owned(),
            None => "file perhaps with checksums".to_owned(),
        });
        let profiles = file.data_profiles.as_ref().map(|profiles| profiles.join(" and "));
        parts.push(format!("data {}", profiles.as_deref().unwrap_or("of unknown profile")));
    }
    if let Some(zfs) = &found.zfs {
        return format!("ZFS{}", dataset(zfs));
    }
    let matters = |option: &&String| OPTIONS.iter().any(|prefix| option.starts_with(prefix));
    parts.extend(found.options.iter().filter(matters).cloned());
    parts.join(", ")
}

fn dataset(found: &ZfsDataset) -> String {
    let name = found.name.as_deref().map_or_else(String::new, |name| format!(" {name}"));
    let version = found.version.as_ref().map(|version| format!("OpenZFS {version}"));
    let blk_mq = found.blk_mq.then(|| "blk-mq".to_owned());
    let properties = ["sync", "recordsize", "volblocksize", "primarycache", "direct"];
    let properties = properties
        .into_iter()
        .filter_map(|property| found.property(property).map(|value| format!("{property}={value}")));
    let parts = version.into_iter().chain(blk_mq).chain(properties);
    parts.fold(name, |text, part| format!("{text}, {part}"))
}

/// The effects, one item for each; none for a storey that is not known.
fn effects(storey: &Storey) -> Vec<String> {
    if matches!(storey.kind, StoreyKind::Unknown(_)) {
        return Vec::new();
    }
    let StoreyEffects { flush, fua, discard, zeroing, direct, atomic, atomic_bytes } =
        storey.effects();
    if [fua, discard, zeroing, direct, atomic].iter().all(|effect| *effect == flush) {
        return vec![format!("all operations: {flush}")];
    }
    let mut items = match fua == flush {
        true => vec![format!("flush and FUA: {flush};")],
        false => vec![format!("flush: {flush};"), format!("FUA: {fua};")],
    };
    let atomic = atomic_bytes.map_or_else(|| atomic.to_owned(), human_size);
    items.extend([
        format!("discard: {discard};"),
        format!("zeroing: {zeroing};"),
        format!("direct I/O: {direct};"),
        format!("atomic: {atomic}"),
    ]);
    items
}

/// The stack as JSON.
pub(super) fn json(stack: &StoreStack) -> Value {
    let StableCopies { writes, reads } = stack.stable_copies();
    json!({
        "flush": promise(stack.flush_promise()),
        "stable_copies": { "writes": writes, "reads": reads },
        "storeys": storey_json(&stack.root),
    })
}

pub(super) fn promise(promise: FlushPromise) -> &'static str {
    match promise {
        FlushPromise::Kept => "kept",
        FlushPromise::Unknown => "unknown",
        FlushPromise::NotKept => "not kept",
    }
}

fn storey_json(storey: &Storey) -> Value {
    let StoreyEffects { flush, fua, discard, zeroing, direct, atomic, atomic_bytes } =
        storey.effects();
    let problems = storey.problems().into_iter().map(|problem| {
        json!({
            "problem": problem.what,
            "remedy": problem.remedy,
            "flush": promise(problem.flush),
        })
    });
    json!({
        "name": storey.name,
        "device": storey.device,
        "kind": kind_name(&storey.kind),
        "description": description(storey),
        "facts": facts_json(&storey.kind),
        "queue": storey.queue.map(queue_json),
        "effects": {
            "flush": flush,
            "fua": fua,
            "discard": discard,
            "zeroing": zeroing,
            "direct_io": direct,
            "atomic": atomic,
            "atomic_bytes": atomic_bytes,
        },
        "problems": problems.collect::<Value>(),
        "below": storey.below.iter().map(storey_json).collect::<Value>(),
    })
}

pub(super) fn kind_name(kind: &StoreyKind) -> &'static str {
    match kind {
        StoreyKind::FileSystem(_) => "file system",
        StoreyKind::Loop { .. } => "loop",
        StoreyKind::Md { .. } => "md",
        StoreyKind::Dm { .. } => "dm",
        StoreyKind::Drbd => "drbd",
        StoreyKind::Volume(_) => "zfs volume",
        StoreyKind::Nbd => "nbd",
        StoreyKind::Rbd => "rbd",
        StoreyKind::Nvme => "nvme",
        StoreyKind::Scsi { .. } => "scsi",
        StoreyKind::Virtio { .. } => "virtio",
        StoreyKind::Partition => "partition",
        StoreyKind::Memory => "memory",
        StoreyKind::Drive => "drive",
        StoreyKind::Other => "block device",
        StoreyKind::Unknown(_) => "unknown",
    }
}

fn facts_json(kind: &StoreyKind) -> Value {
    match kind {
        StoreyKind::FileSystem(FileSystem { fs_type, options, btrfs, zfs }) => json!({
            "type": fs_type,
            "options": options,
            "no_cow": btrfs.as_ref().and_then(|file| file.no_cow),
            "data_profiles": btrfs.as_ref().and_then(|file| file.data_profiles.as_ref()),
            "zfs": zfs.as_ref().map(dataset_json),
        }),
        StoreyKind::Loop { file, direct, has_holes } => {
            json!({ "file": file, "direct": direct, "has_holes": has_holes })
        }
        StoreyKind::Md { level } => json!({ "level": level }),
        StoreyKind::Dm { target } => json!({ "target": target.name() }),
        StoreyKind::Volume(volume) => dataset_json(volume),
        StoreyKind::Scsi { cache } | StoreyKind::Virtio { cache } => json!({ "cache": cache }),
        StoreyKind::Unknown(reason) => json!({ "reason": reason }),
        _ => Value::Null,
    }
}

fn dataset_json(found: &ZfsDataset) -> Value {
    let properties = found.properties.iter();
    let properties = properties.map(|(name, value)| (name.clone(), Value::from(value.as_str())));
    json!({
        "dataset": found.name,
        "version": found.version,
        "blk_mq": found.blk_mq,
        "flushes_devices": !found.no_cache_flush,
        "quota_of": found.quota_of,
        "properties": properties.collect::<serde_json::Map<_, _>>(),
    })
}

fn queue_json(queue: QueueAttributes) -> Value {
    json!({
        "write_cache": queue.cache.map(|cache| match cache {
            QueueCache::WriteBack => "write back",
            QueueCache::WriteThrough => "write through",
        }),
        "fua": queue.fua,
        "stable_writes": queue.stable_writes,
        "verifies_reads": queue.verifies_reads,
        "logical_block_bytes": queue.logical_block_bytes,
        "physical_block_bytes": queue.physical_block_bytes,
        "discard_max_bytes": queue.discard_max_bytes,
        "write_zeroes_max_bytes": queue.write_zeroes_max_bytes,
        "atomic_write_max_bytes": queue.atomic_write_max_bytes,
        "rotational": queue.rotational,
        "dax": queue.dax,
        "read_only": queue.read_only,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storey(kind: StoreyKind, name: &str, below: Vec<Storey>) -> Storey {
        let queue = QueueAttributes { cache: Some(QueueCache::WriteBack), ..Default::default() };
        Storey { kind, name: name.to_owned(), device: None, queue: Some(queue), below }
    }

    fn mirror() -> StoreStack {
        let disk = |name| storey(StoreyKind::Scsi { cache: None }, name, Vec::new());
        let unknown = StoreyKind::Unknown("sysfs does not describe it".to_owned());
        let unknown = Storey { queue: None, ..storey(unknown, "/dev/x\u{1b}", Vec::new()) };
        let partition = Storey {
            queue: None,
            ..storey(StoreyKind::Partition, "/dev/sdb1", vec![disk("/dev/sdb")])
        };
        let md = StoreyKind::Md { level: Some("raid1".to_owned()) };
        let root = storey(md, "/dev/md0", vec![disk("/dev/sda"), partition, unknown]);
        StoreStack { root }
    }

    #[test]
    fn branches_join_their_storeys() {
        let text = anstream::adapter::strip_str(&draw(&mirror())).to_string();
        let lines: Vec<_> = text.lines().skip(3).collect();
        let unknown = "discard: unknown;";
        let expected = [
            "  /dev/md0: md raid1",
            &format!("  │ flush: sent to all below; FUA: unknown; {unknown} zeroing: unknown;"),
            "  │ direct I/O: yes; atomic: unknown",
            "  ├─ /dev/sda: SCSI disk",
            &format!("  │    flush: sent; FUA: unknown; {unknown} zeroing: unknown;"),
            "  │    direct I/O: yes; atomic: unknown",
            "  ├─ /dev/sdb1: partition",
            "  │  │ all operations: as its disk",
            "  │  └─ /dev/sdb: SCSI disk",
            &format!("  │       flush: sent; FUA: unknown; {unknown} zeroing: unknown;"),
            "  │       direct I/O: yes; atomic: unknown",
            "  └─ /dev/x\u{fffd}: unknown",
            "       ? sysfs does not describe it",
        ];
        assert_eq!(lines, expected, "{text}");
    }

    #[test]
    fn lines_fit_the_width() {
        let mut root = mirror().root;
        for depth in 0..12 {
            root = storey(StoreyKind::Rbd, &format!("/dev/rbd{depth}"), vec![root]);
        }
        let text = anstream::adapter::strip_str(&draw(&StoreStack { root })).to_string();
        for line in text.lines() {
            assert!(line.chars().count() <= COLUMNS, "{line}");
        }
    }

    #[test]
    fn rows_name_the_reason() {
        let stack = mirror();
        assert_eq!(
            stable_copies(&stack),
            "writes need copies of data: md raid1 /dev/md0; \
             reads need copies of data: unknown storage /dev/x\u{fffd}"
        );
        let unknown = "kept or not, which this host cannot know: see /dev/x\u{fffd} below";
        assert_eq!(flush_promise(&stack), unknown);
        let memory =
            StoreStack { root: storey(StoreyKind::Memory, "/dev/zram0", vec![stack.root]) };
        let row = anstream::adapter::strip_str(&flush_promise(&memory)).to_string();
        assert_eq!(row, "NOT kept: see /dev/zram0 below");
    }
}
