//! The limits of threads: `pids.max` of cgroups, and RLIMIT_NPROC of the user.

use std::fs;
use std::path::Path;

use rustix::process::{Resource, getrlimit, getuid};
use rustix::thread::{CapabilitySet, capabilities};

use super::cgroup::{self, CgroupFolder};
use super::limit::ProcessLimit;

/// All limits, of which each applies. Files are below `root`.
pub(super) fn limits(root: &Path) -> Vec<ProcessLimit> {
    let own = own_threads(root);
    let folders = cgroup::folders(root, "pids");
    let mut limits: Vec<_> =
        folders.iter().filter_map(|folder| cgroup_limit(folder, own)).collect();
    limits.extend(user_limit(root, own));
    limits
}

fn own_threads(root: &Path) -> u64 {
    let status = fs::read_to_string(root.join("proc/self/status")).unwrap_or_default();
    field(&status, "Threads:").unwrap_or(1)
}

fn cgroup_limit(CgroupFolder { path, .. }: &CgroupFolder, own: u64) -> Option<ProcessLimit> {
    let max = cgroup::read_number(path, "pids.max")?;
    let current = cgroup::read_number(path, "pids.current").unwrap_or(own);
    let name = path.join("pids.max").display().to_string();
    let setting = "`TasksMax=` of its systemd unit";
    Some(ProcessLimit { name, setting, max, in_use: current.saturating_sub(own) })
}

/// RLIMIT_NPROC, unless the process is exempt from it.
fn user_limit(root: &Path, own: u64) -> Option<ProcessLimit> {
    let max = getrlimit(Resource::Nproc).current?;
    let exempting = CapabilitySet::SYS_RESOURCE | CapabilitySet::SYS_ADMIN;
    let is_exempt = capabilities(None).is_ok_and(|sets| sets.effective.intersects(exempting));
    if getuid().is_root() || is_exempt {
        return None;
    }
    let in_use = threads_of_user(root, getuid().as_raw()).saturating_sub(own);
    let (name, setting) = ("`ulimit -u`".to_owned(), "`LimitNPROC=` of its systemd unit");
    Some(ProcessLimit { name, setting, max, in_use })
}

/// The threads of all processes whose real user is `uid`.
fn threads_of_user(root: &Path, uid: u32) -> u64 {
    let processes = fs::read_dir(root.join("proc")).into_iter().flatten().flatten();
    let status = processes.filter_map(|process| {
        let name = process.file_name();
        name.to_str()?.parse::<u32>().ok()?;
        fs::read_to_string(process.path().join("status")).ok()
    });
    let of_user = status.filter(|status| field(status, "Uid:") == Some(uid.into()));
    of_user.filter_map(|status| field(&status, "Threads:")).sum()
}

/// The first number of a line of `/proc/PID/status`.
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_of_a_user_are_those_of_all_its_processes() {
        let root = tempfile::tempdir().unwrap();
        let process = |name: &str, status: &str| {
            let folder = root.path().join("proc").join(name);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("status"), status).unwrap();
        };
        process("1", "Name:\tinit\nUid:\t0\t0\t0\t0\nThreads:\t1\n");
        process("7", "Name:\ta\nUid:\t1000\t0\t0\t0\nThreads:\t3\n");
        process("8", "Name:\tb\nUid:\t1000\t1000\t1000\t1000\nThreads:\t4\n");
        process("self", "Name:\tb\nUid:\t1000\t1000\t1000\t1000\nThreads:\t4\n");
        assert_eq!(threads_of_user(root.path(), 1000), 7);
        assert_eq!(threads_of_user(root.path(), 1), 0);
        assert_eq!(own_threads(root.path()), 4);
    }

    #[test]
    fn own_threads_are_not_in_use_by_others() {
        let folder = tempfile::tempdir().unwrap();
        let limit = || {
            let (version, path) = (cgroup::CgroupVersion::V2, folder.path().to_owned());
            cgroup_limit(&CgroupFolder { version, path }, 4)
        };
        assert_eq!(limit(), None);
        fs::write(folder.path().join("pids.max"), "max\n").unwrap();
        fs::write(folder.path().join("pids.current"), "30\n").unwrap();
        assert_eq!(limit(), None);
        fs::write(folder.path().join("pids.max"), "100\n").unwrap();
        let limit = limit().unwrap();
        assert_eq!((limit.max, limit.in_use, limit.available()), (100, 26, 74));
        assert!(limit.name.ends_with("/pids.max"), "{}", limit.name);
    }
}
