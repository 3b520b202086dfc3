//! Rules for the keys of ephemeral disks. Pure.

use block::OnEnospc;

use super::report::{Diagnostic, Span};
use super::source::DiskTable;

/// Reports keys that do not fit each other.
pub(super) fn check(disks: &[DiskTable], diagnostics: &mut Vec<Diagnostic>) {
    for disk in disks {
        match (&disk.ephemeral, disk.keys.span("ephemeral")) {
            (Some(_), Some(span)) => {
                diagnostics.extend(require_base(disk, span.clone()));
                diagnostics.extend(refuse_keys(disk, &span));
            }
            (_, span) => {
                diagnostics.extend(span.and_then(|span| require_path(disk, span)));
                diagnostics.extend(refuse_limit(disk));
            }
        }
    }
}

fn require_base(disk: &DiskTable, span: Span) -> Option<Diagnostic> {
    let has_base = disk.base.is_some() || disk.keys.is_invalid("base");
    (!has_base).then(|| {
        Diagnostic::error("`ephemeral` without `base`")
            .at(span, "there is nothing to start from")
            .help("name the image below the disk with `base`")
    })
}

fn require_path(disk: &DiskTable, span: Span) -> Option<Diagnostic> {
    let has_path = disk.keys.span("path").is_some() || disk.keys.is_invalid("path");
    (!has_path).then(|| {
        Diagnostic::error("`ephemeral = false` without `path`")
            .at(span, "the disk has no file")
            .help("add `path = \"root.img\"`, or write `ephemeral = true`")
    })
}

fn refuse_limit(disk: &DiskTable) -> Option<Diagnostic> {
    // An invalid value of `ephemeral` is reported already.
    let span = disk.keys.span("ephemeral_limit");
    span.filter(|_| !disk.keys.is_invalid("ephemeral")).map(|span| {
        Diagnostic::error("`ephemeral_limit` without `ephemeral`")
            .at(span, "limits nothing")
            .help("write `ephemeral = true`, or remove `ephemeral_limit`")
    })
}

/// Reports the keys of disks that are kept.
fn refuse_keys<'d>(
    disk: &'d DiskTable,
    ephemeral: &'d Span,
) -> impl Iterator<Item = Diagnostic> + 'd {
    let options = &disk.options;
    let holds = options.on_enospc != OnEnospc::Report;
    let keys = [
        ("path", true, "an ephemeral disk has no file of its own"),
        ("create", disk.create, "an ephemeral disk is made at each start"),
        ("cache", true, "nothing is to survive, so that there is no cache mode"),
        ("readonly", options.read_only, "a disk that is not written has no changes to lose"),
        ("soft_limit", true, "the limit of the changes is `ephemeral_limit`"),
        ("on_enospc", holds, "the writes of an ephemeral disk are not held"),
    ];
    let present = keys.into_iter().filter(|(_, is_used, _)| *is_used);
    present.filter_map(|(key, _, label)| {
        let span = disk.keys.span(key)?;
        let error = Diagnostic::error(format!("`{key}` with `ephemeral`")).at(span, label);
        Some(
            error
                .related(ephemeral.clone(), "the disk is ephemeral")
                .help(format!("remove `{key}`, or `ephemeral` if the disk is to be kept")),
        )
    })
}
