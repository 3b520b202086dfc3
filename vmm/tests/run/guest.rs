//! Machines of guests of a few instructions, and their registers.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

pub(crate) use fixtures::tiny_guest::{
    BUTTON, KEYBOARD, PVPANIC, RESET, SERIAL, SERIAL_STATUS, halt, out, power_off, print, wait_for,
};
use fixtures::tiny_guest::{CODE, elf, out_16, out_32};
use fixtures::with_default_signals;
use tempfile::TempDir;

/// Timeout of each wait, for an overloaded host.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// Writes a register of the common configuration structure of the first virtio device, through the
/// PCI configuration access capability (Virtio 1.2 §4.1.4.9) and the ports 0xcf8 and 0xcfc.
fn write_common(register: u8, width: u8, value: u32) -> Vec<u8> {
    const ADDRESS: u16 = 0xcf8;
    const DATA: u16 = 0xcfc;
    /// Enabled, bus 0, device 1, function 0.
    const FUNCTION: u32 = 0x8000_0800;
    /// Offset of the capability.
    const CAPABILITY: u32 = 0x84;
    let narrow = u16::try_from(value);
    [
        out_32(ADDRESS, FUNCTION | (CAPABILITY + 8)),
        out_32(DATA, register.into()),
        out_32(ADDRESS, FUNCTION | (CAPABILITY + 12)),
        out_32(DATA, width.into()),
        out_32(ADDRESS, FUNCTION | (CAPABILITY + 16)),
        match width {
            1 => out(DATA, u8::try_from(value).unwrap()),
            2 => out_16(DATA, narrow.unwrap()),
            _ => out_32(DATA, value),
        },
    ]
    .concat()
}

/// Activates the first virtio device with a misaligned queue, which is a warning in the log.
pub(crate) fn misalign_queue() -> Vec<u8> {
    const ACKNOWLEDGE_DRIVER: u32 = 3;
    const FEATURES_OK: u32 = 8;
    const DRIVER_OK: u32 = 4;
    [
        write_common(0x14, 1, ACKNOWLEDGE_DRIVER),
        // The upper features: VIRTIO_F_VERSION_1.
        write_common(0x08, 4, 1),
        write_common(0x0c, 4, 1),
        write_common(0x14, 1, ACKNOWLEDGE_DRIVER | FEATURES_OK),
        write_common(0x20, 4, 0x1001),
        write_common(0x1c, 2, 1),
        write_common(0x14, 1, ACKNOWLEDGE_DRIVER | FEATURES_OK | DRIVER_OK),
    ]
    .concat()
}

/// The files of a machine, in their own directory.
pub(crate) struct Machine {
    folder: TempDir,
}

impl Machine {
    /// A machine that runs `code`, with the console on standard input and output.
    pub(crate) fn new(code: &[Vec<u8>]) -> Self {
        Self::with(code, "")
    }

    /// Like [`Machine::new`], with `more` in the configuration.
    pub(crate) fn with(code: &[Vec<u8>], more: &str) -> Self {
        let machine = Self { folder: TempDir::new().unwrap() };
        fs::write(machine.path("kernel"), elf(&code.concat(), CODE)).unwrap();
        machine.configure("memory = \"32MiB\"\nshutdown_grace = \"300ms\"", more);
        machine
    }

    /// Replaces the kernel with one whose load address is outside of memory.
    pub(crate) fn misplace_kernel(&self) {
        fs::write(self.path("kernel"), elf(&halt(), 1 << 30)).unwrap();
    }

    pub(crate) fn configure(&self, settings: &str, more: &str) {
        let text = format!("[machine]\n{settings}\n[kernel]\nimage = \"kernel\"\n{more}\n");
        fs::write(self.path("vm.toml"), text).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = with_default_signals(env!("CARGO_BIN_EXE_bulkhead"));
        command.arg("run").arg(self.path("vm.toml"));
        command
    }

    /// Runs the machine until it ends.
    pub(crate) fn run(&self) -> Output {
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        wait(&mut child);
        child.wait_with_output().unwrap()
    }

    /// Starts the machine without input, and discards its output.
    pub(crate) fn start(&self) -> Child {
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }
}

/// Waits until `child` exits.
pub(crate) fn wait(child: &mut Child) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if start.elapsed() > TIMEOUT {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the child did not exit");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until `done` returns true.
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < TIMEOUT, "timeout while waiting for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until the console file contains `text`.
pub(crate) fn wait_for_text(file: &Path, text: &str) {
    wait_until(text, || fs::read_to_string(file).is_ok_and(|seen| seen.contains(text)));
}

pub(crate) fn signal(child: &Child, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
}

/// Fills a file with bytes that are not a kernel.
pub(crate) fn write_noise(path: &Path, length: usize) {
    fs::File::create(path).unwrap().write_all(&vec![0x55; length]).unwrap();
}
