//! Warnings of storage that breaks the promises of a disk, for `check`, the log and the status.
//! Pure.

use block::{BaseFacts, CacheMode, FlushPromise, LateEnospc, Problem, StableCopies, StoreFacts};

use crate::sanitize::sanitize;

/// A warning: the problem as a sentence without a full stop, and the change that removes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoreWarning {
    pub(crate) problem: String,
    pub(crate) remedy: Option<String>,
}

/// The warnings of a disk in a cache mode. That a promise of flushes cannot be known is none.
pub(crate) fn store_warnings(store: &StoreFacts, cache: CacheMode) -> Vec<StoreWarning> {
    let problems = store.flush_problems.iter();
    let not_kept = problems.filter(|problem| problem.flush == FlushPromise::NotKept);
    let mut warnings = Vec::new();
    for Problem { storey, what, remedy, .. } in not_kept {
        let problem = format!("flushed data may be lost at a power cut: {storey} {what}");
        let remedy = remedy.as_deref().map(sanitize);
        let warning = StoreWarning { problem: sanitize(&problem), remedy };
        // The members of an array often share a storey.
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }
    let StableCopies { writes, reads } = &store.not_copied;
    if let Some(reason) = writes.as_ref().or(reads.as_ref()) {
        warnings.push(StoreWarning {
            problem: sanitize(&format!(
                "a guest that changes its memory meanwhile damages its data: {reason}"
            )),
            remedy: Some("remove `stable_copies = \"off\"`".to_owned()),
        });
    }
    if let Some(dataset) = &store.volume_quota {
        let problem = format!(
            "`on_enospc = \"hold\"` does not hold writes at the quota of {dataset}: ZFS fails them \
             with EIO"
        );
        let remedy = "reserve the space of the volume (`zfs set refreservation=auto`), or remove \
                      the quota";
        warnings
            .push(StoreWarning { problem: sanitize(&problem), remedy: Some(remedy.to_owned()) });
    }
    warnings.extend(store.bases.iter().flat_map(base_warnings));
    // A certain one is an error.
    if let Some(LateEnospc { is_certain: false, storey }) = &store.late_enospc {
        let problem = format!(
            "`on_enospc = \"hold\"` cannot hold writes if this storage is thin, which the host \
             does not report: {storey} accepts them through the page cache before there is space"
        );
        let remedy = Some(format!("write `cache = \"{}\"`", cache.direct_equivalent()));
        warnings.push(StoreWarning { problem: sanitize(&problem), remedy });
    }
    warnings
}

/// The warnings of the storage below a base. It is only read, so that nothing else matters.
fn base_warnings(BaseFacts { path, store }: &BaseFacts) -> Vec<StoreWarning> {
    let path = path.display();
    let problems = store.flush_problems.iter();
    let lost = problems.filter(|problem| problem.flush == FlushPromise::NotKept);
    let lost = lost.map(|Problem { storey, what, .. }| StoreWarning {
        problem: sanitize(&format!(
            "the disk is lost at a power cut, with its base {path}: {storey} {what}"
        )),
        remedy: Some("make a new layer, over a copy of the base on a disk".to_owned()),
    });
    let reads = store.not_copied.reads.iter().map(|reason| StoreWarning {
        problem: sanitize(&format!(
            "reads of its base {path} fail if the guest changes its memory meanwhile: {reason}"
        )),
        remedy: Some("remove `stable_copies = \"off\"`".to_owned()),
    });
    lost.chain(reads).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_has_the_problems_of_reads_only() {
        let problem = |flush| Problem {
            storey: "/tmp".to_owned(),
            what: "is a tmpfs".to_owned(),
            remedy: None,
            flush,
            is_supposed: false,
        };
        let store = StoreFacts {
            flush_problems: vec![problem(FlushPromise::NotKept), problem(FlushPromise::Unknown)],
            not_copied: StableCopies { writes: None, reads: Some("btrfs".to_owned()) },
            ..StoreFacts::default()
        };
        let bases = vec![BaseFacts { path: "base\x1b".into(), store }];
        let store = StoreFacts { bases, ..StoreFacts::default() };
        let warnings = store_warnings(&store, CacheMode::None);
        let problems: Vec<_> = warnings.iter().map(|warning| warning.problem.as_str()).collect();
        let expected = [
            "the disk is lost at a power cut, with its base base\u{fffd}: /tmp is a tmpfs",
            "reads of its base base\u{fffd} fail if the guest changes its memory meanwhile: btrfs",
        ];
        assert_eq!(problems, expected);
    }
}
