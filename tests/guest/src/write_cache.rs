//! Host I/O of a guest's writes and flushes, in each cache mode, while the guest switches its write
//! cache: `fdatasync` and `RWF_DSYNC` exactly where the table of docs/disks.md has them.
//!
//! The host is observed, not the monitor's own counters. With `engine = "threads"` by strace.
//! io_uring makes no system call per request, so there by kernel tracing: each FSYNC taken from a
//! ring, and the flags of each write of the file system.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, ensure};
use lab::{Guest, Host, disk};

const MODES: [&str; 5] = ["none", "directsync", "writethrough", "writeback", "unsafe"];
const WRITES: usize = 8;
const FLUSHES: usize = 3;

/// Host I/O of one image.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct HostIo {
    /// Writes without `RWF_DSYNC`.
    volatile: usize,
    /// Writes with `RWF_DSYNC`.
    durable: usize,
    /// `fdatasync`, as a system call or from a ring.
    syncs: usize,
}

impl fmt::Debug for HostIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { volatile, durable, syncs } = self;
        write!(f, "{volatile} volatile, {durable} durable, {syncs} fdatasync")
    }
}

const NOTHING: HostIo = HostIo { volatile: 0, durable: 0, syncs: 0 };
const VOLATILE: HostIo = HostIo { volatile: WRITES, ..NOTHING };
const DURABLE: HostIo = HostIo { durable: WRITES, ..NOTHING };
const FLUSHED: HostIo = HostIo { syncs: FLUSHES, ..NOTHING };
const ONE_SYNC: HostIo = HostIo { syncs: 1, ..NOTHING };

/// An observer of the host's I/O.
trait Observer {
    /// Host I/O of the image `image` since the last call.
    fn take(&self, image: &str) -> Result<HostIo>;
}

/// The system calls of all threads of the monitor.
struct Strace<'host>(&'host Host);

impl<'host> Strace<'host> {
    fn attach(host: &'host Host) -> Result<Self> {
        let (pid, log) = (host.path("guest0.pid"), host.path("strace.log"));
        host.run(&format!(
            "strace -A -f -y -e trace=pwrite64,pwritev,pwritev2,write,writev,fdatasync,fsync,sync_file_range,syncfs,msync \
             -o {log} -p $(cat {pid}) >/dev/null 2>{log}.err & \
             for i in $(seq 500); do grep -q 'attached' {log}.err && break; sleep 0.1; done; cat {log}.err"
        ))?;
        Ok(Self(host))
    }
}

impl Observer for Strace<'_> {
    fn take(&self, image: &str) -> Result<HostIo> {
        let log = self.0.path("strace.log");
        let lines = self.0.run(&format!("grep -F '/{image}.img>' {log}; : >{log}"))?;
        let mut io = NOTHING;
        for line in lines.lines().filter(|line| !line.contains("resumed>")) {
            let call = line.split_whitespace().nth(1).context("a line of strace")?;
            match call.split('(').next() {
                Some("fdatasync") => io.syncs += 1,
                Some("pwritev2") if line.contains("RWF_DSYNC") => io.durable += 1,
                Some("pwritev2" | "pwritev" | "pwrite64") => io.volatile += 1,
                _ => anyhow::bail!("a call other than write and fdatasync: {line}"),
            }
        }
        Ok(io)
    }
}

/// The tracing of the host's kernel.
struct Tracing<'host> {
    host: &'host Host,
    /// By name of the image.
    inodes: BTreeMap<&'static str, u64>,
}

const TRACING: &str = "/sys/kernel/tracing";
/// `IOCB_DSYNC`, the file system's flag of `RWF_DSYNC`.
const IOCB_DSYNC: u64 = 2;

impl<'host> Tracing<'host> {
    /// Traces the file system of the images in `folder`.
    fn start(host: &'host Host, file_system: &str, folder: &str) -> Result<Self> {
        host.run(&format!(
            "mountpoint -q {TRACING} || mount -t tracefs tracing {TRACING}; cd {TRACING} && echo 0 >tracing_on && \
             echo 'p:lab/write {file_system}_file_write_iter flags=iocb->ki_flags:x32 inode=iocb->ki_filp->f_inode->i_ino' >dynamic_events && \
             echo 'p:lab/sync {file_system}_sync_file inode=file->f_inode->i_ino datasync=datasync:s32' >>dynamic_events && \
             echo 1 >events/lab/enable && echo 'opcode == 3' >events/io_uring/io_uring_submit_req/filter && \
             echo 1 >events/io_uring/io_uring_submit_req/enable && echo >trace && echo 1 >tracing_on"
        ))?;
        let inode = |mode: &str| -> Result<u64> {
            Ok(host.run(&format!("stat -c %i {folder}/{mode}.img"))?.trim().parse()?)
        };
        let inodes = MODES.iter().map(|mode| Ok((*mode, inode(mode)?))).collect::<Result<_>>()?;
        Ok(Self { host, inodes })
    }
}

impl Observer for Tracing<'_> {
    /// A write that io_uring tried inline and then offloaded to a worker appears twice with the
    /// same flags: the count of each kind is between the number of writes and twice that.
    fn take(&self, image: &str) -> Result<HostIo> {
        let trace = self.host.run(&format!(
            "cd {TRACING}; grep -E ' (write|sync|io_uring_submit_req): ' trace; echo >trace"
        ))?;
        let inode = self.inodes.get(image).context("no such image")?;
        let field = |line: &str, name: &str| -> Option<u64> {
            let text =
                line.split_whitespace().find_map(|word| word.strip_prefix(&format!("{name}=")))?;
            match text.strip_prefix("0x") {
                Some(hex) => u64::from_str_radix(hex, 16).ok(),
                None => text.parse().ok(),
            }
        };
        let (mut io, mut rings, mut full_syncs) = (NOTHING, 0, 0);
        for line in trace.lines() {
            let of_image = field(line, "inode") == Some(*inode);
            if line.contains(" io_uring_submit_req: ") {
                ensure!(line.contains("opcode FSYNC"), "the filter passed: {line}");
                rings += 1;
            } else if line.contains(" sync: ") && of_image {
                io.syncs += 1;
                full_syncs += usize::from(field(line, "datasync") != Some(1));
            } else if line.contains(" write: ") && of_image {
                let flags = field(line, "flags").with_context(|| format!("no flags: {line}"))?;
                let counter =
                    if flags & IOCB_DSYNC == 0 { &mut io.volatile } else { &mut io.durable };
                *counter += 1;
            }
        }
        ensure!(full_syncs == 0, "a sync without datasync: {trace}");
        // The file system's syncs after durable writes are not fdatasync calls: count those by the
        // ring.
        if io.durable > 0 {
            ensure!(io.syncs >= WRITES, "durable writes without a sync: {trace}");
            io.syncs = rings;
        }
        // A write counts once, inline or offloaded.
        for count in [&mut io.volatile, &mut io.durable] {
            ensure!(
                *count == 0 || (WRITES..=2 * WRITES).contains(count),
                "{count} writes: {trace}"
            );
            *count = if *count == 0 { 0 } else { WRITES };
        }
        Ok(io)
    }
}

/// A disk in the guest, and the observer of its host I/O.
struct ObservedDisk<'guest, 'host> {
    guest: &'guest Guest<'host>,
    observer: &'guest dyn Observer,
    mode: &'static str,
    disk: String,
}

impl ObservedDisk<'_, '_> {
    fn host_io_of(&self, command: &str) -> Result<HostIo> {
        self.guest.run(command)?;
        self.observer.take(self.mode)
    }

    /// Overwrites in place with direct I/O.
    fn write(&self) -> Result<HostIo> {
        let disk = &self.disk;
        self.host_io_of(&format!("dd if=/dev/zero of=/dev/{disk} bs=4k count={WRITES} oflag=direct conv=notrunc 2>/dev/null"))
    }

    /// `fsync` of the device without dirty data.
    fn flush(&self) -> Result<HostIo> {
        let disk = &self.disk;
        self.host_io_of(&format!("for n in $(seq {FLUSHES}); do dd if=/dev/null of=/dev/{disk} conv=fsync,notrunc 2>/dev/null || exit 1; done"))
    }

    /// Switches the device's write cache (CONFIG_WCE) and, with it, that of the guest's block
    /// layer.
    fn switch(&self, to: &str) -> Result<HostIo> {
        let disk = &self.disk;
        self.host_io_of(&format!(
            "cd /sys/block/{disk} && echo {to} >cache_type && grep -q '{to}' cache_type && grep -q '{to}' queue/write_cache"
        ))
    }

    /// Switches the write cache of the guest's block layer only: Linux does not tell the device.
    fn switch_guest_only(&self, to: &str) -> Result<HostIo> {
        self.host_io_of(&format!("echo {to} >/sys/block/{}/queue/write_cache", self.disk))
    }
}

fn check_host_io(engine: &str) -> Result<()> {
    let host = Host::start(&format!("cache-{engine}"))?;
    if host.is_direct() {
        return Ok(()); // Tracing is a global setting of this machine.
    }
    let scratch = host.scratch("ext4")?;
    let mut tables = String::new();
    for mode in MODES {
        let image = format!("{scratch}/{mode}.img");
        host.run(&format!("head -c 1M /dev/zero >{image} && sync {image}"))?;
        tables += &disk(mode, &image, &format!("cache = \"{mode}\"\nengine = \"{engine}\""));
    }
    let guest = host.boot(&host.small_guest(1, &tables))?;
    let observer: Box<dyn Observer> = match engine {
        "threads" => Box::new(Strace::attach(&host)?),
        _ => Box::new(Tracing::start(&host, "ext4", &scratch)?),
    };
    for (mode, letter) in MODES.into_iter().zip('a'..) {
        let disk =
            ObservedDisk { guest: &guest, observer: &*observer, mode, disk: format!("vd{letter}") };
        let cache_type = guest.run(&format!("cat /sys/block/vd{letter}/cache_type"))?;
        let mut steps = vec![("writes", disk.write()?), ("flushes", disk.flush()?)];
        if cache_type.trim() == "write back" {
            steps.push(("off", disk.switch("write through")?));
            steps.push(("writes, off", disk.write()?));
            steps.push(("flushes, off", disk.flush()?));
            steps.push(("on", disk.switch("write back")?));
            steps.push(("writes, on", disk.write()?));
            steps.push(("flushes, on", disk.flush()?));
            steps.push(("guest only", disk.switch_guest_only("write through")?));
            steps.push(("writes", disk.write()?));
            steps.push(("flushes", disk.flush()?));
        }
        println!("{engine}, cache = {mode}, guest sees {}:", cache_type.trim());
        steps.iter().for_each(|(step, io)| println!("  {step:<13}{io:?}"));
        let found: Vec<_> = steps.into_iter().map(|(_, io)| io).collect();
        let expected = match mode {
            "none" | "writeback" => {
                vec![
                    VOLATILE, FLUSHED, ONE_SYNC, DURABLE, NOTHING, NOTHING, VOLATILE, FLUSHED,
                    NOTHING, VOLATILE, NOTHING,
                ]
            }
            // Without a write cache the guest neither flushes nor switches.
            "directsync" | "writethrough" => vec![DURABLE, NOTHING],
            // Flushes are ignored, durable writes of a guest in write-through are not.
            _ => vec![
                VOLATILE, NOTHING, ONE_SYNC, DURABLE, NOTHING, NOTHING, VOLATILE, NOTHING, NOTHING,
                VOLATILE, NOTHING,
            ],
        };
        assert_eq!(found, expected, "{engine}, cache = {mode}");
    }
    host.run("pkill -x strace; echo 0 >/sys/kernel/tracing/tracing_on 2>/dev/null; true")?;
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
#[ignore = "long: make guests"]
fn thread_engine_io_follows_write_cache() -> Result<()> {
    check_host_io("threads")
}

#[test]
fn io_uring_engine_io_follows_write_cache() -> Result<()> {
    check_host_io("io_uring")
}
