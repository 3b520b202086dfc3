//! What the host is asked for each guest's write and flush, in each cache mode, while the guest
//! switches its write cache: `fdatasync` and `RWF_DSYNC` where the table of docs/disks.md says so,
//! and nowhere else.
//!
//! The witness is never the program itself. With `engine = "threads"` it is strace. An io_uring
//! makes no system call of its own for each request; there it is the host's kernel, whose tracing
//! tells of every FSYNC taken from a ring and of the flags with which its file system is asked to
//! write.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, ensure};
use lab::{Guest, Host, disk};

const MODES: [&str; 5] = ["none", "directsync", "writethrough", "writeback", "unsafe"];
const WRITES: usize = 8;
const FLUSHES: usize = 3;

/// What the host was asked.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Asked {
    /// Writes without a promise.
    volatile: usize,
    /// Writes with `RWF_DSYNC`.
    durable: usize,
    /// `fdatasync`, as a system call or from a ring.
    syncs: usize,
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { volatile, durable, syncs } = self;
        write!(f, "{volatile} volatile, {durable} durable, {syncs} fdatasync")
    }
}

const NOTHING: Asked = Asked { volatile: 0, durable: 0, syncs: 0 };
const VOLATILE: Asked = Asked { volatile: WRITES, ..NOTHING };
const DURABLE: Asked = Asked { durable: WRITES, ..NOTHING };
const FLUSHED: Asked = Asked { syncs: FLUSHES, ..NOTHING };
const ONE_SYNC: Asked = Asked { syncs: 1, ..NOTHING };

/// Who tells what the host was asked.
trait Witness {
    /// What was asked of the image `image` since the last look.
    fn asked(&self, image: &str) -> Result<Asked>;
}

/// The system calls of the program, its threads' included.
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

impl Witness for Strace<'_> {
    fn asked(&self, image: &str) -> Result<Asked> {
        let log = self.0.path("strace.log");
        let lines = self.0.run(&format!("grep -F '/{image}.img>' {log}; : >{log}"))?;
        let mut asked = NOTHING;
        for line in lines.lines().filter(|line| !line.contains("resumed>")) {
            let call = line.split_whitespace().nth(1).context("a line of strace")?;
            match call.split('(').next() {
                Some("fdatasync") => asked.syncs += 1,
                Some("pwritev2") if line.contains("RWF_DSYNC") => asked.durable += 1,
                Some("pwritev2" | "pwritev" | "pwrite64") => asked.volatile += 1,
                _ => anyhow::bail!("neither a write nor an fdatasync: {line}"),
            }
        }
        Ok(asked)
    }
}

/// The tracing of the host's kernel.
struct Tracing<'host> {
    host: &'host Host,
    /// By image.
    inodes: BTreeMap<&'static str, u64>,
}

const TRACING: &str = "/sys/kernel/tracing";
/// `IOCB_DSYNC`, as the file system sees `RWF_DSYNC`.
const IOCB_DSYNC: u64 = 2;

impl<'host> Tracing<'host> {
    /// Watches the file system of the images.
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

impl Witness for Tracing<'_> {
    /// A write that the kernel tried at once and then again on a thread of its own is seen twice,
    /// with the same flags: writes are told apart by kind, and their number is at least what it
    /// must be.
    fn asked(&self, image: &str) -> Result<Asked> {
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
        let (mut asked, mut rings, mut full_syncs) = (NOTHING, 0, 0);
        for line in trace.lines() {
            let of_image = field(line, "inode") == Some(*inode);
            if line.contains(" io_uring_submit_req: ") {
                ensure!(line.contains("opcode FSYNC"), "the filter lets through: {line}");
                rings += 1;
            } else if line.contains(" sync: ") && of_image {
                asked.syncs += 1;
                full_syncs += usize::from(field(line, "datasync") != Some(1));
            } else if line.contains(" write: ") && of_image {
                let flags = field(line, "flags").with_context(|| format!("no flags: {line}"))?;
                let counter =
                    if flags & IOCB_DSYNC == 0 { &mut asked.volatile } else { &mut asked.durable };
                *counter += 1;
            }
        }
        ensure!(full_syncs == 0, "a sync that is no fdatasync: {trace}");
        // The file system syncs after each durable write, too: those are no calls.
        if asked.durable > 0 {
            ensure!(asked.syncs >= WRITES, "durable writes, and no sync after them: {trace}");
            asked.syncs = rings;
        }
        // One thread of the kernel or two, it is one write.
        for count in [&mut asked.volatile, &mut asked.durable] {
            ensure!(
                *count == 0 || (WRITES..=2 * WRITES).contains(count),
                "{count} writes: {trace}"
            );
            *count = if *count == 0 { 0 } else { WRITES };
        }
        Ok(asked)
    }
}

/// What the guest does to a disk.
struct Driver<'guest, 'host> {
    guest: &'guest Guest<'host>,
    witness: &'guest dyn Witness,
    mode: &'static str,
    disk: String,
}

impl Driver<'_, '_> {
    fn asked_by(&self, command: &str) -> Result<Asked> {
        self.guest.run(command)?;
        self.witness.asked(self.mode)
    }

    /// Overwrites in place, past the guest's page cache.
    fn write(&self) -> Result<Asked> {
        let disk = &self.disk;
        self.asked_by(&format!("dd if=/dev/zero of=/dev/{disk} bs=4k count={WRITES} oflag=direct conv=notrunc 2>/dev/null"))
    }

    /// `fsync` of the whole device, with nothing to write.
    fn flush(&self) -> Result<Asked> {
        let disk = &self.disk;
        self.asked_by(&format!("for n in $(seq {FLUSHES}); do dd if=/dev/null of=/dev/{disk} conv=fsync,notrunc 2>/dev/null || exit 1; done"))
    }

    /// Switches the device's cache (CONFIG_WCE); what the guest's block layer believes follows.
    fn switch(&self, to: &str) -> Result<Asked> {
        let disk = &self.disk;
        self.asked_by(&format!(
            "cd /sys/block/{disk} && echo {to} >cache_type && grep -q '{to}' cache_type && grep -q '{to}' queue/write_cache"
        ))
    }

    /// Makes the guest's block layer alone believe in another cache: Linux does not tell the
    /// device.
    fn pretend(&self, what: &str) -> Result<Asked> {
        self.asked_by(&format!("echo {what} >/sys/block/{}/queue/write_cache", self.disk))
    }
}

fn the_calls_follow_the_write_cache(engine: &str) -> Result<()> {
    let host = Host::start(&format!("cache-{engine}"))?;
    if host.is_direct() {
        return Ok(()); // The tracing of a machine in use is its owner's.
    }
    let scratch = host.scratch("ext4")?;
    let mut tables = String::new();
    for mode in MODES {
        let image = format!("{scratch}/{mode}.img");
        host.run(&format!("head -c 1M /dev/zero >{image} && sync {image}"))?;
        tables += &disk(mode, &image, &format!("cache = \"{mode}\"\nengine = \"{engine}\""));
    }
    let guest = host.boot(&host.small_guest(1, &tables))?;
    let witness: Box<dyn Witness> = match engine {
        "threads" => Box::new(Strace::attach(&host)?),
        _ => Box::new(Tracing::start(&host, "ext4", &scratch)?),
    };
    for (mode, letter) in MODES.into_iter().zip('a'..) {
        let driver =
            Driver { guest: &guest, witness: &*witness, mode, disk: format!("vd{letter}") };
        let told = guest.run(&format!("cat /sys/block/vd{letter}/cache_type"))?;
        let mut said = vec![("writes", driver.write()?), ("flushes", driver.flush()?)];
        if told.trim() == "write back" {
            said.push(("off", driver.switch("write through")?));
            said.push(("writes, off", driver.write()?));
            said.push(("flushes, off", driver.flush()?));
            said.push(("on", driver.switch("write back")?));
            said.push(("writes, on", driver.write()?));
            said.push(("flushes, on", driver.flush()?));
            said.push(("pretend", driver.pretend("write through")?));
            said.push(("writes", driver.write()?));
            said.push(("flushes", driver.flush()?));
        }
        println!("{engine}, cache = {mode}, told {}:", told.trim());
        said.iter().for_each(|(what, asked)| println!("  {what:<13}{asked:?}"));
        let asked: Vec<_> = said.into_iter().map(|(_, asked)| asked).collect();
        let expected = match mode {
            "none" | "writeback" => {
                vec![
                    VOLATILE, FLUSHED, ONE_SYNC, DURABLE, NOTHING, NOTHING, VOLATILE, FLUSHED,
                    NOTHING, VOLATILE, NOTHING,
                ]
            }
            // No write cache: the guest never flushes, and cannot switch.
            "directsync" | "writethrough" => vec![DURABLE, NOTHING],
            // Flushes are ignored. A guest that wants each write durable has it so.
            _ => vec![
                VOLATILE, NOTHING, ONE_SYNC, DURABLE, NOTHING, NOTHING, VOLATILE, NOTHING, NOTHING,
                VOLATILE, NOTHING,
            ],
        };
        assert_eq!(asked, expected, "{engine}, cache = {mode}");
    }
    host.run("pkill -x strace; echo 0 >/sys/kernel/tracing/tracing_on 2>/dev/null; true")?;
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn the_calls_of_the_threads_follow_the_write_cache() -> Result<()> {
    the_calls_follow_the_write_cache("threads")
}

#[test]
fn the_calls_of_the_ring_follow_the_write_cache() -> Result<()> {
    the_calls_follow_the_write_cache("io_uring")
}
