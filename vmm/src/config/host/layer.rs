//! Layers: whether one can be opened over its base, or made.

use std::path::Path;

use block::{BaseChange, FileIdentity, LevelHead, layer_chain, probe_base, shell_path};

use super::file::NamedFile;
use super::missing::{Missing, is_relative, missing_directory};
use super::purpose::Purpose;
use crate::config::report::Diagnostic;
use crate::config::source::DiskTable;

const LAYER: &str = "layer";
const BASE: &str = "base";

/// Whether the disk's layer does not exist and is made at a start.
pub(super) fn is_to_be_made(disk: &DiskTable) -> bool {
    disk.create && disk.base.is_some() && disk.path.symlink_metadata().is_err()
}

/// Checks a disk that is a layer over `base`. A start reads no file that it has not locked, so that
/// it checks them when it opens the disk.
pub(super) fn check_layer(disk: &DiskTable, base: &Path, purpose: Purpose) -> Option<Diagnostic> {
    let (path, span) = disk.image()?;
    let base_span = disk.keys.span("base")?;
    let base = NamedFile { purpose: BASE, path: base, span: base_span, create: None };
    if let Err(missing) = base.open() {
        return Some(missing);
    }
    let layer = NamedFile { purpose: LAYER, path, span, create: None };
    if is_to_be_made(disk) {
        return check_new(disk, &layer, &base, purpose);
    }
    if !path.exists() {
        let command =
            format!("bulkhead layer create --base {} {}", shell_path(base.path), shell_path(path));
        let help = format!("make it with `{command}`, or write `create = true`");
        return Some(layer.error("does not exist", "no such file").help(help));
    }
    if purpose == Purpose::Start {
        return None;
    }
    let levels = match layer_chain(path) {
        Ok(levels) => levels,
        Err(error) => {
            let help = "name a layer that was made with `bulkhead layer create`";
            return Some(layer.error("cannot be used", error.to_string()).help(help));
        }
    };
    check_base(&layer, &base, &levels).or_else(|| check_frozen(disk, &layer, &levels))
}

/// Checks a layer that a start makes.
fn check_new(
    disk: &DiskTable,
    layer: &NamedFile<'_>,
    base: &NamedFile<'_>,
    purpose: Purpose,
) -> Option<Diagnostic> {
    if disk.options.read_only {
        let error = layer.error("does not exist", "a new layer that nothing can write is useless");
        return Some(error.help("remove `readonly`, or name a layer that exists"));
    }
    if let Some(directory) = missing_directory(layer.path) {
        let can_create = is_relative(layer.path, &layer.span);
        let missing = Missing::directory(layer.path, &layer.span, directory, can_create);
        return Some(layer.error("cannot be made", missing.label).help(missing.help));
    }
    if purpose == Purpose::Start {
        return None;
    }
    let error = probe_base(base.path).err()?;
    Some(base.error("cannot have a layer", error.to_string()).help("name another base"))
}

/// Whether the base is that of the layer, and has not changed.
fn check_base(
    layer: &NamedFile<'_>,
    base: &NamedFile<'_>,
    levels: &[LevelHead],
) -> Option<Diagnostic> {
    let recorded = levels.get(1)?;
    // A snapshot puts layers between.
    let mut below = levels.iter().skip(1).map(|level| identity(&level.path));
    let named = identity(base.path);
    if !below.any(|level| level == named) {
        let label = format!("the layer stands on `{}`", recorded.path.display());
        let error = base.error("is not that of the layer", label);
        let help = format!(
            "name that one; or to put the layer on this base, with the same content, run \
             `bulkhead layer rebase --base {} {}`",
            shell_path(base.path),
            shell_path(layer.path)
        );
        return Some(error.related(layer.span.clone(), "the layer").help(help));
    }
    let changed =
        |level: &LevelHead| Some((level.path.display().to_string(), level.change.clone()?));
    let (path, BaseChange { what, remedy }) = levels.iter().find_map(changed)?;
    let error = layer.error("stands on a base that has changed", format!("`{path}`: {what}"));
    Some(error.related(base.span.clone(), "the base").help(remedy))
}

fn check_frozen(
    disk: &DiskTable,
    layer: &NamedFile<'_>,
    levels: &[LevelHead],
) -> Option<Diagnostic> {
    let is_frozen = levels.first().is_some_and(|top| top.is_frozen && !top.is_half_frozen);
    (is_frozen && !disk.options.read_only).then(|| {
        layer
            .error("is frozen", "other layers may stand on it")
            .help("make a new layer over it, or write `readonly = true`")
    })
}

fn identity(path: &Path) -> Option<FileIdentity> {
    FileIdentity::at(path).ok()
}
