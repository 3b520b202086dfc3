//! Checks of disk images: type, format, size, and paths that do not exist.

use super::*;

#[test]
fn invalid_disk_images() {
    let host = HostFixture::new();
    host.file("odd", 1000);
    host.file("empty", 0);
    let report = |path| host.report_with_base(&format!("[[disk]]\nid='a'\npath='{path}'\n"));
    let bad = ["odd", "empty", ".", "absent", "/dev/null", "/proc/version"];
    assert_data_eq!(
        bad.map(report).concat(),
        str![[r#"
the disk image `/vm/odd` is not a multiple of 512 bytes
  'odd'  <- 1000 bytes
  use a copy that is rounded up: `cp --sparse=always /vm/odd /vm/odd.raw && truncate -s %512 /vm/odd.raw`
the disk image `/vm/empty` is empty
  'empty'  <- 0 bytes
  give it a size with `truncate -s '>10G' /vm/empty`
the disk image `/vm/.` is a directory
  '.'  <- a directory
  name a file in it
the disk image `/vm/absent` does not exist
  'absent'  <- no such file
  create it with `truncate -s '>10G' /vm/absent`
the disk image `/dev/null` is neither a regular file nor a block device
  '/dev/null'  <- not a disk
  name an image file, or a block device such as /dev/zvol/tank/root
the disk image `/proc/version` has no size
  '/proc/version'  <- Invalid argument (os error 22)
  name an image file, or a block device such as /dev/zvol/tank/root

"#]]
    );
}

/// The signature of qcow2, version 3.
const QCOW2: &[u8] = b"QFI\xfb\0\0\0\x03";

#[test]
fn images_of_other_formats() {
    let host = HostFixture::new();
    for (name, length) in [("a.qcow2", 1 << 20), ("odd.qcow2", 1000)] {
        host.file(name, length).write_all_at(QCOW2, 0).unwrap();
    }
    host.file("cd.iso", 1 << 20).write_all_at(b"CD001", 32_769).unwrap();
    let report =
        |keys: &str| host.report_with_base(&format!("[[disk]]\nid='a'\nformat='auto'\n{keys}"));
    assert_data_eq!(
        ["path='a.qcow2'\n", "path='odd.qcow2'\n", "path='cd.iso'\n"].map(report).concat(),
        str![[r#"
the disk image `/vm/a.qcow2` is not a raw image
  'a.qcow2'  <- has the signature of qcow2
  make a raw copy with `qemu-img convert -f qcow2 -O raw /vm/a.qcow2 /vm/a.qcow2.raw`, or write `format = "raw"` to serve its bytes as they are
the disk image `/vm/odd.qcow2` is not a raw image
  'odd.qcow2'  <- has the signature of qcow2
  make a raw copy with `qemu-img convert -f qcow2 -O raw /vm/odd.qcow2 /vm/odd.qcow2.raw`, or write `format = "raw"` to serve its bytes as they are
warning: the disk image `/vm/cd.iso` holds an ISO 9660 file system, which no system writes
  'cd.iso'  <- probably by mistake
  write `readonly = true`, or `format = "raw"` if the guest may overwrite it

"#]]
    );
    assert_eq!(report("path='cd.iso'\nreadonly=true\n"), "");
    let insisting = "[[disk]]\nid='a'\nformat='raw'\npath='a.qcow2'\n";
    assert_eq!(host.report_with_base(insisting), "");
}

/// A start reads no block of an image that it has not locked, unless it refuses it anyway.
#[test]
fn a_start_leaves_the_format_to_the_open_disk() {
    let host = HostFixture::new();
    for (name, length) in [("a.qcow2", 1 << 20), ("odd.qcow2", 1000)] {
        host.file(name, length).write_all_at(QCOW2, 0).unwrap();
    }
    let problem = |name: &str, purpose| {
        let text = format!("{BASE}[[disk]]\nid='a'\npath='{name}'\n");
        let (source, _) = parse::parse_machine(&text, host.folder.path());
        let found = check_disk(&source.unwrap().disks.remove(0), purpose);
        found.map(|diagnostic| diagnostic.message.contains("is not a raw image"))
    };
    assert_eq!(problem("a.qcow2", Purpose::Start), None);
    assert_eq!(problem("a.qcow2", Purpose::Report), Some(true));
    assert_eq!(problem("odd.qcow2", Purpose::Start), Some(true));
    assert_eq!(problem("odd.qcow2", Purpose::Report), Some(true));
}

/// The report on a disk at `path`.
fn disk_report(host: &HostFixture, path: &str) -> String {
    host.report_with_base(&format!("[[disk]]\nid='a'\npath='{path}'\n"))
}

/// No remedy creates a file below `/dev`.
#[test]
fn missing_devices() {
    let host = HostFixture::new();
    std::os::unix::fs::symlink("/dev/absent", host.folder.path().join("link")).unwrap();
    std::os::unix::fs::symlink("absent", host.folder.path().join("dangling")).unwrap();
    let bad = [
        "/dev/absent",
        "/dev/absent/data",
        "/dev/mapper/absent",
        "/dev/zvol/absent/root",
        "link",
        "dangling",
    ];
    assert_data_eq!(
        bad.map(|path| disk_report(&host, path)).concat(),
        str![[r#"
the disk image `/dev/absent` does not exist
  '/dev/absent'  <- no such device
  `lsblk` lists the devices and `udevadm info --export-db` their links; the driver of the device may have to be loaded (modprobe(8))
the disk image `/dev/absent/data` does not exist
  '/dev/absent/data'  <- no such device
  `lsblk` lists the devices and `udevadm info --export-db` their links; the driver of the device may have to be loaded (modprobe(8))
the disk image `/dev/mapper/absent` does not exist
  '/dev/mapper/absent'  <- no such device
  `dmsetup ls` lists the mapped devices, `lsblk` lists the devices and `udevadm info --export-db` their links; the driver of the device may have to be loaded (modprobe(8))
the disk image `/dev/zvol/absent/root` does not exist
  '/dev/zvol/absent/root'  <- no such device
  `zfs list -t volume` lists the volumes, `lsblk` lists the devices and `udevadm info --export-db` their links; the driver of the device may have to be loaded (modprobe(8))
the disk image `/vm/link` does not exist
  'link'  <- a link to `/dev/absent`, which does not exist
  `lsblk` lists the devices and `udevadm info --export-db` their links; the driver of the device may have to be loaded (modprobe(8))
the disk image `/vm/dangling` does not exist
  'dangling'  <- a link to `absent`, which does not exist
  correct the link, or name another file

"#]]
    );
}

/// Advice about relative paths is for those.
#[test]
fn missing_directories() {
    let host = HostFixture::new();
    let bad = [
        "~/images/a.img",
        "~/a.img",
        "/absent/a.img",
        "images/a b.img",
        "a b.img",
        "/etc/passwd/a.img",
        "/proc/absent",
    ];
    assert_data_eq!(
        bad.map(|path| disk_report(&host, path)).concat(),
        str![[r#"
the disk image `/vm/~/images/a.img` does not exist
  '~/images/a.img'  <- the directory `/vm/~/images` does not exist
  write the path of the home directory: `~` is expanded by shells only
the disk image `/vm/~/a.img` does not exist
  '~/a.img'  <- the directory `/vm/~` does not exist
  write the path of the home directory: `~` is expanded by shells only
the disk image `/absent/a.img` does not exist
  '/absent/a.img'  <- the directory `/absent` does not exist
  see `findmnt` whether its file system is mounted
the disk image `/vm/images/a b.img` does not exist
  'images/a b.img'  <- the directory `/vm/images` does not exist
  a relative path starts at this file's directory; or create it with `mkdir -p /vm/images`
the disk image `/vm/a b.img` does not exist
  'a b.img'  <- no such file
  create it with `truncate -s '>10G' '/vm/a b.img'`
cannot open the disk image `/etc/passwd/a.img`
  '/etc/passwd/a.img'  <- Not a directory (os error 20)
  `namei -l /etc/passwd/a.img` shows each part of the path
the disk image `/proc/absent` does not exist
  '/proc/absent'  <- no such file
  `namei -l /proc/absent` shows each part of the path

"#]]
    );
    let console = |path| host.report_with_base(&format!("[console]\nfile='{path}'\n"));
    let bad = ["/dev/absent/c.log", "/absent/c.log", "~/c.log"];
    assert_data_eq!(
        bad.map(console).concat(),
        str![[r#"
cannot create the console file `/dev/absent/c.log`
  '/dev/absent/c.log'  <- the directory `/dev/absent` does not exist
  choose another path
cannot create the console file `/absent/c.log`
  '/absent/c.log'  <- the directory `/absent` does not exist
  see `findmnt` whether its file system is mounted; or create it with `mkdir -p /absent`
cannot create the console file `/vm/~/c.log`
  '~/c.log'  <- the directory `/vm/~` does not exist
  write the path of the home directory: `~` is expanded by shells only

"#]]
    );
}

#[test]
fn image_size_is_a_multiple_of_the_block_size() {
    let host = HostFixture::new();
    host.file("odd", 1 << 20 | 512);
    let report = |block_size| {
        host.report_with_base(&format!("[[disk]]\nid='a'\npath='odd'\nblock_size={block_size}\n"))
    };
    assert_eq!(report(512), "");
    assert_data_eq!(
        report(4096),
        str![[r#"
the disk image `/vm/odd` is not a multiple of 4096 bytes
  'odd'  <- 1049088 bytes
  write `block_size = 512`, or use a copy that is rounded up: `cp --sparse=always /vm/odd /vm/odd.raw && truncate -s %4096 /vm/odd.raw`

"#]]
    );
    host.file("odd", 1 << 20);
    assert_eq!(report(4096), "");
}
