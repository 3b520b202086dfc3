//! The verdict on one cache mode, from what reached each storey. Pure.

use std::io;

use super::scratch::ROUNDS;
use super::witness::{Sight, StoreySeen};
use crate::{FlushPromise, Problem, QueueCache, StoreStack, Storey};

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

/// The verdict by what reached each storey. What was observed decides over what is supposed of a
/// storey by its version; what is known of it by its kind or properties decides over both.
pub(super) fn judge(stack: &StoreStack, rounds: &[Vec<Sight>], seen: &[StoreySeen]) -> Verdict {
    if let Some(verdict) = known_lie(stack) {
        return verdict;
    }
    let arrivals: Vec<_> =
        rounds.iter().map(|window| FlushWalk { window, next: 0 }.stack(stack)).collect();
    let ends: Vec<_> = arrivals.iter().filter_map(Arrival::end).collect();
    if let Some(end) = ends.first() {
        let (bad, total) = (ends.len(), arrivals.len());
        if bad == total {
            return (FlushPromise::NotKept, format!("no flush reached {end} in {total} rounds"));
        }
        let reason = format!(
            "no flush reached {end} in {bad} of {total} rounds, perhaps because others write to it"
        );
        return (FlushPromise::Unknown, reason);
    }
    if let Some(problem) = supposed(stack).find(|problem| !problem.is_observable) {
        return (problem.flush, format!("{} {}", problem.storey, problem.what));
    }
    let storeys = stack.storeys();
    let needing = || storeys.iter().zip(seen).filter(|(storey, _)| storey.needs_flushes());
    // Flushes of others would hide that ours do not arrive. Some are late parts of our own writes:
    // md marks an array as clean 200 ms after the last one.
    if let Some((storey, found)) = needing().find(|(_, found)| found.stray * 2 > ROUNDS) {
        let stray = found.stray;
        let reason = format!(
            "others flush {} too ({stray} of {ROUNDS} idle windows): repeat this on a quiet host",
            storey.name
        );
        return (FlushPromise::Unknown, reason);
    }
    let total = arrivals.len();
    let lowest = needing().filter(|(storey, found)| storey.below.is_empty() && found.flushed > 0);
    let mut names: Vec<_> = lowest.map(|(storey, _)| storey.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let reason = match names.as_slice() {
        [] => "no device below has a volatile cache".to_owned(),
        [one] => format!("each of {total} flushes reached {one}"),
        [first, rest @ ..] => {
            format!("each of {total} flushes reached {first} and {} more", rest.len())
        }
    };
    (FlushPromise::Kept, reason)
}

/// A storey that is known to keep no flush, without an observation.
fn known_lie(stack: &StoreStack) -> Option<Verdict> {
    let mut lies = stack
        .problems()
        .into_iter()
        .filter(|problem| problem.flush == FlushPromise::NotKept && !problem.is_observable);
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
    next: usize,
}

impl FlushWalk<'_> {
    fn stack(mut self, stack: &StoreStack) -> Arrival {
        self.storey(&stack.root)
    }

    fn storey(&mut self, storey: &Storey) -> Arrival {
        let sight = self.window.get(self.next).copied().unwrap_or_default();
        self.next += 1;
        let below: Vec<_> = storey.below.iter().map(|below| self.storey(below)).collect();
        let name = || storey.name.clone();
        let below = match storey.is_zfs() {
            true => any(below),
            false => all(below),
        };
        if !storey.needs_flushes() {
            return below.unwrap_or(Arrival::NotNeeded);
        }
        match (sight.flushed, sight.written, below) {
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
    /// Whether a flush has to arrive here: at a queue with a volatile cache, and at a dataset.
    fn needs_flushes(&self) -> bool {
        self.is_zfs() || self.queue.is_some_and(|queue| queue.cache == Some(QueueCache::WriteBack))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FileSystem, QueueAttributes, StoreyKind, ZfsDataset};

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
            .map(|index| StoreySeen { flushed: count(index), ..StoreySeen::default() })
            .collect();
        judge(stack, &windows, &seen)
    }

    fn not_kept_at(verdict: &Verdict, name: &str) {
        assert_eq!(verdict.0, FlushPromise::NotKept, "{verdict:?}");
        assert!(verdict.1.starts_with(&format!("no flush reached {name} in 8")), "{verdict:?}");
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
        stack.root.below[0].kind = StoreyKind::Dm { target: crate::DmTarget::Unknown };
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
        let windows = vec![good.to_vec(); 8];
        let seen = |stray| {
            vec![StoreySeen::default(), StoreySeen { flushed: 8, stray, ..StoreySeen::default() }]
        };
        assert_eq!(judge(&stack, &windows, &seen(4)).0, FlushPromise::Kept);
        let (promise, reason) = judge(&stack, &windows, &seen(5));
        assert_eq!(promise, FlushPromise::Unknown);
        assert!(reason.contains("5 of 8 idle windows"), "{reason}");
    }
}
