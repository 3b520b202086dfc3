//! Reads continue while the guest trims the same disk.

use anyhow::{Context, Result};
use lab::Host;

use super::{
    Bus, Method, Store, TOLERANCE, ThinGuest, WRITE_TIMEOUT, WRITTEN, is_thorough, make_and_mount,
};

/// A guest that reads at random while it trims the same disk. Files in the guest collect the
/// latencies of all rounds.
struct Reader<'host> {
    guest: ThinGuest<'host>,
}

/// One round in the guest: `with` collects the latencies of reads while `fstrim` runs, `without`
/// those of the three seconds before. The clock of fio's log is that of /proc/uptime.
const READ_AND_TRIM: &str = r#"
dd if=/dev/zero of=/mnt/deleted bs=1M count=400 oflag=direct 2>/dev/null; sync; rm /mnt/deleted; sync
fio --name=reads --filename=/mnt/read --rw=randread --bs=4k --size=64m --direct=1 --ioengine=libaio --iodepth=4 --time_based --runtime=300 \
    --write_lat_log=/run/reads --log_alternate_epoch=1 --log_alternate_epoch_clock_id=1 >/run/fio.log 2>&1 & fio=$!
sleep 5; read from _ </proc/uptime; fstrim /mnt; read to _ </proc/uptime; kill $fio; wait $fio
awk -F, -v from=$from -v to=$to '
    $1 >= from * 1000 && $1 <= to * 1000 { print $2 >> "/run/with" }
    $1 >= (from - 3) * 1000 && $1 < from * 1000 { print $2 >> "/run/without" }' /run/reads_clat.1.log
echo $from $to"#;

impl<'host> Reader<'host> {
    fn start(host: &'host Host, bus: Bus) -> Result<Self> {
        let guest = ThinGuest::start(host, Store::Xfs, bus, &["data"])?;
        guest.guest.run(&make_and_mount("ext4", &bus.node(0), Method::Fstrim))?;
        guest.guest.run_for(
            "dd if=/dev/zero of=/mnt/read bs=1M count=64 oflag=direct 2>/dev/null && fstrim /mnt",
            WRITE_TIMEOUT,
        )?;
        guest.guest.run(&format!("cat >/run/round <<'END'{READ_AND_TRIM}\nEND"))?;
        Ok(Self { guest })
    }

    /// Runs one round and returns the seconds of its trim.
    fn round(&self) -> Result<f64> {
        let before = self.freed()?;
        let output = self.guest.guest.run_for("sh /run/round", WRITE_TIMEOUT)?;
        let (from, to) = output.trim().split_once(' ').with_context(|| output.clone())?;
        let freed = self.freed()? - before;
        assert!(freed >= WRITTEN - TOLERANCE, "{freed} bytes were freed");
        Ok(to.parse::<f64>()? - from.parse::<f64>()?)
    }

    fn freed(&self) -> Result<u64> {
        self.guest.discard_stats("data")?["freed_bytes"].as_u64().context("no count of bytes")
    }

    /// Number of reads in a file, and their 99th percentile latency in milliseconds.
    fn percentile(&self, file: &str) -> Result<(u64, f64)> {
        let output = self.guest.guest.run(&format!(
            "sort -n /run/{file} | awk '{{ took[NR] = $1 }} END {{ print NR, took[int(NR * 99 / 100 + 0.5)] / 1e6 }}'"
        ))?;
        let (count, p99) = output.trim().split_once(' ').with_context(|| output.clone())?;
        Ok((count.parse()?, p99.parse()?))
    }
}

/// Checks that reads complete during a trim. Compares latencies only over many rounds: the emulated
/// host's clock is noisy.
fn check_reads(bus: Bus) -> Result<()> {
    let rounds: u32 = if is_thorough() { 10 } else { 1 };
    let host = Host::start(&format!("thin-reads-{bus:?}").to_lowercase())?;
    let reader = Reader::start(&host, bus)?;
    let seconds = (0..rounds).map(|_| reader.round()).sum::<Result<f64>>()?;
    let (count, with) = reader.percentile("with")?;
    let (count_without, without) = reader.percentile("without")?;
    println!(
        "{bus:?}: p99 {with:.1} ms of {count} reads under {rounds} trims of {seconds:.1} s, {without:.1} ms of {count_without} without: {:.2}",
        with / without
    );
    assert!(count > 0, "no read completed during a trim");
    assert!(!is_thorough() || with <= 2.0 * without);
    assert_eq!(reader.guest.guest.power_off()?, 0);
    Ok(())
}

#[test]
#[ignore = "long: make guests"]
fn virtio_blk_reads_complete_during_trim() -> Result<()> {
    check_reads(Bus::Block)
}

#[test]
#[ignore = "long: make guests"]
fn virtio_scsi_reads_complete_during_trim() -> Result<()> {
    check_reads(Bus::Scsi)
}
