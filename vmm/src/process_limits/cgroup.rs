//! The cgroups of this process: its own one and all ancestors, whose limits apply as well.

use std::fs;
use std::path::{Path, PathBuf};

/// The version of a hierarchy, which decides the names of its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CgroupVersion {
    V1,
    V2,
}

/// The folder of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CgroupFolder {
    pub(crate) version: CgroupVersion,
    pub(crate) path: PathBuf,
}

/// The cgroup of this process and its ancestors, innermost first, in the unified hierarchy and in
/// the version 1 hierarchy of `controller`. Those outside of the cgroup namespace are not visible.
/// Files are below `root`, which is `/` except in tests.
pub(crate) fn folders(root: &Path, controller: &str) -> Vec<CgroupFolder> {
    let read = |file| fs::read_to_string(root.join(file)).unwrap_or_default();
    let (cgroups, mounts) = (read("proc/self/cgroup"), read("proc/self/mountinfo"));
    let mut folders = Vec::new();
    for (version, cgroup) in cgroups.lines().filter_map(|line| membership(line, controller)) {
        let mut mounts = mounts.lines();
        if let Some(mount) = mounts.find_map(|line| Mount::parse(line, version, controller)) {
            let paths = mount.ancestors(cgroup);
            folders.extend(paths.into_iter().map(|path| {
                let path = root.join(path.strip_prefix("/").unwrap_or(&path));
                CgroupFolder { version, path }
            }));
        }
    }
    folders
}

/// A number in a file of a cgroup; `None` for "max" and for an absent file.
pub(crate) fn read_number(folder: &Path, file: &str) -> Option<u64> {
    fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok()
}

/// The path of a line of `/proc/self/cgroup`, if its hierarchy may have the controller.
fn membership<'l>(line: &'l str, controller: &str) -> Option<(CgroupVersion, &'l str)> {
    let mut fields = line.splitn(3, ':');
    let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    match (id, controllers) {
        ("0", "") => Some((CgroupVersion::V2, path)),
        _ if controllers.split(',').any(|name| name == controller) => {
            Some((CgroupVersion::V1, path))
        }
        _ => None,
    }
}

/// The mount of a hierarchy.
struct Mount<'l> {
    /// The cgroup at the mount point.
    cgroup: &'l str,
    point: &'l Path,
}

impl<'l> Mount<'l> {
    /// Parses a line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
    fn parse(line: &'l str, version: CgroupVersion, controller: &str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (cgroup, point) = (mount.next()?, Path::new(mount.next()?));
        let mut file_system = file_system.split(' ');
        let is_wanted = match (version, file_system.next()?) {
            (CgroupVersion::V2, "cgroup2") => true,
            (CgroupVersion::V1, "cgroup") => {
                file_system.nth(1)?.split(',').any(|option| option == controller)
            }
            _ => false,
        };
        is_wanted.then_some(Self { cgroup, point })
    }

    /// The folders from that of `cgroup` to the mount point.
    fn ancestors(&self, cgroup: &str) -> Vec<PathBuf> {
        let below = Path::new(cgroup).strip_prefix(self.cgroup).unwrap_or(Path::new(""));
        let is_visible =
            below.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        let below = if is_visible { below } else { Path::new("") };
        below.ancestors().map(|part| self.point.join(part)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders_of(cgroups: &str, mounts: &str) -> Vec<(CgroupVersion, String)> {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("proc/self");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("cgroup"), cgroups).unwrap();
        fs::write(folder.join("mountinfo"), mounts).unwrap();
        let shown = |found: CgroupFolder| {
            let path = found.path.strip_prefix(root.path()).unwrap();
            (found.version, path.display().to_string().trim_end_matches('/').to_owned())
        };
        folders(root.path(), "memory").into_iter().map(shown).collect()
    }

    const UNIFIED: &str =
        "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn ancestors_of_a_unified_hierarchy_are_listed() {
        let found = folders_of("0::/system.slice/vm.service\n", UNIFIED);
        let expected = ["/system.slice/vm.service", "/system.slice", ""];
        let expected = expected.map(|path| (CgroupVersion::V2, format!("sys/fs/cgroup{path}")));
        assert_eq!(found, expected);
    }

    #[test]
    fn a_hybrid_host_has_two_hierarchies() {
        let cgroups = "5:cpu,memory:/a\n4:pids:/b\n0::/c\n";
        let mounts = "32 31 0:29 / /cg/pids rw - cgroup cgroup rw,pids\n\
                      35 31 0:32 / /cg/memory rw - cgroup cgroup rw,cpu,memory\n\
                      41 31 0:38 / /cg/unified rw - cgroup2 cgroup2 rw\n";
        let found = folders_of(cgroups, mounts);
        let v1 = |path: &str| (CgroupVersion::V1, path.to_owned());
        let v2 = |path: &str| (CgroupVersion::V2, path.to_owned());
        let expected = [v1("cg/memory/a"), v1("cg/memory"), v2("cg/unified/c"), v2("cg/unified")];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_container_sees_its_part_of_the_hierarchy() {
        let mount = "30 23 0:26 /docker/x /sys/fs/cgroup ro - cgroup2 cgroup ro\n";
        let paths = |cgroup, mount| -> Vec<String> {
            folders_of(cgroup, mount).into_iter().map(|(_, path)| path).collect()
        };
        assert_eq!(paths("0::/docker/x/y\n", mount), ["sys/fs/cgroup/y", "sys/fs/cgroup"]);
        assert_eq!(paths("0::/../../outside\n", UNIFIED), ["sys/fs/cgroup"]);
        assert_eq!(paths("0::/\n", UNIFIED), ["sys/fs/cgroup"]);
        assert_eq!(paths("0::/\n", ""), [""; 0]);
    }
}
