//! Builds the lab step by step and finds its products.
//!
//! Steps: host packages, the Debian root with its kernel, the guest kit, the disk images, the
//! snapshot, a probe of this machine's KVM. ZFS is a separate step, run on first use. A step writes
//! to a folder with the extension `unfinished` and renames it at the end: an interrupted step is
//! repeated. A file lock serializes builds; scenarios take it only to build ZFS.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::cache::{Key, cache, recipe};
use super::logs::tail;
use super::products::Lab;
use super::{direct, prune, snapshot};

impl Lab {
    /// Finds the built lab; the error says how to build it.
    pub fn find() -> Result<Self> {
        let lab = Self::plan()?.context("the lab is not built: run `make lab`")?;
        let products = lab.products();
        for product in &products {
            ensure!(
                product.exists(),
                "the lab is not built, or its recipe has changed ({} is missing): run `make lab`",
                product.display()
            );
        }
        prune::touch(&products);
        Ok(lab)
    }

    /// Removes the products of other recipes. Holds the build lock.
    pub fn prune() -> Result<()> {
        let _lock = lock()?;
        Self::prune_unused_for(Duration::ZERO)
    }

    fn prune_unused_for(unused_for: Duration) -> Result<()> {
        let mut ours = vec![root_key()?.folder("root")?, debian_key()?.folder("debian-root")?];
        if let Some(lab) = Self::plan()? {
            ours.extend(lab.products());
            ours.push(direct::probe_folder(&lab)?);
            ours.push(lab.zfs_folder()?);
        }
        prune::prune(&cache()?, &ours, unused_for)
    }

    /// Names of all products; `None` before the first step, whose kernel version the others depend
    /// on.
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

    /// An archive that adds ZFS to L1's root. Builds it if it is missing, which takes minutes.
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
        eprintln!("lab: zfs: installing a compiler and the kernel headers ...");
        script("zfs compiler", "zfs-compiler.sh", &[&self.root, &compiler])?;
        eprintln!("lab: zfs: compiling, about four minutes ...");
        script("zfs", "zfs.sh", &[&self.root, &compiler, out])?;
        Ok(fs::remove_dir_all(compiler)?)
    }

    /// Runs the missing steps and reports each with its duration on stderr.
    pub fn build() -> Result<Self> {
        let _lock = lock()?;
        script("host packages", "host-packages.sh", &[])?;
        let (root, debian) = (root_key()?.folder("root")?, debian_key()?.folder("debian-root")?);
        in_parallel(
            || step("root", &root, |out| script("root", "root.sh", &[out])),
            || step("debian-root", &debian, |out| script("debian-root", "debian.sh", &[out])),
        )?;
        let lab = Self::plan()?.context("the root step left no kernel version")?;
        eprintln!("lab: kernel {}", lab.kernel_version()?);
        in_parallel(
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
        step("direct-kvm", &direct::probe_folder(&lab)?, |out| direct::probe(&lab, out))?;
        Self::prune_unused_for(prune::RETENTION)?;
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

/// Takes the build lock, held until the file is dropped.
fn lock() -> Result<File> {
    let dir = cache()?;
    fs::create_dir_all(dir.join("logs"))?;
    let lock = File::create(dir.join("lock"))?;
    if rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        eprintln!("lab: waiting for another build");
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

/// Runs two steps concurrently.
fn in_parallel(
    first: impl FnOnce() -> Result<()> + Send,
    second: impl FnOnce() -> Result<()> + Send,
) -> Result<()> {
    thread::scope(|scope| {
        let second = scope.spawn(second);
        let result = first();
        second.join().map_err(|_| anyhow!("a build step panicked"))?.and(result)
    })
}

/// Makes `product` with `make` unless it exists.
fn step(name: &str, product: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if product.exists() {
        eprintln!("lab: {name}: up to date");
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

/// Runs a recipe script with its output in the cache folder's `logs`.
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
