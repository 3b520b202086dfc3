//! How a disk is opened: the keys of `[[disk]]` that the storage stack obeys.

use std::fmt;
use std::time::Duration;

use crate::{CacheMode, Named};

/// Options of a disk. The configuration fills this struct and the disk keeps it: a new key is a
/// field here, its reader in the configuration, and its use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// Name of the disk in the log; its path if empty.
    pub id: String,
    /// Cache mode.
    pub cache: CacheMode,
    /// Writes are refused.
    pub read_only: bool,
    /// Logical block of the guest, 512 or 4096 bytes. By default that of a block device, and 512
    /// for a file, whatever alignment direct I/O requires.
    pub block_size: Option<u32>,
    /// Whether an image of another format is refused.
    pub format: DiskFormat,
    /// Whether the image is locked.
    pub lock: ImageLocking,
    /// Which engine serves the disk.
    pub engine: EngineKind,
    /// Handling of requests that fail with ENOSPC.
    pub on_enospc: OnEnospc,
    /// Percentage of the backing store that may be in use before the guest is warned.
    pub soft_limit: Option<u8>,
    /// Discards are offered to the guest.
    pub discard: bool,
    /// Handling of writes of zeroes.
    pub detect_zeroes: DetectZeroes,
    /// Bytes of memory for copies of requests' data, of all engines together: bounce buffers where
    /// direct I/O requires alignment, and data to compare.
    pub copy_memory: u64,
    /// Which direct transfers go through a copy that the guest cannot change meanwhile.
    pub stable_copies: StableCopyMode,
    /// A completed write survives a kill of the program, for a guest that lives on. A raw disk has
    /// no other writes; a layer has to note each block that is written first.
    pub survives_kill: bool,
}

impl DiskOptions {
    /// A writable disk of the given cache mode, and the default for every other option.
    #[must_use]
    pub fn new(cache: CacheMode) -> Self {
        Self {
            id: String::new(),
            cache,
            read_only: false,
            block_size: None,
            format: DiskFormat::Auto,
            lock: ImageLocking::On,
            engine: EngineKind::Auto,
            on_enospc: OnEnospc::Report,
            soft_limit: None,
            discard: true,
            detect_zeroes: DetectZeroes::Off,
            copy_memory: 4 << 20,
            stable_copies: StableCopyMode::Auto,
            survives_kill: false,
        }
    }

    /// The same options, read-only.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self { read_only: true, ..self }
    }
}

/// Whether the bytes of an image are those of the disk without question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DiskFormat {
    /// An image that has the signature of another format is refused.
    #[default]
    Auto,
    /// The image is raw, whatever its first bytes.
    Raw,
}

impl Named for DiskFormat {
    const ALL: &'static [Self] = &[Self::Auto, Self::Raw];

    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Raw => "raw",
        }
    }
}

/// Whether a disk keeps others off its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ImageLocking {
    /// The image is locked; a disk that cannot lock it does not open.
    #[default]
    On,
    /// The image is not locked, for file systems without locks. A second machine on the image
    /// destroys it.
    Off,
}

impl Named for ImageLocking {
    const ALL: &'static [Self] = &[Self::On, Self::Off];

    fn name(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
        }
    }
}

/// Which direct transfers go through a copy of the monitor.
///
/// A guest may change the memory of a write while the host works on it, and most guests do. A store
/// that computes checksums or parity of that memory, or mirrors it, then stores data that it cannot
/// read back, or mirrors that differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum StableCopyMode {
    /// Those that the store needs, as far as the host reports what it stands on.
    #[default]
    Auto,
    /// All, for a store whose mirrors or checksums this host cannot see.
    On,
    /// None. A guest can damage its data.
    Off,
}

impl Named for StableCopyMode {
    const ALL: &'static [Self] = &[Self::Auto, Self::On, Self::Off];

    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        }
    }
}

/// The engine that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum EngineKind {
    /// io_uring, or threads if the host refuses io_uring.
    #[default]
    Auto,
    /// io_uring; an error if the host refuses it.
    IoUring,
    /// A pool of threads for each queue.
    Threads,
}

impl Named for EngineKind {
    const ALL: &'static [Self] = &[Self::Auto, Self::IoUring, Self::Threads];

    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::IoUring => "io_uring",
            Self::Threads => "threads",
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether writes of zeroes become zeroing requests. Detection reads the data of each write, which
/// mostly ends at its first bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DetectZeroes {
    /// Write all data as it is.
    #[default]
    Off,
    /// Zero the range and keep it allocated.
    On,
    /// Zero the range and deallocate it.
    Unmap,
}

impl Named for DetectZeroes {
    const ALL: &'static [Self] = &[Self::Off, Self::On, Self::Unmap];

    fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
            Self::Unmap => "unmap",
        }
    }
}

impl fmt::Display for DetectZeroes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Handling of a request that fails because the host's file system is full (`ENOSPC`) or the
/// quota is exhausted (`EDQUOT`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnEnospc {
    /// Fail the request.
    #[default]
    Report,
    /// Retry until space is available; fail the request at its deadline.
    Hold {
        /// How long a request is retried.
        deadline: Duration,
    },
}
