//! The configuration as written: values that parse, each with its place in the text.
//!
//! A value that is absent or invalid is `None` or its default, so that the later checks still find
//! the problems of all other values.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use block::{CacheMode, DiskOptions, EphemeralPlace, Named};
use toml::Spanned;

use super::limits::EPHEMERAL_MEMORY_BYTES;
use super::report::Span;
use super::value;

/// A machine's file.
#[derive(Debug)]
pub(super) struct MachineSource {
    pub(super) machine: MachineTable,
    pub(super) kernel: KernelTable,
    pub(super) disks: Vec<DiskTable>,
    pub(super) controllers: Vec<ControllerTable>,
    pub(super) nets: Vec<NetTable>,
    pub(super) console: ConsoleTable,
    pub(super) control: Option<Spanned<PathBuf>>,
}

/// The file of a disk that is served without a machine.
#[derive(Debug)]
pub(super) struct DiskFileSource {
    /// `None` where `[disk]` is missing, which is an error.
    pub(super) disk: Option<DiskTable>,
    pub(super) control: Option<Spanned<PathBuf>>,
}

/// `[machine]`.
#[derive(Debug)]
pub(super) struct MachineTable {
    /// The default has the span of the header.
    pub(super) vcpus: Option<Spanned<u16>>,
    pub(super) memory: Option<Spanned<u64>>,
    pub(super) shutdown_grace: Duration,
}

/// `[kernel]`.
#[derive(Debug, Default)]
pub(super) struct KernelTable {
    pub(super) image: Option<Spanned<PathBuf>>,
    pub(super) initramfs: Option<Spanned<PathBuf>>,
    pub(super) cmdline: Option<String>,
}

/// `[[disk]]`, or the `[disk]` of a served disk.
#[derive(Clone, Debug)]
pub(super) struct DiskTable {
    pub(super) header: Span,
    pub(super) keys: KeySpans,
    pub(super) path: PathBuf,
    pub(super) base: Option<PathBuf>,
    pub(super) create: bool,
    pub(super) ephemeral: Option<EphemeralPlace>,
    pub(super) ephemeral_limit: Option<u64>,
    pub(super) bus: BusKind,
    pub(super) controller: Option<u16>,
    pub(super) target: Option<u16>,
    pub(super) lun: Option<u16>,
    pub(super) queues: Option<u16>,
    /// The log of what passes the disk.
    pub(super) record: Option<PathBuf>,
    pub(super) record_limit: Option<u64>,
    pub(super) serial: Option<String>,
    /// The keys that `block` evaluates.
    pub(super) options: DiskOptions,
}

impl DiskTable {
    /// A disk with the defaults of all keys.
    pub(super) fn new(header: Span) -> Self {
        Self {
            header,
            keys: KeySpans::default(),
            path: PathBuf::new(),
            base: None,
            create: false,
            ephemeral: None,
            ephemeral_limit: None,
            bus: BusKind::default(),
            controller: None,
            target: None,
            lun: None,
            queues: None,
            record: None,
            record_limit: None,
            serial: None,
            options: DiskOptions::new(CacheMode::WriteBack),
        }
    }

    /// The limit of an ephemeral disk, given or the default.
    pub(super) fn changes_limit(&self) -> Option<u64> {
        self.ephemeral_limit.or_else(|| match self.ephemeral.as_ref()? {
            EphemeralPlace::Memory => Some(EPHEMERAL_MEMORY_BYTES),
            EphemeralPlace::Folder(_) => None,
        })
    }

    /// The file that the disk is known by, and its place: the image, or the base of an ephemeral
    /// disk.
    pub(super) fn file(&self) -> Option<(&Path, Span)> {
        match (&self.ephemeral, &self.base) {
            (Some(_), Some(base)) => Some((base, self.keys.span("base")?)),
            _ => self.image(),
        }
    }

    /// The path of the image, where it is valid.
    pub(super) fn image(&self) -> Option<(&Path, Span)> {
        Some((&self.path, self.keys.span("path")?))
    }
}

/// The places of a table's values, by key.
#[derive(Clone, Debug, Default)]
pub(super) struct KeySpans(BTreeMap<&'static str, Option<Span>>);

impl KeySpans {
    /// Records the value of `key`; an invalid value has no span.
    pub(super) fn record(&mut self, key: &'static str, span: Option<Span>) {
        self.0.insert(key, span);
    }

    /// The place of a value that is present and valid.
    pub(super) fn span(&self, key: &str) -> Option<Span> {
        self.0.get(key)?.clone()
    }

    /// Whether the value is present and invalid.
    pub(super) fn is_invalid(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(Option::is_none)
    }

    /// Whether any value is invalid.
    pub(super) fn has_invalid(&self) -> bool {
        self.0.values().any(Option::is_none)
    }
}

/// The kind of a disk's bus, without the address on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum BusKind {
    #[default]
    VirtioBlk,
    VirtioScsi,
}

impl Named for BusKind {
    const ALL: &'static [Self] = &[Self::VirtioBlk, Self::VirtioScsi];

    fn name(self) -> &'static str {
        match self {
            Self::VirtioBlk => "virtio-blk",
            Self::VirtioScsi => "virtio-scsi",
        }
    }
}

/// `[[scsi]]`: a controller that exists without disks.
#[derive(Debug)]
pub(super) struct ControllerTable {
    pub(super) header: Span,
    /// The default has the span of the header; `None` where the number is invalid.
    pub(super) number: Option<Spanned<u16>>,
    pub(super) queues: Option<Spanned<u16>>,
}

/// `[[net]]`.
#[derive(Debug)]
pub(super) struct NetTable {
    pub(super) header: Span,
    pub(super) tap: Option<Spanned<String>>,
    pub(super) mac: Option<Spanned<[u8; 6]>>,
}

impl NetTable {
    /// The guest's address: the given one, or one derived from the TAP's name.
    pub(super) fn mac(&self) -> Option<[u8; 6]> {
        let given = self.mac.as_ref().map(|mac| *mac.get_ref());
        given.or_else(|| Some(value::derived_mac(self.tap.as_ref()?.get_ref())))
    }
}

/// `[console]`.
#[derive(Clone, Debug)]
pub(super) enum ConsoleTable {
    Stdio,
    File { path: Spanned<PathBuf>, limit: u64 },
    Socket(Spanned<PathBuf>),
    Off,
}

impl ConsoleTable {
    /// The file or the socket.
    pub(super) fn path(&self) -> Option<&Spanned<PathBuf>> {
        match self {
            Self::File { path, .. } | Self::Socket(path) => Some(path),
            Self::Stdio | Self::Off => None,
        }
    }
}
