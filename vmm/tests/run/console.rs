//! The serial console on a file and on a socket.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;

use rustix::process::Signal;

use crate::guest::{
    Machine, SERIAL, SERIAL_STATUS, TIMEOUT, halt, power_off, print, signal, wait, wait_for,
    wait_until,
};

const ON_A_SOCKET: &str = "[console]\nsocket = \"console\"";

/// `mov dx, SERIAL; in al, dx; out dx, al`
fn echo() -> Vec<u8> {
    let [low, high] = SERIAL.to_le_bytes();
    [wait_for(SERIAL_STATUS, 1), vec![0x66, 0xba, low, high, 0xec, 0xee]].concat()
}

fn connect(path: &Path) -> UnixStream {
    wait_until("the socket", || UnixStream::connect(path).is_ok());
    let client = UnixStream::connect(path).unwrap();
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
    client
}

#[test]
fn output_is_appended_to_a_file() {
    let machine =
        Machine::with(&[print("second\n"), power_off(), halt()], "[console]\nfile = \"console\"");
    fs::write(machine.path("console"), "first\n").unwrap();
    assert_eq!(machine.run().status.code(), Some(0));
    assert_eq!(fs::read_to_string(machine.path("console")).unwrap(), "first\nsecond\n");
}

/// The open of a FIFO waits for a reader; output would overwrite a disk.
#[test]
fn a_fifo_and_a_disk_are_no_console_files() {
    let disk = "[[disk]]\nid = \"root\"\npath = \"root.img\"\n";
    for (file, why) in [("fifo", "not a file"), ("root.img", "output would overwrite the disk")] {
        let more = format!("{disk}[console]\nfile = \"{file}\"");
        let machine = Machine::with(&[power_off(), halt()], &more);
        fixtures::host::sh("mkfifo", &[machine.path("fifo").to_str().unwrap()]);
        fs::File::create(machine.path("root.img")).unwrap().set_len(1 << 20).unwrap();
        let output = machine.run();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(why), "{stderr}");
    }
}

/// epoll refuses regular files, so their input takes another path than that of a terminal or pipe.
#[test]
fn input_is_read_from_a_regular_file_and_from_a_pipe() {
    // More than fits into the serial port's FIFO.
    const LENGTH: usize = 200;
    let code = [vec![echo(); LENGTH], vec![power_off(), halt()]].concat();
    let input: Vec<_> = (b'0'..=b'z').cycle().take(LENGTH).collect();
    for is_file in [true, false] {
        let machine = Machine::new(&code);
        fs::write(machine.path("input"), &input).unwrap();
        let stdin = if is_file {
            fs::File::open(machine.path("input")).unwrap().into()
        } else {
            Stdio::piped()
        };
        let mut command = machine.command();
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        if let Some(mut pipe) = child.stdin.take() {
            pipe.write_all(&input).unwrap();
        }
        assert_eq!(wait(&mut child).code(), Some(0));
        let output = child.wait_with_output().unwrap();
        let (stdout, stderr) = [output.stdout, output.stderr]
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .into();
        assert_eq!((stdout.as_bytes(), stderr.as_str()), (input.as_slice(), ""), "{is_file}");
    }
}

#[test]
fn a_socket_carries_input_and_output_and_is_removed() {
    let machine =
        Machine::with(&[print("ready"), echo(), echo(), power_off(), halt()], ON_A_SOCKET);
    let mut child = machine.start();
    let mut client = connect(&machine.path("console"));
    client.write_all(b"ok").unwrap();
    let mut seen = String::new();
    client.read_to_string(&mut seen).unwrap();
    assert_eq!(wait(&mut child).code(), Some(0));
    assert!(seen.ends_with("ok"), "{seen:?}");
    assert!(!machine.path("console").exists());
}

#[test]
fn clients_are_served_one_after_the_other() {
    let machine = Machine::with(&[echo(), echo(), power_off(), halt()], ON_A_SOCKET);
    let mut child = machine.start();
    for _ in 0..2 {
        let mut client = connect(&machine.path("console"));
        client.write_all(b"x").unwrap();
        let mut seen = [0; 1];
        client.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"x");
    }
    assert_eq!(wait(&mut child).code(), Some(0));
}

#[test]
fn an_abandoned_socket_is_replaced() {
    let machine = Machine::with(&[halt()], ON_A_SOCKET);
    let mut killed = machine.start();
    wait_until("the socket", || machine.path("console").exists());
    signal(&killed, Signal::KILL);
    wait(&mut killed);
    assert!(machine.path("console").exists());
    let mut child = machine.start();
    connect(&machine.path("console"));
    signal(&child, Signal::TERM);
    assert_eq!(wait(&mut child).code(), Some(13));
}
