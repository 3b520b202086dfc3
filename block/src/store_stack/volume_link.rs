//! Whether a link below `/dev` leads to the volume that it names.
//!
//! Numbers of devices are reused: a link that outlives its volume, because udev is behind or has
//! missed an event, leads to whichever volume has the number now, which may be another guest's
//! disk. The kernel knows the own name of a volume. A link whose name cannot be compared is not
//! judged.
//!
//! The entries of udev's database have these numbers as names as well: an event that udev missed
//! leaves a link and the entry that lists it. So an entry counts only if it has the name and the
//! UUID that the kernel reports.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::devices::disk_of_partition;
use super::host_view::{FileFacts, HostView, read_word};

/// A link that leads to another volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongLink {
    /// The link.
    pub link: PathBuf,
    /// The volume that it names.
    pub named: String,
    /// The volume that it leads to.
    pub found: String,
}

/// Folders below `/dev` in which no rule of LVM makes links, and owners of hosts do.
const NO_GROUPS: [&str; 5] = ["shm", "disk", "fd", "hugepages", "mqueue"];

/// Symbolic links to follow from a path (Linux's `MAXSYMLINKS`).
const LINKS_MAX: usize = 40;

/// The wrong link on the way from `path` to the block device `file`, which it led to. `None` if
/// there is none, or if it is not known. Queries the device and reads sysfs and udev's database.
#[must_use]
pub fn wrong_link(path: &Path, file: &File) -> Option<WrongLink> {
    let host = HostView::without_programs();
    let facts = host.facts_of(file).ok().filter(|facts| facts.device.is_some())?;
    find(&host, &way(path), &facts)
}

/// The path, and those of the links that it leads over.
fn way(path: &Path) -> Vec<PathBuf> {
    let mut way = Vec::new();
    let mut next = std::path::absolute(path).ok();
    while let Some(path) = next.take().filter(|_| way.len() < LINKS_MAX) {
        // The links of folders are followed, and `..` in the target of a link is resolved.
        let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
        let path =
            folder.zip(path.file_name()).map_or(path.clone(), |(folder, name)| folder.join(name));
        if let Ok(link) = std::fs::read_link(&path) {
            next = path.parent().map(|folder| folder.join(link));
        }
        way.push(path);
    }
    way
}

/// The first path of `way` that names another volume than the device with `facts`.
pub(super) fn find(host: &HostView, way: &[PathBuf], facts: &FileFacts) -> Option<WrongLink> {
    let device = facts.device?;
    let folder = host.device_folder(device).ok()?;
    let names = OwnNames {
        dm_name: read_word(&folder.join("dm/name")),
        dm_uuid: read_word(&folder.join("dm/uuid")),
        dataset: facts.dataset.as_deref(),
        number: format!("{}:{}", device.major, device.minor),
        is_partition: disk_of_partition(&folder).is_some(),
        entry: &host.udev_entry(device),
        udev_links: &host.run.join("udev/links"),
    };
    way.iter().find_map(|path| {
        let link = path.strip_prefix("/dev").ok()?.to_str()?;
        let (named, found) = names.compare(link)?;
        (named != found).then(|| WrongLink { link: path.clone(), named, found })
    })
}

/// The names of a device.
struct OwnNames<'f> {
    dm_name: Option<String>,
    dm_uuid: Option<String>,
    dataset: Option<&'f str>,
    number: String,
    is_partition: bool,
    /// The entry of udev's database for its number.
    entry: &'f str,
    /// The folder in which udev has a folder for each link that it has made.
    udev_links: &'f Path,
}

impl OwnNames<'_> {
    /// The name in `link`, a path below `/dev`, and the comparable one of the device. `None` if the
    /// link names no volume, or the device has no such name.
    fn compare(&self, link: &str) -> Option<(String, String)> {
        if let Some(number) = link.strip_prefix("block/") {
            return Some((number.to_owned(), self.number.clone()));
        }
        if let Some(name) = link.strip_prefix("zvol/") {
            return self.compare_dataset(name);
        }
        if let Some(id) = link.strip_prefix("disk/by-id/") {
            let (name, own) = match id.strip_prefix("dm-name-") {
                Some(name) => (name, &self.dm_name),
                None => (id.strip_prefix("dm-uuid-")?, &self.dm_uuid),
            };
            return comparable(name, own.as_deref()?);
        }
        // A rule of the host's owner may give a volume any name.
        if self.is_listed(link) && self.is_own_entry() {
            return None;
        }
        match link.split_once('/')? {
            ("mapper", name) => comparable(name, self.dm_name.as_deref()?),
            (group, volume) if !volume.contains('/') && self.is_of_udev(link, group) => {
                self.compare_lvm(group, volume)
            }
            _ => None,
        }
    }

    /// Whether the entry of udev's database lists the link.
    fn is_listed(&self, link: &str) -> bool {
        self.entry.lines().any(|line| line.strip_prefix("S:") == Some(link))
    }

    /// Whether the entry is that of this device, not of an earlier one with its number or name.
    fn is_own_entry(&self) -> bool {
        let property = |name| self.entry.lines().find_map(|line| line.strip_prefix(name));
        property("E:DM_NAME=") == self.dm_name.as_deref()
            && property("E:DM_UUID=") == self.dm_uuid.as_deref()
    }

    /// Whether udev has made the link, as far as that is known: others are their owner's, with any
    /// name. The names of its folders escape two characters (systemd's `udev_node_escape_path`);
    /// those of older versions start with an escaped `/`.
    fn is_of_udev(&self, link: &str, group: &str) -> bool {
        let escaped = link.replace('\\', r"\x5c").replace('/', r"\x2f");
        let has = |name: &str| self.udev_links.join(name).symlink_metadata().is_ok();
        !NO_GROUPS.contains(&group)
            && (self.is_listed(link) || has(&escaped) || has(&format!(r"\x2f{escaped}")))
    }

    /// ZFS's rules for udev replace spaces by `+`, and append `-partN` for a partition.
    fn compare_dataset(&self, name: &str) -> Option<(String, String)> {
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let name = match name.rsplit_once("-part") {
            Some((disk, number)) if self.is_partition && is_number(number) => disk,
            _ if self.is_partition => return None,
            _ => name,
        };
        Some((name.to_owned(), self.dataset?.replace(' ', "+")))
    }

    /// LVM doubles the hyphens of the names of the group and the volume, and joins them by one.
    fn compare_lvm(&self, group: &str, volume: &str) -> Option<(String, String)> {
        let is_lvm = self.dm_uuid.as_deref().is_some_and(|uuid| uuid.starts_with("LVM-"));
        if !is_lvm {
            return None;
        }
        let doubled = |name: &str| name.replace('-', "--");
        comparable(&format!("{}-{}", doubled(group), doubled(volume)), self.dm_name.as_deref()?)
    }
}

/// Both names, unless one has characters that udev or libdevmapper escape.
fn comparable(named: &str, own: &str) -> Option<(String, String)> {
    let is_plain = |name: &str| {
        name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"#+-.:=@_".contains(&byte))
    };
    (is_plain(named) && is_plain(own)).then(|| (named.to_owned(), own.to_owned()))
}
