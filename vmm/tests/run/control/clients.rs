//! Clients that hang, send too much, or send garbage: none delays another client or the machine.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::{Answer, Rig, read_all};

/// Longer than a healthy request takes, and shorter than the timeout of a hung client.
const SOON: Duration = Duration::from_millis(1500);
/// The timeout of a hung client, with a margin for an overloaded host.
const TIMEOUT: Duration = Duration::from_secs(8);

/// Asserts that the machine answers without delay.
fn assert_answers(rig: &Rig) {
    let start = Instant::now();
    assert_eq!(rig.state(), "running");
    assert!(start.elapsed() < SOON, "delayed by {:?}", start.elapsed());
}

#[test]
fn silent_clients_delay_no_other_and_are_closed() {
    let rig = Rig::power_button();
    let mut silent: Vec<_> = (0..7).map(|_| rig.connect()).collect();
    assert_answers(&rig);
    let start = Instant::now();
    for client in &mut silent {
        assert_eq!(read_all(client), b"", "closed without an answer");
    }
    assert!(start.elapsed() < TIMEOUT, "{:?}", start.elapsed());
    assert_eq!(rig.end(), Some(0));
}

#[test]
fn excess_clients_wait_at_most_for_the_timeout() {
    let rig = Rig::power_button();
    let _silent: Vec<_> = (0..14).map(|_| rig.connect()).collect();
    let start = Instant::now();
    assert_eq!(rig.state(), "running");
    assert!(start.elapsed() < TIMEOUT, "{:?}", start.elapsed());
    assert_eq!(rig.end(), Some(0));
}

#[test]
fn a_slow_request_gets_408() {
    let rig = Rig::power_button();
    let mut slow = rig.connect();
    let start = Instant::now();
    let mut answer = Vec::new();
    slow.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    // A byte at a time does not extend the deadline.
    for byte in b"GET /v1/status HTTP/1.1\r\nX-Slow: ".iter().chain([b'a'; 200].iter()) {
        if slow.write_all(&[*byte]).is_err() {
            break;
        }
        let mut chunk = [0; 1024];
        match slow.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => answer.extend_from_slice(&chunk[..length]),
            Err(_) => {}
        }
        assert!(start.elapsed() < TIMEOUT, "still served");
    }
    let answer = Answer::of(&answer);
    assert_eq!(answer.status, 408, "{answer:?}");
    assert_answers(&rig);
}

#[test]
fn a_client_that_does_not_read_delays_no_other() {
    let rig = Rig::with_disks();
    let mut stuck: Vec<_> = (0..4).map(|_| rig.connect()).collect();
    for client in &mut stuck {
        client.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    }
    assert_answers(&rig);
    assert_eq!(rig.end(), Some(0));
}

#[test]
fn oversized_requests_are_refused() {
    let rig = Rig::power_button();
    let long_path = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(100_000));
    assert_eq!(rig.send(long_path.as_bytes()).status, 431);
    let body = "x".repeat(500_000);
    assert_eq!(rig.post("/v1/disks/root/resize", &body).status, 413);
    let many = "a: b\r\n".repeat(1000);
    assert_eq!(rig.send(format!("GET / HTTP/1.1\r\n{many}\r\n").as_bytes()).status, 431);
    assert_answers(&rig);
}

#[test]
fn an_endless_request_is_closed() {
    let rig = Rig::power_button();
    let mut endless = rig.connect();
    let start = Instant::now();
    while endless.write_all(&[b'a'; 4096]).is_ok() {
        assert!(start.elapsed() < TIMEOUT, "still read");
    }
    assert_answers(&rig);
}

#[test]
fn garbage_is_refused() {
    let rig = Rig::power_button();
    let cases: [&[u8]; 5] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0\0\0\0",
        b"GET /v1/status HTTP/2.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    ];
    for case in cases {
        assert_eq!(rig.send(case).status, 400, "{case:?}");
    }
    let chunked = b"POST /v1/pause HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    assert_eq!(rig.send(chunked).status, 411);
    assert_answers(&rig);
}

#[test]
fn a_half_closed_client_gets_its_answer() {
    let rig = Rig::power_button();
    let mut client = rig.connect();
    client.write_all(b"GET /v1/status HTTP/1.1\r\n\r\n").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(Answer::of(&read_all(&mut client)).status, 200);

    let mut half = rig.connect();
    half.write_all(b"GET /v1/sta").unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut half), b"");
    assert_answers(&rig);
}

#[test]
fn clients_that_disconnect_early_do_no_harm() {
    let rig = Rig::with_disks();
    for _ in 0..50 {
        let mut client = UnixStream::connect(rig.socket()).unwrap();
        client.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    }
    wait_for_answer(&rig);
    assert_eq!(rig.end(), Some(0));
}

/// The closed clients may occupy all slots for a moment.
fn wait_for_answer(rig: &Rig) {
    let start = Instant::now();
    assert_eq!(rig.state(), "running");
    assert!(start.elapsed() < TIMEOUT);
}
