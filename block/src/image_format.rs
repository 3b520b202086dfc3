//! Image formats other than raw, by their signatures: formats of other monitors, compressed files,
//! and contents that a raw disk may have. Pure.
//!
//! The signatures are those of QEMU's `block/`, and those of the formats' own texts.

use std::fmt;
use std::path::Path;

use crate::shell::shell_path;

/// A format with a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// QEMU's `qcow2`, versions 2 and 3.
    Qcow2,
    /// QEMU's `qcow`, version 1.
    Qcow,
    /// VMware's sparse extent.
    Vmdk,
    /// VMware's copy-on-write extent of ESX.
    VmdkCowd,
    /// VMware's text that names the files of a disk.
    VmdkDescriptor,
    /// VirtualBox's disk image.
    Vdi,
    /// Virtual PC's disk image; a fixed one is raw except for its footer.
    Vhd,
    /// Hyper-V's disk image.
    Vhdx,
    /// QEMU's enhanced disk.
    Qed,
    /// Parallels' expandable disk.
    Parallels,
    /// Compressed by gzip.
    Gzip,
    /// Compressed by xz.
    Xz,
    /// Compressed by zstd.
    Zstd,
    /// Compressed by bzip2.
    Bzip2,
    /// Compressed by lz4.
    Lz4,
    /// A layer of this program.
    Layer,
    /// An encrypted volume: the content of a raw disk.
    Luks,
    /// A physical volume of LVM: the content of a raw disk.
    Lvm2,
    /// A file system that is never written: the content of a raw disk.
    Iso9660,
}

/// The relation of a format to a raw disk.
enum Relation {
    /// A disk image that `qemu-img` converts, with its name there.
    Container(&'static str),
    /// A compressed file, and the program that decompresses it.
    Compressed(&'static str),
    /// A layer, which is served as one.
    Layer,
    /// The content of a raw disk.
    Content,
}

impl ImageFormat {
    /// Bytes from the start of a disk that have all signatures but one.
    pub(crate) const HEAD_BYTES: usize = ISO_9660_AT + 5;
    /// Bytes up to the end of a disk that may be the footer of a fixed VHD.
    pub(crate) const TAIL_BYTES: usize = 512;

    /// The format of a disk that starts with `head` and ends with `tail`: at most
    /// [`HEAD_BYTES`](Self::HEAD_BYTES) and [`TAIL_BYTES`](Self::TAIL_BYTES), less if it is
    /// smaller. `None` for a raw disk with any other content.
    pub(crate) fn detect(head: &[u8], tail: &[u8]) -> Option<Self> {
        container(head)
            .or_else(|| is_vhd_footer(tail).then_some(Self::Vhd))
            .or_else(|| compressed(head))
            .or_else(|| content(head))
    }

    fn relation(self) -> Relation {
        match self {
            Self::Qcow2 => Relation::Container("qcow2"),
            Self::Qcow => Relation::Container("qcow"),
            Self::Vmdk | Self::VmdkCowd | Self::VmdkDescriptor => Relation::Container("vmdk"),
            Self::Vdi => Relation::Container("vdi"),
            Self::Vhd => Relation::Container("vpc"),
            Self::Vhdx => Relation::Container("vhdx"),
            Self::Qed => Relation::Container("qed"),
            Self::Parallels => Relation::Container("parallels"),
            Self::Gzip => Relation::Compressed("gzip"),
            Self::Xz => Relation::Compressed("xz"),
            Self::Zstd => Relation::Compressed("zstd"),
            Self::Bzip2 => Relation::Compressed("bzip2"),
            Self::Lz4 => Relation::Compressed("lz4"),
            Self::Layer => Relation::Layer,
            Self::Luks | Self::Lvm2 | Self::Iso9660 => Relation::Content,
        }
    }

    /// Whether it is the content of a raw disk, not a format of the image.
    #[must_use]
    pub fn is_content(self) -> bool {
        matches!(self.relation(), Relation::Content)
    }

    /// A shell command that makes the raw image `to` of the image `from`, which it only reads. `to`
    /// does not exist. `None` for a layer, and for the content of a raw disk.
    pub(crate) fn conversion(self, from: &Path, to: &Path) -> Option<String> {
        let (from, copy) = (shell_path(from), shell_path(to));
        match self.relation() {
            Relation::Container(format) => {
                Some(format!("qemu-img convert -f {format} -O raw {from} {copy}"))
            }
            // Some of these programs refuse a file without their suffix.
            Relation::Compressed(program) => Some(format!("{program} -dc <{from} >{copy}")),
            Relation::Layer | Relation::Content => None,
        }
    }

    /// Its name in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Qcow => "qcow",
            Self::Vmdk => "VMDK",
            Self::VmdkCowd => "VMDK (COWD)",
            Self::VmdkDescriptor => "VMDK (descriptor)",
            Self::Vdi => "VDI",
            Self::Vhd => "VHD",
            Self::Vhdx => "VHDX",
            Self::Qed => "QED",
            Self::Parallels => "Parallels",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Lz4 => "lz4",
            Self::Layer => "a layer",
            Self::Luks => "LUKS",
            Self::Lvm2 => "LVM2",
            Self::Iso9660 => "ISO 9660",
        }
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Offset of the signature of a volume descriptor, which follows its type (ECMA-119, 8.1).
const ISO_9660_AT: usize = 32_769;
/// Sectors that may have the label of a physical volume (LVM2's `lib/label/label.h`).
const LVM2_SECTORS: [usize; 4] = [0, 512, 1024, 1536];
/// Signature of a layer, at the start of both of its headers.
pub(crate) const LAYER_MAGIC: [u8; 8] = *b"BLKHLAYR";
/// Cookie of a VHD's footer.
const VHD_COOKIE: &[u8] = b"conectix";

fn has(bytes: &[u8], at: usize, signature: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(signature))
}

fn container(head: &[u8]) -> Option<ImageFormat> {
    const SIGNATURES: [(usize, &[u8], ImageFormat); 15] = [
        // The version follows the magic number, in big-endian order.
        (0, b"QFI\xfb\x00\x00\x00\x02", ImageFormat::Qcow2),
        (0, b"QFI\xfb\x00\x00\x00\x03", ImageFormat::Qcow2),
        (0, b"QFI\xfb\x00\x00\x00\x01", ImageFormat::Qcow),
        (0, b"KDMV", ImageFormat::Vmdk),
        (0, b"COWD", ImageFormat::VmdkCowd),
        (0, b"# Disk DescriptorFile", ImageFormat::VmdkDescriptor),
        // 0xbeda107f in little-endian order, after a text of 64 bytes.
        (64, b"\x7f\x10\xda\xbe", ImageFormat::Vdi),
        // A dynamic or differencing VHD starts with a copy of its footer.
        (0, VHD_COOKIE, ImageFormat::Vhd),
        (0, b"vhdxfile", ImageFormat::Vhdx),
        (0, b"QED\x00", ImageFormat::Qed),
        // One of the two headers may be torn.
        (0, &LAYER_MAGIC, ImageFormat::Layer),
        (4096, &LAYER_MAGIC, ImageFormat::Layer),
        (0, b"WithoutFreeSpace", ImageFormat::Parallels),
        (0, b"WithouFreSpacExt", ImageFormat::Parallels),
        // A later version of qcow2.
        (0, b"QFI\xfb\x00\x00\x00", ImageFormat::Qcow2),
    ];
    let mut signatures = SIGNATURES.into_iter();
    signatures.find(|(at, signature, _)| has(head, *at, signature)).map(|(.., format)| format)
}

/// Whether the last 512 bytes are the footer of a VHD, or the last 511: that of a version before
/// Virtual PC 2004 (Virtual Hard Disk Image Format Specification, "Hard Disk Footer Format").
fn is_vhd_footer(tail: &[u8]) -> bool {
    tail.len() == ImageFormat::TAIL_BYTES && (has(tail, 0, VHD_COOKIE) || has(tail, 1, VHD_COOKIE))
}

fn compressed(head: &[u8]) -> Option<ImageFormat> {
    // The only method of gzip is 8 (RFC 1952). The level of bzip2 is a digit, and the first block
    // or the end of the stream follows.
    let bzip2 = |level: &u8| {
        let start: &[&[u8]] = &[b"\x31\x41\x59\x26\x53\x59", b"\x17\x72\x45\x38\x50\x90"];
        matches!(level, b'1'..=b'9') && start.iter().any(|magic| has(head, 4, magic))
    };
    if has(head, 0, b"BZh") && head.get(3).is_some_and(bzip2) {
        return Some(ImageFormat::Bzip2);
    }
    const SIGNATURES: [(&[u8], ImageFormat); 4] = [
        (b"\x1f\x8b\x08", ImageFormat::Gzip),
        (b"\xfd7zXZ\x00", ImageFormat::Xz),
        (b"\x28\xb5\x2f\xfd", ImageFormat::Zstd),
        (b"\x04\x22\x4d\x18", ImageFormat::Lz4),
    ];
    let mut signatures = SIGNATURES.into_iter();
    signatures.find(|(signature, _)| head.starts_with(signature)).map(|(_, format)| format)
}

fn content(head: &[u8]) -> Option<ImageFormat> {
    if has(head, 0, b"LUKS\xba\xbe") {
        return Some(ImageFormat::Luks);
    }
    if LVM2_SECTORS.into_iter().any(|sector| has(head, sector, b"LABELONE")) {
        return Some(ImageFormat::Lvm2);
    }
    has(head, ISO_9660_AT, b"CD001").then_some(ImageFormat::Iso9660)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk of zeroes with bytes at an offset.
    fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut disk = vec![0; ImageFormat::HEAD_BYTES];
        disk[at..at + bytes.len()].copy_from_slice(bytes);
        disk
    }

    fn detect(at: usize, bytes: &[u8]) -> Option<ImageFormat> {
        ImageFormat::detect(&with(at, bytes), &[0; 512])
    }

    #[test]
    fn each_format_is_known_by_its_signature() {
        use ImageFormat::*;
        let cases: [(usize, &[u8], ImageFormat); 25] = [
            (0, b"QFI\xfb\0\0\0\x02", Qcow2),
            (0, b"QFI\xfb\0\0\0\x03", Qcow2),
            (0, b"QFI\xfb\0\0\0\x01", Qcow),
            (0, b"KDMV\x01\0\0\0", Vmdk),
            (0, b"COWD", VmdkCowd),
            (0, b"# Disk DescriptorFile\nversion=1\n", VmdkDescriptor),
            (64, b"\x7f\x10\xda\xbe", Vdi),
            (0, b"conectix", Vhd),
            (0, b"vhdxfile", Vhdx),
            (0, b"QED\0", Qed),
            (0, b"BLKHLAYR", Layer),
            (4096, b"BLKHLAYR", Layer),
            (0, b"WithoutFreeSpace", Parallels),
            (0, b"WithouFreSpacExt", Parallels),
            (0, b"\x1f\x8b\x08\x00", Gzip),
            (0, b"\xfd7zXZ\0", Xz),
            (0, b"\x28\xb5\x2f\xfd", Zstd),
            (0, b"BZh91AY&SY", Bzip2),
            (0, b"BZh1\x17\x72\x45\x38\x50\x90", Bzip2),
            (0, b"\x04\x22\x4d\x18", Lz4),
            (0, b"LUKS\xba\xbe\0\x02", Luks),
            (512, b"LABELONE", Lvm2),
            (1536, b"LABELONE", Lvm2),
            (32_769, b"CD001", Iso9660),
            (0, b"QFI\xfb\0\0\0\x09", Qcow2),
        ];
        for (at, bytes, format) in cases {
            assert_eq!(detect(at, bytes), Some(format), "{}", bytes.escape_ascii());
            // Shifted by a byte, it is content.
            assert_eq!(detect(at.saturating_sub(1) + usize::from(at == 0), bytes), None);
        }
    }

    #[test]
    fn other_content_has_no_format() {
        for (at, bytes) in [
            (0, &b"QFI"[..]),
            (0, b"BZhouse"),
            (0, b"BZh91AY&SX"),
            (2048, b"LABELONE"),
            (510, b"\x55\xaa"),
            (0x438, b"\x53\xef"),
        ] {
            assert_eq!(detect(at, bytes), None, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn a_fixed_vhd_is_known_by_its_end() {
        let tail = |at: usize| with(at, b"conectix")[..512].to_vec();
        let found = |at| ImageFormat::detect(&with(0x1fe, b"\x55\xaa"), &tail(at));
        assert_eq!(found(0), Some(ImageFormat::Vhd));
        assert_eq!(found(1), Some(ImageFormat::Vhd));
        assert_eq!(found(2), None);
        // The content of the disk inside may have a signature of its own.
        let luks = ImageFormat::detect(&with(0, b"LUKS\xba\xbe"), &tail(0));
        assert_eq!(luks, Some(ImageFormat::Vhd));
    }

    #[test]
    fn short_disks_are_no_error() {
        let disk = with(0, b"QFI\xfb\0\0\0\x03");
        for length in 0..100 {
            let found = ImageFormat::detect(&disk[..length], &disk[..length]);
            assert_eq!(found.is_some(), length >= 7, "{length}");
        }
        assert_eq!(ImageFormat::detect(&[], &[]), None);
    }

    #[test]
    fn conversions_quote_their_paths() {
        let command = |format: ImageFormat| {
            format.conversion(Path::new("/vm/a b"), Path::new("-new")).unwrap_or_default()
        };
        assert_eq!(command(ImageFormat::Vhd), "qemu-img convert -f vpc -O raw '/vm/a b' ./-new");
        assert_eq!(command(ImageFormat::Xz), "xz -dc <'/vm/a b' >./-new");
        assert_eq!(command(ImageFormat::Luks), "");
    }
}
