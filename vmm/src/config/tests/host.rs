//! What the checks against the host say.

use super::*;

/// A folder with a kernel and a disk, on a host which has all they need.
pub(super) struct Lab {
    pub(super) folder: TempDir,
    host: Host,
}

impl Lab {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let net_devices = folder.path().join("net");
        let lab = Self {
            host: Host { kvm: Ok(64), cpus: 8, available_bytes: Some(1 << 30), net_devices },
            folder,
        };
        let kernel = lab.file("vmlinuz", 0x400);
        kernel.write_all_at(b"\x55\xaa", 0x1fe).unwrap();
        kernel.write_all_at(b"HdrS", 0x202).unwrap();
        lab.file("root.img", 4096);
        lab
    }

    pub(super) fn file(&self, name: &str, length: u64) -> fs::File {
        let file = fs::File::create(self.folder.path().join(name)).unwrap();
        file.set_len(length).unwrap();
        file
    }

    pub(super) fn content(&self, name: &str, content: &[u8]) {
        fs::write(self.folder.path().join(name), content).unwrap();
    }

    pub(super) fn said(&self, text: &str) -> String {
        let (source, mut diagnostics) = parse::parse(text, self.folder.path());
        self.host.check(&source.unwrap(), &mut diagnostics);
        lines(text, diagnostics).replace(self.folder.path().to_str().unwrap(), "/vm")
    }

    pub(super) fn said_after_base(&self, text: &str) -> String {
        self.said(&format!("{BASE}{text}"))
    }
}

#[test]
fn a_good_machine_is_let_through() {
    let text = "[[disk]]\nid='a'\npath='root.img'\n[[net]]\ntap='tap0'\n[console]\nfile='c.log'\n";
    let lab = Lab::new();
    fs::create_dir_all(lab.folder.path().join("net/tap0")).unwrap();
    lab.content("net/tap0/tun_flags", b"0x1002\n");
    assert_eq!(lab.said_after_base(text), "");
}

#[test]
fn kvm() {
    let said = |kvm| {
        let mut lab = Lab::new();
        lab.host.kvm = kvm;
        lab.said("[machine]\nvcpus=8\nmemory='64MiB'\n[kernel]\nimage='vmlinuz'\n")
    };
    let cases = [Err(Errno::NOENT), Err(Errno::ACCESS), Err(Errno::BUSY), Ok(4)];
    assert_data_eq!(
        cases.map(said).concat(),
        str![[r#"
this host has no /dev/kvm
  (host)
  switch on virtualization in the firmware, then `modprobe kvm_intel` or `modprobe kvm_amd`; inside a virtual machine, switch on nesting
you may not open /dev/kvm
  (host)
  join its group with `sudo usermod -aG kvm $USER`, then log in again
cannot open /dev/kvm: Device or resource busy (os error 16)
  (host)
  see whether another hypervisor holds the processor's virtualization
`vcpus` is more than KVM gives one machine
  8  <- KVM on this host gives 4
  write at most 4

"#]]
    );
}

#[test]
fn more_than_the_host_has() {
    let text = "[machine]\nvcpus=9\nmemory='1026MiB'\n[kernel]\nimage='vmlinuz'\n";
    assert_data_eq!(
        Lab::new().said(text),
        str![[r#"
warning: `vcpus` is more than this host has
  9  <- the host has 8
  write at most 8 for full speed
`memory` is more than the host has free
  '1026MiB'  <- 1026 MiB asked, 1024 MiB available
  write at most "1GiB", or free memory on the host

"#]]
    );
    assert_eq!(Lab::new().said(&text.replace("1026", "1024").replace('9', "8")), "");
}

#[test]
fn kernel_images() {
    let lab = Lab::new();
    let elf = |machine| [b"\x7fELF\x02\x01".as_slice(), &[0; 12], &[machine, 0]].concat();
    lab.content("good-elf", &elf(62));
    lab.content("arm-elf", &elf(183));
    lab.content("arm64", &[[0; 0x38].as_slice(), b"ARM\x64"].concat());
    lab.content("gzip", b"\x1f\x8b\x08");
    lab.content("zstd", b"\x28\xb5\x2f\xfd");
    lab.content("xz", b"\xfd7zXZ\0");
    lab.content("efi", b"MZ");
    lab.content("text", b"#!/bin/sh");
    lab.content("no-boot-flag", &[[0; 0x202].as_slice(), b"HdrS"].concat());
    lab.content("empty", b"");
    fs::create_dir(lab.folder.path().join("folder")).unwrap();
    let said = |image| lab.said(&format!("[machine]\nmemory='64MiB'\n[kernel]\nimage='{image}'"));
    assert_eq!(said("good-elf"), "");
    let bad = [
        "arm-elf",
        "arm64",
        "gzip",
        "zstd",
        "xz",
        "efi",
        "text",
        "no-boot-flag",
        "empty",
        "folder",
        "absent",
        "no/folder",
        "text/below",
    ];
    assert_data_eq!(
        bad.map(said).concat(),
        str![[r#"
`/vm/arm-elf` is not a kernel Bulkhead can boot
  'arm-elf'  <- this is an ELF file, but not for x86-64
  name an x86-64 bzImage, such as /boot/vmlinuz, or an uncompressed vmlinux
`/vm/arm64` is not a kernel Bulkhead can boot
  'arm64'  <- this is a kernel for arm64
  name an x86-64 bzImage, such as /boot/vmlinuz, or an uncompressed vmlinux
`/vm/gzip` is not a kernel Bulkhead can boot
  'gzip'  <- this is a gzip file
  unpack it with `gunzip`
`/vm/zstd` is not a kernel Bulkhead can boot
  'zstd'  <- this is a zstd file
  unpack it with `unzstd`
`/vm/xz` is not a kernel Bulkhead can boot
  'xz'  <- this is an xz file
  unpack it with `unxz`
`/vm/efi` is not a kernel Bulkhead can boot
  'efi'  <- this is an EFI program without a Linux setup header
  name an x86-64 bzImage, such as /boot/vmlinuz, or an uncompressed vmlinux
`/vm/text` is not a kernel Bulkhead can boot
  'text'  <- this is neither a bzImage nor an x86-64 ELF file
  name an x86-64 bzImage, such as /boot/vmlinuz, or an uncompressed vmlinux
`/vm/no-boot-flag` is not a kernel Bulkhead can boot
  'no-boot-flag'  <- this is neither a bzImage nor an x86-64 ELF file
  name an x86-64 bzImage, such as /boot/vmlinuz, or an uncompressed vmlinux
`/vm/empty` is not a kernel Bulkhead can boot
  'empty'  <- this is an empty file
  name an x86-64 bzImage, such as /boot/vmlinuz, or an uncompressed vmlinux
the kernel image `/vm/folder` is a directory
  'folder'  <- a directory
  name a file in it
the kernel image `/vm/absent` does not exist
  'absent'  <- no such file
  a relative path starts at the folder of this file
the kernel image `/vm/no/folder` does not exist
  'no/folder'  <- there is no folder `/vm/no`
  a relative path starts at the folder of this file; or create it with `mkdir -p /vm/no`
cannot open the kernel image `/vm/text/below`
  'text/below'  <- Not a directory (os error 20)
  a relative path starts at the folder of this file

"#]]
    );
    assert_data_eq!(
        lab.said_after_base("initramfs='empty'"),
        str![[r#"
the initramfs `/vm/empty` is empty
  'empty'  <- 0 bytes
  name a cpio archive, or leave `initramfs` out

"#]]
    );
}

#[test]
fn disk_images() {
    let lab = Lab::new();
    lab.file("odd", 1000);
    lab.file("empty", 0);
    let said = |path| lab.said_after_base(&format!("[[disk]]\nid='a'\npath='{path}'\n"));
    let bad = ["odd", "empty", ".", "absent", "/dev/null", "/proc/version"];
    assert_data_eq!(
        bad.map(said).concat(),
        str![[r#"
the disk image `/vm/odd` is not a multiple of 512 bytes
  'odd'  <- 1000 bytes
  round it up with `truncate -s %512 /vm/odd`
the disk image `/vm/empty` is empty
  'empty'  <- 0 bytes
  give it a size with `truncate -s 10G /vm/empty`
the disk image `/vm/.` is a directory
  '.'  <- a directory
  name a file in it
the disk image `/vm/absent` does not exist
  'absent'  <- no such file
  create it with `truncate -s 10G /vm/absent`
the disk image `/dev/null` is no file and no block device
  '/dev/null'  <- not a disk
  name an image file, or a block device such as /dev/zvol/tank/root
the disk image `/proc/version` does not tell its size
  '/proc/version'  <- Invalid argument (os error 22)
  name an image file, or a block device such as /dev/zvol/tank/root

"#]]
    );
}

#[test]
fn an_image_is_made_of_whole_blocks() {
    let lab = Lab::new();
    lab.file("odd", 1 << 20 | 512);
    let said = |block_size| {
        lab.said_after_base(&format!("[[disk]]\nid='a'\npath='odd'\nblock_size={block_size}\n"))
    };
    assert_eq!(said(512), "");
    assert_data_eq!(
        said(4096),
        str![[r#"
the disk image `/vm/odd` is not a multiple of 4096 bytes
  'odd'  <- 1049088 bytes
  round it up with `truncate -s %4096 /vm/odd`, or write `block_size = 512`

"#]]
    );
    lab.file("odd", 1 << 20);
    assert_eq!(said(4096), "");
}

#[test]
fn rights() {
    let lab = Lab::new();
    for (name, mode) in [("secret", 0o000), ("fixed", 0o444)] {
        let file = lab.file(name, 4096);
        file.set_permissions(fs::Permissions::from_mode(mode)).unwrap();
    }
    if fs::File::open(lab.folder.path().join("secret")).is_ok() {
        eprintln!("skipped: root may do everything");
        return;
    }
    assert_data_eq!(
        lab.said_after_base("[[disk]]\nid='a'\npath='secret'\n[[disk]]\nid='b'\npath='fixed'\n"),
        str![[r#"
you may not read the disk image `/vm/secret`
  'secret'  <- permission denied
  see `ls -l /vm/secret`, and grant yourself the right to read it
you may not write the disk image `/vm/fixed`
  'fixed'  <- Permission denied (os error 13)
  grant yourself the right to write it, or write `readonly = true`

"#]]
    );
}

#[test]
fn one_image_for_two_disks() {
    let lab = Lab::new();
    let root = lab.folder.path().join("root.img");
    fs::hard_link(&root, lab.folder.path().join("other.img")).unwrap();
    let said = |first: &str, second: &str| {
        lab.said_after_base(&format!(
            "[[disk]]\nid='a'\npath='root.img'\n{first}\n[[disk]]\nid='b'\npath='other.img'\n{second}\n"
        ))
    };
    assert_data_eq!(
        said("", ""),
        str![[r#"
the disk image `/vm/other.img` is used twice
  'other.img'  <- the same image again
  'root.img'  <- first used here
  give each disk its own image, or set `readonly = true` on both

"#]]
    );
    assert_ne!(said("readonly=true", ""), "");
    assert_ne!(said("", "readonly=true"), "");
    assert_eq!(said("readonly=true", "readonly=true"), "");
}

#[test]
fn a_file_system_without_o_direct() {
    // Only the mode is looked at: a file of /proc has no size, and is no disk for another reason.
    let said = |cache: &str| {
        let text = format!("{BASE}[[disk]]\nid='a'\npath='/proc/self/status'\ncache='{cache}'\n");
        let (source, _) = parse::parse(&text, Path::new(""));
        let disk = source.unwrap().disks.remove(0);
        lines(&text, check_direct(&disk, disk.path.as_ref().unwrap()).into_iter().collect())
    };
    assert_eq!(said("writeback"), "");
    assert_data_eq!(
        said("directsync"),
        str![[r#"
the file system of `/proc/self/status` cannot bypass the page cache
  'directsync'  <- needs O_DIRECT
  write "writeback" or "writethrough"

"#]]
    );
}

#[test]
fn taps() {
    let lab = Lab::new();
    fs::create_dir_all(lab.folder.path().join("net/eth0")).unwrap();
    fs::create_dir_all(lab.folder.path().join("net/tun0")).unwrap();
    lab.content("net/tun0/tun_flags", b"0x1001\n");
    let text = "[[net]]\ntap='tap0'\n[[net]]\ntap='eth0'\n[[net]]\ntap='tun0'\n";
    assert_data_eq!(
        lab.said_after_base(text),
        str![[r#"
the host has no tap `tap0`
  'tap0'  <- no such network device
  create it with `sudo ip tuntap add dev tap0 mode tap user $USER` and `sudo ip link set tap0 up`
`eth0` is not a tap
  'eth0'  <- a network device of another kind
  name a tap, such as `ip tuntap add dev tap0 mode tap` creates
`tun0` is not a tap
  'tun0'  <- a network device of another kind
  name a tap, such as `ip tuntap add dev tap0 mode tap` creates

"#]]
    );
}

#[test]
fn console_places() {
    let lab = Lab::new();
    fs::create_dir(lab.folder.path().join("folder")).unwrap();
    let said = |line: &str| lab.said_after_base(&format!("[console]\n{line}\n"));
    assert_eq!(said("socket='new.sock'"), "");
    let bad = ["file='no/c.log'", "file='folder'", "socket='root.img'", "socket='no/c.sock'"];
    assert_data_eq!(
        bad.map(said).concat(),
        str![[r#"
cannot create the console file `/vm/no/c.log`
  'no/c.log'  <- there is no folder `/vm/no`
  a relative path starts at the folder of this file; or create it with `mkdir -p /vm/no`
cannot create the console file `/vm/folder`
  'folder'  <- not a file
  choose another path, or remove what is there
cannot create the console socket `/vm/root.img`
  'root.img'  <- something else has this name
  choose another path, or remove what is there
cannot create the console socket `/vm/no/c.sock`
  'no/c.sock'  <- there is no folder `/vm/no`
  a relative path starts at the folder of this file; or create it with `mkdir -p /vm/no`

"#]]
    );
}

#[test]
fn meminfo() {
    let text = "MemTotal:       32768 kB\nMemAvailable:    1024 kB\n";
    assert_eq!(mem_available(text), Some(1 << 20));
    assert_eq!(mem_available("MemTotal: 1 kB\n"), None);
    assert_eq!(mem_available("MemAvailable: 99999999999999999 kB\n"), None);
}
