//! Facts of ZFS datasets: the version and parameters of the kernel module, and properties.

use std::path::PathBuf;

use super::device_number::DeviceNumber;
use super::host_view::{HostView, read_number, read_word};
use super::storey::ZfsDataset;

/// Parses the version of the module; `None` if its text has another form.
fn parse_version(text: &str) -> Option<ZfsVersion> {
    // Like `2.3.1-1~bpo12+1` or `2.4.0-rc2`.
    let (numbers, rest) = match text.split_once('-') {
        Some((numbers, rest)) => (numbers, rest),
        None => (text, ""),
    };
    let mut numbers = numbers.split('.').map(|number| number.parse().ok());
    let numbers = [numbers.next()??, numbers.next()??, numbers.next().unwrap_or(Some(0))?];
    Some(ZfsVersion { numbers, is_candidate: rest.starts_with("rc") })
}

/// A version of OpenZFS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ZfsVersion {
    numbers: [u32; 3],
    is_candidate: bool,
}

impl ZfsVersion {
    /// That of a dataset's module, if it is known.
    pub(super) fn of(dataset: &ZfsDataset) -> Option<Self> {
        parse_version(dataset.version.as_deref()?)
    }

    /// Whether it is older than a release. Candidates of the release are.
    pub(super) fn is_before(self, release: [u32; 3]) -> bool {
        self.numbers < release || (self.numbers == release && self.is_candidate)
    }
}

/// The dataset of a volume by its link below `/dev/zvol`. ZFS's rules for udev replace spaces by
/// `+`, so that a name with one is not known.
pub(super) fn volume_name(host: &HostView, device: DeviceNumber) -> Option<String> {
    let links = host.links(device);
    let names = links.iter().filter_map(|link| link.strip_prefix("zvol/"));
    names.filter(|name| !name.contains('+')).map(str::to_owned).next()
}

/// A dataset with the facts of the module.
pub(super) fn dataset(host: &HostView, name: Option<&str>) -> ZfsDataset {
    let module = host.sys.join("module/zfs");
    let is_set = |name: &str| read_number(&module.join("parameters").join(name)).unwrap_or(0) != 0;
    ZfsDataset {
        name: name.map(str::to_owned),
        version: read_word(&module.join("version")),
        blk_mq: false,
        no_cache_flush: is_set("zfs_nocacheflush") || is_set("zil_nocacheflush"),
        properties: Vec::new(),
    }
}

/// Queries the properties that all datasets have, and `property`.
pub(super) fn add_properties(host: &HostView, dataset: &mut ZfsDataset, property: &str) {
    let (Some(queries), Some(name)) = (host.zfs, &dataset.name) else { return };
    let mut names = format!("sync,{property},primarycache,logbias,checksum,compression");
    // `zfs get` reports nothing if it does not know one of the properties.
    let is_recent = ZfsVersion::of(dataset).is_some_and(|version| !version.is_before([2, 3, 0]));
    if is_recent && property == "recordsize" {
        names += ",direct";
    }
    let name = name.split('@').next().unwrap_or_default();
    let output = (queries.properties)(host, name, &names).unwrap_or_default();
    let lines = output.lines().filter_map(|line| line.split_once('\t'));
    dataset.properties = lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
}

/// The paths of the devices and files that hold the data of a dataset: the members of its pool
/// without spares and caches.
pub(super) fn members(host: &HostView, dataset: &ZfsDataset) -> Vec<PathBuf> {
    let (Some(queries), Some(name)) = (host.zfs, &dataset.name) else { return Vec::new() };
    let pool = name.split(['/', '@']).next().unwrap_or_default();
    (queries.members)(host, pool).map_or_else(|_| Vec::new(), |output| parse_members(&output))
}

/// Parses the output of `zpool list -vHPL`: lines of pools and of classes of members start at the
/// margin, lines of members with a tab, and those of devices and files have a path.
fn parse_members(output: &str) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    let mut is_data = true;
    for line in output.lines() {
        match line.strip_prefix('\t') {
            None => is_data = !(line.starts_with("cache") || line.starts_with("spare")),
            Some(member) if is_data && member.starts_with('/') => {
                paths.push(member.split('\t').next().unwrap_or_default().into());
            }
            Some(_) => {}
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_those_that_hold_data() {
        let output = "tank\t9.5G\t1G\t-\n\tmirror-0\t9.5G\t-\n\t/dev/sda1\t-\t-\n\
            \t/mnt/a b\t-\nlogs      -      -\n\t/dev/sdb1\t1G\ncache      -\n\
            \t/dev/sdc1\t1G\nspare      -\n\t/dev/sdd1\t-\nspecial    -\n\t/dev/sde1\t-\n";
        let paths = ["/dev/sda1", "/mnt/a b", "/dev/sdb1", "/dev/sde1"].map(PathBuf::from);
        assert_eq!(parse_members(output), paths);
        assert_eq!(parse_members("\n\t\n\t/"), [PathBuf::from("/")]);
    }

    #[test]
    fn versions_are_ordered() {
        let is_before = |text| parse_version(text).unwrap().is_before([2, 3, 2]);
        for older in ["0.8.3-1ubuntu12.18", "2.3.1-1", "2.3.0", "2.3.2-rc1", "2.2.10", "2.3"] {
            assert!(is_before(older), "{older}");
        }
        for newer in ["2.3.2-1~bpo12+1", "2.3.2", "2.3.10", "2.4.0-rc1", "3.0.0"] {
            assert!(!is_before(newer), "{newer}");
        }
        for garbage in ["", "x", "2", "2.x.1", "2.3.99999999999", "-rc1"] {
            assert_eq!(parse_version(garbage), None, "{garbage}");
        }
    }
}
