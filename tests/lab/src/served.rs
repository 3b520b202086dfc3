//! The program under test, on a disk in a folder of its own.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a program under test fails its test by panicking"
)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::host::bulkhead_binary;
use fixtures::killed_with_parent;
use fixtures::wait_for;

/// See the module's documentation. Killed when dropped.
pub struct Served {
    folder: tempfile::TempDir,
    config: String,
    child: Option<Child>,
}

impl Served {
    /// Serves a new image of `bytes` with the given keys of `[disk]`, and waits until it listens.
    #[must_use]
    pub fn start(bytes: u64, keys: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        File::create(folder.path().join("disk.img")).unwrap().set_len(bytes).unwrap();
        Self::start_in(folder, Path::new("disk.img"), keys)
    }

    /// The same with the image at `path`.
    #[must_use]
    pub fn start_at(path: &Path, keys: &str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), path, keys)
    }

    fn start_in(folder: tempfile::TempDir, image: &Path, keys: &str) -> Self {
        let config = format!("[disk]\nid = \"data\"\npath = \"{}\"\n{keys}\n", image.display());
        let mut served = Self { folder, config, child: None };
        served.restart();
        served
    }

    /// The folder with the image, the configuration and the sockets.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where frontends connect.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder().join("disk.sock")
    }

    /// The image.
    #[must_use]
    pub fn image(&self) -> PathBuf {
        self.folder().join("disk.img")
    }

    /// The program with arguments, run in the folder.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = killed_with_parent(bulkhead_binary().unwrap());
        command.args(arguments).current_dir(self.folder()).stdin(Stdio::null());
        command
    }

    /// Starts the program, and waits until it listens.
    pub fn restart(&mut self) {
        fs::write(self.folder().join("disk.toml"), &self.config).unwrap();
        let log =
            File::options().create(true).append(true).open(self.folder().join("log")).unwrap();
        let before = self.said().matches("serving ").count();
        let child = self
            .command(&["serve", "--socket", "disk.sock", "disk.toml"])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        wait_for(|| (self.said().matches("serving ").count() > before).then_some(()))
            .unwrap_or_else(|| panic!("it does not serve: {}", self.said()));
    }

    /// All it said so far.
    #[must_use]
    pub fn said(&self) -> String {
        fs::read_to_string(self.folder().join("log")).unwrap_or_default()
    }

    /// Waits until it has said `text` so many times.
    pub fn wait_said(&self, text: &str, times: usize) {
        wait_for(|| (self.said().matches(text).count() >= times).then_some(()))
            .unwrap_or_else(|| panic!("it did not say {text:?} {times} times: {}", self.said()));
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        match wait_for(|| child.try_wait().unwrap()) {
            Some(status) => status,
            None => {
                child.kill().unwrap();
                panic!("it does not end: {}", self.said());
            }
        }
    }

    /// Kills it where it stands.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    /// Asks it to end, which it does in good order.
    pub fn end(&mut self) {
        self.signal(Signal::TERM);
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{}", self.said());
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the program said:\n{}", self.said());
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
