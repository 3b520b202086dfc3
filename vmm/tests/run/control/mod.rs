//! The control socket of a running machine.

mod clients;
mod commands;
mod commit;
mod ctl;
mod ephemeral;
mod hotplug;
mod hung;
mod metrics;
mod record;
mod snapshot;
mod socket;
mod status;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output};

use rustix::process::Signal;
use serde_json::Value;

use crate::guest::{BUTTON, Machine, TIMEOUT, halt, power_off, signal, wait, wait_for, wait_until};

const CONTROL: &str = "[control]\nsocket = \"control.sock\"\n[console]\nfile = \"console\"\n";
/// A grace period that an overloaded host does not exceed.
const SETTINGS: &str = "memory = \"32MiB\"\nshutdown_grace = \"20s\"";
/// Size of the disks of [`Rig::with_disks`].
const DISK_BYTES: u64 = 4 << 20;

/// A running machine with a control socket.
pub(crate) struct Rig {
    machine: Machine,
    child: Child,
}

/// An answer of the control socket.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn of(bytes: &[u8]) -> Self {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head: head.to_owned(), body: body.to_owned() }
    }
}

impl Rig {
    fn start(code: &[Vec<u8>]) -> Self {
        Self::with(code, CONTROL)
    }

    fn with(code: &[Vec<u8>], more: &str) -> Self {
        Self::of(Machine::with(code, more))
    }

    fn of(machine: Machine) -> Self {
        let child = machine.start();
        Self::running(machine, child)
    }

    pub(crate) fn running(machine: Machine, child: Child) -> Self {
        let rig = Self { machine, child };
        wait_until("the control socket", || UnixStream::connect(rig.socket()).is_ok());
        // The socket answers when the machine runs.
        assert_eq!(rig.state(), "running");
        rig
    }

    /// A guest that powers off when its power button is pressed.
    fn power_button() -> Self {
        Self::of(Self::power_button_machine())
    }

    pub(crate) fn power_button_machine() -> Machine {
        let machine = Machine::with(&[wait_for(BUTTON, 1), power_off(), halt()], CONTROL);
        machine.configure(SETTINGS, CONTROL);
        machine
    }

    /// A machine with the disks `root`, writeback with two queues, and `fast`, unsafe.
    fn with_disks() -> Self {
        let more = format!(
            "{CONTROL}[[disk]]\nid = \"root\"\npath = \"root.img\"\nqueues = 2\n\
             [[disk]]\nid = \"fast\"\npath = \"fast.img\"\ncache = \"unsafe\"\n"
        );
        let machine = Machine::with(&[wait_for(BUTTON, 1), power_off(), halt()], &more);
        machine.configure(&format!("vcpus = 2\n{SETTINGS}"), &more);
        for name in ["root.img", "fast.img"] {
            std::fs::File::create(machine.path(name)).unwrap().set_len(DISK_BYTES).unwrap();
        }
        Self::of(machine)
    }

    fn socket(&self) -> PathBuf {
        self.machine.path("control.sock")
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream
    }

    /// Sends `bytes`, and reads the whole answer.
    fn send(&self, bytes: &[u8]) -> Answer {
        let mut stream = self.connect();
        stream.write_all(bytes).unwrap();
        Answer::of(&read_all(&mut stream))
    }

    fn request(&self, method: &str, path: &str, body: &str) -> Answer {
        let length = body.len();
        self.send(
            format!("{method} {path} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}")
                .as_bytes(),
        )
    }

    fn get(&self, path: &str) -> Answer {
        let answer = self.request("GET", path, "");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> Answer {
        self.request("POST", path, body)
    }

    /// The value of a metric without labels.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let page = self.get("/metrics").body;
        let line = page.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name}: {page}"))
    }

    fn state(&self) -> String {
        self.get("/v1/status").json()["state"].as_str().unwrap().to_owned()
    }

    fn ctl(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
        command.arg("ctl").arg(self.machine.path("vm.toml")).args(arguments);
        command.output().unwrap()
    }

    /// Ends the machine with a signal, and returns the exit code.
    pub(crate) fn end(mut self) -> Option<i32> {
        signal(&self.child, Signal::TERM);
        let code = wait(&mut self.child).code();
        assert!(!self.socket().exists(), "the socket was not removed");
        code
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_all(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

/// The output of a successful `bulkhead ctl`.
fn ctl_output(rig: &Rig, arguments: &[&str]) -> String {
    let output = rig.ctl(arguments);
    let stderr = text(&output.stderr);
    assert_eq!((output.status.code(), stderr.as_str()), (Some(0), ""), "{arguments:?}");
    text(&output.stdout)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
