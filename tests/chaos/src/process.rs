//! One process under test with its disk, its load and its disturbance.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fixtures::tiny_guest::{BUTTON, CODE, SERIAL, elf, halt, out, power_off};
use fixtures::{Random, wait_for};
use rustix::process::Signal;

use crate::content::{BLOCK_BYTES, Content, decode};
use crate::control::{self, RESUME, STATUS};
use crate::ledger::Ledger;
use crate::load::{Load, REQUEST_LIMIT, Tally, Target};
use crate::memory_group::MemoryGroup;
use crate::program::{Program, describe};
use crate::schedule::Disturbance;
use crate::stall_clock::StallClock;
use crate::usage::Usage;

/// Time for unflushed writes before a crash.
const BEFORE_CRASH: Duration = Duration::from_millis(500);

/// A process under test.
pub(crate) struct Process {
    pub(crate) name: &'static str,
    pub(crate) program: Program,
    /// None for the machine, whose guest has no driver.
    pub(crate) load: Option<Load>,
    pub(crate) stalls: Arc<StallClock>,
    /// Whether its image is on the store that freezes.
    pub(crate) on_store: bool,
    /// The active disturbance of which one at a time is possible.
    pub(crate) exclusive: Option<Disturbance>,
    pub(crate) before: Usage,
    pub(crate) after: Usage,
    folder: PathBuf,
    image: PathBuf,
}

/// The image of a process and how it is served.
pub(crate) struct Disk<'a> {
    pub(crate) name: &'static str,
    pub(crate) image: PathBuf,
    pub(crate) keys: &'a str,
    pub(crate) on_store: bool,
}

impl Process {
    /// Prepares `bulkhead serve` of a disk in `folder`.
    pub(crate) fn service(binary: &Path, folder: &Path, disk: Disk<'_>) -> Result<Self> {
        let Disk { name, image, keys, on_store } = disk;
        let folder = folder.join(name);
        fs::create_dir(&folder)?;
        let config = format!(
            "[disk]\nid = \"data\"\npath = \"{}\"\nqueues = 2\n{keys}\n\
             [control]\nsocket = \"control.sock\"\n",
            image.display()
        );
        fs::write(folder.join("disk.toml"), config)?;
        let arguments = ["serve", "-v", "--socket", "disk.sock", "disk.toml"];
        let program = Program::new(name, binary.to_owned(), &arguments, folder.clone());
        Ok(Self::new(name, program, folder, image, on_store))
    }

    /// Prepares `bulkhead run` of a guest that writes to its console until its power button is
    /// pressed.
    pub(crate) fn machine(binary: &Path, folder: &Path, image: PathBuf) -> Result<Self> {
        let name = "machine";
        let folder = folder.join(name);
        fs::create_dir(&folder)?;
        fs::write(folder.join("kernel"), elf(&printing_guest(), CODE))?;
        let config = format!(
            "[machine]\nmemory = \"32MiB\"\nshutdown_grace = \"20s\"\n[kernel]\nimage = \"kernel\"\n\
             [console]\nfile = \"console\"\n[control]\nsocket = \"control.sock\"\n\
             [[disk]]\nid = \"data\"\npath = \"{}\"\n",
            image.display()
        );
        fs::write(folder.join("vm.toml"), config)?;
        let program =
            Program::new(name, binary.to_owned(), &["run", "-v", "vm.toml"], folder.clone());
        Ok(Self::new(name, program, folder, image, false))
    }

    fn new(
        name: &'static str,
        program: Program,
        folder: PathBuf,
        image: PathBuf,
        on_store: bool,
    ) -> Self {
        Self {
            name,
            program,
            load: None,
            stalls: Arc::default(),
            on_store,
            exclusive: None,
            before: Usage::default(),
            after: Usage::default(),
            folder,
            image,
        }
    }

    /// Starts it in the control group.
    pub(crate) fn start(&mut self, group: Option<&MemoryGroup>) -> Result<()> {
        self.program.start()?;
        if let (Some(group), Some(pid)) = (group, self.program.pid()) {
            group.add(pid).context("moving the process to its control group")?;
        }
        Ok(())
    }

    /// Starts the load of a service on disk number `disk`.
    pub(crate) fn start_load(&mut self, disk: u64, bytes: u64, random: Random) {
        let blocks = usize::try_from(bytes).unwrap() / BLOCK_BYTES;
        let target = Target { socket: self.folder.join("disk.sock"), disk, blocks };
        self.load = Some(Load::start(target, random, Arc::clone(&self.stalls)));
    }

    pub(crate) fn control_socket(&self) -> PathBuf {
        self.folder.join("control.sock")
    }

    /// Whether a signal is ending it, or it is being restarted.
    pub(crate) fn is_restarting(&self) -> bool {
        matches!(self.exclusive, Some(Disturbance::Kill | Disturbance::Terminate))
    }

    /// An error if it or its load has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        if !self.is_restarting() {
            self.program.check_runs()?;
        }
        let Some(load) = &mut self.load else { return Ok(()) };
        load.check().with_context(|| format!("the disk of {}", self.name))
    }

    /// Connections of the load, or answers to a status request.
    pub(crate) fn connections(&self) -> u32 {
        self.load.as_ref().map_or(0, Load::connections)
    }

    /// Whether the restarted process serves: its load is connected, or its control socket answers.
    pub(crate) fn serves(&self, connections_before: u32) -> bool {
        match &self.load {
            Some(load) => load.connections() > connections_before,
            None => self.status(Duration::from_millis(100)),
        }
    }

    fn status(&self, limit: Duration) -> bool {
        control::send(&self.control_socket(), STATUS, limit).is_ok_and(|code| code == 200)
    }

    /// Checks, without an active disturbance, that it answers and makes progress.
    pub(crate) fn check_progress(&self) -> Result<()> {
        let start = Instant::now();
        let answers = wait_for(|| self.status(REQUEST_LIMIT).then_some(()));
        ensure!(
            answers.is_some() && start.elapsed() < REQUEST_LIMIT,
            "{}: no status within {REQUEST_LIMIT:?}",
            self.name
        );
        if self.load.is_none() {
            let code = control::send(&self.control_socket(), RESUME, REQUEST_LIMIT)?;
            ensure!(code == 200, "{}: resume failed with {code}", self.name);
        }
        let before = self.output();
        wait_for(|| (self.output() != before).then_some(()))
            .with_context(|| format!("{} makes no progress", self.name))
    }

    /// A figure that changes while it makes progress: completed requests, or the console's size.
    fn output(&self) -> u64 {
        match &self.load {
            Some(load) => load.completed(),
            None => fs::metadata(self.folder.join("console")).map_or(0, |file| file.len()),
        }
    }

    /// Measures its resources.
    pub(crate) fn measure(&self) -> Result<Usage> {
        Usage::of(self.program.pid().context("the process runs")?)
    }

    /// Anonymous memory now or before the disturbances, whichever is more.
    pub(crate) fn anonymous_kib(&self) -> u64 {
        let now = self.measure().map_or(0, |usage| usage.anonymous_kib);
        now.max(self.before.anonymous_kib)
    }

    /// Sends SIGTERM and waits for an orderly end.
    pub(crate) fn terminate(&mut self) -> Result<()> {
        self.program.signal(Signal::TERM)?;
        let status = self.wait_exit()?;
        ensure!(status.code() == Some(0), "{} ended with {}", self.name, describe(status));
        Ok(())
    }

    /// Waits for the end of the process.
    pub(crate) fn wait_exit(&mut self) -> Result<ExitStatus> {
        let program = &mut self.program;
        wait_for(|| program.poll_exit().transpose())
            .with_context(|| format!("{} does not end", self.name))?
    }

    /// Verifies each block of the image with `check` after the process has ended. Returns the
    /// number of blocks that pass.
    pub(crate) fn verify_image(
        &self,
        disk: u64,
        ledger: &Ledger,
        check: impl Fn(&Ledger, usize, Content) -> Result<()>,
    ) -> Result<u64> {
        let image = fs::read(&self.image)?;
        for block in 0..ledger.len() {
            let bytes = image.get(block * BLOCK_BYTES..).and_then(|rest| rest.get(..BLOCK_BYTES));
            decode(disk, block as u64, bytes.context("the image is short")?)
                .map_err(anyhow::Error::msg)
                .and_then(|content| check(ledger, block, content))
                .with_context(|| format!("{}: block {block} of the reopened image", self.name))?;
        }
        Ok(ledger.len() as u64)
    }

    /// Verifies all blocks, then ends the load and the process at once, with requests in flight.
    pub(crate) fn crash(&mut self) -> Result<(Ledger, Tally)> {
        let mut load = self.load.take().context("a load")?;
        load.verify();
        wait_for(|| (load.is_verified() || load.is_finished()).then_some(()));
        load.check().and_then(|()| {
            ensure!(load.is_verified(), "the verification does not end");
            Ok(())
        })?;
        thread::sleep(BEFORE_CRASH);
        self.program.signal(Signal::KILL)?;
        load.abandon();
        self.wait_exit()?;
        load.join()
    }

    /// Waits for the final verification of the load.
    pub(crate) fn finish_load(&mut self) -> Result<Option<(Ledger, Tally)>> {
        let Some(load) = &mut self.load else { return Ok(None) };
        load.finish();
        let result = load.join().with_context(|| format!("the disk of {}", self.name))?;
        self.load = None;
        Ok(Some(result))
    }
}

/// `out SERIAL, 'x'; mov dx, BUTTON; in al, dx; test al, 1; jz` to the start; power off.
fn printing_guest() -> Vec<u8> {
    let print = out(SERIAL, b'x');
    let [low, high] = BUTTON.to_le_bytes();
    let poll = [0x66, 0xba, low, high, 0xec, 0xa8, 1, 0x74];
    let length = u8::try_from(print.len() + poll.len() + 1).unwrap();
    [print, poll.to_vec(), vec![length.wrapping_neg()], power_off(), halt()].concat()
}
