//! `layer rebase`: a layer stands on another base, or on its own one at another path.

use std::path::Path;

use super::super::claim::{ClaimedBase, path_from};
use super::super::file::{base_path, host_error};
use super::super::header::Header;
use super::super::identity::{BaseChange, BaseKind};
use super::super::info::{header_at, probe_base};
use super::super::map_file::read_map;
use super::super::merge::{require_no_merge, require_whole};
use super::super::unit::BLOCK;
use super::chain::LockedChain;
use super::copy::{Copier, OnProgress};
use super::target::Target;
use super::top::ChangedTop;
use super::walk::leads_to;
use crate::{FileIdentity, OpenError};

/// A layer that stands on another base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RebasedLayer {
    /// It is the same base as before, at another path or at the same one.
    pub is_same_base: bool,
    /// Bytes that were copied to the layer, as both bases differ.
    pub copied: u64,
}

/// Puts the layer at `path` over `base`. The disk reads the same as before: blocks that it has from
/// its old base, and that the new one has not, are copied to the layer. If `base` is the old one,
/// which was moved, only its path is changed, and the old path is not read.
///
/// # Errors
///
/// A file is in use; `base` stands on the layer, is larger than it, or is unsuitable; the layer is
/// frozen, which forbids another base; the old base is missing or has changed; or the host's error.
pub fn rebase_layer(
    path: &Path,
    base: &Path,
    on_progress: OnProgress<'_>,
) -> Result<RebasedLayer, OpenError> {
    let mut top = ChangedTop::open(path)?;
    require_no_merge(&top.header, &top.path)?;
    require_whole(&top.header, &top.path)?;
    require_no_loop(&top, base)?;
    let path_of_base = path_from(&top.path, base);
    let change = change_of(&top.header, base)?;
    if change.is_none() {
        if top.header.base_path != path_of_base {
            top.write(Header { base_path: path_of_base, ..top.header.clone() })?;
        }
        return Ok(RebasedLayer { is_same_base: true, copied: 0 });
    }
    let old_path = base_path(&top.path, &top.header);
    if !old_path.exists() {
        return Err(missing_and_not(&top, &old_path, base, change));
    }
    top.require_writable()?;
    let smallest = probe_base(base)?;
    if smallest > top.header.size {
        let size = top.header.size;
        return Err(top.unsuitable(format!(
            "it has {size} bytes, and the new base {smallest}, whose end it would cut off; make a \
             new layer over that base"
        )));
    }
    let old = LockedChain::below(&top.path, &top.header)?;
    // The last step that can fail for a reason of the user has passed.
    let (new, claimed) = claim(base)?;
    let copied = copy_differences(&top, &old, &new, on_progress)?;
    let (base, base_path) = (claimed.identity(), path_of_base);
    // A layer that was merged into the old base has nothing to do with the new one.
    top.write(Header { base, base_path, merged: None, ..top.header.clone() })?;
    Ok(RebasedLayer { is_same_base: false, copied })
}

/// Copies the blocks to the layer that it has from below, and that differ there.
fn copy_differences(
    top: &ChangedTop,
    old: &LockedChain,
    new: &LockedChain,
    on_progress: OnProgress<'_>,
) -> Result<u64, OpenError> {
    let (file, header) = (top.file.file(), &top.header);
    let map = read_map(file, &top.path, header)?;
    let blocks = header.size / BLOCK;
    let mut copier = Copier::new(header.size, on_progress);
    let mut target = Target::new(file, &top.path, header.data_at(), header.size);
    target.map = Some(&map);
    let mut block = 0;
    while block < blocks {
        let (is_set, end) = map.run(block, blocks);
        let bytes = |block: u64| block * BLOCK;
        if is_set {
            copier.skip(bytes(end - block));
        } else {
            copier.copy_differences(old, new, bytes(block), bytes(end), &mut target)?;
        }
        block = end;
    }
    target.settle()?;
    Ok(copier.copied)
}

/// Locks the new base, with everything below it, and freezes it if it is a layer.
fn claim(base: &Path) -> Result<(LockedChain, ClaimedBase), OpenError> {
    let claimed = ClaimedBase::open(base)?;
    claimed.freeze(base)?;
    if claimed.identity().kind != BaseKind::Layer {
        return Ok((LockedChain::raw(base)?, claimed));
    }
    // The lock of a writer excludes readers, also those of this program.
    let expected = claimed.identity();
    drop(claimed);
    let (chain, claimed) = (LockedChain::open(base)?.1, ClaimedBase::open(base)?);
    if claimed.identity() != expected {
        let why = "it was changed meanwhile; try again".to_owned();
        return Err(OpenError::Unsuitable { path: base.into(), why });
    }
    Ok((chain, claimed))
}

/// How the file at `base` differs from the base that the layer was made over.
fn change_of(header: &Header, base: &Path) -> Result<Option<BaseChange>, OpenError> {
    let claimed = match header.base.kind {
        // Not one that is not frozen: it cannot be that one, and a claim of it is exclusive.
        BaseKind::Layer if header_at(base).map_or(true, |found| found.frozen.is_none()) => {
            let (what, remedy) = ("another one".to_owned(), "find the old one".to_owned());
            return Ok(Some(BaseChange { what, remedy }));
        }
        BaseKind::Layer | BaseKind::File | BaseKind::Device => ClaimedBase::open(base)?,
    };
    Ok(header.base.change(&claimed.identity(), base))
}

/// The error of an old base that is missing, and is not `new`, so that it would have to be read.
fn missing_and_not(
    top: &ChangedTop,
    old: &Path,
    new: &Path,
    change: Option<BaseChange>,
) -> OpenError {
    let differs = change.map_or_else(String::new, |BaseChange { what, remedy }| {
        format!(", and {} is not the same one: {what}; {remedy}", new.display())
    });
    top.unsuitable(format!("its base {} is missing{differs}", old.display()))
}

/// Refuses a base that stands on the layer.
fn require_no_loop(top: &ChangedTop, base: &Path) -> Result<(), OpenError> {
    let own = FileIdentity::at(&top.path).map_err(host_error(&top.path, "find it"))?;
    FileIdentity::at(base).map_err(host_error(base, "find it"))?;
    if leads_to(base, own) {
        let why = format!("{} stands on it, and cannot be its base too", base.display());
        return Err(top.unsuitable(why));
    }
    Ok(())
}
