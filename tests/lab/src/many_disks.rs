//! A set of disks that differ in size and serial number, to check that none is mistaken for
//! another.

use anyhow::{Result, ensure};

use super::guest::Guest;
use super::host::Host;

const MIB: u64 = 1 << 20;

/// Disks number 1 to `count`; disk N has N MiB.
pub struct ManyDisks<'host> {
    host: &'host Host,
    count: u64,
}

impl<'host> ManyDisks<'host> {
    /// Makes the images of `count` disks, at most 99.
    pub fn make(host: &'host Host, count: u64) -> Result<Self> {
        let disks = Self { host, count };
        host.run(&disks.each(|n| format!("truncate -s {n}M {}; ", disks.image(n))))?;
        Ok(disks)
    }

    fn each(&self, text: impl FnMut(u64) -> String) -> String {
        (1..=self.count).map(text).collect()
    }

    fn name(n: u64) -> String {
        format!("disk-{n:02}")
    }

    fn image(&self, n: u64) -> String {
        self.host.path(&format!("{}.img", Self::name(n)))
    }

    /// Their configuration: `table` of each disk's number, name and image.
    pub fn tables(&self, mut table: impl FnMut(u64, &str, &str) -> String) -> String {
        self.each(|n| table(n, &Self::name(n), &self.image(n)))
    }

    /// Checks serial number and size of each disk in the guest, has the guest write each disk's
    /// serial number to its sector 7, and checks the images. `pattern` matches the disks in
    /// `/sys/block`; `serial` is a command that prints the serial number of the disk with the sysfs
    /// folder `$disk`.
    pub fn check_identities(&self, guest: &Guest<'_>, pattern: &str, serial: &str) -> Result<()> {
        let seen = guest.run(&format!(
            "for disk in /sys/block/{pattern}; do echo $({serial}) $(cat $disk/size); done | sort"
        ))?;
        let expected = self.each(|n| format!("{} {}\n", Self::name(n), n * MIB / 512));
        ensure!(seen.trim() == expected.trim(), "the guest sees {seen}");
        guest.run(&format!(
            "for disk in /sys/block/{pattern}; do {serial} | dd bs=512 conv=sync of=/dev/${{disk##*/}} \
             seek=7 oflag=direct 2>&1 || exit 1; done"
        ))?;
        for n in 1..=self.count {
            let written = self.host.run(&format!("head -c 3591 {} | tail -c 7", self.image(n)))?;
            ensure!(written == Self::name(n), "{} holds {written}", Self::name(n));
        }
        Ok(())
    }
}
