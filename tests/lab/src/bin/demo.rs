//! `make demo`: a guest writes a file, reboots and reads it back.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lab::{Host, Lab};

/// Exit codes of `bulkhead run` that the demo expects (docs/running.md).
const POWERED_OFF: i32 = 0;
const REBOOTED: i32 = 10;

/// The files of the configuration, relative to the root of the tree.
const FILES: [&str; 5] = [
    "resources/demo.toml",
    "target/release/bulkhead",
    "target/demo/vmlinuz",
    "target/demo/initramfs",
    "target/demo/data.img",
];

fn main() -> Result<()> {
    let started = Instant::now();
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let lab = Lab::find()?;
    make_files(&lab, &tree).context("making the guest's files")?;

    let host = Host::start("demo")?;
    if host.is_direct() {
        print_step("This machine's KVM boots Linux: the guest runs on it.");
    } else {
        print_step(
            "This machine's KVM cannot boot Linux: the guest runs in the lab, on an emulated host.",
        );
    }
    for file in FILES {
        let folder = Path::new(file).parent().context("each file has a folder")?;
        host.run(&format!("mkdir -p {}", host.path(&folder.display().to_string())))?;
        host.put(&tree.join(file), file)?;
    }
    run_guest(&host, REBOOTED)?;
    run_guest(&host, POWERED_OFF)?;
    print_step(&format!("Demo passed in {:.0} s.", started.elapsed().as_secs_f64()));
    Ok(())
}

/// Makes the files of `resources/demo.toml`: Debian's kernel, a small userland with the demo's
/// script, and an ext4 image.
fn make_files(lab: &Lab, tree: &Path) -> Result<()> {
    let folder = tree.join("target/demo");
    fs::create_dir_all(&folder)?;
    fs::copy(lab.kit.join("vmlinuz"), folder.join("vmlinuz"))?;
    print_step(&format!("Debian's kernel {}", lab.kernel_version()?));

    let mut initramfs = fs::read(lab.kit.join("initramfs"))?;
    // Linux unpacks concatenated archives, each aligned to 4 bytes.
    initramfs.resize(initramfs.len().next_multiple_of(4), 0);
    initramfs.extend(archive(&tree.join("resources/demo"), "demo.sh")?);
    fs::write(folder.join("initramfs"), initramfs)?;

    let image: PathBuf = folder.join("data.img");
    fs::File::create(&image)?.set_len(64 << 20)?;
    let made = Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(&image).status()?;
    ensure!(made.success(), "mke2fs: {made}");
    print_step("target/demo/data.img: 64 MiB, ext4, empty");
    Ok(())
}

/// A cpio archive of one file of a folder.
fn archive(folder: &Path, name: &str) -> Result<Vec<u8>> {
    let mut names = Command::new("printf").arg(name).stdout(Stdio::piped()).spawn()?;
    let names_out = names.stdout.take().context("printf has an output")?;
    let output = Command::new("cpio")
        .args(["--create", "--quiet", "--format=newc"])
        .current_dir(folder)
        .stdin(names_out)
        .output()?;
    names.wait()?;
    ensure!(output.status.success(), "cpio: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// Runs the guest until it exits with `expected` and prints its console.
fn run_guest(host: &Host, expected: i32) -> Result<()> {
    println!("  $ bulkhead run resources/demo.toml");
    let tree = host.path("");
    let output = host.try_run(&format!(
        "cd {tree} && target/release/bulkhead run resources/demo.toml </dev/null"
    ))?;
    for line in
        output.text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with("##RC"))
    {
        println!("  | {}", line.trim_end());
    }
    println!("  exit code {}\n", output.status);
    ensure!(output.status == expected, "expected exit code {expected}");
    Ok(())
}

fn print_step(text: &str) {
    println!("demo: {text}");
}
