//! Many disks at once: each has the size, the serial number and the content of its own image.

use anyhow::{Result, ensure};

use super::{Guest, Host};

const MIB: u64 = 1 << 20;

/// Disks whose sizes in MiB are their numbers, from one on.
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

    /// Their tables in the configuration, each made of its number, its name and its image.
    pub fn tables(&self, mut table: impl FnMut(u64, &str, &str) -> String) -> String {
        self.each(|n| table(n, &Self::name(n), &self.image(n)))
    }

    /// The guest finds all of them: `pattern` is what it calls them, and `serial` the command that prints the serial number of
    /// `$disk`, its folder in `/sys/block`. Each writes its own name to its sector 7, and each name is found in its own image.
    pub fn are_told_apart(&self, guest: &Guest<'_>, pattern: &str, serial: &str) -> Result<()> {
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
