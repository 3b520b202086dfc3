//! The serial console on a file and on a socket.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::process::Signal;

use crate::guest::{
    Machine, PATIENCE, SERIAL, SERIAL_STATUS, halt, power_off, print, signal, wait, wait_for,
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
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

#[test]
fn a_file_is_appended_to() {
    let machine =
        Machine::with(&[print("second\n"), power_off(), halt()], "[console]\nfile = \"console\"");
    fs::write(machine.path("console"), "first\n").unwrap();
    assert_eq!(machine.run().status.code(), Some(0));
    assert_eq!(fs::read_to_string(machine.path("console")).unwrap(), "first\nsecond\n");
}

#[test]
fn a_socket_carries_both_directions_and_is_removed() {
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
fn the_next_client_is_served_when_one_has_gone() {
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
fn a_socket_that_was_left_behind_is_taken_over() {
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
