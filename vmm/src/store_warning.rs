//! Warnings of storage that breaks the promises of a disk, for `check`, the log and the status.
//! Pure.

use block::{CacheMode, FlushPromise, LateEnospc, Problem, StableCopies, StoreFacts};

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
