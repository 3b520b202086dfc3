//! The configuration file of a scenario's guest: what most guests of the lab share.

use super::host::Host;

/// The kernel command line of a lab guest. Its console says little and its boot waits for nothing.
pub const CMDLINE: &str = "console=ttyS0 quiet cryptomgr.notests no_timer_check";

impl Host {
    /// A guest of 128 MiB with the small userland, and `tables` (disks, nets) after it.
    pub fn small_guest(&self, vcpus: u8, tables: &str) -> String {
        self.guest_config(vcpus, "128MiB", "initramfs", "", tables)
    }

    /// A guest that boots `vmlinux` with an initramfs of the kit and `more` on its command line.
    pub fn guest_config(
        &self,
        vcpus: u8,
        memory: &str,
        initramfs: &str,
        more: &str,
        tables: &str,
    ) -> String {
        format!(
            "[machine]\nvcpus = {vcpus}\nmemory = \"{memory}\"\nshutdown_grace = \"60s\"\n\
             [kernel]\nimage = \"{}\"\ninitramfs = \"{}\"\ncmdline = \"{CMDLINE} {more}\"\n{tables}",
            self.kit("vmlinux"),
            self.kit(initramfs),
        )
    }
}

/// One `[[disk]]` with `more` lines, such as its cache mode.
pub fn disk(id: &str, path: &str, more: &str) -> String {
    format!("[[disk]]\nid = \"{id}\"\npath = \"{path}\"\n{more}\n")
}
