//! `bulkhead serve` as a child process, with its disk, configuration and sockets in one folder.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a fixture fails by panicking")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::program::bulkhead_binary;
use fixtures::killed_with_parent;
use fixtures::wait_for;

/// A running `bulkhead serve`, killed when dropped.
pub struct ServeProcess {
    folder: tempfile::TempDir,
    config: String,
    child: Option<Child>,
}

impl ServeProcess {
    /// Serves a new image of `bytes` with `keys` in `[disk]`; waits until the socket accepts
    /// front-ends.
    #[must_use]
    pub fn start(bytes: u64, keys: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        File::create(folder.path().join("disk.img")).unwrap().set_len(bytes).unwrap();
        Self::start_in(folder, Path::new("disk.img"), keys)
    }

    /// As [`ServeProcess::start`], with the image at `path`.
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

    /// Folder of the image, the configuration and the sockets.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The socket for front-ends.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder().join("disk.sock")
    }

    /// Path of the image.
    #[must_use]
    pub fn image(&self) -> PathBuf {
        self.folder().join("disk.img")
    }

    /// A command of the program with `arguments` in the folder.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = killed_with_parent(bulkhead_binary().unwrap());
        command.args(arguments).current_dir(self.folder()).stdin(Stdio::null());
        command
    }

    /// Starts the program; waits until the socket accepts front-ends.
    pub fn restart(&mut self) {
        fs::write(self.folder().join("disk.toml"), &self.config).unwrap();
        let log =
            File::options().create(true).append(true).open(self.folder().join("log")).unwrap();
        let before = self.log().matches("serving ").count();
        let child = self
            .command(&["serve", "--socket", "disk.sock", "disk.toml"])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        wait_for(|| (self.log().matches("serving ").count() > before).then_some(()))
            .unwrap_or_else(|| panic!("the program does not serve: {}", self.log()));
    }

    /// The program's output so far, of all its runs.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder().join("log")).unwrap_or_default()
    }

    /// Waits until the output contains `text` at least `times` times.
    pub fn wait_log(&self, text: &str, times: usize) {
        wait_for(|| (self.log().matches(text).count() >= times).then_some(()))
            .unwrap_or_else(|| panic!("{text:?} is not {times} times in the log: {}", self.log()));
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits for the program to exit.
    pub fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        match wait_for(|| child.try_wait().unwrap()) {
            Some(status) => status,
            None => {
                child.kill().unwrap();
                panic!("the program does not exit: {}", self.log());
            }
        }
    }

    /// Sends SIGKILL and waits for the exit.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    /// Sends SIGTERM and waits for the exit, with status 0.
    pub fn terminate(&mut self) {
        self.signal(Signal::TERM);
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{}", self.log());
    }
}

impl Drop for ServeProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("output of the program:\n{}", self.log());
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
