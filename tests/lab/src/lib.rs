//! The lab: real Linux guests, also on machines whose KVM cannot boot one.
//!
//! There QEMU emulates a host in software (L1), with SVM, and `bulkhead` runs its guest (L2) in that. L1 is booted once
//! and restored from a snapshot at the start of each scenario. Build it (a few minutes, as root, on Debian) with
//! `cargo run -q -p lab -- build`; try things in it with `lab run -- CMD` and `lab shell`.
//!
//! ```no_run
//! # use lab::Host;
//! # fn main() -> anyhow::Result<()> {
//! let host = Host::start("my-scenario")?; // logs in target/lab/my-scenario/
//! let scratch = host.scratch("ext4")?; // "/scratch", on a disk of 8 GiB
//! host.run(&format!("truncate -s 1G {scratch}/data.img"))?; // status 0 or an error; try_run gives the status
//! let guest = host.boot(&format!( // BULKHEAD_BIN, or a release build
//!     "[machine]\nvcpus = 1\nmemory = \"128MiB\"\n\
//!      [kernel]\nimage = \"{}\"\ninitramfs = \"{}\"\n\
//!      cmdline = \"console=ttyS0 quiet cryptomgr.notests no_timer_check\"\n\
//!      [[disk]]\nid = \"data\"\npath = \"{scratch}/data.img\"\n",
//!     host.kit("vmlinux"),
//!     host.kit("initramfs"), // initramfs-tools has fio, mkfs and sg3-utils, and wants 512 MiB
//! ))?; // the console is added: a unix socket
//! guest.run("mke2fs -q /dev/vda && mount /dev/vda /mnt")?;
//! assert_eq!(guest.power_off()?, 0); // exit status of bulkhead
//! # Ok(())
//! # }
//! ```
//!
//! Environment: `BULKHEAD_LAB` (cache folder), `BULKHEAD_LAB_MODE` (`nested` or `direct`; else what a try at build time
//! found), `BULKHEAD_LAB_MIRROR` (Debian mirror; else apt's own), `BULKHEAD_BIN` (program under test).

mod cache;
mod config;
mod console;
mod deterministic;
mod direct;
mod emulated;
mod guest;
mod host;
mod many_disks;
mod prune;
mod qemu;
mod recipe;
mod served;
mod snapshot;
mod zfs;

pub use cache::cache;
pub use config::{CMDLINE, disk};
pub use console::{Console, Output};
pub use emulated::Emulated;
pub use guest::{BOOT_TIMEOUT, EXIT_TIMEOUT, Guest};
pub use host::{COMMAND_TIMEOUT, Host, bulkhead_binary};
pub use many_disks::ManyDisks;
pub use recipe::Lab;
pub use served::Served;
