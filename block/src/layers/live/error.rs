//! Errors of a merge of a layer below a disk that is in use.

use std::path::{Path, PathBuf};

use crate::OpenError;

/// Why a layer is not merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// It cannot be, or not now.
    #[error("{path}: {why}")]
    Refused {
        /// The file that is the reason.
        path: PathBuf,
        /// The reason, and what to do.
        why: String,
    },
    /// It was stopped.
    #[error("the merge was stopped; the disk reads as before, and the merge can be run again")]
    Stopped,
    /// The host's error, or that of a file.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// The reason against a commit of a disk with held requests, at its begin and at its end: the
/// commit would wait for them.
pub(super) const HOLDS: &str = "it has requests that wait for space; make space on the host first";

/// The error of a file that is the reason.
pub(super) fn refused(path: &Path, why: impl Into<String>) -> MergeError {
    MergeError::Refused { path: path.into(), why: why.into() }
}
