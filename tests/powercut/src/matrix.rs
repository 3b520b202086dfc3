//! Cuts the power of a row's host again and again, and counts what is left.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fixtures::Random;
use lab::Host;
use writer::Records;

use super::check::{Acknowledged, Examined, check, zfs_host};
use super::cut::{CutDisk, copy_sparse};
use super::prepare::{DEVICE, SLOTS, Saved, WRITER};
use super::rows::{Backing, Bus, Row, Workload};
use super::server::Server;
use super::store::{Requests, Store};

/// Time limit of the first flush.
const PATIENCE: Duration = Duration::from_secs(60);
/// Attempts of a cut: a host that hangs (docs/lab.md) is no finding.
const ATTEMPTS: u32 = 3;
/// Name of the disk's file.
const DISK: &str = "disk";
/// Longest time from the first flush to the cut.
const LONGEST: usize = 1500;

/// The results of a row's cuts.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Power cuts.
    pub cuts: u64,
    /// Hosts that hung or ended before the cut, and were started again.
    pub repeated: u64,
    /// The reason for the last of them.
    pub repeat_reason: Option<String>,
    /// Disk states that were drawn from those cuts and examined.
    pub states: u64,
    /// Checksums of the guest's disk in them.
    pub contents: BTreeSet<u32>,
    /// Records that were acknowledged as flushed, of all cuts.
    pub flushed: u64,
    /// Of all states: flushed records that were not there.
    pub flushed_lost: u64,
    /// Sectors of neither an old nor a new record.
    pub garbage: u64,
    /// States that could not be mounted or opened.
    pub unreadable: u64,
    /// Unflushed records that were not there.
    pub unflushed_lost: u64,
    /// Unflushed records that were there.
    pub unflushed_kept: u64,
    /// Records of which some sectors are older than others.
    pub torn: u64,
    /// Flushes that the disk below got.
    pub disk_flushes: u64,
    /// Writes with FUA that it got.
    pub disk_fua: u64,
    /// Writes of the host that the disk below lost, kept and tore.
    pub fates: [u64; 3],
    /// The first finding, in words.
    pub first: Option<String>,
}

/// The verdict on a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Flushed data was kept, while unflushed data was lost.
    Held,
    /// A negative control lost flushed data, and it was seen.
    Caught,
    /// Nothing unflushed was lost: flushed data had no occasion to be lost.
    ProvesNothing,
    /// Flushed data was lost.
    Lost,
    /// A negative control lost nothing.
    NotCaught,
}

impl Outcome {
    /// Whether the run is to fail.
    #[must_use]
    pub fn is_bad(self) -> bool {
        !matches!(self, Self::Held | Self::Caught)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Held => "held",
            Self::Caught => "caught",
            Self::ProvesNothing => "PROVES NOTHING",
            Self::Lost => "LOST",
            Self::NotCaught => "NOT CAUGHT",
        })
    }
}

impl Tally {
    /// The verdict on `row`, whose tally it is.
    #[must_use]
    pub fn outcome(&self, row: &Row) -> Outcome {
        let is_broken = self.flushed_lost + self.garbage + self.unreadable > 0;
        match (row.is_control(), is_broken) {
            (true, true) => Outcome::Caught,
            (true, false) => Outcome::NotCaught,
            (false, true) => Outcome::Lost,
            (false, false) if self.unflushed_lost == 0 => Outcome::ProvesNothing,
            (false, false) => Outcome::Held,
        }
    }

    fn add(&mut self, examined: Examined, seed: u64) {
        self.states += 1;
        let finding = match examined {
            Examined::Unreadable(error) => {
                self.unreadable += 1;
                error.lines().next().map(str::to_owned)
            }
            Examined::Disk(found) => {
                self.contents.insert(found.state);
                self.flushed_lost += found.flushed_lost;
                self.garbage += found.garbage;
                self.unflushed_lost += found.unflushed_lost;
                self.unflushed_kept += found.unflushed_kept;
                self.torn += found.torn;
                found.listed.first().map(ToString::to_string)
            }
        };
        if self.first.is_none() {
            self.first = finding.map(|finding| format!("seed {seed}: {finding}"));
        }
    }
}

/// How many cuts, and from which seed.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Cuts of each row; twice as many if these proved nothing. At least one in a limited time.
    pub cuts: u64,
    /// The time for all rows, which are cut until it is over.
    pub time: Option<Duration>,
    /// States that are examined of each cut.
    pub states: u64,
    /// The first seed.
    pub seed: u64,
}

impl Plan {
    /// Whether a row has had its cuts. `end` is that of its time.
    fn is_done(&self, row: &Row, tally: &Tally, end: Option<Instant>) -> bool {
        let is_decided = !matches!(tally.outcome(row), Outcome::ProvesNothing | Outcome::NotCaught);
        match end {
            Some(end) => tally.cuts > 0 && Instant::now() > end,
            None if is_decided => tally.cuts >= self.cuts,
            None => tally.cuts >= 2 * self.cuts,
        }
    }
}

/// Runs rows that share a host. `report` gets each row's tally after each cut, and whether it was
/// the last one. `worker` is another number for each group that runs at the same time.
///
/// # Errors
///
/// The lab failed, which is no verdict on the row.
pub fn run_group(
    rows: &[Row],
    plan: Plan,
    worker: usize,
    mut report: impl FnMut(&Row, &Tally, bool),
) -> Result<()> {
    let until = plan.time.map(|time| Instant::now() + time);
    let first = rows.first().context("no rows")?;
    let saved = Saved::make(first, worker).with_context(|| format!("preparing {first}"))?;
    let needs_zfs = first.backing == Backing::Zvol;
    let zfs_host = needs_zfs.then(|| zfs_host(worker)).transpose();
    let zfs_host = zfs_host.context("preparing a host with ZFS")?;
    for (row, rows_left) in rows.iter().zip((1..=rows.len()).rev()) {
        let mut tally = Tally::default();
        let end = until.map(|until| {
            let now = Instant::now();
            now + until.saturating_duration_since(now) / u32::try_from(rows_left).unwrap_or(1)
        });
        while !plan.is_done(row, &tally, end) {
            let seed = plan.seed.wrapping_add(tally.cuts);
            cut(row, &saved, seed, &mut tally)
                .and_then(|cut| examine_states(row, zfs_host.as_ref(), cut, plan, seed, &mut tally))
                .with_context(|| format!("{row}, seed {seed}"))?;
            report(row, &tally, plan.is_done(row, &tally, end));
        }
    }
    Ok(())
}

/// A cut, before the states are drawn.
struct Cut {
    folder: tempfile::TempDir,
    disk: CutDisk,
    requests: Requests,
    acknowledged: Acknowledged,
    random: Random,
}

impl Cut {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Cuts the power once. A host that hangs is started again.
fn cut(row: &Row, saved: &Saved, seed: u64, tally: &mut Tally) -> Result<Cut> {
    for _ in 1..ATTEMPTS {
        match cut_once(row, saved, seed) {
            Ok(cut) => return Ok(cut),
            Err(error) => {
                tally.repeated += 1;
                tally.repeat_reason = Some(format!("{error:#}"));
            }
        }
    }
    cut_once(row, saved, seed)
}

fn cut_once(row: &Row, saved: &Saved, seed: u64) -> Result<Cut> {
    let folder = tempfile::tempdir_in(fixtures::scratch())?;
    let (file, socket) = (folder.path().join(DISK), folder.path().join("nbd.sock"));
    copy_sparse(&saved.disk(), &file)?;
    let store = Store::new(File::options().read(true).write(true).open(&file)?, row.lie)?;
    let store = store.with_map(saved.map.clone());
    let server = Server::start(store, &socket)?;
    let host = saved.restore(&socket)?;
    let mut random = Random::new(seed);
    let (disk, requests, acknowledged) = cut_while_writing(&host, &server, row, seed, &mut random)?;
    Ok(Cut { folder, disk, requests, acknowledged, random })
}

/// Draws states of a cut and examines them.
fn examine_states(
    row: &Row,
    zfs_host: Option<&Saved>,
    mut cut: Cut,
    plan: Plan,
    seed: u64,
    tally: &mut Tally,
) -> Result<()> {
    tally.cuts += 1;
    tally.flushed += cut.acknowledged.flushed;
    tally.disk_flushes += cut.requests.flushes;
    tally.disk_fua += cut.requests.fua;
    // A pool is imported by an emulated host, which takes longer than a mount.
    let states = if zfs_host.is_some() { plan.states.min(1) } else { plan.states };
    let records = Records::new(SLOTS, seed);
    let state = cut.path("state");
    for _ in 0..states {
        let fates = cut.disk.make_state(cut.random.next(), &cut.path(DISK), &state)?;
        tally.fates[0] += fates.lost;
        tally.fates[1] += fates.kept;
        tally.fates[2] += fates.torn;
        let folder = cut.folder.path();
        tally.add(check(row, zfs_host, &state, folder, &records, cut.acknowledged)?, seed);
    }
    Ok(())
}

fn cut_while_writing(
    host: &Host,
    server: &Server,
    row: &Row,
    run: u64,
    random: &mut Random,
) -> Result<(CutDisk, Requests, Acknowledged)> {
    if row.is_host_fua {
        // QEMU does not save whether its write cache is on.
        host.run(&format!(
            "cd /sys/block/$(basename $(readlink -f {DEVICE})) && echo 'write back' >cache_type && \
             echo 'write through' >cache_type && grep -q through queue/write_cache"
        ))?;
    }
    let guest = host.saved_guest(0)?;
    let device = if row.bus == Bus::Block { "vda" } else { "sda" };
    let way = match row.workload {
        Workload::Overwrite | Workload::FirstWrites => "flush",
        Workload::Settle => "settle",
        Workload::Dsync => "dsync",
    };
    guest.send(&format!("#1 {WRITER} /dev/{device} {SLOTS} {run} {way}\n"))?;
    // The first line is of before the first flush.
    let mut first = guest.wait_line("##", PATIENCE)?;
    while first.starts_with("##ACK 0 ") {
        first = guest.wait_line("##", PATIENCE)?;
    }
    if !first.starts_with("##ACK") {
        bail!("the writer says {first}");
    }
    let delay = u64::try_from(random.below(LONGEST))?;
    thread::sleep(Duration::from_millis(delay));
    let requests = server.requests().context("the power is on")?;
    let disk = server.cut()?;
    host.cut_power()?;
    let lines = guest.lines_until_cut("##", PATIENCE)?;
    let last = lines.last().unwrap_or(&first);
    let mut numbers = last.strip_prefix("##ACK ").context("an error of the writer")?.split(' ');
    let mut next = || -> Result<u64> { Ok(numbers.next().context("two numbers")?.trim().parse()?) };
    let acknowledged = Acknowledged { flushed: next()?, issued: next()? };
    Ok((disk, requests, acknowledged))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use writer::Findings;

    use super::{Examined, Outcome, Plan, Row, Tally};
    use crate::rows::ROWS;

    fn outcome(row: &Row, examined: impl IntoIterator<Item = Examined>) -> Outcome {
        let mut tally = Tally::default();
        examined.into_iter().for_each(|one| tally.add(one, 1));
        tally.outcome(row)
    }

    fn disk(flushed_lost: u64, garbage: u64, unflushed_lost: u64) -> Examined {
        Examined::Disk(Findings { flushed_lost, garbage, unflushed_lost, ..Findings::default() })
    }

    #[test]
    fn verdict_follows_the_worst_state() {
        let (Some(honest), Some(control)) =
            (ROWS.iter().find(|row| !row.is_control()), ROWS.iter().find(|row| row.is_control()))
        else {
            unreachable!("there are both");
        };
        assert_eq!(outcome(honest, [disk(0, 0, 0)]), Outcome::ProvesNothing);
        assert_eq!(outcome(honest, [disk(0, 0, 0), disk(0, 0, 1)]), Outcome::Held);
        assert_eq!(outcome(control, [disk(0, 0, 9)]), Outcome::NotCaught);
        let broken: [fn() -> Examined; 3] =
            [|| disk(1, 0, 0), || disk(0, 1, 0), || Examined::Unreadable(String::new())];
        for broken in broken {
            assert_eq!(outcome(honest, [broken(), disk(0, 0, 1)]), Outcome::Lost);
            assert_eq!(outcome(control, [disk(0, 0, 1), broken()]), Outcome::Caught);
        }
        let bad = [Outcome::Lost, Outcome::NotCaught, Outcome::ProvesNothing];
        assert!(bad.iter().all(|outcome| outcome.is_bad()));
    }

    #[test]
    fn a_row_that_proves_nothing_has_twice_the_cuts() {
        let row = ROWS.first().expect("there are rows");
        let plan = Plan { cuts: 3, time: None, states: 1, seed: 1 };
        let after = |cuts, unflushed_lost, end| {
            plan.is_done(row, &Tally { cuts, unflushed_lost, ..Tally::default() }, end)
        };
        assert!(!after(2, 1, None) && after(3, 1, None));
        assert!(!after(3, 0, None) && !after(5, 0, None) && after(6, 0, None));
        let (early, late) = (Instant::now(), Instant::now() + Duration::from_secs(3600));
        assert!(!after(0, 0, Some(early)) && after(1, 0, Some(early)));
        assert!(!after(9, 1, Some(late)));
    }
}
