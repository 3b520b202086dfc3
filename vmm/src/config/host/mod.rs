//! Whether this host can run the machine: its KVM, CPUs, memory, files and TAP devices.
//!
//! Reads and changes nothing: no image is opened for writing and no TAP is attached.

mod disk;
mod ephemeral;
mod file;
mod file_uses;
mod kernel;
mod layer;
mod limits;
mod memory;
mod missing;
mod purpose;
mod record;

use std::path::PathBuf;

use rustix::io::Errno;
use toml::Spanned;

use super::needs::EnginePolicy;
use super::report::Diagnostic;
use super::source::{DiskTable, KernelTable, MachineSource};
use crate::memory::AvailableMemory;
use crate::process_limits::ProcessLimits;

#[cfg(test)]
pub(super) use disk::check_direct;
pub(super) use disk::check_disk;
pub(crate) use disk::image_size;
pub(super) use file::check_control;
pub(crate) use file_uses::{SharedFile, shared_file};
pub(crate) use kernel::{KernelFormat, kernel_format_of};
pub(super) use limits::check_limits;
pub(super) use missing::await_devices;
pub(super) use purpose::Purpose;

/// Checks the images of all disks.
pub(super) fn check_disks(
    disks: &[DiskTable],
    purpose: Purpose,
    diagnostics: &mut Vec<Diagnostic>,
) {
    if purpose == Purpose::Start {
        await_devices(disks);
        diagnostics.extend(disks.iter().filter_map(|disk| check_disk(disk, purpose)));
        return file_uses::check_shared_files(disks.iter(), purpose, diagnostics);
    }
    let mut answered = Vec::new();
    for (answer, disk) in disk::query_disks(disks).into_iter().zip(disks) {
        if answer.is_ok() {
            answered.push(disk);
        }
        diagnostics.extend(answer.unwrap_or_else(|unanswered| vec![unanswered]));
    }
    file_uses::check_shared_files(answered.into_iter(), purpose, diagnostics);
}

/// The facts about the host that checks need. Tests make them up.
#[derive(Debug)]
pub(super) struct Host {
    /// The most vCPUs that KVM supports, or the error of `/dev/kvm`.
    pub(super) kvm: Result<usize, Errno>,
    pub(super) cpus: usize,
    pub(super) memory: AvailableMemory,
    /// `/sys/class/net`.
    pub(super) net_devices: PathBuf,
    pub(super) limits: ProcessLimits,
    pub(super) engines: EnginePolicy,
}

impl Host {
    /// The host that this program runs on.
    pub(super) fn probe() -> Self {
        let kvm = kvm_ioctls::Kvm::new().map(|kvm| kvm.get_max_vcpus());
        Self {
            kvm: kvm.map_err(|error| Errno::from_raw_os_error(error.errno())),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory: AvailableMemory::probe(),
            net_devices: PathBuf::from("/sys/class/net"),
            limits: ProcessLimits::probe(),
            engines: EnginePolicy::probe(),
        }
    }

    /// Reports every reason that `source` cannot run here.
    pub(super) fn check(
        &self,
        source: &MachineSource,
        purpose: Purpose,
        diagnostics: &mut Vec<Diagnostic>,
    ) {
        diagnostics.extend(self.check_kvm());
        diagnostics.extend(self.check_vcpus(source));
        diagnostics.extend(memory::check_memory(source, &self.memory, purpose));
        let KernelTable { image, initramfs, .. } = &source.kernel;
        let kernel = image.as_ref();
        diagnostics.extend(kernel.and_then(|path| purpose.check(path, kernel::check_kernel)));
        let initramfs = initramfs.as_ref();
        diagnostics.extend(initramfs.and_then(|path| purpose.check(path, kernel::check_initramfs)));
        check_disks(&source.disks, purpose, diagnostics);
        let taps = source.nets.iter().filter_map(|net| net.tap.as_ref());
        diagnostics.extend(taps.filter_map(|tap| self.check_tap(tap)));
        let console = source.console.path().and_then(|path| {
            let (console, disks) = (source.console.clone(), source.disks.clone());
            purpose.check(path, move |_| file::check_console(&console, &disks))
        });
        diagnostics.extend(console);
        let control = source.control.as_ref();
        diagnostics.extend(control.and_then(|path| purpose.check(path, check_control)));
    }

    fn check_kvm(&self) -> Option<Diagnostic> {
        let errno = self.kvm.err()?;
        let (message, help) = match errno {
            Errno::NOENT | Errno::NODEV | Errno::NXIO => (
                "this host has no /dev/kvm".to_owned(),
                "enable virtualization in the firmware, then `modprobe kvm_intel` or \
                 `modprobe kvm_amd`; inside a virtual machine, enable nested virtualization",
            ),
            Errno::ACCESS | Errno::PERM => (
                "no permission to open /dev/kvm".to_owned(),
                "join its group with `sudo usermod -aG kvm $USER`, then log in again",
            ),
            errno => (
                format!("cannot open /dev/kvm: {errno}"),
                "check whether another hypervisor uses the CPU's virtualization",
            ),
        };
        Some(Diagnostic::error(message).help(help))
    }

    fn check_vcpus(&self, source: &MachineSource) -> Option<Diagnostic> {
        let vcpus = source.machine.vcpus.as_ref()?;
        let count = usize::from(*vcpus.get_ref());
        if let Ok(max) = self.kvm
            && count > max
        {
            return Some(
                Diagnostic::error("`vcpus` exceeds the limit of KVM")
                    .at(vcpus.span(), format!("KVM on this host supports {max}"))
                    .help(format!("write at most {max}")),
            );
        }
        (count > self.cpus).then(|| {
            Diagnostic::warning("`vcpus` exceeds the number of host CPUs")
                .at(vcpus.span(), format!("the host has {}", self.cpus))
                .help(format!("write at most {} for full speed", self.cpus))
        })
    }

    fn check_tap(&self, tap: &Spanned<String>) -> Option<Diagnostic> {
        const IFF_TAP: u32 = 2;
        let name = tap.get_ref();
        let device = self.net_devices.join(name);
        if !device.exists() {
            return Some(
                Diagnostic::error(format!("the host has no TAP device `{name}`"))
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
            Diagnostic::error(format!("`{name}` is not a TAP device"))
                .at(tap.span(), "a network device of another kind")
                .help("name a TAP device; `ip tuntap add dev tap0 mode tap` creates one")
        })
    }
}
