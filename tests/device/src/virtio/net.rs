//! The network device (§5.1) over a tap device, in a network namespace per test.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use devices::virtio::{Net, Tap};
use driver::{Arena, Descriptor, Device, Machine, Ring, Used, feature};
use fixtures::wait_for;

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
/// An EtherType for local experiments (IEEE 802), which nothing else uses.
const PROTOCOL: u16 = 0x88b5;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// A packet socket on the tap's interface.
struct PacketSocket {
    socket: OwnedFd,
}

impl PacketSocket {
    /// Brings the interface up and opens a packet socket on it.
    fn open(name: &str) -> Self {
        let protocol = i32::from(PROTOCOL.to_be());
        // SAFETY: a system call without pointers; the returned descriptor is owned.
        let socket = unsafe {
            libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK, protocol)
        };
        assert!(socket >= 0, "{}", io::Error::last_os_error());
        // SAFETY: see above.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        // SAFETY: all zeroes are a valid value of this C struct.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP).unwrap();
        // SAFETY: reads one `ifreq`, which outlives the call.
        let result =
            unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        // SAFETY: writes one `ifreq`, which outlives the call.
        let result =
            unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFINDEX, &raw mut request) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        // SAFETY: all zeroes are a valid value of this C struct.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
        address.sll_protocol = PROTOCOL.to_be();
        // SAFETY: SIOCGIFINDEX filled this member of the union.
        address.sll_ifindex = unsafe { request.ifr_ifru.ifru_ifindex };
        let len = u32::try_from(size_of_val(&address)).unwrap();
        // SAFETY: reads one `sockaddr_ll`, which outlives the call.
        let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        Self { socket }
    }

    fn send(&self, frame: &[u8]) {
        assert_eq!(rustix::io::write(&self.socket, frame), Ok(frame.len()));
    }

    fn receive(&self) -> Vec<u8> {
        let mut frame = vec![0; 4096];
        let len = wait_for(|| rustix::io::read(&self.socket, &mut frame).ok());
        frame.truncate(len.expect("a frame arrives"));
        frame
    }
}

fn frame(to: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = to.to_vec();
    frame.extend([2, 0, 0, 0, 0, 1]);
    frame.extend(PROTOCOL.to_be_bytes());
    frame.extend((0..len).map(|at| at.to_le_bytes()[0]));
    frame
}

/// Runs `ip` in the test's network namespace.
fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.expect("this test needs the program `ip` (Debian: iproute2)");
    assert!(output.status.success(), "ip {arguments}: {output:?}");
}

/// An initialized device on a new tap, its rings, and a socket on the host's side.
fn start(name: &str, features: u64) -> (Device, [Ring; 2], PacketSocket) {
    assert!(
        Path::new("/dev/net/tun").exists(),
        "this test needs /dev/net/tun: load the module tun, or pass the device into the container"
    );
    // SAFETY: affects this thread only, which belongs to the test and has started no other yet.
    let unshared = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(unshared, 0, "this test needs root: {}", io::Error::last_os_error());
    let tap = Tap::open(name).unwrap();
    let host = PacketSocket::open(name);
    let device = Device::find(&Machine::new(vec![Box::new(Net::new(tap, MAC))]), 1);
    let features = device.offered_features() & (features | feature::VERSION_1 | 1 << 5);
    assert!(device.negotiate(features));
    assert_eq!(device.config::<6>(0), MAC, "§5.1.4: mac");
    let mut arena = Arena::new(0x1_0000, 0x10_0000);
    let rings = [RECEIVE, TRANSMIT].map(|queue| device.queue(queue, 16, features, &mut arena));
    device.enable_interrupts();
    device.start();
    (device, rings, host)
}

fn offer(device: &Device, rings: &mut [Ring; 2], queue: u16, chain: &[Descriptor]) {
    let ring = &mut rings[usize::from(queue)];
    let _ = ring.offer(chain);
    if ring.publish() {
        device.function.kick(queue);
    }
}

/// Header and payload of the next received test frame. Frames of the host's own protocols are
/// skipped.
fn next_frame(device: &Device, rings: &mut [Ring; 2], place: u64) -> (Vec<u8>, Vec<u8>) {
    loop {
        offer_buffer(device, rings, place);
        let used = rings[0].wait_used();
        let (header, frame) = split(device, place, used);
        if frame[12..14] == PROTOCOL.to_be_bytes() {
            return (header, frame);
        }
    }
}

fn offer_buffer(device: &Device, rings: &mut [Ring; 2], place: u64) {
    let buffer = [Descriptor::writable(place, 5), Descriptor::writable(place + 5, 2000)];
    offer(device, rings, RECEIVE, &buffer);
}

/// Header and payload of a received frame.
fn split(device: &Device, place: u64, used: Used) -> (Vec<u8>, Vec<u8>) {
    let mut header = device.machine().read(place, used.len.into());
    let frame = header.split_off(12);
    (header, frame)
}

/// §5.1.6.2, §5.1.6.4: frames in both directions in any framing; num_buffers is 1.
#[test]
fn s5_1_6_frames_in_both_directions() {
    for (features, name) in [(0, "blkhd0"), (!feature::INDIRECT_DESC, "blkhd1")] {
        let (device, mut rings, host) = start(name, features);
        for len in [46, 100, 1500] {
            let sent = frame([0xff; 6], len);
            let mut bytes = vec![0; 12];
            bytes.extend(&sent);
            device.machine().write(0x20_0000, &bytes);
            let len32 = u32::try_from(bytes.len()).unwrap();
            let chain =
                [Descriptor::readable(0x20_0000, 3), Descriptor::readable(0x20_0003, len32 - 3)];
            offer(&device, &mut rings, TRANSMIT, &chain);
            assert_eq!(rings[1].wait_used().len, 0);
            assert_eq!(host.receive(), sent);

            let sent = frame(MAC, len);
            host.send(&sent);
            let (header, received) = next_frame(&device, &mut rings, 0x30_0000);
            assert_eq!(received, sent);
            assert_eq!(header[10..], [1, 0], "§5.1.6.4.1: num_buffers");
        }
        device.reset();
        assert_eq!(device.status(), 0, "a reset ends both workers");
    }
}

/// The interface goes down and up, and is deleted and recreated, while the guest waits for frames:
/// afterwards the guest receives into the buffers it offered before, and sends.
#[test]
fn traffic_resumes_after_interface_returns() {
    let name = "blkhd3";
    let (device, mut rings, _host) = start(name, 0);
    let swap = [
        format!("link set {name} down"),
        format!("link del {name}"),
        format!("tuntap add dev {name} mode tap vnet_hdr"),
    ];
    for (steps, len) in [(&swap[..1], 100), (&swap[1..], 101)] {
        offer_buffer(&device, &mut rings, 0x30_0000);
        for step in steps {
            ip(step);
            // The worker processes a frame while the interface is unavailable.
            offer(&device, &mut rings, TRANSMIT, &[Descriptor::readable(0x20_0000, 100)]);
            assert_eq!(rings[1].wait_used().len, 0, "{step}: the frame is dropped");
            std::thread::sleep(Duration::from_millis(50));
        }
        let host = PacketSocket::open(name);
        let sent = frame(MAC, len);
        let received = wait_for(|| {
            // Dropped until the worker has reopened the interface.
            host.send(&sent);
            std::thread::sleep(Duration::from_millis(5));
            let (_, frame) = split(&device, 0x30_0000, rings[0].take_used()?);
            if frame != sent {
                offer_buffer(&device, &mut rings, 0x30_0000);
            }
            (frame == sent).then_some(())
        });
        received.expect("the guest receives again");

        let mut bytes = vec![0; 12];
        bytes.extend(frame([0xff; 6], 100));
        device.machine().write(0x20_0000, &bytes);
        let len = u32::try_from(bytes.len()).unwrap();
        offer(&device, &mut rings, TRANSMIT, &[Descriptor::readable(0x20_0000, len)]);
        assert_eq!(rings[1].wait_used().len, 0);
        assert_eq!(host.receive(), bytes[12..], "{steps:?}");
    }
    // The device also starts without the interface.
    ip(&format!("link del {name}"));
    assert!(device.negotiate(feature::VERSION_1));
    device.start();
    assert!(!device.needs_reset());
}

/// Buffers too small for a frame, chains of the wrong direction, and a corrupt ring.
#[test]
fn hostile_chains() {
    let (device, mut rings, host) = start("blkhd2", 0);
    for chain in [
        [Descriptor::writable(0x30_0000, 11)],
        [Descriptor::readable(0x30_0000, 2000)],
        [Descriptor::writable(0x8000_0000, 2000)],
    ] {
        offer(&device, &mut rings, RECEIVE, &chain);
        assert_eq!(rings[0].wait_used().len, 0);
    }
    for chain in [
        [Descriptor::readable(0x30_0000, 0)],
        [Descriptor::readable(0x30_0000, 11)],
        [Descriptor::writable(0x30_0000, 2000)],
        [Descriptor::readable(0x8000_0000, 2000)],
        [Descriptor::readable(0x30_0000, 1 << 20)],
    ] {
        offer(&device, &mut rings, TRANSMIT, &chain);
        assert_eq!(rings[1].wait_used().len, 0);
    }
    // A frame longer than its buffer is truncated; the used length is that of the buffer.
    offer(&device, &mut rings, RECEIVE, &[Descriptor::writable(0x30_0000, 32)]);
    host.send(&frame(MAC, 500));
    assert!(rings[0].wait_used().len <= 32);
    // A reset does not wait for a frame.
    offer(&device, &mut rings, RECEIVE, &[Descriptor::writable(0x30_0000, 2000)]);
    rings[1].offer_raw(999);
    device.function.kick(TRANSMIT);
    wait_for(|| device.needs_reset().then_some(())).expect("the device needs a reset");
    device.reset();
    assert!(device.negotiate(feature::VERSION_1));
}
