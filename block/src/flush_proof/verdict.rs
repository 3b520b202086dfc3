//! The verdict on one cache mode, from what reached each storey. Pure.

use std::io;

use super::scratch::ROUNDS;
use super::witness::{Sight, StoreySeen};
use crate::{FlushPromise, Problem, QueueCache, StoreStack, Storey, StoreyKind};

type Verdict = (FlushPromise, String);

/// The verdict without block events.
pub(super) fn without_trace(stack: &StoreStack, error: &io::Error) -> Verdict {
    let remedy = match error.kind() {
        io::ErrorKind::NotFound => "mount -t tracefs tracefs /sys/kernel/tracing",
        io::ErrorKind::PermissionDenied => "run this as root",
        _ => "see tracefs(5)",
    };
    let blind = || format!("the kernel's block events cannot be read ({error}): {remedy}");
    known_lie(stack).unwrap_or_else(|| (FlushPromise::Unknown, blind()))
}

/// The storey that no flush reached in any round, if there is one, and the promise. The observation
/// decides over suppositions by the version of a storey; the kind and the properties of a storey
/// decide over both.
pub(super) fn judge(
    stack: &StoreStack,
    rounds: &[Vec<Sight>],
    seen: &[StoreySeen],
) -> (Option<String>, Verdict) {
    let walk = |window| FlushWalk { window, seen, next: 0 }.storey(&stack.root, None);
    let arrivals: Vec<_> = rounds.iter().map(|window| walk(window)).collect();
    let ends: Vec<_> = arrivals.iter().filter_map(Arrival::end).collect();
    // Flushes of others, such as that of md for its superblock, arrive in some rounds.
    let is_usual = ends.len() * 2 > arrivals.len();
    let stopped_at = ends.first().filter(|_| is_usual).map(|name| (*name).to_owned());
    let verdict = known_lie(stack)
        .or_else(|| ended(stack, seen, &ends, arrivals.len()))
        .or_else(|| doubt(stack, seen))
        .unwrap_or_else(|| (FlushPromise::Kept, arrived(stack, seen, arrivals.len())));
    (stopped_at, verdict)
}

/// The verdict if a flush did not reach some storey.
fn ended(stack: &StoreStack, seen: &[StoreySeen], ends: &[&str], total: usize) -> Option<Verdict> {
    let (end, bad) = (ends.first()?, ends.len());
    let reason = format!("no flush reached {end} in {bad} of {total} rounds");
    // A durable write to a stripe reaches one member; the others may be written by others.
    let others_write = needing(stack, seen)
        .any(|(storey, found)| storey.name == **end && found.stray_writes * 2 > ROUNDS);
    if bad * 2 > total && !others_write {
        return Some((FlushPromise::NotKept, reason));
    }
    let reason = format!("{reason}, perhaps because others write to it: repeat this when idle");
    Some((FlushPromise::Unknown, reason))
}

/// The reason that flushes which arrived prove nothing.
fn doubt(stack: &StoreStack, seen: &[StoreySeen]) -> Option<Verdict> {
    if let Some(problem) = supposed(stack).find(|problem| !problem.is_supposed) {
        return Some((problem.flush, format!("{} {}", problem.storey, problem.what)));
    }
    let unobserved = needing(stack, seen).find(|(_, found)| !found.is_observed);
    if let Some((storey, _)) = unobserved {
        let reason = format!("{} has no record of flushes on this host", storey.name);
        return Some((FlushPromise::Unknown, reason));
    }
    // Flushes of others would hide that ours do not arrive. Some are late parts of our own writes:
    // md marks an array as clean 200 ms after the last one.
    let (storey, found) = needing(stack, seen).find(|(_, found)| found.stray * 2 > ROUNDS)?;
    let reason = format!(
        "others flush {} too ({} of {ROUNDS} idle windows): repeat this on a quiet host",
        storey.name, found.stray
    );
    Some((FlushPromise::Unknown, reason))
}

/// The evidence for flushes that arrived.
fn arrived(stack: &StoreStack, seen: &[StoreySeen], total: usize) -> String {
    let lowest = needing(stack, seen)
        .filter(|(storey, found)| storey.below.is_empty() && found.flushed > 0)
        .map(|(storey, _)| storey.name.as_str());
    let mut names: Vec<_> = lowest.collect();
    names.sort_unstable();
    names.dedup();
    match names.as_slice() {
        [] => "no device below has a volatile cache".to_owned(),
        [one] => format!("each of {total} flushes reached {one}"),
        [first, rest @ ..] => {
            format!("each of {total} flushes reached {first} and {} more", rest.len())
        }
    }
}

/// The storeys at which a flush has to arrive.
fn needing<'s>(
    stack: &'s StoreStack,
    seen: &'s [StoreySeen],
) -> impl Iterator<Item = (&'s Storey, &'s StoreySeen)> {
    stack.storeys().into_iter().zip(seen).filter(|(storey, _)| storey.needs_flushes())
}

/// A storey that is known to keep no flush, without an observation.
fn known_lie(stack: &StoreStack) -> Option<Verdict> {
    let mut lies = stack
        .problems()
        .into_iter()
        .filter(|problem| problem.flush == FlushPromise::NotKept && !problem.is_supposed);
    lies.next().map(|lie| (FlushPromise::NotKept, format!("{} {}", lie.storey, lie.what)))
}

fn supposed(stack: &StoreStack) -> impl Iterator<Item = Problem> {
    stack.problems().into_iter().filter(|problem| problem.flush != FlushPromise::Kept)
}

/// The fate of a flush at a storey and those below it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Arrival {
    /// It reached each storey that needs it.
    Reached,
    /// No storey needs it.
    NotNeeded,
    /// Nothing was written to the storey, and no flush reached it.
    Untouched(String),
    /// The storey was written to, and no flush reached it.
    Ended(String),
}

impl Arrival {
    /// The storey that a flush did not reach. At the top of a stack, `Untouched` is an end, too:
    /// the data reached no device.
    fn end(&self) -> Option<&str> {
        match self {
            Self::Ended(name) | Self::Untouched(name) => Some(name),
            Self::Reached | Self::NotNeeded => None,
        }
    }
}

/// A walk over a stack beside the sights of one window.
struct FlushWalk<'w> {
    window: &'w [Sight],
    seen: &'w [StoreySeen],
    next: usize,
}

impl FlushWalk<'_> {
    fn storey(&mut self, storey: &Storey, above: Option<&Storey>) -> Arrival {
        let sight = self.window.get(self.next).copied().unwrap_or_default();
        let is_observed = self.seen.get(self.next).is_some_and(|seen| seen.is_observed);
        self.next += 1;
        let below: Vec<_> =
            storey.below.iter().map(|below| self.storey(below, Some(storey))).collect();
        let name = || storey.name.clone();
        let below = match storey.is_zfs() {
            true => any(below),
            false => all(below),
        };
        if !storey.needs_flushes() || !is_observed {
            return below.unwrap_or(Arrival::NotNeeded);
        }
        // dm-thin commits its metadata for a flush, flushes the data device of its pool for that,
        // and sends nothing to the pool itself.
        let is_within_dm = storey.is_dm() && above.is_some_and(Storey::is_dm);
        match (sight.flushed, sight.written, below) {
            (false, true, Some(Arrival::Reached)) if is_within_dm => Arrival::Reached,
            (false, true, _) => Arrival::Ended(name()),
            (false, false, _) => Arrival::Untouched(name()),
            // The flush went in, and nothing came out.
            (true, _, Some(Arrival::Untouched(name))) => Arrival::Ended(name),
            (true, _, Some(Arrival::Ended(name))) => Arrival::Ended(name),
            (true, ..) => Arrival::Reached,
        }
    }
}

/// Every storey that was written to has to get the flush: mirrors, stripes, file systems with
/// several devices.
fn all(below: Vec<Arrival>) -> Option<Arrival> {
    let rank = |arrival: &Arrival| match arrival {
        Arrival::Ended(_) => 3,
        Arrival::Reached => 2,
        Arrival::NotNeeded => 1,
        Arrival::Untouched(_) => 0,
    };
    below.into_iter().max_by_key(rank)
}

/// One storey has to get the flush. ZFS flushes the members that hold the new blocks of the ZIL;
/// those that a transaction group is written to meanwhile get their flush at its end.
fn any(below: Vec<Arrival>) -> Option<Arrival> {
    let rank = |arrival: &Arrival| match arrival {
        Arrival::Reached => 3,
        Arrival::NotNeeded => 2,
        Arrival::Ended(_) => 1,
        Arrival::Untouched(_) => 0,
    };
    below.into_iter().max_by_key(rank)
}

impl Storey {
    fn is_dm(&self) -> bool {
        matches!(self.kind, StoreyKind::Dm { .. })
    }

    /// Whether a flush has to arrive here: at a queue with a volatile cache, and at a dataset.
    fn needs_flushes(&self) -> bool {
        self.is_zfs() || self.queue.is_some_and(|queue| queue.cache == Some(QueueCache::WriteBack))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DmTarget, FileSystem, QueueAttributes, ZfsDataset};

    const FLUSHED: Sight = Sight { written: true, flushed: true };
    const WRITTEN: Sight = Sight { written: true, flushed: false };
    const NOTHING: Sight = Sight { written: false, flushed: false };

    fn device(name: &str, cache: QueueCache, below: Vec<Storey>) -> Storey {
        let queue = QueueAttributes { cache: Some(cache), ..QueueAttributes::default() };
        let kind = StoreyKind::Md { level: None };
        Storey { kind, name: name.to_owned(), device: None, queue: Some(queue), below }
    }

    fn volatile(name: &str, below: Vec<Storey>) -> Storey {
        device(name, QueueCache::WriteBack, below)
    }

    fn ext4(options: &[&str], below: Vec<Storey>) -> StoreStack {
        let kind = StoreyKind::FileSystem(FileSystem {
            fs_type: "ext4".to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            btrfs: None,
            zfs: None,
        });
        let name = "/srv".to_owned();
        StoreStack { root: Storey { kind, name, device: None, queue: None, below } }
    }

    fn zfs(sync: &str, below: Vec<Storey>) -> StoreStack {
        let dataset = ZfsDataset {
            name: Some("tank".to_owned()),
            properties: vec![("sync".to_owned(), sync.to_owned())],
            ..ZfsDataset::default()
        };
        let mut stack = ext4(&[], below);
        stack.root.kind = StoreyKind::FileSystem(FileSystem {
            fs_type: "zfs".to_owned(),
            options: Vec::new(),
            btrfs: None,
            zfs: Some(dataset),
        });
        stack
    }

    /// The verdict if each round of eight sees `round`, without stray flushes.
    fn verdict(stack: &StoreStack, round: &[Sight]) -> Verdict {
        mixed(stack, &[(8, round)])
    }

    fn mixed(stack: &StoreStack, rounds: &[(usize, &[Sight])]) -> Verdict {
        let windows: Vec<Vec<Sight>> =
            rounds.iter().flat_map(|(count, round)| vec![round.to_vec(); *count]).collect();
        let count = |index: usize| {
            let flushed = windows.iter().filter(|window| window[index].flushed);
            u32::try_from(flushed.count()).unwrap()
        };
        let seen: Vec<_> = (0..stack.storeys().len())
            .map(|index| StoreySeen { flushed: count(index), ..observed() })
            .collect();
        judge(stack, &windows, &seen).1
    }

    fn observed() -> StoreySeen {
        StoreySeen { is_observed: true, ..StoreySeen::default() }
    }

    fn not_kept_at(verdict: &Verdict, name: &str) {
        assert_eq!(verdict.0, FlushPromise::NotKept, "{verdict:?}");
        assert!(
            verdict.1.starts_with(&format!("no flush reached {name} in 8 of 8")),
            "{verdict:?}"
        );
    }

    #[test]
    fn a_flush_that_reaches_the_device_is_kept() {
        let stack = ext4(&[], vec![volatile("/dev/a", Vec::new())]);
        assert_eq!(verdict(&stack, &[NOTHING, FLUSHED]).0, FlushPromise::Kept);
        not_kept_at(&verdict(&stack, &[NOTHING, WRITTEN]), "/dev/a");
        not_kept_at(&verdict(&stack, &[NOTHING, NOTHING]), "/dev/a");
    }

    #[test]
    fn a_device_without_volatile_cache_needs_no_flush() {
        let stack = ext4(&[], vec![device("/dev/a", QueueCache::WriteThrough, Vec::new())]);
        let (promise, reason) = verdict(&stack, &[NOTHING, WRITTEN]);
        assert_eq!(promise, FlushPromise::Kept, "{reason}");
        assert_eq!(reason, "no device below has a volatile cache");
    }

    #[test]
    fn a_flush_has_to_reach_every_storey_on_its_way() {
        let below = vec![volatile("/dev/b", Vec::new())];
        let stack = ext4(&[], vec![volatile("/dev/a", below)]);
        assert_eq!(verdict(&stack, &[NOTHING, FLUSHED, FLUSHED]).0, FlushPromise::Kept);
        not_kept_at(&verdict(&stack, &[NOTHING, FLUSHED, WRITTEN]), "/dev/b");
        not_kept_at(&verdict(&stack, &[NOTHING, WRITTEN, FLUSHED]), "/dev/a");
        // The flush of others at the device below proves nothing.
        not_kept_at(&verdict(&stack, &[NOTHING, NOTHING, FLUSHED]), "/dev/a");
        not_kept_at(&verdict(&stack, &[NOTHING, FLUSHED, NOTHING]), "/dev/b");
    }

    #[test]
    fn a_pool_below_a_thin_device_may_be_flushed_around() {
        let dm = |name, below| Storey {
            kind: StoreyKind::Dm { target: DmTarget::Unknown },
            ..volatile(name, below)
        };
        let pool =
            dm("/dev/pool", vec![volatile("/dev/meta", vec![]), volatile("/dev/data", vec![])]);
        let thin = StoreStack { root: dm("/dev/thin", vec![pool.clone()]) };
        assert_eq!(verdict(&thin, &[FLUSHED, WRITTEN, FLUSHED, FLUSHED]).0, FlushPromise::Kept);
        not_kept_at(&verdict(&thin, &[FLUSHED, WRITTEN, FLUSHED, WRITTEN]), "/dev/pool");
        not_kept_at(&verdict(&thin, &[WRITTEN, FLUSHED, FLUSHED, FLUSHED]), "/dev/thin");
        let alone = StoreStack { root: pool };
        not_kept_at(&verdict(&alone, &[WRITTEN, FLUSHED, FLUSHED]), "/dev/pool");
    }

    #[test]
    fn a_flush_has_to_reach_each_member_that_was_written() {
        let members = vec![volatile("/dev/b", Vec::new()), volatile("/dev/c", Vec::new())];
        let stack = ext4(&[], vec![volatile("/dev/md0", members)]);
        let promise = |b, c| verdict(&stack, &[NOTHING, FLUSHED, b, c]).0;
        assert_eq!(promise(FLUSHED, FLUSHED), FlushPromise::Kept);
        assert_eq!(promise(FLUSHED, WRITTEN), FlushPromise::NotKept);
        // A durable write to a stripe reaches one member.
        assert_eq!(promise(FLUSHED, NOTHING), FlushPromise::Kept);
        assert_eq!(promise(NOTHING, NOTHING), FlushPromise::NotKept);
    }

    #[test]
    fn zfs_has_to_commit_and_to_flush_one_member() {
        let members = vec![volatile("/dev/b", Vec::new()), volatile("/dev/c", Vec::new())];
        let stack = zfs("standard", members);
        assert_eq!(verdict(&stack, &[FLUSHED, FLUSHED, WRITTEN]).0, FlushPromise::Kept);
        not_kept_at(&verdict(&stack, &[WRITTEN, FLUSHED, FLUSHED]), "/srv");
        assert_eq!(verdict(&stack, &[FLUSHED, WRITTEN, NOTHING]).0, FlushPromise::NotKept);
    }

    #[test]
    fn a_known_lie_is_not_refuted_by_a_flush() {
        let stack = zfs("disabled", vec![volatile("/dev/b", Vec::new())]);
        let (promise, reason) = verdict(&stack, &[FLUSHED, FLUSHED]);
        assert_eq!(promise, FlushPromise::NotKept);
        assert!(reason.contains("sync=disabled"), "{reason}");
        let (good, bad) = (&[FLUSHED, FLUSHED][..], &[WRITTEN, FLUSHED][..]);
        assert_eq!(mixed(&stack, &[(7, good), (1, bad)]).0, FlushPromise::NotKept);
        let error = io::ErrorKind::NotFound.into();
        assert_eq!(without_trace(&stack, &error).0, FlushPromise::NotKept);
        let stack = zfs("standard", vec![volatile("/dev/b", Vec::new())]);
        assert_eq!(without_trace(&stack, &error).0, FlushPromise::Unknown);
    }

    #[test]
    fn an_observation_decides_over_a_version_and_an_unknown_target() {
        let volume = |version: &str| {
            let mut stack = zfs("standard", vec![volatile("/dev/b", Vec::new())]);
            let StoreyKind::FileSystem(FileSystem { zfs: Some(mut dataset), .. }) = stack.root.kind
            else {
                unreachable!()
            };
            dataset.version = Some(version.to_owned());
            stack.root.kind = StoreyKind::Volume(dataset);
            stack
        };
        let old = volume("2.3.1");
        assert_eq!(old.flush_promise(), FlushPromise::NotKept);
        assert_eq!(verdict(&old, &[FLUSHED, FLUSHED]).0, FlushPromise::Kept);
        not_kept_at(&verdict(&volume("2.3.4"), &[WRITTEN, FLUSHED]), "/srv");
        let mut stack = ext4(&[], vec![volatile("/dev/b", Vec::new())]);
        stack.root.below[0].kind = StoreyKind::Dm { target: DmTarget::Unknown };
        assert_eq!(stack.flush_promise(), FlushPromise::Unknown);
        assert_eq!(verdict(&stack, &[NOTHING, FLUSHED]).0, FlushPromise::Kept);
        stack.root.below[0].kind = StoreyKind::Nbd;
        assert_eq!(verdict(&stack, &[NOTHING, FLUSHED]).0, FlushPromise::Unknown);
        not_kept_at(&verdict(&stack, &[NOTHING, WRITTEN]), "/dev/b");
    }

    #[test]
    fn others_make_the_verdict_unknown() {
        let stack = ext4(&[], vec![volatile("/dev/a", Vec::new())]);
        let (good, bad) = (&[NOTHING, FLUSHED][..], &[NOTHING, WRITTEN][..]);
        let (promise, reason) = mixed(&stack, &[(7, good), (1, bad)]);
        assert_eq!(promise, FlushPromise::Unknown, "{reason}");
        assert!(reason.contains("in 1 of 8 rounds"), "{reason}");
        assert_eq!(mixed(&stack, &[(3, good), (5, bad)]).0, FlushPromise::NotKept);
        let busy = [observed(), StoreySeen { stray_writes: 5, ..observed() }];
        let bad_rounds = vec![bad.to_vec(); 8];
        assert_eq!(judge(&stack, &bad_rounds, &busy).1.0, FlushPromise::Unknown);
        let busy = [observed(), StoreySeen { stray_writes: 4, ..observed() }];
        assert_eq!(judge(&stack, &bad_rounds, &busy).1.0, FlushPromise::NotKept);
        let windows = vec![good.to_vec(); 8];
        let seen = |stray| vec![observed(), StoreySeen { flushed: 8, stray, ..observed() }];
        assert_eq!(judge(&stack, &windows, &seen(4)).1.0, FlushPromise::Kept);
        let (promise, reason) = judge(&stack, &windows, &seen(5)).1;
        assert_eq!(promise, FlushPromise::Unknown);
        assert!(reason.contains("5 of 8 idle windows"), "{reason}");
    }

    #[test]
    fn the_end_of_a_flush_is_told_beside_a_known_lie() {
        let stack = zfs("disabled", vec![volatile("/dev/b", Vec::new())]);
        let seen = [observed(), observed()];
        let stopped_at = |round: &[Sight]| judge(&stack, &vec![round.to_vec(); 8], &seen).0;
        assert_eq!(stopped_at(&[WRITTEN, FLUSHED]).as_deref(), Some("/srv"));
        assert_eq!(stopped_at(&[FLUSHED, FLUSHED]), None);
    }

    #[test]
    fn a_storey_without_a_record_makes_the_verdict_unknown() {
        let stack = zfs("standard", vec![volatile("/dev/b", Vec::new())]);
        let windows = vec![vec![NOTHING, FLUSHED]; 8];
        let seen = [StoreySeen::default(), StoreySeen { flushed: 8, ..observed() }];
        let (promise, reason) = judge(&stack, &windows, &seen).1;
        assert_eq!(promise, FlushPromise::Unknown);
        assert_eq!(reason, "/srv has no record of flushes on this host");
    }
}
