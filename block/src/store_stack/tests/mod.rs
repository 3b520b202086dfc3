//! Tests of whole stacks: on fake trees of sysfs and procfs, and on loop devices of this host.

mod fake_host;
mod host_cache;
mod late_enospc;
mod native;
mod problems;
mod stable_copies;
mod volume_link;
mod walk;
mod within;
