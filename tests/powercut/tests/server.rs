//! The NBD server with a client in process: the protocol, a hostile client, the cut.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests fail by panicking")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use fixtures::Random;
use powercut::{EXPORT, Server, Store};

/// More than the longest request.
const SIZE: u64 = 64 << 20;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;

struct Fixture {
    server: Server,
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let file = File::options().create_new(true).read(true).write(true).open(path).unwrap();
        file.set_len(SIZE).unwrap();
        let store = Store::new(file, None).unwrap();
        Self { server: Server::start(store, &folder.path().join("sock")).unwrap(), folder }
    }

    fn disk(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// A connection before the handshake.
    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.folder.path().join("sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    fn client(&self) -> Client {
        let mut stream = self.connect();
        assert_eq!(take::<18>(&mut stream)[..16], *b"NBDMAGICIHAVEOPT");
        stream.write_all(&3_u32.to_be_bytes()).unwrap();
        stream.write_all(&option(1, EXPORT.as_bytes())).unwrap();
        let reply = take::<10>(&mut stream);
        assert_eq!(reply[..8], SIZE.to_be_bytes());
        Client(stream)
    }
}

fn take<const N: usize>(stream: &mut UnixStream) -> [u8; N] {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    [&b"IHAVEOPT"[..], &number.to_be_bytes(), &len.to_be_bytes(), data].concat()
}

fn header(flags: u16, command: u16, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend([flags, command].map(u16::to_be_bytes).concat());
    bytes.extend([77, offset].map(u64::to_be_bytes).concat());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// A client after the handshake.
struct Client(UnixStream);

impl Client {
    fn status(&mut self) -> u32 {
        let reply = take::<16>(&mut self.0);
        assert_eq!(reply[..4], 0x6744_6698_u32.to_be_bytes());
        assert_eq!(reply[8..], 77_u64.to_be_bytes());
        u32::from_be_bytes(reply[4..8].try_into().unwrap())
    }

    fn request(&mut self, flags: u16, command: u16, offset: u64, len: u32, data: &[u8]) -> u32 {
        self.0.write_all(&[&header(flags, command, offset, len), data].concat()).unwrap();
        self.status()
    }

    fn write(&mut self, offset: u64, byte: u8, flags: u16) {
        assert_eq!(self.request(flags, WRITE, offset, 4096, &[byte; 4096]), 0);
    }

    fn read(&mut self, offset: u64) -> Vec<u8> {
        assert_eq!(self.request(0, READ, offset, 4096, &[]), 0);
        take::<4096>(&mut self.0).to_vec()
    }

    fn is_closed(&mut self) -> bool {
        is_closed(&mut self.0)
    }
}

/// Whether the server ends the connection, whatever it sends before.
fn is_closed(stream: &mut UnixStream) -> bool {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn only_flushed_data_is_in_the_file() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let on_disk = |at: u64| {
        let mut byte = [0];
        File::open(fixture.disk()).unwrap().read_exact_at(&mut byte, at).unwrap();
        byte[0]
    };
    client.write(0, 1, 0);
    client.write(8192, 2, 1);
    assert_eq!((client.read(0), client.read(8192)), (vec![1; 4096], vec![2; 4096]));
    assert_eq!((on_disk(0), on_disk(8192)), (0, 2), "FUA is durable, and only its own range");
    assert_eq!(client.request(0, FLUSH, 0, 0, &[]), 0);
    assert_eq!(on_disk(0), 1);
    assert_eq!(client.request(0, TRIM, 0, 4096, &[]), 0);
    assert_eq!(client.request(1, WRITE_ZEROES, 8192, 4096, &[]), 0);
    assert_eq!((client.read(0), client.read(8192)), (vec![0; 4096], vec![0; 4096]));
    assert_eq!((on_disk(0), on_disk(8192)), (1, 0));
    let requests = fixture.server.requests().unwrap();
    assert_eq!((requests.writes, requests.fua, requests.flushes), (4, 2, 1));
    client.0.write_all(&header(0, DISCONNECT, 0, 0)).unwrap();
    assert!(client.is_closed());
}

#[test]
fn cut_ends_all_answers() {
    let fixture = Fixture::new();
    let (mut client, mut idle) = (fixture.client(), fixture.client());
    client.write(0, 1, 0);
    let cut = fixture.server.cut().unwrap();
    client.0.write_all(&header(0, FLUSH, 0, 0)).ok();
    assert!(client.is_closed() && idle.is_closed());
    assert!(fixture.server.requests().is_none());
    let states = (0..50).map(|seed| {
        let state = fixture.folder.path().join("state");
        let fates = cut.make_state(seed, &fixture.disk(), &state).unwrap();
        assert_eq!(fates.unflushed(), 1);
        (fates.lost, fates.kept, fates.torn)
    });
    let states: std::collections::BTreeSet<_> = states.collect();
    assert_eq!(states.len(), 3, "lost, kept and torn: {states:?}");
}

#[test]
fn clients_negotiate_as_qemu_does() {
    let fixture = Fixture::new();
    let mut stream = fixture.connect();
    take::<18>(&mut stream);
    stream.write_all(&3_u32.to_be_bytes()).unwrap();
    let reply = |stream: &mut UnixStream| {
        let head = take::<20>(stream);
        assert_eq!(head[..8], 0x0003_e889_0455_65a9_u64.to_be_bytes());
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        let mut data = vec![0; word(16) as usize];
        stream.read_exact(&mut data).unwrap();
        (word(12), data)
    };
    // STARTTLS, STRUCTURED_REPLY, SET_META_CONTEXT, EXTENDED_HEADERS.
    for number in [5, 8, 10, 11] {
        stream.write_all(&option(number, &[])).unwrap();
        assert_eq!(reply(&mut stream).0, 0x8000_0001, "not supported");
    }
    stream.write_all(&option(3, &[])).unwrap();
    assert_eq!(reply(&mut stream), (2, b"\0\0\0\x04disk".to_vec()));
    assert_eq!(reply(&mut stream).0, 1);
    stream.write_all(&option(7, b"\0\0\0\x05other\0\0")).unwrap();
    assert_eq!(reply(&mut stream).0, 0x8000_0006, "no such export");
    for bad in [&b"\0\0\0\x09disk\0\0"[..], b"\0\0\0\x04disk\0\x01", b"\0\0"] {
        stream.write_all(&option(7, bad)).unwrap();
        assert_eq!(reply(&mut stream).0, 0x8000_0003, "malformed");
    }
    stream.write_all(&option(7, b"\0\0\0\x04disk\0\x01\0\x03")).unwrap();
    let (kind, export) = reply(&mut stream);
    assert_eq!((kind, &export[2..10]), (3, &SIZE.to_be_bytes()[..]));
    assert_eq!(reply(&mut stream).1[2..6], 512_u32.to_be_bytes());
    assert_eq!(reply(&mut stream).0, 1);
    Client(stream).write(0, 1, 0);
}

#[test]
fn bad_requests_fail_and_the_connection_goes_on() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    for (command, offset, len) in [
        (READ, SIZE, 512),
        (READ, 1, 512),
        (READ, 0, u32::MAX),
        (READ, 0, (32 << 20) + 512),
        (READ, u64::MAX, 512),
        (TRIM, SIZE - 512, 1024),
        (WRITE_ZEROES, 0, u32::MAX),
        (99, 0, 0),
    ] {
        assert_eq!(client.request(0, command, offset, len, &[]), 22, "{command} {offset} {len}");
    }
    assert_eq!(client.request(0, WRITE, SIZE, 512, &[1; 512]), 22);
    client.write(0, 1, 0);
}

#[test]
fn breaking_the_protocol_ends_only_that_connection() {
    let fixture = Fixture::new();
    let mut good = fixture.client();
    let mut client = fixture.client();
    client.0.write_all(&header(0, WRITE, 0, (32 << 20) + 1)).unwrap();
    assert!(client.is_closed(), "a write that is too long");
    let mut client = fixture.client();
    client.0.write_all(&[0; 28]).unwrap();
    assert!(client.is_closed(), "the magic of a request");
    for hello in [
        0_u32.to_be_bytes().to_vec(),
        u32::MAX.to_be_bytes().to_vec(),
        [&3_u32.to_be_bytes()[..], &[0; 16]].concat(),
        [&3_u32.to_be_bytes()[..], &option(1, b"other")].concat(),
        [&3_u32.to_be_bytes()[..], b"IHAVEOPT", &[0, 0, 0, 7], &[255; 4]].concat(),
        [&3_u32.to_be_bytes()[..], &option(9, &[]).repeat(65)].concat(),
    ] {
        let mut stream = fixture.connect();
        stream.write_all(&hello).unwrap();
        assert!(is_closed(&mut stream), "{hello:?}");
    }
    good.write(0, 1, 0);
}

#[test]
fn garbage_neither_ends_nor_blocks_the_server() {
    let fixture = Fixture::new();
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let mut stream = if random.coin() { fixture.client().0 } else { fixture.connect() };
        for _ in 0..random.within(1, 20) {
            let mut bytes = match random.below(3) {
                0 => header(0, u16::try_from(random.below(12)).unwrap(), random.next(), 512),
                1 => option(u32::try_from(random.below(12)).unwrap(), &[0; 6]),
                _ => (0..random.below(64)).map(|_| random.below(256).to_le_bytes()[0]).collect(),
            };
            if random.chance(300) && !bytes.is_empty() {
                let at = random.below(bytes.len());
                bytes[at] ^= 0x41;
            }
            stream.write_all(&bytes).ok();
        }
        stream.shutdown(std::net::Shutdown::Write).ok();
        assert!(is_closed(&mut stream), "seed {seed}");
    }
    fixture.client().write(0, 1, 0);
}
