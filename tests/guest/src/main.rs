//! Scenarios with a real guest in the lab (docs/lab.md).
//!
//! One binary, so that one link serves them all. Each scenario starts its own host under a name
//! that no other uses: names are folders of logs. The test harness runs as many at once as it has
//! threads, by default one per CPU.

mod boot;
mod chaos;
mod commits;
mod console;
mod control;
mod control_socket;
mod crash;
mod cycles;
mod disks;
mod enospc;
mod enospc_stores;
mod flush_proof;
mod lab_smoke;
mod layer_commands;
mod layers;
mod network;
mod panic;
mod power_cuts;
mod scsi;
mod scsi_hotplug;
mod serve;
mod sick_pool;
mod snapshots;
mod stable_copies;
mod startup;
mod thin;
mod volume_links;
mod walkthrough;
mod write_cache;
mod zvol;
