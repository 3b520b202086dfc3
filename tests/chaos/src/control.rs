//! Clients of a control socket: well-behaved ones, and a flood.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fixtures::Random;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connects, or fails with EAGAIN if the backlog of a stopped process is full.
fn connect(socket: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let client = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    net::connect(&client, &SocketAddrUnix::new(socket)?)?;
    let client = UnixStream::from(client);
    client.set_nonblocking(false)?;
    Ok(client)
}

/// Sends `request` and returns the status code of the answer.
pub(crate) fn send(socket: &Path, request: &[u8], limit: Duration) -> io::Result<u16> {
    let mut stream = connect(socket)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer);
    let code = text.split(' ').nth(1).and_then(|code| code.parse().ok());
    code.ok_or_else(|| io::Error::other(format!("no HTTP answer: {text:?}")))
}

pub(crate) const STATUS: &[u8] = b"GET /v1/status HTTP/1.1\r\n\r\n";
const METRICS: &[u8] = b"GET /metrics HTTP/1.1\r\n\r\n";
const PAUSE: &[u8] = b"POST /v1/pause HTTP/1.1\r\nContent-Length: 0\r\n\r\n";
pub(crate) const RESUME: &[u8] = b"POST /v1/resume HTTP/1.1\r\nContent-Length: 0\r\n\r\n";
const HALF: &[u8] = b"GET /v1/status HTTP/1.1\r\nX-Half: ";
const GARBAGE: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 \0\xff\r\n\r\n";

/// Requests of one flood.
#[derive(Debug, Default)]
pub(crate) struct FloodCounts {
    pub(crate) sent: AtomicU64,
    pub(crate) answered: AtomicU64,
}

/// Two threads that send requests until they are stopped.
pub(crate) struct Flood {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Flood {
    pub(crate) fn start(socket: &Path, random: &mut Random, counts: &Arc<FloodCounts>) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let threads = (0..2).map(|_| {
            let (socket, random) = (socket.to_owned(), random.fork());
            let (stop, counts) = (Arc::clone(&stop), Arc::clone(counts));
            thread::spawn(move || flood(&socket, random, &stop, &counts))
        });
        Self { threads: threads.collect(), stop }
    }

    /// Stops and joins the threads.
    pub(crate) fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn flood(socket: &Path, mut random: Random, stop: &AtomicBool, counts: &FloodCounts) {
    const LIMIT: Duration = Duration::from_millis(300);
    let mut half = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        counts.sent.fetch_add(1, Ordering::Relaxed);
        let answer = match random.below(10) {
            0..4 => send(socket, STATUS, LIMIT),
            4 => send(socket, METRICS, LIMIT),
            5 => send(socket, GARBAGE, LIMIT),
            6 => {
                half.extend(send_half(socket).ok());
                half.drain(..half.len().saturating_sub(3));
                continue;
            }
            _ => send(socket, PAUSE, LIMIT).and_then(|_| send(socket, RESUME, LIMIT)),
        };
        if answer.is_ok() {
            counts.answered.fetch_add(1, Ordering::Relaxed);
        }
        thread::sleep(Duration::from_micros(500));
    }
}

fn send_half(socket: &Path) -> io::Result<UnixStream> {
    let mut stream = connect(socket)?;
    stream.write_all(HALF)?;
    Ok(stream)
}
