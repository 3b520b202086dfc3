//! A loop device over the file of a state.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::sys::{clear_loop_device, configure_loop_device, forbid_readahead, free_loop_device};

/// Devices that are tried: other programs take them at the same time.
const TRIES: u32 = 64;
/// For how long the end of others who have a device open is awaited.
const PATIENCE: Duration = Duration::from_secs(2);
const PERIOD: Duration = Duration::from_millis(1);

/// An attached loop device. Dropping it detaches it, and waits for others who have it open.
pub(super) struct LoopDevice {
    device: Option<File>,
    path: PathBuf,
    /// The file of /sys that names its file, while it has one.
    attached: PathBuf,
    file: PathBuf,
}

impl LoopDevice {
    /// Whether the host lets the user have one.
    ///
    /// # Errors
    ///
    /// It does not.
    pub(super) fn probe() -> io::Result<()> {
        free_loop_device(&control()?).map(drop)
    }

    /// Attaches a free device to `file`.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(super) fn attach(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        let control = control()?;
        for _ in 0..TRIES {
            let name = format!("loop{}", free_loop_device(&control)?);
            let device = Path::new("/dev").join(&name);
            let opened = File::options().read(true).write(true).open(&device)?;
            match configure_loop_device(&opened, &file) {
                Ok(()) => {
                    forbid_readahead(&opened)?;
                    let attached = format!("/sys/block/{name}/loop/backing_file").into();
                    let file = path.to_owned();
                    return Ok(Self { device: Some(opened), path: device, attached, file });
                }
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::from_raw_os_error(libc::EBUSY))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // It detaches itself when it is closed, whatever this answers.
        let _ = self.device.take().map(|device| clear_loop_device(&device));
        // The kernel may still write what a file system on it has, after its mount has ended.
        let start = Instant::now();
        let file = self.file.as_os_str().as_bytes();
        let is_attached = || std::fs::read(&self.attached).is_ok_and(|it| it.trim_ascii() == file);
        while is_attached() && start.elapsed() < PATIENCE {
            thread::sleep(PERIOD);
        }
    }
}

fn control() -> io::Result<File> {
    File::options().read(true).write(true).open("/dev/loop-control")
}
