//! Resources that a process holds, from `/proc`.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

/// Memory, threads and descriptors of a process.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// `VmRSS`.
    pub(crate) resident_kib: u64,
    /// `RssAnon`.
    pub(crate) anonymous_kib: u64,
    /// Threads without the kernel's io_uring workers, which come and go.
    pub(crate) threads: usize,
    pub(crate) descriptors: usize,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok())
                .with_context(|| format!("{name} of process {pid}"))
        };
        let tasks = fs::read_dir(format!("/proc/{pid}/task"))?.filter_map(Result::ok);
        let is_own = |name: String| !name.starts_with("iou-");
        Ok(Self {
            resident_kib: field("VmRSS:")?,
            anonymous_kib: field("RssAnon:")?,
            threads: tasks
                .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
                .filter(|name| is_own(name.clone()))
                .count(),
            descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
        })
    }
}

/// The kinds of a process's descriptors and how many it has of each.
pub(crate) fn descriptors(pid: u32) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
    for link in entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()) {
        let name = link.to_string_lossy();
        let numbered = name.split_once(":[").filter(|(kind, _)| *kind != "anon_inode");
        let kind = numbered.map_or(&*name, |(kind, _)| kind);
        *kinds.entry(kind.to_owned()).or_default() += 1;
    }
    kinds
}
