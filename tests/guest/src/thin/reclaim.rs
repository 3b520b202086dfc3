//! Space of deleted files returns to the host: each store with some file systems, buses and
//! methods.

use std::time::Instant;

use anyhow::{Context, Result};
use lab::Host;

use super::{
    Bus, Method, Store, TOLERANCE, ThinGuest, WRITE_TIMEOUT, WRITTEN, is_thorough, make_and_mount,
};

/// One guest: its store, bus, method and file systems.
struct Round {
    store: Store,
    bus: Bus,
    method: Method,
    file_systems: &'static [&'static str],
}

/// The rounds of a store.
fn rounds(store: Store) -> Vec<Round> {
    if is_thorough() {
        let buses = [Bus::Block, Bus::Scsi];
        let methods = [Method::Fstrim, Method::MountedDiscard];
        let each = buses.into_iter().flat_map(|bus| methods.map(|method| (bus, method)));
        let file_systems = &["ext4", "xfs", "btrfs"];
        return each.map(|(bus, method)| Round { store, bus, method, file_systems }).collect();
    }
    let (bus, method, file_systems): (_, _, &[_]) = match store {
        Store::Ext4 => (Bus::Block, Method::Fstrim, &["xfs", "btrfs"]),
        Store::Xfs => (Bus::Scsi, Method::MountedDiscard, &["ext4", "xfs"]),
        Store::Loop => (Bus::Block, Method::Fstrim, &["ext4", "btrfs"]),
        Store::Zvol => {
            let file_systems = &["ext4"];
            let turns = [(Bus::Block, Method::Fstrim), (Bus::Scsi, Method::MountedDiscard)];
            return turns.map(|(bus, method)| Round { store, bus, method, file_systems }).into();
        }
    };
    vec![Round { store, bus, method, file_systems }]
}

/// Bytes allocated on the host to one disk: with an empty file system, with files, after their
/// deletion.
#[derive(Debug)]
struct Allocation {
    empty: u64,
    full: u64,
    after: u64,
}

impl Round {
    fn run(&self) -> Result<()> {
        let Self { store, bus, method, file_systems } = self;
        let name = format!("thin-{store:?}-{bus:?}-{method:?}").to_lowercase();
        let host = match store {
            Store::Zvol => Host::start_with_zfs(&name),
            _ => Host::start(&name),
        }?;
        let guest = ThinGuest::start(&host, *store, *bus, file_systems)?;
        // Random data: no equal blocks, no compression.
        guest.guest.run("head -c 20971520 /dev/urandom >/tmp/noise")?;
        for (number, file_system) in file_systems.iter().enumerate() {
            let start = Instant::now();
            let allocation = self.write_and_delete(&guest, number, file_system)?;
            let Allocation { empty, full, after } = allocation;
            println!(
                "{file_system:5} {bus:5?} {store:4?} {method:14?} {empty:>9} {full:>9} {after:>9} bytes, {:.2} % kept, {:.0} s",
                percent(after.saturating_sub(empty)),
                start.elapsed().as_secs_f32()
            );
            assert!(full + TOLERANCE >= empty + WRITTEN, "{allocation:?}");
            assert!(after <= empty + TOLERANCE, "{allocation:?}");
        }
        assert_eq!(guest.guest.power_off()?, 0);
        Ok(())
    }

    fn write_and_delete(
        &self,
        guest: &ThinGuest<'_>,
        number: usize,
        file_system: &str,
    ) -> Result<Allocation> {
        guest.guest.run(&make_and_mount(file_system, &self.bus.node(number), self.method))?;
        let empty = guest.allocated(number)?;
        guest.guest.run_for(
            "for n in $(seq 20); do cat /tmp/noise >/mnt/$n || exit 1; done; sync",
            WRITE_TIMEOUT,
        )?;
        let full = guest.allocated(number)?;
        let before = guest.discarded(file_system)?;
        guest.guest.run("rm /mnt/[0-9]* && sync")?;
        match self.method {
            Method::Fstrim => {
                let output = guest.guest.run("fstrim -v /mnt")?;
                let discarded = guest.discarded(file_system)? - before;
                assert!(
                    matches_fstrim(&output, discarded, file_system)?,
                    "{discarded} bytes discarded; {output}"
                );
            }
            // ext4 drops discards that are queued at the unmount: wait for them.
            Method::MountedDiscard => guest.wait_allocated(number, empty + TOLERANCE)?,
        }
        guest.guest.run("umount /mnt")?;
        let after = guest.allocated(number)?;
        let stats = guest.discard_stats(file_system)?;
        // Extents of the guest's file system may end within a granule.
        let skipped = if self.store == Store::Zvol { TOLERANCE } else { 0 };
        assert!(stats["skipped_bytes"].as_u64() <= Some(skipped), "{stats}");
        Ok(Allocation { empty, full, after })
    }
}

/// Whether the byte count of `fstrim -v` matches the disk's. XFS reports all bytes of the trimmed
/// range.
fn matches_fstrim(output: &str, discarded: u64, file_system: &str) -> Result<bool> {
    let digits: String = output
        .rsplit(": ")
        .next()
        .unwrap_or_default()
        .chars()
        .filter(char::is_ascii_digit)
        .collect();
    let trimmed: u64 = digits.parse().with_context(|| format!("reading {output:?}"))?;
    let exact = file_system != "xfs";
    Ok(discarded >= WRITTEN && if exact { discarded == trimmed } else { discarded <= trimmed })
}

#[allow(clippy::cast_precision_loss, reason = "printed only")]
fn percent(bytes: u64) -> f64 {
    bytes as f64 * 100.0 / WRITTEN as f64
}

fn check_store(store: Store) -> Result<()> {
    rounds(store).iter().try_for_each(Round::run)
}

#[test]
fn deleted_space_returns_on_ext4() -> Result<()> {
    check_store(Store::Ext4)
}

#[test]
#[ignore = "long: make guests"]
fn deleted_space_returns_on_xfs() -> Result<()> {
    check_store(Store::Xfs)
}

#[test]
#[ignore = "long: make guests"]
fn deleted_space_returns_on_a_loop_device() -> Result<()> {
    check_store(Store::Loop)
}

#[test]
#[ignore = "long: make guests"]
fn deleted_space_returns_on_a_zfs_volume() -> Result<()> {
    check_store(Store::Zvol)
}
