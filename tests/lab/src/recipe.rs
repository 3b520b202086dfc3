//! Builds the lab, step by step, and finds what was built.
//!
//! Steps: host packages, the Debian root (and its kernel), the guest kit, the disk images, the snapshot, and a try of
//! this machine's own KVM. ZFS is a step for itself, done when somebody wants it. Each writes into a folder beside its
//! final name and renames it when done, so a step that was interrupted is simply done again. One lock keeps two builds
//! apart; scenarios only read, but for the first that wants ZFS.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::cache::{Key, cache, recipe};
use super::{direct, prune, snapshot};

/// Finished products of the recipe.
#[derive(Clone, Debug)]
pub struct Lab {
    /// Debian userland of L1 as a folder; it also lends its QEMU to this machine.
    pub root: PathBuf,
    /// Kernels and initramfs archives: `/l2` in L1, plus `host.cpio.zst`.
    pub kit: PathBuf,
    /// Folder of L1's root disk.
    pub image: PathBuf,
    /// Folder of the disk with a stock Debian guest.
    pub debian: PathBuf,
    /// Folder of the saved state of a booted L1.
    pub snapshot: PathBuf,
}

/// The last lines of a log file, for error messages.
pub(super) fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}

impl Lab {
    /// The lab as already built; an error says how to build it.
    pub fn find() -> Result<Self> {
        let lab = Self::plan()?.context("the lab is not built")?;
        let products = lab.products();
        for product in &products {
            ensure!(
                product.exists(),
                "the lab is not built, or its recipe changed since ({} is missing): cargo run -p lab -- build",
                product.display()
            );
        }
        prune::touch(&products);
        Ok(lab)
    }

    /// The folders that scenarios use.
    fn products(&self) -> [PathBuf; 5] {
        [&self.root, &self.kit, &self.image, &self.debian, &self.snapshot].map(Clone::clone)
    }

    /// Removes what other recipes have left. Builds wait for it.
    pub fn prune() -> Result<()> {
        let _lock = lock()?;
        Self::prune_unused_for(Duration::ZERO)
    }

    fn prune_unused_for(unused_for: Duration) -> Result<()> {
        let mut ours = vec![root_key()?.folder("root")?, debian_key()?.folder("debian-root")?];
        if let Some(lab) = Self::plan()? {
            ours.extend(lab.products());
            ours.push(direct::verdict_folder(&lab)?);
            ours.push(lab.zfs_folder()?);
        }
        prune::prune(&cache()?, &ours, unused_for)
    }

    /// Names of all products, or none when even the first step is to be done (the rest depend on the kernel it finds).
    pub(super) fn plan() -> Result<Option<Self>> {
        let (root_key, debian_key) = (root_key()?, debian_key()?);
        let root = root_key.folder("root")?;
        let Ok(version) = fs::read(root.join("boot/version")) else { return Ok(None) };
        let kit_key = root_key.bytes(&version).files(&[
            "initramfs.sh",
            "modules.sh",
            "vmlinux.sh",
            "guest",
            "host/initramfs-init",
        ])?;
        let image_key = kit_key.files(&["image.sh", "host"])?;
        let snapshot_key = image_key.key(snapshot::key());
        Ok(Some(Self {
            root,
            kit: kit_key.folder("kit")?,
            image: image_key.folder("image")?,
            debian: debian_key
                .key(root_key)
                .bytes(&version)
                .files(&["debian-image.sh", "debian", "guest/agent"])?
                .folder("debian")?,
            snapshot: snapshot_key.folder("snapshot")?,
        }))
    }

    /// The version of the kernel that L1 and the guests boot.
    pub fn kernel_version(&self) -> Result<String> {
        Ok(fs::read_to_string(self.root.join("boot/version"))?.trim().to_owned())
    }

    /// What L1 lacks to have ZFS, as an archive to be unpacked over its root. Built if it is missing, which takes minutes.
    pub fn zfs(&self) -> Result<PathBuf> {
        let product = self.zfs_folder()?;
        if !product.exists() {
            let _lock = lock()?;
            step("zfs", &product, |out| self.build_zfs(out))?;
        }
        prune::touch([&product]);
        Ok(product.join("zfs.tar"))
    }

    fn zfs_folder(&self) -> Result<PathBuf> {
        let key = Key::new().bytes(self.kernel_version()?.as_bytes());
        key.files(&["zfs-compiler.sh", "zfs.sh"])?.folder("zfs")
    }

    fn build_zfs(&self, out: &Path) -> Result<()> {
        fs::create_dir_all(out)?;
        let compiler = out.join("compiler");
        eprintln!("lab: zfs: a compiler and the kernel's headers ...");
        script("zfs compiler", "zfs-compiler.sh", &[&self.root, &compiler])?;
        eprintln!("lab: zfs: compiling it, some four minutes ...");
        script("zfs", "zfs.sh", &[&self.root, &compiler, out])?;
        Ok(fs::remove_dir_all(compiler)?)
    }

    /// Does what is missing, showing each step and the time it took.
    pub fn build() -> Result<Self> {
        let _lock = lock()?;
        script("host packages", "host-packages.sh", &[])?;
        let (root, debian) = (root_key()?.folder("root")?, debian_key()?.folder("debian-root")?);
        both(
            || step("root", &root, |out| script("root", "root.sh", &[out])),
            || step("debian-root", &debian, |out| script("debian-root", "debian.sh", &[out])),
        )?;
        let lab = Self::plan()?.context("the root step left no kernel version")?;
        eprintln!("lab: kernel {}", lab.kernel_version()?);
        both(
            || {
                step("kit", &lab.kit, |out| lab.build_kit(out))?;
                step("image", &lab.image, |out| {
                    fs::create_dir_all(out)?;
                    script("image", "image.sh", &[&lab.root, &lab.kit, &out.join("root.img")])
                })
            },
            || {
                step("debian", &lab.debian, |out| {
                    fs::create_dir_all(out)?;
                    let image = out.join("debian.img");
                    script("debian", "debian-image.sh", &[&debian, &lab.root, &image])
                })
            },
        )?;
        step("snapshot", &lab.snapshot, |out| snapshot::take(&lab, out))?;
        step("direct-kvm", &direct::verdict_folder(&lab)?, |out| direct::probe(&lab, out))?;
        Self::prune_unused_for(prune::KEPT_FOR)?;
        Ok(lab)
    }

    fn build_kit(&self, out: &Path) -> Result<()> {
        fs::create_dir_all(out)?;
        let kernel = self.root.join(format!("boot/vmlinuz-{}", self.kernel_version()?));
        fs::copy(&kernel, out.join("vmlinuz"))
            .with_context(|| format!("copying {}", kernel.display()))?;
        script("vmlinux", "vmlinux.sh", &[&kernel, &out.join("vmlinux")])?;
        script("initramfs", "initramfs.sh", &[&self.root, out])
    }
}

/// Keeps other builds off until it is dropped.
fn lock() -> Result<File> {
    let dir = cache()?;
    fs::create_dir_all(dir.join("logs"))?;
    let lock = File::create(dir.join("lock"))?;
    if rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        eprintln!("lab: another build is running; waiting for it");
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
    }
    Ok(lock)
}

fn root_key() -> Result<Key> {
    Key::new().files(&["root.sh", "kernel.sh"])
}

fn debian_key() -> Result<Key> {
    Key::new().file("debian.sh")
}

/// Does two things at the same time.
fn both(
    one: impl FnOnce() -> Result<()> + Send,
    other: impl FnOnce() -> Result<()> + Send,
) -> Result<()> {
    thread::scope(|scope| {
        let other = scope.spawn(other);
        let result = one();
        other.join().map_err(|_| anyhow!("a step of the recipe panicked"))?.and(result)
    })
}

/// Makes `product` with `make` unless it exists already.
fn step(name: &str, product: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if product.exists() {
        eprintln!("lab: {name}: there already");
        return Ok(());
    }
    eprintln!("lab: {name} ...");
    let started = Instant::now();
    let unfinished = product.with_extension("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    make(&unfinished).with_context(|| format!("lab build, step {name}"))?;
    fs::rename(&unfinished, product)?;
    eprintln!("lab: {name} done in {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// Runs a recipe script with its output in a log of the cache folder.
fn script(name: &str, file: &str, arguments: &[&Path]) -> Result<()> {
    let log_path = cache()?.join(format!("logs/{}.log", name.replace(' ', "-")));
    let log = File::create(&log_path)?;
    let status = Command::new(recipe().join(file))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()
        .with_context(|| format!("running {file}"))?;
    if !status.success() {
        bail!(
            "{file} failed ({status}); the end of {}:\n{}",
            log_path.display(),
            tail(&log_path, 25)
        );
    }
    Ok(())
}
