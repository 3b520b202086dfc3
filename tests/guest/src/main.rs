//! Scenarios with a real guest, in the lab (docs/lab.md).
//!
//! Each starts a host of its own. As many run at once as the test harness has threads.

mod boot;
mod control;
mod cycles;
mod disks;
mod enospc;
mod lab_smoke;
mod network;
mod scsi;
mod scsi_hotplug;
mod serve;
mod startup;
mod thin;
mod write_cache;
mod zvol;
