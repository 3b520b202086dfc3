//! Checks against the host.

use std::thread;

use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use super::*;
use crate::config::needs::EnginePolicy;
use crate::memory::{AvailableMemory, CgroupMemory, LimitEffect};
use crate::process_limits::ProcessLimits;

/// A directory with a kernel and a disk, and a host that has everything they need.
pub(super) struct HostFixture {
    pub(super) folder: TempDir,
    pub(super) facts: Host,
}

impl HostFixture {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let net_devices = folder.path().join("net");
        let host = Self {
            facts: Host {
                kvm: Ok(64),
                cpus: 8,
                memory: AvailableMemory { host_bytes: Some(1 << 30), cgroups: vec![] },
                net_devices,
                limits: ProcessLimits::default(),
                engines: EnginePolicy { refuses_io_uring: false },
            },
            folder,
        };
        let kernel = host.file("vmlinuz", 0x400);
        kernel.write_all_at(b"\x55\xaa", 0x1fe).unwrap();
        kernel.write_all_at(b"HdrS", 0x202).unwrap();
        host.file("root.img", 4096);
        host
    }

    pub(super) fn file(&self, name: &str, length: u64) -> fs::File {
        let file = fs::File::create(self.folder.path().join(name)).unwrap();
        file.set_len(length).unwrap();
        file
    }

    pub(super) fn content(&self, name: &str, content: &[u8]) {
        fs::write(self.folder.path().join(name), content).unwrap();
    }

    pub(super) fn report(&self, text: &str) -> String {
        let (source, mut diagnostics) = parse::parse_machine(text, self.folder.path());
        self.facts.check(&source.unwrap(), Purpose::Report, &mut diagnostics);
        lines(text, diagnostics).replace(self.folder.path().to_str().unwrap(), "/vm")
    }

    pub(super) fn report_with_base(&self, text: &str) -> String {
        self.report(&format!("{BASE}{text}"))
    }
}

#[test]
fn a_valid_machine_passes() {
    let text = "[[disk]]\nid='a'\npath='root.img'\n[[net]]\ntap='tap0'\n[console]\nfile='c.log'\n";
    let host = HostFixture::new();
    fs::create_dir_all(host.folder.path().join("net/tap0")).unwrap();
    host.content("net/tap0/tun_flags", b"0x1002\n");
    assert_eq!(host.report_with_base(text), "");
}

#[test]
fn missing_kvm_and_too_many_vcpus() {
    let report = |kvm| {
        let mut host = HostFixture::new();
        host.facts.kvm = kvm;
        host.report("[machine]\nvcpus=8\nmemory='64MiB'\n[kernel]\nimage='vmlinuz'\n")
    };
    let cases = [Err(Errno::NOENT), Err(Errno::ACCESS), Err(Errno::BUSY), Ok(4)];
    assert_data_eq!(
        cases.map(report).concat(),
        str![[r#"
this host has no /dev/kvm
  (host)
  enable virtualization in the firmware, then `modprobe kvm_intel` or `modprobe kvm_amd`; inside a virtual machine, enable nested virtualization
no permission to open /dev/kvm
  (host)
  join its group with `sudo usermod -aG kvm $USER`, then log in again
cannot open /dev/kvm: Device or resource busy (os error 16)
  (host)
  check whether another hypervisor uses the CPU's virtualization
`vcpus` exceeds the limit of KVM
  8  <- KVM on this host supports 4
  write at most 4

"#]]
    );
}

#[test]
fn more_vcpus_and_memory_than_the_host_has() {
    let text = "[machine]\nvcpus=9\nmemory='1026MiB'\n[kernel]\nimage='vmlinuz'\n";
    assert_data_eq!(
        HostFixture::new().report(text),
        str![[r#"
warning: `vcpus` exceeds the number of host CPUs
  9  <- the host has 8
  write at most 8 for full speed
`memory` exceeds the available memory of the host
  '1026MiB'  <- 1026 MiB requested, 1024 MiB available
  write at most "1GiB", or free memory on the host

"#]]
    );
    assert_eq!(HostFixture::new().report(&text.replace("1026", "1024").replace('9', "8")), "");
}

/// Page tables, this program and copies of each disk's data are charged as well.
#[test]
fn more_memory_than_the_cgroup_allows() {
    const NEEDED: u64 = (64 << 20) + (256 << 10) + (8 << 20) + (4 << 20);
    let report = |available, effect| {
        let mut host = HostFixture::new();
        let limit = |name: &str, available_bytes| CgroupMemory {
            file: Path::new("/sys/fs/cgroup/vm").join(name),
            limit_bytes: 100 << 20,
            available_bytes,
            effect,
        };
        host.facts.memory.cgroups =
            vec![limit("roomy", 1 << 40), limit("tight", available), limit("wide", 1 << 30)];
        host.report_with_base("[[disk]]\nid='a'\npath='root.img'\n")
    };
    assert_eq!(report(NEEDED, LimitEffect::Kill), "");
    let effects = [LimitEffect::Kill, LimitEffect::Throttle];
    assert_data_eq!(
        effects.map(|effect| report(NEEDED - 1, effect)).concat(),
        str![[r#"
`memory` exceeds the limit of the cgroup, 100 MiB in /sys/fs/cgroup/vm/tight
  '64MiB'  <- 64 MiB requested, 13 MiB more for this program, 76 MiB available: the kernel would kill the machine
  raise the limit (`MemoryMax=` of a systemd unit), or lower `memory`
`memory` exceeds the limit of the cgroup, 100 MiB in /sys/fs/cgroup/vm/tight
  '64MiB'  <- 64 MiB requested, 13 MiB more for this program, 76 MiB available: the kernel would throttle the machine
  raise the limit (`MemoryHigh=` of a systemd unit), or lower `memory`

"#]]
    );
}

/// The diagnostics of a kernel image.
fn kernel_report(host: &HostFixture, image: &str) -> String {
    host.report(&format!("[machine]\nmemory='64MiB'\n[kernel]\nimage='{image}'"))
}

#[test]
fn invalid_kernel_images() {
    let host = HostFixture::new();
    let elf = |machine| [b"\x7fELF\x02\x01".as_slice(), &[0; 12], &[machine, 0]].concat();
    host.content("good-elf", &elf(62));
    assert_eq!(kernel_report(&host, "good-elf"), "");
    let images: [(&str, &[u8]); 9] = [
        ("arm-elf", &elf(183)),
        ("arm64", &[[0; 0x38].as_slice(), b"ARM\x64"].concat()),
        ("gzip", b"\x1f\x8b\x08"),
        ("zstd", b"\x28\xb5\x2f\xfd"),
        ("xz", b"\xfd7zXZ\0"),
        ("efi", b"MZ"),
        ("text", b"#!/bin/sh"),
        ("no-boot-flag", &[[0; 0x202].as_slice(), b"HdrS"].concat()),
        ("empty", b""),
    ];
    let report = |(name, content): (&str, &[u8])| {
        host.content(name, content);
        kernel_report(&host, name)
    };
    assert_data_eq!(
        images.map(report).concat(),
        str![[r#"
the kernel image `/vm/arm-elf` cannot be booted
  'arm-elf'  <- this is an ELF file, but not for x86-64
  name an x86-64 bzImage, such as /boot/vmlinuz, or an uncompressed vmlinux
the kernel image `/vm/arm64` cannot be booted
  'arm64'  <- this is a kernel for arm64
  name an x86-64 bzImage, such as /boot/vmlinuz, or an uncompressed vmlinux
the kernel image `/vm/gzip` cannot be booted
  'gzip'  <- this is a gzip file
  unpack a copy with `gzip -dc`
the kernel image `/vm/zstd` cannot be booted
  'zstd'  <- this is a zstd file
  unpack a copy with `zstd -dc`
the kernel image `/vm/xz` cannot be booted
  'xz'  <- this is an xz file
  unpack a copy with `xz -dc`
the kernel image `/vm/efi` cannot be booted
  'efi'  <- this is an EFI program without a Linux setup header
  name an x86-64 bzImage, such as /boot/vmlinuz, or an uncompressed vmlinux
the kernel image `/vm/text` cannot be booted
  'text'  <- this is neither a bzImage nor an x86-64 ELF file
  name an x86-64 bzImage, such as /boot/vmlinuz, or an uncompressed vmlinux
the kernel image `/vm/no-boot-flag` cannot be booted
  'no-boot-flag'  <- this is neither a bzImage nor an x86-64 ELF file
  name an x86-64 bzImage, such as /boot/vmlinuz, or an uncompressed vmlinux
the kernel image `/vm/empty` cannot be booted
  'empty'  <- this is an empty file
  name an x86-64 bzImage, such as /boot/vmlinuz, or an uncompressed vmlinux

"#]]
    );
}

#[test]
fn missing_kernel_images() {
    let host = HostFixture::new();
    host.content("text", b"#!/bin/sh");
    fs::create_dir(host.folder.path().join("folder")).unwrap();
    let images = ["folder", "absent", "no/folder", "text/below"];
    assert_data_eq!(
        images.map(|image| kernel_report(&host, image)).concat(),
        str![[r#"
the kernel image `/vm/folder` is a directory
  'folder'  <- a directory
  name a file in it
the kernel image `/vm/absent` does not exist
  'absent'  <- no such file
  a relative path starts at this file's directory
the kernel image `/vm/no/folder` does not exist
  'no/folder'  <- the directory `/vm/no` does not exist
  a relative path starts at this file's directory; or create it with `mkdir -p /vm/no`
cannot open the kernel image `/vm/text/below`
  'text/below'  <- Not a directory (os error 20)
  a relative path starts at this file's directory

"#]]
    );
}

#[test]
fn empty_initramfs() {
    let host = HostFixture::new();
    host.content("empty", b"");
    assert_data_eq!(
        host.report_with_base("initramfs='empty'"),
        str![[r#"
the initramfs `/vm/empty` is empty
  'empty'  <- 0 bytes
  name a cpio archive, or remove `initramfs`

"#]]
    );
}

/// Runs `check` on a thread without capabilities, where permissions apply to root too.
fn without_capabilities<T: Send>(check: impl FnOnce() -> T + Send) -> T {
    let drop_all = || {
        let none = CapabilitySet::empty();
        let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
        set_capabilities(None, sets).unwrap();
        check()
    };
    thread::scope(|scope| scope.spawn(drop_all).join().unwrap())
}

#[test]
fn missing_permissions() {
    let host = HostFixture::new();
    for (name, mode) in [("secret", 0o000), ("fixed", 0o444)] {
        let file = host.file(name, 4096);
        file.set_permissions(fs::Permissions::from_mode(mode)).unwrap();
    }
    let report = without_capabilities(|| {
        let disks = "[[disk]]\nid='a'\npath='secret'\n[[disk]]\nid='b'\npath='fixed'\n";
        host.report_with_base(disks)
    });
    assert_data_eq!(
        report,
        str![[r#"
no permission to read the disk image `/vm/secret`
  'secret'  <- permission denied
  see `ls -l /vm/secret`, and grant yourself read permission
no permission to write the disk image `/vm/fixed`
  'fixed'  <- Permission denied (os error 13)
  grant yourself write permission, or write `readonly = true`

"#]]
    );
}

#[test]
fn image_shared_by_two_disks() {
    let host = HostFixture::new();
    let root = host.folder.path().join("root.img");
    fs::hard_link(&root, host.folder.path().join("other.img")).unwrap();
    let report = |first: &str, second: &str| {
        host.report_with_base(&format!(
            "[[disk]]\nid='a'\npath='root.img'\n{first}\n[[disk]]\nid='b'\npath='other.img'\n{second}\n"
        ))
    };
    assert_data_eq!(
        report("", ""),
        str![[r#"
the disk image `/vm/other.img` is used twice
  'other.img'  <- second use
  'root.img'  <- first use
  give each disk its own image, or set `readonly = true` on both

"#]]
    );
    assert_ne!(report("readonly=true", ""), "");
    assert_ne!(report("", "readonly=true"), "");
    assert_eq!(report("readonly=true", "readonly=true"), "");
}

#[test]
fn file_system_without_o_direct() {
    // A file of /proc lacks O_DIRECT. It has no size either, so only the mode is checked.
    let report = |cache: &str| {
        let text = format!("{BASE}[[disk]]\nid='a'\npath='/proc/self/status'\ncache='{cache}'\n");
        let (source, _) = parse::parse_machine(&text, Path::new(""));
        let disk = source.unwrap().disks.remove(0);
        lines(&text, check_direct(&disk).into_iter().collect())
    };
    assert_eq!(report("writeback"), "");
    assert_data_eq!(
        report("directsync"),
        str![[r#"
the file system of `/proc/self/status` lacks O_DIRECT
  'directsync'  <- needs O_DIRECT
  write "writeback" or "writethrough"

"#]]
    );
}

#[test]
fn invalid_tap_devices() {
    let host = HostFixture::new();
    fs::create_dir_all(host.folder.path().join("net/eth0")).unwrap();
    fs::create_dir_all(host.folder.path().join("net/tun0")).unwrap();
    host.content("net/tun0/tun_flags", b"0x1001\n");
    let text = "[[net]]\ntap='tap0'\n[[net]]\ntap='eth0'\n[[net]]\ntap='tun0'\n";
    assert_data_eq!(
        host.report_with_base(text),
        str![[r#"
the host has no TAP device `tap0`
  'tap0'  <- no such network device
  create it with `sudo ip tuntap add dev tap0 mode tap user $USER` and `sudo ip link set tap0 up`
`eth0` is not a TAP device
  'eth0'  <- a network device of another kind
  name a TAP device; `ip tuntap add dev tap0 mode tap` creates one
`tun0` is not a TAP device
  'tun0'  <- a network device of another kind
  name a TAP device; `ip tuntap add dev tap0 mode tap` creates one

"#]]
    );
}

#[test]
fn invalid_console_paths() {
    let host = HostFixture::new();
    fs::create_dir(host.folder.path().join("folder")).unwrap();
    let report = |line: &str| host.report_with_base(&format!("[console]\n{line}\n"));
    assert_eq!(report("socket='new.sock'"), "");
    let bad = ["file='no/c.log'", "file='folder'", "socket='root.img'", "socket='no/c.sock'"];
    assert_data_eq!(
        bad.map(report).concat(),
        str![[r#"
cannot create the console file `/vm/no/c.log`
  'no/c.log'  <- the directory `/vm/no` does not exist
  a relative path starts at this file's directory; or create it with `mkdir -p /vm/no`
cannot create the console file `/vm/folder`
  'folder'  <- not a file
  choose another path
cannot create the console socket `/vm/root.img`
  'root.img'  <- exists and is not a socket
  choose another path
cannot create the console socket `/vm/no/c.sock`
  'no/c.sock'  <- the directory `/vm/no` does not exist
  a relative path starts at this file's directory; or create it with `mkdir -p /vm/no`

"#]]
    );
}
