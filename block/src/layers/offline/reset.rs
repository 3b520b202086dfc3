//! `layer reset`: a layer without a block takes the place of another one.

use std::path::Path;

use super::super::merge::require_no_merge;
use super::super::uuid::Uuid;
use super::top::ChangedTop;
use super::walk::require_unchanged_below;
use crate::OpenError;

/// A layer that was reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetLayer {
    /// Its new identity.
    pub uuid: Uuid,
    /// Size of its disk in bytes.
    pub size: u64,
}

/// Drops all changes that the layer at `path` has. It keeps its size, its base, its owner and its
/// mode.
///
/// # Errors
///
/// It is in use, frozen, or no layer that can be used; a commit of it was interrupted; its base is
/// missing or has changed; or the host's error.
pub fn reset_layer(path: &Path) -> Result<ResetLayer, OpenError> {
    let top = ChangedTop::open(path)?;
    top.require_writable()?;
    require_no_merge(&top.header, &top.path)?;
    require_unchanged_below(&top.path, &top.header)?;
    let uuid = top.replace_with_empty(top.header.clone())?;
    Ok(ResetLayer { uuid, size: top.header.size })
}
