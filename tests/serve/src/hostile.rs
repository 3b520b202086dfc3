//! Hostile front-ends: the connection ends, the log has the reason, and the next front-end is
//! served.

use std::fs::File;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use driver::feature;
use driver::vhost_user::Monitor;
use lab::ServeProcess;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserInflight;
use vhost::{VhostBackend, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MIB: u64 = 1 << 20;

/// Message codes of the vhost-user specification.
mod code {
    pub(super) const SET_FEATURES: u32 = 2;
    pub(super) const SET_MEM_TABLE: u32 = 5;
    pub(super) const SET_VRING_NUM: u32 = 8;
    pub(super) const SET_VRING_ADDR: u32 = 9;
    pub(super) const SET_VRING_BASE: u32 = 10;
    pub(super) const GET_VRING_BASE: u32 = 11;
    pub(super) const SET_VRING_KICK: u32 = 12;
    pub(super) const SET_VRING_CALL: u32 = 13;
    pub(super) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(super) const SET_VRING_ENABLE: u32 = 18;
    pub(super) const GET_CONFIG: u32 = 24;
    pub(super) const SET_BACKEND_REQ_FD: u32 = 21;
    pub(super) const SET_INFLIGHT_FD: u32 = 32;
    pub(super) const RESET_DEVICE: u32 = 34;
}

/// A connection that sends arbitrary messages.
struct RawConnection(UnixStream);

impl RawConnection {
    fn connect(served: &ServeProcess) -> Self {
        Self(UnixStream::connect(served.socket()).unwrap())
    }

    /// Sends a message of version 1 with `size` in its header.
    fn send_sized(&self, code: u32, size: u32, body: &[u8], files: &[BorrowedFd<'_>]) {
        let header = [code, 1, size].map(u32::to_ne_bytes).concat();
        let mut space = [const { MaybeUninit::uninit() }; rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(files)));
        }
        let parts = [IoSlice::new(&header), IoSlice::new(body)];
        // Fails if the back-end has hung up.
        let _ = sendmsg(&self.0, &parts, &mut control, SendFlags::NOSIGNAL);
    }

    fn send(&self, code: u32, body: &[u8], files: &[BorrowedFd<'_>]) {
        self.send_sized(code, u32::try_from(body.len()).unwrap(), body, files);
    }

    /// Sends a message of 64-bit words.
    fn send_words(&self, code: u32, words: &[u64], files: &[BorrowedFd<'_>]) {
        let body: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.send(code, &body, files);
    }

    /// Sends a vring state: index and number.
    fn send_state(&self, code: u32, index: u32, number: u32) {
        self.send(code, &[index.to_ne_bytes(), number.to_ne_bytes()].concat(), &[]);
    }

    /// Sends a memory table of one region: guest address, size, user address, offset.
    fn send_region(&self, region: [u64; 4], file: &impl AsFd) {
        let words = [&[1][..], &region].concat();
        self.send_words(code::SET_MEM_TABLE, &words, &[file.as_fd()]);
    }

    /// Whether the back-end hangs up.
    fn hangs_up(&mut self) -> bool {
        self.0.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut byte = [0; 256];
        loop {
            match self.0.read(&mut byte) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }
}

fn memory(bytes: u64) -> File {
    let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(bytes).unwrap();
    file
}

/// An invalid message and its description.
type Attack = (&'static str, fn(&RawConnection));

/// Invalid messages of the protocol and of guest memory.
const MESSAGE_ATTACKS: &[Attack] = &[
    ("an unknown message", |raw| raw.send(4711, &[], &[])),
    ("code 0", |raw| raw.send(0, &[], &[])),
    ("a message over the size limit", |raw| {
        raw.send_sized(code::SET_FEATURES, u32::MAX, &[], &[]);
    }),
    ("another version", |raw| {
        let _ = rustix::io::write(&raw.0, &[2_u32, 3, 0].map(u32::to_ne_bytes).concat());
    }),
    ("a truncated body", |raw| raw.send(code::SET_FEATURES, &[0; 4], &[])),
    ("features not offered", |raw| raw.send_words(code::SET_FEATURES, &[1 << 26], &[])),
    ("protocol features not offered", |raw| {
        raw.send_words(code::SET_PROTOCOL_FEATURES, &[1 << 1], &[]);
    }),
    ("a message without its feature", |raw| raw.send(code::RESET_DEVICE, &[], &[])),
    ("memory without a file", |raw| {
        raw.send_words(code::SET_MEM_TABLE, &[1, 0, 4096, 0, 0], &[]);
    }),
    ("no memory regions", |raw| raw.send_words(code::SET_MEM_TABLE, &[0], &[])),
    ("missing regions", |raw| {
        raw.send_words(code::SET_MEM_TABLE, &[8, 0, 4096, 0, 0], &[memory(4096).as_fd()]);
    }),
    ("memory beyond its file", |raw| raw.send_region([0, 8192, 0, 0], &memory(4096))),
    ("memory far beyond its file", |raw| {
        raw.send_region([0, 4096, 0, 1 << 40], &memory(4096));
    }),
    ("memory of the whole address space", |raw| {
        raw.send_region([0, u64::MAX, 0, 0], &memory(4096));
    }),
    ("memory that wraps around", |raw| {
        raw.send_region([u64::MAX - 4095, 8192, 0, 0], &memory(8192));
    }),
    ("memory of a device node", |raw| {
        raw.send_region([0, 4096, 0, 0], &File::open("/dev/zero").unwrap());
    }),
    ("read-only memory", |raw| {
        raw.send_region([0, 4096, 0, 0], &File::open("/proc/self/exe").unwrap());
    }),
    ("overlapping regions", |raw| {
        let file = memory(8192);
        let words = [2, 0, 8192, 0, 0, 4096, 4096, 8192, 0];
        raw.send_words(code::SET_MEM_TABLE, &words, &[file.as_fd(), file.as_fd()]);
    }),
];

/// Invalid messages of rings, and truncated messages.
const RING_ATTACKS: &[Attack] = &[
    ("a nonexistent ring", |raw| raw.send_state(code::SET_VRING_NUM, 4, 64)),
    ("a ring index out of range", |raw| raw.send_state(code::SET_VRING_BASE, u32::MAX, 0)),
    ("the base of a ring out of range", |raw| {
        raw.send_state(code::GET_VRING_BASE, u32::MAX, 0);
    }),
    ("a ring of size 0", |raw| raw.send_state(code::SET_VRING_NUM, 0, 0)),
    ("a ring of size 3", |raw| raw.send_state(code::SET_VRING_NUM, 0, 3)),
    ("a ring over the maximum size", |raw| raw.send_state(code::SET_VRING_NUM, 0, 1 << 15)),
    ("a ring size over 16 bits", |raw| raw.send_state(code::SET_VRING_NUM, 0, 65_600)),
    ("an index over 16 bits", |raw| raw.send_state(code::SET_VRING_BASE, 0, 1 << 16)),
    ("misaligned addresses", |raw| {
        raw.send_words(code::SET_VRING_ADDR, &[0, 8, 0, 0, 0], &[]);
    }),
    ("a log without its feature", |raw| {
        raw.send_words(code::SET_VRING_ADDR, &[1 << 32, 0, 0, 0, 0], &[]);
    }),
    ("a kick that is not an eventfd", |raw| {
        let file = memory(8);
        raw.send_words(code::SET_VRING_KICK, &[0], &[file.as_fd()]);
    }),
    ("a kick that is a socket", |raw| {
        raw.send_words(code::SET_VRING_KICK, &[0], &[raw.0.as_fd()]);
    }),
    ("a kick without descriptor", |raw| raw.send_words(code::SET_VRING_KICK, &[0x100], &[])),
    ("a missing kick descriptor", |raw| raw.send_words(code::SET_VRING_KICK, &[0], &[])),
    ("a call that is not an eventfd", |raw| {
        raw.send_words(code::SET_VRING_CALL, &[0], &[memory(8).as_fd()]);
    }),
    ("a call of ring 255", |raw| raw.send_words(code::SET_VRING_CALL, &[0x1ff], &[])),
    ("enable before features", |raw| raw.send_state(code::SET_VRING_ENABLE, 0, 1)),
    ("configuration before protocol features", |raw| {
        raw.send_words(code::GET_CONFIG, &[0, 0], &[]);
    }),
    ("a back-end channel before protocol features", |raw| {
        raw.send_sized(code::SET_BACKEND_REQ_FD, 0, &[], &[raw.0.as_fd()]);
    }),
    ("an inflight region before protocol features", |raw| {
        raw.send_words(code::SET_INFLIGHT_FD, &[4096, 0, 0], &[memory(4096).as_fd()]);
    }),
    ("half a header", |raw| {
        let _ = rustix::io::write(&raw.0, &[1; 7]);
        raw.0.shutdown(std::net::Shutdown::Write).unwrap();
    }),
    ("half a message", |raw| {
        raw.send_sized(code::SET_FEATURES, 8, &[1; 3], &[]);
        raw.0.shutdown(std::net::Shutdown::Write).unwrap();
    }),
];

/// Each invalid message ends its connection only.
#[test]
fn invalid_message_ends_connection() {
    let attacks = [MESSAGE_ATTACKS, RING_ATTACKS].concat();
    let mut served = ServeProcess::start(MIB, "");
    for (name, attack) in &attacks {
        let mut raw = RawConnection::connect(&served);
        attack(&raw);
        assert!(raw.hangs_up(), "{name}: {}", served.log());
    }
    let disconnects = served.log().matches("the frontend was disconnected: ").count();
    // The two attacks that only hang up are normal disconnects.
    assert!(disconnects >= attacks.len() - 2, "{disconnects}: {}", served.log());
    Monitor::start(&served.socket(), 4, 0, true).write(3, 0, &[1; 512]);
    served.terminate();
}

/// Runs an attack with a running front-end and checks that the next front-end is served.
fn check_survives(served: &ServeProcess, name: &str, attack: impl FnOnce(&mut Monitor)) {
    let mut monitor = Monitor::start(&served.socket(), 1, feature::EVENT_IDX, true);
    monitor.write(0, 0, &[1; 512]);
    attack(&mut monitor);
    drop(monitor);
    let mut next = Monitor::start(&served.socket(), 1, 0, false);
    next.write(0, 8, &[2; 512]);
    assert_eq!(next.read(0, 8, 512), [2; 512], "after {name}");
}

#[test]
fn invalid_message_of_running_frontend_ends_connection() {
    let mut served = ServeProcess::start(MIB, "");
    let nowhere = VringConfigData {
        queue_max_size: 64,
        queue_size: 64,
        flags: 0,
        desc_table_addr: 0,
        used_ring_addr: 0,
        avail_ring_addr: 0,
        log_addr: None,
    };
    check_survives(&served, "size of a running ring", |monitor| {
        assert!(monitor.frontend.set_vring_num(0, 32).is_err());
    });
    check_survives(&served, "base of a running ring", |monitor| {
        assert!(monitor.frontend.set_vring_base(0, 0).is_err());
    });
    check_survives(&served, "addresses of a running ring", |monitor| {
        assert!(monitor.frontend.set_vring_addr(0, &nowhere).is_err());
    });
    check_survives(&served, "inflight region of a running ring", |monitor| {
        let inflight = monitor.inflight.as_ref().unwrap();
        let fd = inflight.file.as_raw_fd();
        assert!(monitor.frontend.set_inflight_fd(&inflight.layout, fd).is_err());
    });
    check_survives(&served, "addresses outside memory", |monitor| {
        let base = monitor.stop(0);
        monitor.frontend.set_vring_addr(0, &nowhere).unwrap();
        monitor.frontend.set_vring_base(0, base).unwrap();
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        assert!(monitor.frontend.set_vring_kick(0, &kick).is_err());
    });
    check_survives(&served, "a ring that exceeds memory", |monitor| {
        let base = monitor.stop(0);
        let mut addresses = monitor.addresses(0);
        addresses.used_ring_addr += (16 << 20) - 0x804;
        monitor.frontend.set_vring_addr(0, &addresses).unwrap();
        monitor.frontend.set_vring_base(0, base).unwrap();
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        assert!(monitor.frontend.set_vring_kick(0, &kick).is_err());
    });
    check_survives(&served, "memory removed under a ring", |monitor| {
        let region = monitor.region();
        assert!(monitor.frontend.remove_mem_region(&region).is_err());
    });
    check_survives(&served, "the same memory twice", |monitor| {
        let region = monitor.region();
        assert!(monitor.frontend.add_mem_region(&region).is_err());
    });
    check_survives(&served, "an available index that jumps", |monitor| {
        monitor.queues[0].ring.set_available_index(30_000);
        monitor.queues[0].kick.write(1).unwrap();
    });
    check_survives(&served, "configuration over its size", |monitor| {
        let flags = vhost::vhost_user::message::VhostUserConfigFlags::empty();
        let _ = monitor.frontend.get_config(4000, 64, flags, &[0; 64]);
    });
    served.terminate();
}

/// The inflight region is untrusted.
#[test]
fn invalid_inflight_region_ends_connection() {
    let served = ServeProcess::start(MIB, "");
    let request = VhostUserInflight::new(1 << 16, 0, 1, 64);
    check_survives(&served, "an inflight file that can shrink", |monitor| {
        let _ = monitor.stop(0);
        let fd = memory(1 << 20);
        assert!(monitor.frontend.set_inflight_fd(&request, fd.as_raw_fd()).is_err());
    });
    check_survives(&served, "more rings than queues", |monitor| {
        let request = VhostUserInflight::new(0, 0, u16::MAX, 64);
        assert!(monitor.frontend.get_inflight_fd(&request).is_err());
    });
    check_survives(&served, "larger rings than the queues", |monitor| {
        let request = VhostUserInflight::new(0, 0, 1, u16::MAX);
        assert!(monitor.frontend.get_inflight_fd(&request).is_err());
    });
    for (name, at, byte) in
        [("another version", 8, 9), ("another size", 10, 9), ("another used index", 15, 0x77)]
    {
        check_survives(&served, name, |monitor| {
            let base = monitor.stop(0);
            let file = &monitor.inflight.as_ref().unwrap().file;
            std::os::unix::fs::FileExt::write_all_at(file, &[byte], at).unwrap();
            monitor.frontend.set_vring_base(0, base).unwrap();
            let kick = EventFd::new(EFD_NONBLOCK).unwrap();
            assert!(monitor.frontend.set_vring_kick(0, &kick).is_err(), "{name}");
        });
    }
    check_survives(&served, "random bytes", |monitor| {
        for _ in 0..50 {
            let file = &monitor.inflight.as_ref().unwrap().file;
            let bytes =
                usize::try_from(monitor.inflight.as_ref().unwrap().layout.mmap_size).unwrap();
            std::os::unix::fs::FileExt::write_all_at(file, &vec![0xff; bytes], 0).unwrap();
            monitor.write(0, 0, &[3; 512]);
        }
    });
}

/// The front-end drains the kick and fills its eventfds to the maximum.
#[test]
fn drained_or_full_eventfds_block_nothing() {
    let served = ServeProcess::start(MIB, "");
    check_survives(&served, "full eventfds", |monitor| {
        let full = u64::MAX - 1;
        for _ in 0..5 {
            monitor.write(0, 0, &[4; 512]);
            while monitor.queues[0].call.read().is_ok() {}
            monitor.queues[0].call.write(full).unwrap();
        }
        let _ = monitor.queues[0].kick.read();
        monitor.queues[0].kick.write(full).unwrap();
        // Time for the worker to wake and to sleep again.
        std::thread::sleep(Duration::from_millis(100));
        let base = monitor.stop(0);
        assert_eq!(base, monitor.queues[0].ring.used_index());
    });
    check_survives(&served, "a kick drained by the front-end", |monitor| {
        for _ in 0..20 {
            let kick = monitor.queues[0].kick.try_clone().unwrap();
            let stop = std::sync::atomic::AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        let _ = kick.read();
                    }
                });
                let base = monitor.stop(0);
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
                monitor.set_up(0, base);
            });
        }
    });
}
