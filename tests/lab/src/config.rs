//! Configuration files of lab guests.

use super::host::Host;

/// Kernel command line of a lab guest: a quiet console and no boot-time delays.
pub const CMDLINE: &str = "console=ttyS0 quiet cryptomgr.notests no_timer_check";

impl Host {
    /// A guest of 128 MiB with the small userland. `tables` (disks, nets) is appended.
    pub fn small_guest(&self, vcpus: u8, tables: &str) -> String {
        self.guest_config(vcpus, "128MiB", "initramfs", "", tables)
    }

    /// A guest that boots `vmlinux` with an initramfs of the kit. `more` is appended to its command
    /// line, `tables` to its configuration.
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

/// A `[[disk]]` table. `more` is appended to it.
pub fn disk(id: &str, path: &str, more: &str) -> String {
    format!("[[disk]]\nid = \"{id}\"\npath = \"{path}\"\n{more}\n")
}
