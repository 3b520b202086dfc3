//! `layer freeze`: a layer is never written again, so that others may stand on it.

use std::path::Path;

use super::super::file::host_error;
use super::super::header::Header;
use super::super::merge::require_no_merge;
use super::super::uuid::Uuid;
use super::top::ChangedTop;
use crate::OpenError;

/// A layer that is frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrozenLayer {
    /// The identity of its content.
    pub identity: Uuid,
    /// It was frozen before.
    pub was_frozen: bool,
}

/// Freezes the layer at `path`.
///
/// # Errors
///
/// It is in use, or no layer that can be used; a commit of it was interrupted; or the host's error.
pub fn freeze_layer(path: &Path) -> Result<FrozenLayer, OpenError> {
    let mut top = ChangedTop::open(path)?;
    if let Some(identity) = top.header.frozen {
        return Ok(FrozenLayer { identity, was_frozen: true });
    }
    require_no_merge(&top.header, &top.path)?;
    let identity = Uuid::random().map_err(host_error(path, "make its identity"))?;
    top.write(Header { frozen: Some(identity), ..top.header.clone() })?;
    Ok(FrozenLayer { identity, was_frozen: false })
}
