//! Files that two disks use, of which one writes: that destroys the data of both.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use block::level_paths;

use super::purpose::Purpose;
use crate::config::model::DiskConfig;
use crate::config::report::{Diagnostic, Span};
use crate::config::source::DiskTable;
use crate::host_query::HostQuery;

/// The identity of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
enum FileIdentity {
    /// The number of a device, whatever the name of its node.
    Device(u64),
    /// File system and inode.
    File(u64, u64),
    /// The path of a layer that is to be made, without links.
    New(PathBuf),
}

impl FileIdentity {
    /// That of the file at `path`, or of a layer that is made there.
    fn of(path: &Path, is_made: bool) -> Option<Self> {
        if let Ok(metadata) = path.metadata() {
            let is_device = metadata.file_type().is_block_device();
            let file = || Self::File(metadata.dev(), metadata.ino());
            return Some(if is_device { Self::Device(metadata.rdev()) } else { file() });
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new(".")).canonicalize().ok()?;
        is_made.then_some(Self::New(folder.join(path.file_name()?)))
    }
}

/// The part of a file in a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FileRole {
    /// It is the disk, and is written.
    Written,
    /// It is the disk, which is read-only.
    Read,
    /// A layer of the disk stands on it.
    Base,
    /// It has the log of the disk.
    Log,
}

/// A file of a disk.
#[derive(Clone, Debug)]
struct FileUse {
    path: PathBuf,
    identity: FileIdentity,
    role: FileRole,
}

impl FileUse {
    fn new(path: &Path, is_made: bool, role: FileRole) -> Option<Self> {
        let identity = FileIdentity::of(path, is_made)?;
        Some(Self { path: path.to_owned(), identity, role })
    }

    /// The image of a disk.
    fn image(path: &Path, is_made: bool, read_only: bool) -> Option<Self> {
        Self::new(path, is_made, if read_only { FileRole::Read } else { FileRole::Written })
    }

    /// All files that a layer over `base` stands on.
    fn bases(base: &Path) -> Vec<Self> {
        let paths = level_paths(base).into_iter();
        paths.filter_map(|path| Self::new(&path, false, FileRole::Base)).collect()
    }

    /// The log of a disk.
    fn log(path: &Path) -> Option<Self> {
        Self::new(path, true, FileRole::Log)
    }

    fn conflicts(&self, other: &Self) -> bool {
        let is_written = |file: &Self| matches!(file.role, FileRole::Written | FileRole::Log);
        self.identity == other.identity && (is_written(self) || is_written(other))
    }
}

/// A file that another disk uses already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SharedFile {
    pub(crate) path: PathBuf,
    /// Its part in the other disk, as a noun.
    pub(crate) role: &'static str,
}

/// A file of `one` that `other` uses as well, if at least one of them writes it. May block.
pub(crate) fn shared_file(one: &DiskConfig, other: &DiskConfig) -> Option<SharedFile> {
    let uses = |DiskConfig { path, base, create, options, record, .. }: &DiskConfig| {
        let image = FileUse::image(path, *create, options.read_only);
        let bases = base.as_deref().map(FileUse::bases).unwrap_or_default();
        let log = record.as_ref().and_then(|log| FileUse::log(&log.path));
        image.into_iter().chain(bases).chain(log).collect::<Vec<_>>()
    };
    let others = uses(other);
    uses(one).iter().find_map(|file| {
        let found = others.iter().find(|other| other.conflicts(file))?;
        let role = match found.role {
            FileRole::Base => "base",
            FileRole::Log => "log",
            FileRole::Written | FileRole::Read => "image",
        };
        Some(SharedFile { path: file.path.clone(), role })
    })
}

/// Reports files that two of the disks use, if at least one of them writes it.
pub(super) fn check_shared_files<'d>(
    disks: impl Iterator<Item = &'d DiskTable>,
    purpose: Purpose,
    diagnostics: &mut Vec<Diagnostic>,
) {
    let mut seen: Vec<(FileUse, Span)> = Vec::new();
    for disk in disks.filter(|disk| !disk.keys.is_invalid("readonly")) {
        let uses = uses(disk, purpose);
        let found = uses.iter().find_map(|(file, span)| {
            let (before, place) = seen.iter().find(|(before, _)| before.conflicts(file))?;
            Some(conflict((before, place), (file, span)))
        });
        diagnostics.extend(found);
        seen.extend(uses);
    }
}

/// The files of a disk, each with the place of its key.
fn uses(disk: &DiskTable, purpose: Purpose) -> Vec<(FileUse, Span)> {
    let image = disk.image().and_then(|(path, span)| {
        Some((FileUse::image(path, disk.create, disk.options.read_only)?, span))
    });
    let base = disk.base.clone().zip(disk.keys.span("base"));
    let bases = base.map(|(base, span)| {
        let bases = match purpose {
            Purpose::Start => FileUse::bases(&base),
            Purpose::Report => {
                HostQuery::start(move || FileUse::bases(&base)).answer().unwrap_or_default()
            }
        };
        bases.into_iter().map(move |file| (file, span.clone()))
    });
    let log = disk.record.as_deref().zip(disk.keys.span("record"));
    let log = log.and_then(|(path, span)| Some((FileUse::log(path)?, span)));
    image.into_iter().chain(bases.into_iter().flatten()).chain(log).collect()
}

fn conflict(first: (&FileUse, &Span), second: (&FileUse, &Span)) -> Diagnostic {
    if first.0.role == FileRole::Log || second.0.role == FileRole::Log {
        return shared_log(first, second);
    }
    let is_base = |(file, _): &(&FileUse, &Span)| file.role == FileRole::Base;
    let (base, written) = match (is_base(&first), is_base(&second)) {
        (true, _) => (first, second),
        (_, true) => (second, first),
        (false, false) => return second_use(first, second),
    };
    let (path, below) = (written.0.path.display(), base.0.path.display());
    Diagnostic::error(format!("the disk image `{path}` is written, but another disk stands on it"))
        .at(written.1.clone(), "is written")
        .related(base.1.clone(), format!("stands on `{below}`, which must never change"))
        .help("write `readonly = true`, or make a layer over it for this disk, too")
}

fn shared_log((_, first): (&FileUse, &Span), (file, second): (&FileUse, &Span)) -> Diagnostic {
    Diagnostic::error(format!(
        "the log `{}` is a file of another disk as well",
        file.path.display()
    ))
    .at(second.clone(), "second use")
    .related(first.clone(), "first use")
    .help("give each disk a log of its own")
}

fn second_use((_, first): (&FileUse, &Span), (file, second): (&FileUse, &Span)) -> Diagnostic {
    let (kind, help) = match file.identity {
        FileIdentity::New(_) => ("layer", "give each disk its own layer"),
        _ => ("disk image", "give each disk its own image, or set `readonly = true` on both"),
    };
    Diagnostic::error(format!("the {kind} `{}` is used twice", file.path.display()))
        .at(second.clone(), "second use")
        .related(first.clone(), "first use")
        .help(help)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::config::DiskBus;

    #[test]
    fn a_base_is_shared_by_readers_only() {
        let folder = tempfile::tempdir().unwrap();
        let [base, one, other] = ["base", "one", "other"].map(|name| folder.path().join(name));
        File::create(&base).unwrap().set_len(4096).unwrap();
        let image = DiskConfig::minimal(&base, DiskBus::VirtioBlk);
        let layer = |path: &Path| {
            block::create_layer(path, &base, None).unwrap();
            let disk = DiskConfig::minimal(path, DiskBus::VirtioBlk);
            DiskConfig { base: Some(base.clone()), ..disk }
        };
        let (one, other) = (layer(&one), layer(&other));
        assert_eq!(shared_file(&one, &other), None);
        let shared = |role| Some(SharedFile { path: base.clone(), role });
        assert_eq!(shared_file(&image, &one), shared("base"));
        assert_eq!(shared_file(&one, &image), shared("image"));
        let options = image.options.clone().read_only();
        assert_eq!(shared_file(&DiskConfig { options, ..image }, &one), None);
        assert_eq!(shared_file(&one, &one).map(|shared| shared.path), Some(one.path.clone()));
    }
}
