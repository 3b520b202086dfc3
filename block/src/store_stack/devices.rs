//! Identifies a block device by its folder in sysfs.

use std::path::{Path, PathBuf};

use super::device_number::DeviceNumber;
use super::host_view::{names_in, read_number, read_word};
use super::storey::{DmTarget, StoreyKind, ZfsDataset};

/// Name of a device's node: in sysfs `!` stands for `/`.
pub(super) fn node(folder: &Path) -> String {
    if let Some(name) = read_word(&folder.join("dm/name")) {
        return format!("/dev/mapper/{name}");
    }
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    format!("/dev/{}", name.replace('!', "/"))
}

/// The number of the device.
pub(super) fn number(folder: &Path) -> Option<DeviceNumber> {
    DeviceNumber::parse(&read_word(&folder.join("dev"))?)
}

/// The folder of the disk that a partition is on.
pub(super) fn disk_of_partition(folder: &Path) -> Option<PathBuf> {
    let parent = folder.parent()?;
    (folder.join("partition").is_file() && parent.join("queue").is_dir())
        .then(|| parent.to_path_buf())
}

/// The folders of the devices that a stacked device consists of. A folder that cannot be resolved
/// keeps its path in `slaves`.
pub(super) fn slaves(folder: &Path) -> Vec<PathBuf> {
    let slaves = folder.join("slaves");
    let paths = names_in(&slaves).into_iter().map(|name| slaves.join(name));
    paths.map(|path| path.canonicalize().unwrap_or(path)).collect()
}

/// The kind of the whole device with this folder.
pub(super) fn kind(folder: &Path) -> StoreyKind {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let attribute = |path: &str| read_word(&folder.join(path));
    if folder.join("loop").is_dir() {
        let direct = read_number(&folder.join("loop/dio")).map(|direct| direct != 0);
        let file = attribute("loop/backing_file").unwrap_or_default();
        return StoreyKind::Loop { file, direct, has_holes: None };
    }
    if folder.join("md").is_dir() {
        return StoreyKind::Md { level: attribute("md/level") };
    }
    if folder.join("dm").is_dir() {
        return StoreyKind::Dm { target: dm_target(folder) };
    }
    let numbered = |prefix: &str| {
        let number = name.strip_prefix(prefix);
        number.is_some_and(|rest| rest.starts_with(|digit: char| digit.is_ascii_digit()))
    };
    let lettered = |prefix: &str| {
        let letters = name.strip_prefix(prefix);
        letters.is_some_and(|rest| rest.starts_with(|letter: char| letter.is_ascii_lowercase()))
    };
    if numbered("drbd") {
        StoreyKind::Drbd
    } else if numbered("zd") {
        // Linux makes this folder for drivers that use blk-mq.
        StoreyKind::Volume(ZfsDataset { blk_mq: folder.join("mq").is_dir(), ..Default::default() })
    } else if numbered("nbd") {
        StoreyKind::Nbd
    } else if numbered("rbd") {
        StoreyKind::Rbd
    } else if numbered("nvme") {
        StoreyKind::Nvme
    } else if ["zram", "ram", "nullb"].into_iter().any(numbered) {
        StoreyKind::Memory
    } else if lettered("sd") {
        StoreyKind::Scsi { cache: scsi_cache(folder) }
    } else if lettered("vd") {
        StoreyKind::Virtio { cache: attribute("cache_type") }
    } else if ["mmcblk", "pmem"].into_iter().any(numbered)
        || ["xvd", "dasd"].into_iter().any(lettered)
    {
        StoreyKind::Drive
    } else {
        StoreyKind::Other
    }
}

/// The cache type of a SCSI disk (Linux's `Documentation/scsi/sd-parameters.rst`).
fn scsi_cache(folder: &Path) -> Option<String> {
    let disks = folder.join("device/scsi_disk");
    let address = names_in(&disks).into_iter().next()?;
    read_word(&disks.join(address).join("cache_type"))
}

/// The target by the prefix of the UUID, which its creator sets (cryptsetup, multipath-tools,
/// kpartx, dmraid, LVM). The UUIDs of LVM do not depend on the target, but the names of slaves do:
/// those of the devices below a RAID end in `_rimage_N`.
fn dm_target(folder: &Path) -> DmTarget {
    let uuid = read_word(&folder.join("dm/uuid")).unwrap_or_default();
    match uuid.split(['-', '1', '2', '3', '4', '5', '6', '7', '8', '9']).next() {
        Some("CRYPT") if uuid.starts_with("CRYPT-VERITY-") => DmTarget::Verity,
        Some("CRYPT") if uuid.starts_with("CRYPT-INTEGRITY-") => DmTarget::Integrity,
        // The integrity device of an authenticated encryption.
        Some("CRYPT") if uuid.starts_with("CRYPT-SUBDEV-") => DmTarget::Integrity,
        Some("CRYPT") => DmTarget::Crypt,
        Some("mpath") => DmTarget::Multipath,
        Some("part") => DmTarget::Linear,
        Some("DMRAID") => DmTarget::Raid,
        Some("LVM") => lvm_target(folder),
        _ => DmTarget::Unknown,
    }
}

/// The target of a logical volume.
fn lvm_target(folder: &Path) -> DmTarget {
    const SLAVES: [(&str, DmTarget); 13] = [
        // LVM makes integrity below images of a RAID: `lv_rimage_0_iorig`.
        ("_iorig", DmTarget::Integrity),
        ("_imeta", DmTarget::Integrity),
        ("_rimage_", DmTarget::Raid),
        ("_mimage_", DmTarget::Mirror),
        ("-tpool", DmTarget::Thin),
        ("_tdata", DmTarget::Thin),
        ("-real", DmTarget::Snapshot),
        ("-cow", DmTarget::Snapshot),
        ("_cdata", DmTarget::Cache),
        ("_cvol", DmTarget::Cache),
        ("_wcorig", DmTarget::Cache),
        ("_vdata", DmTarget::Vdo),
        ("-vpool", DmTarget::Vdo),
    ];
    let slaves = slaves(folder);
    let names: Vec<_> =
        slaves.iter().filter_map(|slave| read_word(&slave.join("dm/name"))).collect();
    let matches = |part: &str| {
        names.iter().any(|name| match part.strip_suffix('_') {
            // A number follows.
            Some(_) => name.contains(part),
            None => name.ends_with(part),
        })
    };
    let found = SLAVES.into_iter().find(|(part, _)| matches(part));
    found.map_or(DmTarget::Linear, |(_, target)| target)
}
