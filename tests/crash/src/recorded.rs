//! A disk of this machine that is recorded, with a loop device on it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use block::{Backend, CacheMode, DiskOptions, RawFile, RecordOptions, RecordedDisk, Recording};
use fixtures::host::Loop;
use fixtures::wait_for;
use fuser::{BackgroundSession, Config, Session};
use tempfile::TempDir;

use super::direct::has_whole_log;
use super::disk_file::{DiskFile, NAME};
use super::engine_thread::EngineThread;

/// A recording of a workload, and the image that it began with.
pub struct Recorded {
    folder: TempDir,
}

impl Recorded {
    /// Makes an image of `size` bytes with `format`, a command that gets its path as `$0`, and
    /// records what `workload` does to a loop device on it.
    ///
    /// # Errors
    ///
    /// A command fails, or the host refuses a device.
    pub fn run(
        size: u64,
        format: &str,
        workload: impl FnOnce(&Workload) -> Result<()>,
    ) -> Result<Self> {
        let recorded = Self { folder: TempDir::new_in(fixtures::scratch())? };
        let base = recorded.base();
        fs::File::create(&base)?.set_len(size)?;
        sh(format, &base)?;
        let work = recorded.folder.path().join("work.img");
        fs::copy(&base, &work)?;
        let session = Workload::start(&work, &recorded.log(), recorded.folder.path())?;
        let result = workload(&session);
        session.end()?;
        result.map(|()| recorded)
    }

    /// The image before the workload.
    #[must_use]
    pub fn base(&self) -> PathBuf {
        self.folder.path().join("base.img")
    }

    /// The log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.folder.path().join("disk.log")
    }
}

/// A recorded disk in use.
pub struct Workload {
    /// Dropped first: it has the file of the session open.
    device: Loop,
    session: BackgroundSession,
    recording: Arc<Recording>,
    /// The mount point, which servers of other users may enter.
    mount: TempDir,
}

impl Workload {
    fn start(work: &Path, log: &Path, folder: &Path) -> Result<Self> {
        let options = DiskOptions { id: "disk".into(), ..DiskOptions::new(CacheMode::WriteBack) };
        let file: Arc<dyn Backend> = Arc::new(RawFile::open(work, &options)?);
        let size = file.geometry().capacity;
        let recording = Recording::start("disk", &*file, &RecordOptions::new(log))?;
        let disk = Arc::new(RecordedDisk::new(file, Arc::clone(&recording)));
        let engine = EngineThread::start(disk)?;
        let fuse = folder.join("fuse");
        fs::create_dir(&fuse)?;
        let enter = fs::Permissions::from_mode(0o755);
        let mount = tempfile::Builder::new().permissions(enter).tempdir()?;
        let session = Session::new(DiskFile { engine, size }, &fuse, &Config::default())?;
        let session = session.spawn()?;
        let device = Loop::with_direct_io(&fuse.join(NAME));
        Ok(Self { device, session, recording, mount })
    }

    /// Runs a shell command with the loop device in `$DEV` and a folder to mount it on in `$MNT`.
    ///
    /// # Errors
    ///
    /// It fails.
    pub fn sh(&self, command: &str) -> Result<String> {
        let output = Command::new("sh")
            .args(["-ec", command])
            .env("DEV", &self.device.0)
            .env("MNT", self.mount.path())
            .output()?;
        if !output.status.success() {
            bail!("{command}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Makes a mark.
    ///
    /// # Errors
    ///
    /// The recording has ended.
    pub fn mark(&self, text: &str) -> Result<()> {
        Ok(self.recording.mark(text)?)
    }

    /// Detaches the loop device and ends the recording.
    fn end(self) -> Result<()> {
        // It is mounted if the workload failed only.
        let _ = Command::new("umount").arg("--lazy").arg(self.mount.path()).output();
        let name = self.device.0.file_name().context("no name")?;
        let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
        drop(self.device);
        let detached = wait_for(|| (!backing.exists()).then_some(()));
        ensure!(detached.is_some(), "the loop device stays busy");
        self.session.umount_and_join()?;
        self.recording.stop("the workload ended");
        ensure!(has_whole_log(&self.recording), "the log is not complete");
        Ok(())
    }
}

fn sh(command: &str, argument: &Path) -> Result<()> {
    let output = Command::new("sh").args(["-ec", command]).arg(argument).output()?;
    ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
