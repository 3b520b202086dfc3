//! Host resources of the measurements: CPU affinity, CPU time, disks.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{getpid, getpriority_process, setpriority_process};
use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_setaffinity};

use fixtures::wait_for;

/// Size of each disk.
const DISK_BYTES: usize = 512 << 20;

/// Pins this thread, and the threads and processes it starts, to the last CPU it may use.
pub(super) fn pin_to_one_cpu() -> Result<usize> {
    let allowed = sched_getaffinity(None)?;
    let cpu = (0..CpuSet::MAX_CPU).rfind(|cpu| allowed.is_set(*cpu)).context("no CPU to run on")?;
    let mut one = CpuSet::new();
    one.set(cpu);
    sched_setaffinity(None, &one)?;
    Ok(cpu)
}

/// Moves this thread to the CPUs it is not pinned to; dropping it moves the thread back.
pub(super) struct OtherCpu(CpuSet);

impl OtherCpu {
    pub(super) fn move_to() -> Result<Self> {
        let here = sched_getaffinity(None)?;
        let mut others = CpuSet::new();
        (0..CpuSet::MAX_CPU).filter(|cpu| !here.is_set(*cpu)).for_each(|cpu| others.set(cpu));
        sched_setaffinity(None, &others).context("a second CPU is needed")?;
        Ok(Self(here))
    }
}

impl Drop for OtherCpu {
    fn drop(&mut self) {
        let _ = sched_setaffinity(None, &self.0);
    }
}

/// Raises the priority over other processes, for all contestants alike. Best effort.
pub(super) fn raise_priority() {
    let _ = rustix::process::setsid();
    let _ = fs::write("/proc/self/autogroup", "-20");
    if getpriority_process(Some(getpid())).is_ok() {
        let _ = setpriority_process(Some(getpid()), -20);
    }
}

/// CPU time of threads since a point in time, from `/proc/PID/task/*/schedstat`: includes the
/// process' io_uring workers, excludes other processes on the same CPU.
pub(super) struct CpuClock {
    tasks: PathBuf,
    except: Option<String>,
    start: Duration,
}

impl CpuClock {
    /// A clock of all threads of this process except the calling one.
    pub(super) fn of_other_threads() -> Result<Self> {
        let own = gettid().as_raw_nonzero().to_string();
        Self::start("/proc/self/task".into(), Some(own))
    }

    /// A clock of all threads of a process.
    pub(super) fn of_process(pid: u32) -> Result<Self> {
        Self::start(format!("/proc/{pid}/task").into(), None)
    }

    fn start(tasks: PathBuf, except: Option<String>) -> Result<Self> {
        let mut clock = Self { tasks, except, start: Duration::ZERO };
        clock.start = clock.now()?;
        Ok(clock)
    }

    fn now(&self) -> Result<Duration> {
        let mut sum = Duration::ZERO;
        for task in fs::read_dir(&self.tasks)? {
            let task = task?;
            if self.except.as_deref().is_some_and(|except| task.file_name() == except) {
                continue;
            }
            // The thread may have ended since.
            let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
            let on_cpu_ns = text.split(' ').next().context("schedstat has a first field")?;
            sum += Duration::from_nanos(on_cpu_ns.parse()?);
        }
        Ok(sum)
    }

    /// CPU time since the start.
    pub(super) fn elapsed(&self) -> Result<Duration> {
        Ok(self.now()?.saturating_sub(self.start))
    }
}

/// The disk images. Dropping them unmounts their file systems.
pub(super) struct Disks {
    folder: PathBuf,
    xfs: InMemory,
}

impl Disks {
    /// Makes the images below `folder` and reads them into the page cache.
    pub(super) fn make(folder: &Path) -> Result<Self> {
        InMemory::unmount_leftovers(folder)?;
        let disks = Self { folder: folder.to_owned(), xfs: InMemory::mount(folder, "xfs")? };
        fill(&disks.on_disk(), DISK_BYTES)?;
        fill(&disks.on_xfs(), DISK_BYTES)?;
        Ok(disks)
    }

    /// A page-cached file on the file system of the build.
    pub(super) fn on_disk(&self) -> PathBuf {
        self.folder.join("disk.img")
    }

    /// A file on XFS on a loop device over tmpfs.
    pub(super) fn on_xfs(&self) -> PathBuf {
        self.xfs.folder().join("disk.img")
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.on_disk());
    }
}

/// A loop device over a file. Dropping it detaches the device at its last close.
pub(super) struct LoopDevice(String);

impl LoopDevice {
    pub(super) fn over(file: &Path, options: &[&str]) -> Result<Self> {
        let mut command = Command::new("losetup");
        let name = call(command.args(["--find", "--show"]).args(options).arg(file))?;
        Ok(Self(name.trim().to_owned()))
    }

    pub(super) fn path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = call(Command::new("losetup").arg("--detach").arg(&self.0));
    }
}

/// A file system of 1 GiB on a loop device over tmpfs, unmounted when dropped.
pub(super) struct InMemory {
    folder: PathBuf,
    memory: PathBuf,
}

impl InMemory {
    const KINDS: [&str; 2] = ["xfs", "ext4"];

    /// Mounts one of `kind` below `folder`.
    pub(super) fn mount(folder: &Path, kind: &str) -> Result<Self> {
        let made = Self::at(folder, kind)?;
        call(
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=2g", "bench"]).arg(&made.memory),
        )?;
        let image = made.memory.join("image");
        File::create(&image)?.set_len(3 << 30)?;
        let force = if kind == "xfs" { "-f" } else { "-F" };
        call(Command::new(format!("mkfs.{kind}")).args(["-q", force]).arg(&image))?;
        // The unmount detaches the loop device.
        call(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&made.folder))?;
        Ok(made)
    }

    /// The mount points of `kind` below `folder`, mounted or not.
    fn at(folder: &Path, kind: &str) -> Result<Self> {
        let (mounted, memory) = (folder.join(kind), folder.join(format!("{kind}-memory")));
        fs::create_dir_all(&mounted)?;
        fs::create_dir_all(&memory)?;
        Ok(Self { folder: mounted.canonicalize()?, memory: memory.canonicalize()? })
    }

    /// Unmounts the file systems that a killed run left below `folder`.
    pub(super) fn unmount_leftovers(folder: &Path) -> Result<()> {
        Self::KINDS.into_iter().try_for_each(|kind| Self::at(folder, kind).map(drop))
    }

    /// The mount point.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for InMemory {
    fn drop(&mut self) {
        unmount(&self.folder);
        unmount(&self.memory);
    }
}

/// Unmounts a file system. Retries: the kernel may release files a moment after their process
/// exited.
#[expect(clippy::print_stderr, reason = "a warning that does not fail the benchmark")]
fn unmount(folder: &Path) {
    let is_mounted = || Command::new("mountpoint").arg("-q").arg(folder).status();
    let try_once = || {
        let tried = Command::new("umount").arg("-q").arg(folder).stderr(Stdio::null()).status();
        let gone = tried.is_ok_and(|tried| tried.success());
        (gone || !is_mounted().is_ok_and(|mounted| mounted.success())).then_some(())
    };
    if wait_for(try_once).is_none() {
        eprintln!("{} cannot be unmounted", folder.display());
    }
}

/// Describes the machine, its kernel and the file system of a path, for the report.
pub(super) fn describe(path: &Path) -> Result<String> {
    let file_system = call(Command::new("stat").args(["-f", "-c", "%T"]).arg(path))?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cpus = std::thread::available_parallelism()?;
    let model = fs::read_to_string("/proc/cpuinfo")?;
    let model = model.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let model = model.trim_start_matches([' ', '\t', ':']);
    Ok(format!("{model}, {cpus} CPUs, Linux {}, {}", kernel.trim(), file_system.trim()))
}

/// Runs a program, which must succeed, and returns its output.
pub(super) fn call(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {stderr}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Fills a file with data that is neither sparse nor compressible, and leaves it clean in the page
/// cache.
pub(super) fn fill(path: &Path, bytes: usize) -> Result<()> {
    let mut file = File::create(path)?;
    let chunk: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
    for _ in 0..bytes / chunk.len() {
        file.write_all(&chunk)?;
    }
    file.sync_all()?;
    let mut sink = vec![0; chunk.len()];
    let mut file = File::open(path)?;
    while file.read(&mut sink)? > 0 {}
    Ok(())
}

/// Folder of images and results.
pub(super) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/bench")
}
