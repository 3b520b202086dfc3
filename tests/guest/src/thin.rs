//! Thin disks as a real guest and its host see them: what the guest's file systems free, the host
//! has again.
//!
//! By default each of the guest's file systems, each store of the host's, each bus and both ways to
//! give space back have their turn; with `BULKHEAD_THIN=all`, each with each (`make thin`), and
//! reads under a trim are counted for long enough to ask how long they take.

#![allow(clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Guest, Host, disk};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// What a guest writes and deletes.
const WRITTEN: u64 = 400 * MIB;
/// How much of it may not come back: file systems keep what they made of their own.
const TOLERANCE: u64 = WRITTEN / 50;
const WRITE_TIMEOUT: Duration = Duration::from_secs(900);
/// How long file systems may take to discard behind a deletion.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a crossing may take to be told. The host is looked at every two seconds.
const EVENT_TIMEOUT: Duration = Duration::from_secs(120);
/// What Linux says of a unit attention 38h/07h.
const SOFT_THRESHOLD: &str = "thin provisioning soft threshold";

/// What holds the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Store {
    Ext4,
    Xfs,
    Loop,
    /// A ZFS volume. It frees 16 KiB at a time, which is more than a block of the guest's file
    /// systems.
    Zvol,
}

/// How a guest gives space back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Fstrim,
    MountedDiscard,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bus {
    Block,
    Scsi,
}

impl Bus {
    /// What a disk's table says of it.
    fn setting(self) -> &'static str {
        match self {
            Self::Block => "",
            Self::Scsi => "bus = \"virtio-scsi\"\n",
        }
    }

    /// The guest's name of its disk of that number. SCSI disks are found all at once and named as
    /// they come.
    fn node(self, number: usize) -> String {
        match self {
            Self::Block => format!("/dev/vd{}", ["a", "b", "c"][number]),
            Self::Scsi => format!("/dev/$(ls /sys/bus/scsi/devices/0:0:0:{number}/block)"),
        }
    }
}

/// A guest with a disk for each of its file systems, and a control socket.
struct Rig<'host> {
    host: &'host Host,
    guest: Guest<'host>,
    store: Store,
    /// The files of the host whose blocks count, or the volumes, by disk.
    files: Vec<String>,
}

impl<'host> Rig<'host> {
    fn start(host: &'host Host, store: Store, bus: Bus, disks: &[&str]) -> Result<Self> {
        let files: Vec<_> = match store {
            Store::Zvol => disks.iter().map(ToString::to_string).collect(),
            _ => {
                let scratch = host.scratch(if store == Store::Xfs { "xfs" } else { "ext4" })?;
                disks.iter().map(|id| format!("{scratch}/{id}.img")).collect()
            }
        };
        let mut tables = format!("[control]\nsocket = \"{}\"\n", host.path("control.sock"));
        for (id, file) in disks.iter().zip(&files) {
            if store != Store::Zvol {
                host.run(&format!("truncate -s 1G {file}"))?;
            }
            let path = match store {
                Store::Loop => host.run(&format!("modprobe loop; losetup -f --show {file}"))?,
                Store::Ext4 | Store::Xfs => file.clone(),
                Store::Zvol => host.volume(file, "1G", "-b 16k")?,
            };
            tables += &disk(id, path.trim(), bus.setting());
        }
        let guest = host.boot(&host.guest_config(2, "512MiB", "initramfs-tools", "", &tables))?;
        Ok(Self { host, guest, store, files })
    }

    /// Bytes that the image of a disk takes on the host.
    fn allocated(&self, number: usize) -> Result<u64> {
        if self.store == Store::Zvol {
            return self.host.referenced(&self.files[number]);
        }
        let blocks = self.host.run(&format!("sync; stat -c %b {}", self.files[number]))?;
        Ok(blocks.trim().parse::<u64>().context("reading a number of blocks")? * 512)
    }

    fn ctl(&self, arguments: &str) -> Result<String> {
        let (bulkhead, socket) = (self.host.path("bulkhead"), self.host.path("control.sock"));
        self.host.run(&format!("{bulkhead} ctl {socket} {arguments}"))
    }

    /// What became of what the guest discarded.
    fn trimmed(&self, id: &str) -> Result<Value> {
        let disk: Value = serde_json::from_str(&self.ctl(&format!("stats {id} --json"))?)?;
        Ok(disk["trimmed"].clone())
    }

    fn asked(&self, id: &str) -> Result<u64> {
        self.trimmed(id)?["asked_bytes"].as_u64().context("no count of bytes")
    }

    /// Waits until the image of a disk takes no more than that, or until it will not.
    fn wait_for(&self, number: usize, bytes: u64) -> Result<()> {
        let start = Instant::now();
        while self.allocated(number)? > bytes && start.elapsed() < DISCARD_TIMEOUT {
            thread::sleep(Duration::from_secs(1));
        }
        Ok(())
    }
}

/// Makes a file system with nothing left to do for later, which would change what it takes, and
/// mounts it.
fn make_and_mount(file_system: &str, node: &str, way: Way) -> String {
    let make = match file_system {
        "ext4" => "mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0",
        "xfs" => "mkfs.xfs -q -f",
        _ => "mkfs.btrfs -q -f",
    };
    // Left to itself btrfs discards, but minutes later.
    let option = match (way, file_system) {
        (Way::Fstrim, _) => "nodiscard",
        (Way::MountedDiscard, "btrfs") => "discard=sync",
        (Way::MountedDiscard, _) => "discard",
    };
    format!("{make} {node} && mount -t {file_system} -o {option} {node} /mnt && sync")
}

/// A guest of one rig: which of its file systems, and how.
struct Round {
    store: Store,
    bus: Bus,
    way: Way,
    file_systems: &'static [&'static str],
}

/// Whether all is to be shown, whatever it takes.
fn is_thorough() -> bool {
    std::env::var_os("BULKHEAD_THIN").is_some_and(|wanted| wanted == "all")
}

/// Everything has a turn on each store: both buses, both ways, two file systems.
fn rounds(store: Store) -> Vec<Round> {
    if is_thorough() {
        let buses = [Bus::Block, Bus::Scsi];
        let ways = [Way::Fstrim, Way::MountedDiscard];
        let each = buses.into_iter().flat_map(|bus| ways.map(|way| (bus, way)));
        let file_systems = &["ext4", "xfs", "btrfs"];
        return each.map(|(bus, way)| Round { store, bus, way, file_systems }).collect();
    }
    let (bus, way, file_systems): (_, _, &[_]) = match store {
        Store::Ext4 => (Bus::Block, Way::Fstrim, &["xfs", "btrfs"]),
        Store::Xfs => (Bus::Scsi, Way::MountedDiscard, &["ext4", "xfs"]),
        Store::Loop => (Bus::Block, Way::Fstrim, &["ext4", "btrfs"]),
        Store::Zvol => {
            let file_systems = &["ext4"];
            let turns = [(Bus::Block, Way::Fstrim), (Bus::Scsi, Way::MountedDiscard)];
            return turns.map(|(bus, way)| Round { store, bus, way, file_systems }).into();
        }
    };
    vec![Round { store, bus, way, file_systems }]
}

/// What became of one disk, in bytes that its image took on the host.
#[derive(Debug)]
struct Outcome {
    empty: u64,
    full: u64,
    after: u64,
}

impl Round {
    fn run(&self) -> Result<()> {
        let Self { store, bus, way, file_systems } = self;
        let name = format!("thin-{store:?}-{bus:?}-{way:?}").to_lowercase();
        let host = match store {
            Store::Zvol => Host::start_with_zfs(&name),
            _ => Host::start(&name),
        }?;
        let rig = Rig::start(&host, *store, *bus, file_systems)?;
        // No two blocks of it are alike, and nothing compresses.
        rig.guest.run("head -c 20971520 /dev/urandom >/tmp/noise")?;
        for (number, file_system) in file_systems.iter().enumerate() {
            let start = Instant::now();
            let outcome = self.write_and_delete(&rig, number, file_system)?;
            let Outcome { empty, full, after } = outcome;
            println!(
                "{file_system:5} {bus:5?} {store:4?} {way:14?} {empty:>9} {full:>9} {after:>9} bytes, {:.2} % kept, {:.0} s",
                percent(after.saturating_sub(empty)),
                start.elapsed().as_secs_f32()
            );
            assert!(full + TOLERANCE >= empty + WRITTEN, "{outcome:?}");
            assert!(after <= empty + TOLERANCE, "{outcome:?}");
        }
        assert_eq!(rig.guest.power_off()?, 0);
        Ok(())
    }

    fn write_and_delete(&self, rig: &Rig<'_>, number: usize, file_system: &str) -> Result<Outcome> {
        rig.guest.run(&make_and_mount(file_system, &self.bus.node(number), self.way))?;
        let empty = rig.allocated(number)?;
        rig.guest.run_for(
            "for n in $(seq 20); do cat /tmp/noise >/mnt/$n || exit 1; done; sync",
            WRITE_TIMEOUT,
        )?;
        let full = rig.allocated(number)?;
        let before = rig.asked(file_system)?;
        rig.guest.run("rm /mnt/[0-9]* && sync")?;
        match self.way {
            Way::Fstrim => {
                let said = rig.guest.run("fstrim -v /mnt")?;
                let asked = rig.asked(file_system)? - before;
                assert!(says_truly(&said, asked, file_system)?, "{asked} bytes asked; {said}");
            }
            // What has not been discarded when it is unmounted, ext4 does not discard any more.
            Way::MountedDiscard => rig.wait_for(number, empty + TOLERANCE)?,
        }
        rig.guest.run("umount /mnt")?;
        let after = rig.allocated(number)?;
        let account = rig.trimmed(file_system)?;
        // Extents of the guest's may end within a granule.
        let skipped = if self.store == Store::Zvol { TOLERANCE } else { 0 };
        assert!(account["skipped_bytes"].as_u64() <= Some(skipped), "{account}");
        Ok(Outcome { empty, full, after })
    }
}

/// Whether `fstrim -v` speaks of as many bytes as the disk counted. XFS names all that it went
/// through.
fn says_truly(said: &str, asked: u64, file_system: &str) -> Result<bool> {
    let digits: String =
        said.rsplit(": ").next().unwrap_or_default().chars().filter(char::is_ascii_digit).collect();
    let trimmed: u64 = digits.parse().with_context(|| format!("reading {said:?}"))?;
    let exact = file_system != "xfs";
    Ok(asked >= WRITTEN && if exact { asked == trimmed } else { asked <= trimmed })
}

#[allow(clippy::cast_precision_loss, reason = "to print it")]
fn percent(bytes: u64) -> f64 {
    bytes as f64 * 100.0 / WRITTEN as f64
}

fn space_comes_back(store: Store) -> Result<()> {
    rounds(store).iter().try_for_each(Round::run)
}

#[test]
fn space_comes_back_on_ext4() -> Result<()> {
    space_comes_back(Store::Ext4)
}

#[test]
fn space_comes_back_on_xfs() -> Result<()> {
    space_comes_back(Store::Xfs)
}

#[test]
fn space_comes_back_on_a_loop_device() -> Result<()> {
    space_comes_back(Store::Loop)
}

#[test]
fn space_comes_back_on_a_zfs_volume() -> Result<()> {
    space_comes_back(Store::Zvol)
}

/// Reads at random while the guest trims, on one disk. What it collects is of all rounds, in files
/// in the guest.
struct Reader<'host> {
    rig: Rig<'host>,
}

/// One round in the guest: `with` gets how long each read took while `fstrim` ran, `without` those
/// of the seconds before. The log's clock is that of /proc/uptime.
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
        let rig = Rig::start(host, Store::Xfs, bus, &["data"])?;
        rig.guest.run(&make_and_mount("ext4", &bus.node(0), Way::Fstrim))?;
        rig.guest.run_for(
            "dd if=/dev/zero of=/mnt/read bs=1M count=64 oflag=direct 2>/dev/null && fstrim /mnt",
            WRITE_TIMEOUT,
        )?;
        rig.guest.run(&format!("cat >/run/round <<'END'{READ_AND_TRIM}\nEND"))?;
        Ok(Self { rig })
    }

    /// One round; how many seconds its trim took.
    fn round(&self) -> Result<f64> {
        let before = self.freed()?;
        let said = self.rig.guest.run_for("sh /run/round", WRITE_TIMEOUT)?;
        let (from, to) = said.trim().split_once(' ').with_context(|| said.clone())?;
        let freed = self.freed()? - before;
        assert!(freed >= WRITTEN - TOLERANCE, "{freed} bytes were freed");
        Ok(to.parse::<f64>()? - from.parse::<f64>()?)
    }

    fn freed(&self) -> Result<u64> {
        self.rig.trimmed("data")?["freed_bytes"].as_u64().context("no count of bytes")
    }

    /// How many reads a file has, and their 99th percentile in milliseconds.
    fn percentile(&self, file: &str) -> Result<(u64, f64)> {
        let said = self.rig.guest.run(&format!(
            "sort -n /run/{file} | awk '{{ took[NR] = $1 }} END {{ print NR, took[int(NR * 99 / 100 + 0.5)] / 1e6 }}'"
        ))?;
        let (count, p99) = said.trim().split_once(' ').with_context(|| said.clone())?;
        Ok((count.parse()?, p99.parse()?))
    }
}

/// Reads go on while space is given back. How long they take is asked only of many rounds: the
/// emulated host's clock is noisy.
fn reads_go_on(bus: Bus) -> Result<()> {
    let rounds: u32 = if is_thorough() { 10 } else { 1 };
    let host = Host::start(&format!("thin-reads-{bus:?}").to_lowercase())?;
    let reader = Reader::start(&host, bus)?;
    let took = (0..rounds).map(|_| reader.round()).sum::<Result<f64>>()?;
    let (count, with) = reader.percentile("with")?;
    let (count_without, without) = reader.percentile("without")?;
    println!(
        "{bus:?}: p99 {with:.1} ms of {count} reads under {rounds} trims of {took:.1} s, {without:.1} ms of {count_without} without: {:.2}",
        with / without
    );
    assert!(count > 0, "no read ended during a trim");
    assert!(!is_thorough() || with <= 2.0 * without);
    assert_eq!(reader.rig.guest.power_off()?, 0);
    Ok(())
}

#[test]
fn reads_go_on_over_virtio_blk_while_space_is_given_back() -> Result<()> {
    reads_go_on(Bus::Block)
}

#[test]
fn reads_go_on_over_virtio_scsi_while_space_is_given_back() -> Result<()> {
    reads_go_on(Bus::Scsi)
}

/// A disk on a file system of the host's that is to be filled.
struct Filling<'host> {
    host: &'host Host,
    rig: Rig<'host>,
}

impl<'host> Filling<'host> {
    fn start(host: &'host Host, bus: Bus) -> Result<Self> {
        let (scratch, small) = (host.scratch("ext4")?, host.path("small"));
        let image = format!("{small}/data.img");
        host.run(&format!(
            "modprobe loop; truncate -s 256M {scratch}/small && mkfs.ext4 -q -F {scratch}/small && mkdir {small} && \
             mount -o loop {scratch}/small {small} && truncate -s 64M {image}"
        ))?;
        let settings = format!("{}thin = {{ soft_limit = \"60%\" }}", bus.setting());
        let tables = disk("data", &image, &settings)
            + &format!("[control]\nsocket = \"{}\"\n", host.path("control.sock"));
        let guest = host.boot(&host.guest_config(1, "512MiB", "initramfs-tools", "", &tables))?;
        Ok(Self { host, rig: Rig { host, guest, store: Store::Ext4, files: vec![image] } })
    }

    fn reached(&self) -> Result<Value> {
        let disk: Value = serde_json::from_str(&self.rig.ctl("stats data --json")?)?;
        Ok(disk["soft_limit"]["reached"].clone())
    }

    /// What happened to the disk so far.
    fn events(&self) -> Result<Vec<String>> {
        let events: Value = serde_json::from_str(&self.rig.ctl("events --json")?)?;
        let events = events["events"].as_array().context("no events")?;
        assert!(events.iter().all(|event| event["disk"] == "data"), "{events:?}");
        Ok(events.iter().filter_map(|event| event["event"].as_str().map(str::to_owned)).collect())
    }

    fn wait_for_events(&self, expected: &[&str]) -> Result<()> {
        let start = Instant::now();
        loop {
            let events = self.events()?;
            if events == expected {
                return Ok(());
            }
            ensure!(
                events.len() < expected.len() && start.elapsed() < EVENT_TIMEOUT,
                "{events:?} and not {expected:?}"
            );
            thread::sleep(Duration::from_millis(500));
        }
    }

    /// Something else takes three quarters of what is left to it of the file system.
    fn fill(&self) -> Result<()> {
        let small = self.host.path("small");
        self.host.run(&format!(
            "fallocate -l $(( ($(stat -f -c '%a * %S' {small})) / 4 * 3 )) {small}/ballast"
        ))?;
        Ok(())
    }

    fn empty(&self) -> Result<()> {
        self.host.run(&format!("rm {}", self.host.path("small/ballast")))?;
        Ok(())
    }

    /// The guest reads and writes, and its kernel has spoken of a threshold so many times.
    fn guest_heard(&self, bus: Bus) -> Result<usize> {
        let node = bus.node(0);
        self.rig.guest.run(&format!(
            "dd if=/dev/zero of={node} bs=4k count=1 oflag=direct 2>/dev/null && dd if={node} of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null"
        ))?;
        // Not the whole log: the console is slow, and the emulated processor not to be trusted with
        // so many exits.
        let log = self.rig.guest.run("dmesg | grep -i -e 'provisioning' -e 'I/O error' || true")?;
        assert!(!log.contains("I/O error"), "{log}");
        let heard = log.lines().filter(|line| line.contains(SOFT_THRESHOLD));
        Ok(heard.inspect(|line| println!("{line}")).count())
    }
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        // Where the host is this machine.
        let small = self.host.path("small");
        self.host.try_run(&format!("umount -l {small}")).ok();
    }
}

/// Each crossing is told once, to whoever asks the control socket and, where the bus has a way to,
/// to the guest.
fn a_store_that_fills_is_told_of(bus: Bus) -> Result<()> {
    let host = Host::start(&format!("thin-limit-{bus:?}").to_lowercase())?;
    let filling = Filling::start(&host, bus)?;
    let heard = |times| if bus == Bus::Scsi { times } else { 0 };
    let (reached, receded) = ("soft_limit_reached", "soft_limit_receded");
    thread::sleep(Duration::from_secs(5)); // Longer than two looks at the store.
    assert_eq!((filling.reached()?, filling.events()?), (Value::Bool(false), vec![]));
    assert_eq!(filling.guest_heard(bus)?, 0);

    filling.fill()?;
    filling.wait_for_events(&[reached])?;
    assert_eq!(filling.reached()?, Value::Bool(true));
    let status = filling.rig.ctl("status")?;
    assert!(status.contains("warning: disk data: soft limit: 60 % of the space"), "{status}");
    assert_eq!(filling.guest_heard(bus)?, heard(1));
    assert_eq!(filling.guest_heard(bus)?, heard(1), "once for each crossing");

    filling.empty()?;
    filling.wait_for_events(&[reached, receded])?;
    assert_eq!(filling.reached()?, Value::Bool(false));
    assert!(!filling.rig.ctl("status")?.contains("soft limit"));
    assert_eq!(filling.guest_heard(bus)?, heard(1));

    filling.fill()?;
    filling.wait_for_events(&[reached, receded, reached])?;
    assert_eq!(filling.guest_heard(bus)?, heard(2));
    println!("{}", filling.rig.ctl("events")?);
    assert_eq!(filling.rig.guest.power_off()?, 0);
    let log = filling.rig.guest.vmm_output()?;
    assert_eq!(log.matches("soft limit reached: 60 % of the space").count(), 2, "{log}");
    Ok(())
}

#[test]
fn a_store_that_fills_is_told_of_over_virtio_blk() -> Result<()> {
    a_store_that_fills_is_told_of(Bus::Block)
}

#[test]
fn a_store_that_fills_is_told_of_over_virtio_scsi() -> Result<()> {
    a_store_that_fills_is_told_of(Bus::Scsi)
}
