//! A guest under QEMU whose disk is served by `bulkhead serve`, which is killed and restarted
//! meanwhile.

use std::fs::File;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::{EmulatedGuest, ServeProcess};

const MIB: u64 = 1 << 20;

fn guest(served: &ServeProcess, name: &str) -> Result<EmulatedGuest> {
    let socket = format!("socket,id=disk,path={},reconnect-ms=50", served.socket().display());
    let device = "vhost-user-blk-pci,chardev=disk,num-queues=2";
    let arguments = ["-chardev", &socket, "-device", device].map(str::to_owned);
    EmulatedGuest::start(name, &arguments)
}

/// While the guest writes, the back-end is killed twice and terminated once: no write fails, and
/// the data is complete in the guest and in the layer.
#[test]
fn qemu_guest_keeps_writing_across_backend_restarts() -> Result<()> {
    let started = Instant::now();
    let folder = tempfile::tempdir()?;
    let [base, layer, image] = ["base", "layer", "image"].map(|name| folder.path().join(name));
    File::create(&base)?.set_len(64 * MIB)?;
    let keys = format!("base = \"{}\"\ncreate = true\n", base.display());
    let mut served = ServeProcess::start_at(&layer, &keys);
    let guest = guest(&served, "serve-killed")?;
    println!("guest up after {:.1} s", started.elapsed().as_secs_f64());
    guest.run("dd if=/dev/urandom of=/tmp/data bs=1M count=32 2>/dev/null")?;
    let pid = served.pid();
    guest.run(
        "(until test -e /tmp/enough; do dd if=/tmp/data of=/dev/vda bs=4k oflag=direct conv=fsync 2>/tmp/log; \
         status=$?; test $status = 0 || break; done; echo $status >/tmp/done) &",
    )?;
    for turn in 0..3 {
        thread::sleep(Duration::from_millis(400));
        ensure!(guest.run("test -e /tmp/done || echo busy")?.contains("busy"), "a write failed");
        if turn < 2 {
            served.kill();
        } else {
            served.terminate();
        }
        thread::sleep(Duration::from_millis(200));
        served.restart();
    }
    guest.run(
        "touch /tmp/enough; for i in $(seq 600); do test -e /tmp/done && break; sleep 0.1; done",
    )?;
    assert_eq!(guest.run("cat /tmp/done")?.trim(), "0", "the write succeeds");
    guest.run("echo 3 >/proc/sys/vm/drop_caches")?;
    guest.run("dd if=/dev/vda bs=1M count=32 iflag=direct 2>/dev/null | cmp - /tmp/data")?;
    assert_eq!(guest.run("dmesg | grep -ci 'i/o error' || true")?.trim(), "0");
    let sum = guest.run("sha256sum </tmp/data")?;
    ensure!(served.pid() != pid, "the process was not replaced");
    served.terminate();
    let paths = [&layer, &image].map(|path| path.display().to_string());
    let run = served.command(&["layer", "flatten", &paths[0], &paths[1]]).output()?;
    ensure!(run.status.success(), "{run:?}");
    let ours = Command::new("sh")
        .args(["-c", "head -c 33554432 \"$0\" | sha256sum"])
        .arg(&image)
        .output()?;
    assert_eq!(sum.trim(), String::from_utf8_lossy(&ours.stdout).trim());
    println!("done after {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// The write cache setting survives a restart of the back-end, which can then grow the disk.
#[test]
fn qemu_guest_disables_write_cache_and_sees_disk_grow() -> Result<()> {
    let mut served = ServeProcess::start(64 * MIB, "[control]\nsocket = \"c.sock\"");
    let guest = guest(&served, "serve-cache")?;
    assert_eq!(guest.run("cat /sys/block/vda/cache_type")?.trim(), "write back");
    guest.run("echo 'write through' >/sys/block/vda/cache_type")?;
    let write_cache = |served: &ServeProcess| -> Result<serde_json::Value> {
        let run = served.command(&["ctl", "disk.toml", "status", "--json"]).output()?;
        let status: serde_json::Value = serde_json::from_slice(&run.stdout)?;
        Ok(status["disks"][0]["write_cache"].clone())
    };
    assert_eq!(write_cache(&served)?, false);
    served.kill();
    served.restart();
    guest.run("dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct 2>/dev/null")?;
    assert_eq!(write_cache(&served)?, false, "the guest no longer flushes");
    let run = served.command(&["ctl", "disk.toml", "resize", "data", "96MiB"]).output()?;
    ensure!(run.status.success(), "{run:?}");
    guest.run("for i in $(seq 100); do test $(cat /sys/block/vda/size) = 196608 && exit; sleep 0.1; done; exit 1")?;
    Ok(())
}
