//! Facts of ZFS datasets: the version and parameters of the kernel module, and properties.

use std::path::PathBuf;

use super::device_number::DeviceNumber;
use super::host_view::{HostView, read_number, read_word};
use super::storey::ZfsDataset;

/// A version of OpenZFS. Candidates of a release are older than it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ZfsVersion {
    numbers: [u32; 3],
    /// The number of the candidate, `u32::MAX` for a release.
    candidate: u32,
}

impl ZfsVersion {
    /// That of a dataset's module, if it is known.
    pub(super) fn of(dataset: &ZfsDataset) -> Option<Self> {
        parse_version(dataset.version.as_deref()?)
    }

    pub(super) const fn release(major: u32, minor: u32, patch: u32) -> Self {
        Self { numbers: [major, minor, patch], candidate: u32::MAX }
    }

    const fn candidate(self, candidate: u32) -> Self {
        Self { candidate, ..self }
    }

    /// Whether volumes of this version ignore flushes. From 2.2.7 and 2.3.0-rc1 on, `bio_is_flush`
    /// recognised no flush with `REQ_PREFLUSH` ("config: remove HAVE_REQ_OP_* and HAVE_REQ_*"),
    /// until "linux: zvols: correctly detect flush requests" (pull request 17131), which is in
    /// 2.2.8 and 2.3.2.
    pub(super) fn ignores_volume_flushes(self) -> bool {
        let candidate = Self::release(2, 3, 0).candidate(0);
        (Self::release(2, 2, 7).candidate(0)..Self::release(2, 2, 8)).contains(&self)
            || (candidate..Self::release(2, 3, 2)).contains(&self)
    }

    /// Whether volumes of this version that use blk-mq handle flushes as reads, until "zvol: Fix
    /// blk-mq sync" (issue 17761), which is in 2.2.9, 2.3.5 and 2.4.0-rc2. Versions with a patch
    /// level of 99 lead to the next minor release.
    pub(super) fn ignores_blk_mq_flushes(self) -> bool {
        self < Self::release(2, 2, 9)
            || (Self::release(2, 2, 99)..Self::release(2, 3, 5)).contains(&self)
            || (Self::release(2, 3, 99)..Self::release(2, 4, 0).candidate(2)).contains(&self)
    }
}

/// Whether a distribution may have changed the module: the version has letters of its own, such as
/// `2.2.7-pve2` or `2.2.2-0ubuntu9.1`.
pub(super) fn is_vendor_build(dataset: &ZfsDataset) -> bool {
    let version = dataset.version.as_deref().unwrap_or_default();
    let (_, suffix) = version.split_once('-').unwrap_or_default();
    suffix.trim_start_matches("rc").contains(|letter: char| letter.is_ascii_alphabetic())
}

/// Whether direct I/O on files of a dataset always goes through the ARC; `None` if this is unknown.
/// Direct I/O is new in OpenZFS 2.3, and leaves transfers that are no whole records to the ARC
/// (zfsprops(7), `direct`).
pub(super) fn always_uses_arc(dataset: &ZfsDataset) -> Option<bool> {
    let is_old = ZfsVersion::of(dataset)? < ZfsVersion::release(2, 3, 0);
    if is_old {
        return Some(true);
    }
    dataset.property("direct").map(|direct| direct == "disabled")
}

/// Parses the version of the module, such as `2.3.1-1~bpo12+1` or `2.4.0-rc2`; `None` if its text
/// has another form.
fn parse_version(text: &str) -> Option<ZfsVersion> {
    let (numbers, rest) = text.split_once('-').unwrap_or((text, ""));
    let mut numbers = numbers.split('.').map(|number| number.parse().ok());
    let numbers = [numbers.next()??, numbers.next()??, numbers.next().unwrap_or(Some(0))?];
    let candidate = rest.strip_prefix("rc").map_or(u32::MAX, |candidate| {
        let digits = candidate.split(|digit: char| !digit.is_ascii_digit()).next();
        digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
    });
    Some(ZfsVersion { numbers, candidate })
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
        quota_of: None,
        properties: Vec::new(),
    }
}

/// The nearest dataset above a volume that has a quota. A volume has none of its own.
pub(super) fn quota_above(host: &HostView, volume: &ZfsDataset) -> Option<String> {
    let queries = host.zfs?;
    let mut name = volume.name.as_deref()?.split('@').next()?;
    while let Some((above, _)) = name.rsplit_once('/') {
        let output = (queries.properties)(host, above, "quota").unwrap_or_default();
        let mut lines = output.lines().filter_map(|line| line.strip_prefix("quota\t"));
        if lines.any(|value| value.parse::<u64>().is_ok_and(|bytes| bytes > 0)) {
            return Some(above.to_owned());
        }
        name = above;
    }
    None
}

/// Queries the properties that all datasets have, and `own`, those of its kind.
pub(super) fn add_properties(host: &HostView, dataset: &mut ZfsDataset, own: &str) {
    let (Some(queries), Some(name)) = (host.zfs, &dataset.name) else { return };
    let mut names = format!("sync,{own},primarycache,logbias,checksum,compression");
    // `zfs get` reports nothing if it does not know one of the properties.
    let is_recent =
        ZfsVersion::of(dataset).is_some_and(|version| version >= ZfsVersion::release(2, 3, 0));
    if is_recent && own == "recordsize" {
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
    fn builds_of_distributions_have_letters() {
        let build = |version: &str| {
            let version = Some(version.to_owned());
            is_vendor_build(&ZfsDataset { version, ..ZfsDataset::default() })
        };
        for vendor in ["2.2.7-pve2", "2.2.2-0ubuntu9.1", "2.3.1-1~bpo12+1"] {
            assert!(build(vendor), "{vendor}");
        }
        for plain in ["2.3.1", "2.3.1-1", "2.4.0-rc1", ""] {
            assert!(!build(plain), "{plain}");
        }
    }

    #[test]
    fn versions_are_parsed() {
        let release = ZfsVersion::release(2, 3, 2);
        assert_eq!(parse_version("2.3.2-1~bpo12+1"), Some(release));
        assert_eq!(parse_version("2.3.2-rc12_1"), Some(release.candidate(12)));
        assert_eq!(parse_version("2.3"), Some(ZfsVersion::release(2, 3, 0)));
        assert!(release.candidate(2) < release && release < ZfsVersion::release(2, 3, 10));
        for garbage in ["", "x", "2", "2.x.1", "2.3.99999999999", "-rc1"] {
            assert_eq!(parse_version(garbage), None, "{garbage}");
        }
    }
}
