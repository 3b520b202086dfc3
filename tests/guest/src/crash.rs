//! Crash testing of a real guest: its disk is recorded, and the states that power cuts could have
//! left are explored.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use anyhow::{Result, ensure};
use lab::{CMDLINE, EmulatedGuest, Host, ServeProcess, disk};

/// Writes files, syncs each, and notes that in a mark. A mark is a direct write to a file that has
/// its blocks, which flushes nothing.
const WORKLOAD: &str = "dd if=/dev/zero of=/mnt/mark bs=4k count=1 conv=fsync 2>/dev/null; \
    mark() { echo \"bulkhead-mark: $1\" | dd of=/mnt/mark bs=4k conv=sync,notrunc oflag=direct 2>/dev/null; }; \
    for n in 1 2 3 4 5 6; do \
      head -c $((n * 3000)) /dev/urandom >/mnt/f$n; SYNC; \
      mark \"synced $(sha256sum </mnt/f$n | cut -d' ' -f1) f$n\"; \
    done; umount /mnt";

struct Recording {
    served: ServeProcess,
    base: PathBuf,
    log: PathBuf,
}

impl Recording {
    /// Records the workload in a guest, with `sync` after each file.
    fn make(name: &str, folder: &Path, sync: &str) -> Result<Self> {
        let [base, image, log] = ["base.img", "disk.img", "disk.log"].map(|file| folder.join(file));
        fs::File::create(&base)?.set_len(64 << 20)?;
        let mkfs = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&base).status()?;
        ensure!(mkfs.success(), "mkfs.ext4");
        fs::copy(&base, &image)?;
        let keys = format!("record = \"{}\"", log.display());
        let mut served = ServeProcess::start_at(&image, &keys);
        let socket = format!("socket,id=disk,path={},reconnect-ms=50", served.socket().display());
        let device = "vhost-user-blk-pci,chardev=disk,num-queues=2";
        let arguments = ["-chardev", &socket, "-device", device].map(str::to_owned);
        let guest = EmulatedGuest::start(name, &arguments)?;
        guest.run("mount -t ext4 /dev/vda /mnt")?;
        guest.run(&WORKLOAD.replace("SYNC", sync))?;
        drop(guest);
        served.terminate();
        Ok(Self { served, base, log })
    }

    fn crash(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.served.command(&["crash"]);
        command.args(arguments).arg(&self.log).arg("--base").arg(&self.base);
        Ok(command.output()?)
    }

    fn explore(&self) -> Result<Output> {
        let check = "check-ext4 && check-files";
        self.crash(&[
            "explore", "--check", check, "--atomic", "block", "--lost", "2", "--time", "60s",
        ])
    }
}

/// A guest that syncs its files keeps its promises in all states, and one that does not is caught.
#[test]
fn synced_files_survive_power_cuts_and_others_do_not() -> Result<()> {
    let started = Instant::now();
    let folder = tempfile::tempdir()?;
    let synced = Recording::make("crash-synced", folder.path(), "sync /mnt/f$n")?;
    println!("recorded after {:.1} s", started.elapsed().as_secs_f64());
    let explored = synced.explore()?;
    println!("{}", String::from_utf8_lossy(&explored.stdout));
    ensure!(explored.status.code() == Some(0), "{explored:?}");

    let folder = tempfile::tempdir()?;
    let careless = Recording::make("crash-careless", folder.path(), "true")?;
    let explored = careless.explore()?;
    println!("{}", String::from_utf8_lossy(&explored.stdout));
    ensure!(explored.status.code() == Some(3), "{explored:?}");
    println!("done after {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// A check in the checker guest: its kernel mounts the disk, and compares each synced file.
const GUEST_CHECK: &str = "mkdir m && mount -t ext4 $BULKHEAD_DISK m || exit 3; \
    while read -r word sum file; do test $word = synced || continue; \
      test \"$(sha256sum <m/$file | cut -d' ' -f1)\" = $sum || { echo $file differs; exit 4; }; \
    done <$BULKHEAD_MARKS; umount m";

/// An initramfs of the kit with two more files: the workload and the agent of a checker guest.
fn initramfs(host: &Host, workload: &str) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let agent = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../resources/checker/agent");
    fs::copy(agent, folder.path().join("checker"))?;
    fs::write(folder.path().join("work"), workload)?;
    let archive = Command::new("sh")
        .args(["-c", "find . -type f | cpio --quiet -o -H newc -R 0:0"])
        .current_dir(folder.path())
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(archive.status.success(), "cpio");
    fs::write(folder.path().join("archive"), archive.stdout)?;
    let archive = host.put(&folder.path().join("archive"), "archive")?;
    let path = host.path("initramfs-crash");
    host.run(&format!("cat {} {archive} >{path}", host.kit("initramfs-tools")))?;
    Ok(path)
}

fn machine(host: &Host, initramfs: &str, script: &str, tables: &str) -> String {
    format!(
        "[machine]\nmemory = \"512MiB\"\n[kernel]\nimage = \"{}\"\ninitramfs = \"{initramfs}\"\n\
         cmdline = \"{CMDLINE} bulkhead.run=/{script}\"\n{tables}",
        host.kit("vmlinux")
    )
}

/// `crash test` runs a machine, and a checker guest checks the states of its disk.
#[test]
#[ignore = "long: make guests"]
fn a_checker_guest_checks_the_states_of_a_machine() -> Result<()> {
    let host = Host::start("crash-test")?;
    let scratch = host.scratch("ext4")?;
    let bulkhead = host.put_bulkhead()?;
    let image = format!("{scratch}/disk.img");
    host.run(&format!("modprobe fuse; truncate -s 64M {image} && mkfs.ext4 -q -F {image}"))?;
    let workload =
        format!("mount -t ext4 /dev/vda /mnt\n{}", WORKLOAD.replace("SYNC", "sync /mnt/f$n"));
    let initramfs = initramfs(&host, &workload)?;
    let vm =
        host.write("vm.toml", &machine(&host, &initramfs, "work", &disk("data", &image, "")))?;
    let checker = machine(
        &host,
        &initramfs,
        "checker",
        "[console]\nsocket = \"console.sock\"\n[control]\nsocket = \"checker.sock\"\n\
         [[scsi]]\ncontroller = 0\n",
    );
    let checker = host.write("checker.toml", &checker)?;
    let check = host.write("check", GUEST_CHECK)?;
    let started = Instant::now();
    let output = host.try_run(&format!(
        "cd {}; {bulkhead} crash test {vm} --check-guest {checker} --check \"$(cat {check})\" \
         --atomic block --lost 1 --samples 0 --states 40 --dir crash",
        host.path("")
    ))?;
    println!("{}\n{:.1} s", output.text, started.elapsed().as_secs_f64());
    ensure!(output.status == 0, "{}", output.text);
    ensure!(output.text.contains("a disk that ignores flushes is caught"), "{}", output.text);
    Ok(())
}
