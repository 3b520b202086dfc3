//! Whether this host can run the machine: its files, memory, taps and KVM.
//!
//! Looks, and changes nothing: no image is opened for writing and no tap is attached.

use std::fs::{File, FileType, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use block::BackingSpace;
use rustix::fs::{Access, AtFlags, CWD, OFlags, accessat};
use rustix::io::Errno;
use toml::Spanned;

use super::DiskConfig;
use super::parse::{Console, Disk, Source};
use super::report::{Diagnostic, Span};
use super::value::{MEMORY_STEP, exact_size};

/// What the checks need to know of the host. Tests make one up.
#[derive(Debug)]
pub(super) struct Host {
    /// The vCPUs KVM gives one machine, or why there is no KVM.
    pub(super) kvm: Result<usize, Errno>,
    pub(super) cpus: usize,
    /// `MemAvailable`, where the kernel says it.
    pub(super) available_bytes: Option<u64>,
    /// `/sys/class/net`.
    pub(super) net_devices: PathBuf,
}

impl Host {
    /// Looks at the host this program runs on.
    pub(super) fn probe() -> Self {
        let kvm = kvm_ioctls::Kvm::new().map(|kvm| kvm.get_max_vcpus());
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            kvm: kvm.map_err(|error| Errno::from_raw_os_error(error.errno())),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            available_bytes: mem_available(&meminfo),
            net_devices: PathBuf::from("/sys/class/net"),
        }
    }

    /// Adds what keeps `source` from running here.
    pub(super) fn check(&self, source: &Source, diagnostics: &mut Vec<Diagnostic>) {
        diagnostics.extend(self.check_kvm());
        diagnostics.extend(self.check_vcpus(source));
        diagnostics.extend(self.check_memory(source));
        diagnostics.extend(source.kernel.image.as_ref().and_then(check_kernel));
        diagnostics.extend(source.kernel.initramfs.as_ref().and_then(check_initramfs));
        diagnostics.extend(source.disks.iter().filter_map(check_disk));
        check_shared_images(&source.disks, diagnostics);
        let taps = source.nets.iter().filter_map(|net| net.tap.as_ref());
        diagnostics.extend(taps.filter_map(|tap| self.check_tap(tap)));
        diagnostics.extend(check_console(&source.console));
        diagnostics.extend(source.control.as_ref().and_then(check_control));
    }

    fn check_kvm(&self) -> Option<Diagnostic> {
        let errno = self.kvm.err()?;
        let (message, help) = match errno {
            Errno::NOENT | Errno::NODEV | Errno::NXIO => (
                "this host has no /dev/kvm".to_owned(),
                "switch on virtualization in the firmware, then `modprobe kvm_intel` or \
                 `modprobe kvm_amd`; inside a virtual machine, switch on nesting",
            ),
            Errno::ACCESS | Errno::PERM => (
                "you may not open /dev/kvm".to_owned(),
                "join its group with `sudo usermod -aG kvm $USER`, then log in again",
            ),
            errno => (
                format!("cannot open /dev/kvm: {errno}"),
                "see whether another hypervisor holds the processor's virtualization",
            ),
        };
        Some(Diagnostic::error(message).help(help))
    }

    fn check_vcpus(&self, source: &Source) -> Option<Diagnostic> {
        let vcpus = source.machine.vcpus.as_ref()?;
        let count = usize::from(*vcpus.get_ref());
        if let Ok(max) = self.kvm
            && count > max
        {
            return Some(
                Diagnostic::error("`vcpus` is more than KVM gives one machine")
                    .at(vcpus.span(), format!("KVM on this host gives {max}"))
                    .help(format!("write at most {max}")),
            );
        }
        (count > self.cpus).then(|| {
            Diagnostic::warning("`vcpus` is more than this host has")
                .at(vcpus.span(), format!("the host has {}", self.cpus))
                .help(format!("write at most {} for full speed", self.cpus))
        })
    }

    fn check_memory(&self, source: &Source) -> Option<Diagnostic> {
        let memory = source.machine.memory.as_ref()?;
        let (asked, available) = (*memory.get_ref(), self.available_bytes?);
        let most = available / MEMORY_STEP * MEMORY_STEP;
        (asked > available).then(|| {
            let (asked, free) = (asked >> 20, available >> 20);
            Diagnostic::error("`memory` is more than the host has free")
                .at(memory.span(), format!("{asked} MiB asked, {free} MiB available"))
                .help(format!("write at most \"{}\", or free memory on the host", exact_size(most)))
        })
    }

    fn check_tap(&self, tap: &Spanned<String>) -> Option<Diagnostic> {
        const IFF_TAP: u32 = 2;
        let name = tap.get_ref();
        let device = self.net_devices.join(name);
        if !device.exists() {
            return Some(
                Diagnostic::error(format!("the host has no tap `{name}`"))
                    .at(tap.span(), "no such network device")
                    .help(format!(
                        "create it with `sudo ip tuntap add dev {name} mode tap user $USER` \
                         and `sudo ip link set {name} up`"
                    )),
            );
        }
        let flags = std::fs::read_to_string(device.join("tun_flags")).unwrap_or_default();
        let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap_or(0);
        (flags & IFF_TAP == 0).then(|| {
            Diagnostic::error(format!("`{name}` is not a tap"))
                .at(tap.span(), "a network device of another kind")
                .help("name a tap, such as `ip tuntap add dev tap0 mode tap` creates")
        })
    }
}

pub(super) fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim_end().parse::<u64>().ok()?.checked_mul(1024)
}

/// A file of the configuration, opened for reading.
fn open(what: &str, path: &Spanned<PathBuf>) -> Result<File, Diagnostic> {
    // O_NONBLOCK: opening a FIFO must not wait for its writer.
    let nonblock = OFlags::NONBLOCK.bits().cast_signed();
    let name = path.get_ref();
    let file = OpenOptions::new().read(true).custom_flags(nonblock).open(name);
    let file = file.map_err(|error| cannot_open(what, path, &error))?;
    if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return Err(Diagnostic::error(format!("the {what} `{}` is a directory", name.display()))
            .at(path.span(), "a directory")
            .help("name a file in it"));
    }
    Ok(file)
}

fn cannot_open(what: &str, path: &Spanned<PathBuf>, error: &io::Error) -> Diagnostic {
    let name = path.get_ref().display();
    match error.kind() {
        io::ErrorKind::NotFound => {
            let diagnostic = Diagnostic::error(format!("the {what} `{name}` does not exist"));
            match missing_folder(path.get_ref()) {
                Some(folder) => no_folder(diagnostic, path.span(), folder),
                None if what == DISK => diagnostic
                    .at(path.span(), "no such file")
                    .help(format!("create it with `truncate -s 10G {name}`")),
                None => diagnostic.at(path.span(), "no such file").help(PATH_HELP),
            }
        }
        io::ErrorKind::PermissionDenied => {
            Diagnostic::error(format!("you may not read the {what} `{name}`"))
                .at(path.span(), "permission denied")
                .help(format!("see `ls -l {name}`, and grant yourself the right to read it"))
        }
        _ => Diagnostic::error(format!("cannot open the {what} `{name}`"))
            .at(path.span(), error.to_string())
            .help(PATH_HELP),
    }
}

const DISK: &str = "disk image";
const DISK_HELP: &str = "name an image file, or a block device such as /dev/zvol/tank/root";
const PATH_HELP: &str = "a relative path starts at the folder of this file";

/// The folder of `path`, where there is none.
fn missing_folder(path: &Path) -> Option<&Path> {
    path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir())
}

fn no_folder(diagnostic: Diagnostic, span: Span, folder: &Path) -> Diagnostic {
    let folder = folder.display();
    diagnostic
        .at(span, format!("there is no folder `{folder}`"))
        .help(format!("{PATH_HELP}; or create it with `mkdir -p {folder}`"))
}

/// What boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KernelFormat {
    BzImage,
    Elf64,
}

impl KernelFormat {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::BzImage => "bzImage",
            Self::Elf64 => "ELF",
        }
    }
}

/// Tells a kernel by the first bytes of its file, or says what the file is instead.
fn kernel_format(head: &[u8]) -> Result<KernelFormat, (&'static str, &'static str)> {
    const DISTRIBUTION: &str =
        "name an x86-64 bzImage, such as /boot/vmlinuz, or an uncompressed vmlinux";
    let at = |offset: usize, magic: &[u8]| {
        head.get(offset..).is_some_and(|tail| tail.starts_with(magic))
    };
    // The setup header of Documentation/arch/x86/boot.rst.
    if at(0x1fe, b"\x55\xaa") && at(0x202, b"HdrS") {
        return Ok(KernelFormat::BzImage);
    }
    // e_ident: 64 bits, little-endian; e_machine: EM_X86_64.
    if at(0, b"\x7fELF\x02\x01") && at(18, &[62, 0]) {
        return Ok(KernelFormat::Elf64);
    }
    Err(match head {
        _ if at(0, b"\x7fELF") => ("an ELF file, but not for x86-64", DISTRIBUTION),
        _ if at(0x38, b"ARM\x64") => ("a kernel for arm64", DISTRIBUTION),
        _ if at(0, b"\x1f\x8b") => ("a gzip file", "unpack it with `gunzip`"),
        _ if at(0, b"\x28\xb5\x2f\xfd") => ("a zstd file", "unpack it with `unzstd`"),
        _ if at(0, b"\xfd7zXZ") => ("an xz file", "unpack it with `unxz`"),
        _ if at(0, b"MZ") => ("an EFI program without a Linux setup header", DISTRIBUTION),
        [] => ("an empty file", DISTRIBUTION),
        _ => ("neither a bzImage nor an x86-64 ELF file", DISTRIBUTION),
    })
}

fn read_head(file: File) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    file.take(0x210).read_to_end(&mut head)?;
    Ok(head)
}

/// The format of the kernel at `path`, where it is one.
pub(super) fn kernel_format_of(path: &Path) -> Option<KernelFormat> {
    kernel_format(&read_head(File::open(path).ok()?).ok()?).ok()
}

fn check_kernel(image: &Spanned<PathBuf>) -> Option<Diagnostic> {
    const WHAT: &str = "kernel image";
    let file = match open(WHAT, image) {
        Ok(file) => file,
        Err(diagnostic) => return Some(diagnostic),
    };
    let head = match read_head(file) {
        Ok(head) => head,
        Err(error) => return Some(cannot_open(WHAT, image, &error)),
    };
    let (found, help) = kernel_format(&head).err()?;
    let message = format!("`{}` is not a kernel Bulkhead can boot", image.get_ref().display());
    Some(Diagnostic::error(message).at(image.span(), format!("this is {found}")).help(help))
}

fn check_initramfs(initramfs: &Spanned<PathBuf>) -> Option<Diagnostic> {
    let file = match open("initramfs", initramfs) {
        Ok(file) => file,
        Err(diagnostic) => return Some(diagnostic),
    };
    (file.metadata().ok()?.len() == 0).then(|| {
        Diagnostic::error(format!("the initramfs `{}` is empty", initramfs.get_ref().display()))
            .at(initramfs.span(), "0 bytes")
            .help("name a cpio archive, or leave `initramfs` out")
    })
}

/// Disks are counted in sectors of this size.
const SECTOR: u64 = 512;

pub(super) fn check_disk(disk: &Disk) -> Option<Diagnostic> {
    let path = disk.path.as_ref()?;
    match open(DISK, path) {
        Ok(file) => check_image(disk, path, &file),
        Err(diagnostic) => Some(diagnostic),
    }
}

fn check_image(disk: &Disk, path: &Spanned<PathBuf>, file: &File) -> Option<Diagnostic> {
    let name = path.get_ref().display();
    let error = |message: String| Diagnostic::error(format!("the {DISK} `{name}` {message}"));
    let kind = file.metadata().ok()?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let message = error("is no file and no block device".to_owned());
        return Some(message.at(path.span(), "not a disk").help(DISK_HELP));
    }
    let size = match image_size(file) {
        Ok(0) => {
            let help = format!("give it a size with `truncate -s 10G {name}`");
            return Some(error("is empty".to_owned()).at(path.span(), "0 bytes").help(help));
        }
        Ok(size) => size,
        Err(failure) => {
            let message = error("does not tell its size".to_owned());
            return Some(message.at(path.span(), failure.to_string()).help(DISK_HELP));
        }
    };
    let block = disk.block_size.map_or(SECTOR, u64::from);
    if !size.is_multiple_of(block) {
        let message = error(format!("is not a multiple of {block} bytes"));
        let help = match (kind.is_file(), block) {
            (true, SECTOR) => format!("round it up with `truncate -s %{SECTOR} {name}`"),
            (true, _) => {
                format!(
                    "round it up with `truncate -s %{block} {name}`, or write `block_size = {SECTOR}`"
                )
            }
            (false, _) => format!("write `block_size = {SECTOR}`, or give the device another size"),
        };
        return Some(message.at(path.span(), format!("{size} bytes")).help(help));
    }
    if disk.readonly == Some(false)
        && let Err(errno) = accessat(CWD, path.get_ref(), Access::WRITE_OK, AtFlags::EACCESS)
    {
        let help = "grant yourself the right to write it, or write `readonly = true`";
        return Some(
            Diagnostic::error(format!("you may not write the {DISK} `{name}`"))
                .at(path.span(), io::Error::from(errno).to_string())
                .help(help),
        );
    }
    check_direct(disk, path).or_else(|| check_soft_limit(disk, path, file))
}

/// Whether the host says how full the store is.
fn check_soft_limit(disk: &Disk, path: &Spanned<PathBuf>, file: &File) -> Option<Diagnostic> {
    let limit = disk.soft_limit.as_ref()?;
    let why = match BackingSpace::ask(file) {
        Ok(Some(_)) => return None,
        Ok(None) => "the host does not say how much space is left".to_owned(),
        Err(error) => error.to_string(),
    };
    Some(
        Diagnostic::error("`soft_limit` cannot be watched")
            .at(limit.span(), why)
            .related(path.span(), "where this is stored")
            .help("leave `[disk.thin]` out, or put the disk into an image file or a ZFS volume"),
    )
}

/// Whether a cache mode that bypasses the page cache can be had.
pub(super) fn check_direct(disk: &Disk, path: &Spanned<PathBuf>) -> Option<Diagnostic> {
    let cache = disk.cache.as_ref().filter(|cache| cache.get_ref().is_direct())?;
    let direct = OFlags::DIRECT.bits().cast_signed();
    let error = OpenOptions::new().read(true).custom_flags(direct).open(path.get_ref()).err()?;
    (Errno::from_io_error(&error) == Some(Errno::INVAL)).then(|| {
        Diagnostic::error(format!(
            "the file system of `{}` cannot bypass the page cache",
            path.get_ref().display()
        ))
        .at(cache.span(), "needs O_DIRECT")
        .help("write \"writeback\" or \"writethrough\"")
    })
}

/// The size of an image file or a block device.
pub(super) fn image_size(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// What makes two paths the same disk: the device a node stands for, or the file itself.
fn identity(path: &Path) -> Option<(bool, u64, u64)> {
    let metadata = path.metadata().ok()?;
    let block = metadata.file_type().is_block_device();
    Some(if block { (true, metadata.rdev(), 0) } else { (false, metadata.dev(), metadata.ino()) })
}

/// Whether two disks cannot be open at a time because they have one image.
pub(crate) fn same_image(one: &DiskConfig, other: &DiskConfig) -> bool {
    let same = identity(&one.path).is_some_and(|found| Some(found) == identity(&other.path));
    same && !(one.readonly && other.readonly)
}

/// Two writers on one image destroy it, and so does one under a reader's feet.
fn check_shared_images(disks: &[Disk], diagnostics: &mut Vec<Diagnostic>) {
    let mut seen = Vec::new();
    for disk in disks {
        let (Some(path), Some(readonly)) = (&disk.path, disk.readonly) else { continue };
        let Some(identity) = identity(path.get_ref()) else { continue };
        let first =
            seen.iter().find(|(other, shared, _)| *other == identity && !(*shared && readonly));
        if let Some((_, _, first)) = first {
            let name = path.get_ref().display();
            diagnostics.push(
                Diagnostic::error(format!("the {DISK} `{name}` is used twice"))
                    .at(path.span(), "the same image again")
                    .related(Span::clone(first), "first used here")
                    .help("give each disk its own image, or set `readonly = true` on both"),
            );
        }
        seen.push((identity, readonly, path.span()));
    }
}

fn check_console(console: &Console) -> Option<Diagnostic> {
    match console {
        Console::Stdio | Console::Off => None,
        Console::File(path) => check_place("console file", path, "not a file", |kind| {
            !kind.is_dir() && !kind.is_socket()
        }),
        Console::Socket(path) => check_socket("console socket", path),
    }
}

pub(super) fn check_control(path: &Spanned<PathBuf>) -> Option<Diagnostic> {
    let in_use = || {
        UnixStream::connect(path.get_ref()).ok()?;
        let message = format!("the control socket `{}` is in use", path.get_ref().display());
        Some(
            Diagnostic::error(message)
                .at(path.span(), "another machine listens here")
                .help("give each machine its own socket, or end the other one"),
        )
    };
    check_socket("control socket", path).or_else(in_use)
}

fn check_socket(what: &str, path: &Spanned<PathBuf>) -> Option<Diagnostic> {
    check_place(what, path, "something else has this name", FileTypeExt::is_socket)
}

/// Whether something of the right kind can be made at `path`, or `replaced`.
fn check_place(
    what: &str,
    path: &Spanned<PathBuf>,
    label: &str,
    replaced: impl FnOnce(&FileType) -> bool,
) -> Option<Diagnostic> {
    let name = path.get_ref();
    let error = Diagnostic::error(format!("cannot create the {what} `{}`", name.display()));
    if let Some(folder) = missing_folder(name) {
        return Some(no_folder(error, path.span(), folder));
    }
    let kind = name.symlink_metadata().ok()?.file_type();
    (!replaced(&kind))
        .then(|| error.at(path.span(), label).help("choose another path, or remove what is there"))
}
