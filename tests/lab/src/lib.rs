//! The lab: scenarios with real Linux guests, on any x86-64 Linux machine.
//!
//! Where this machine's KVM cannot boot Linux, QEMU emulates a host with SVM in software (L1), and
//! `bulkhead` runs its guest (L2) there. L1 is booted once, when the lab is built, and restored
//! from a snapshot by each scenario. Build it with `cargo run -q -p lab -- build` (as root, on
//! Debian, a few minutes); use it by hand with `lab run -- CMD` and `lab shell`.
//!
//! Knows neither block nor devices: a change there does not rebuild the lab.
//!
//! ```no_run
//! # use lab::Host;
//! # fn main() -> anyhow::Result<()> {
//! let host = Host::start("my-scenario")?; // logs in target/lab/my-scenario/
//! let scratch = host.scratch("ext4")?; // "/scratch", on a disk of 8 GiB
//! // A status other than 0 is an error; try_run returns the status.
//! host.run(&format!("truncate -s 1G {scratch}/data.img"))?;
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
//! Environment: `BULKHEAD_LAB` (cache folder), `BULKHEAD_LAB_MODE` (`nested` or `direct`; by
//! default the result of a probe at build time), `BULKHEAD_LAB_MIRROR` (Debian mirror; by default
//! apt's), `BULKHEAD_BIN` (program under test).

#![expect(clippy::print_stderr, reason = "reports progress on a terminal")]

mod cache;
mod config;
mod console;
mod deterministic;
mod direct;
mod emulated;
mod guest;
mod host;
mod logs;
mod many_disks;
mod power;
mod products;
mod program;
mod prune;
mod qemu;
mod recipe;
mod serve_process;
mod snapshot;
mod zfs;

pub use cache::cache;
pub use config::{CMDLINE, disk};
pub use console::{Console, Output};
pub use emulated::EmulatedGuest;
pub use guest::{BOOT_TIMEOUT, EXIT_TIMEOUT, Guest};
pub use host::{COMMAND_TIMEOUT, Host};
pub use many_disks::ManyDisks;
pub use products::Lab;
pub use program::bulkhead_binary;
pub use serve_process::ServeProcess;
