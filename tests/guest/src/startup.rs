//! Cost of an idle machine: the monitor's memory, and the time to the guest's first instruction and
//! to its first process, compared with QEMU's microvm.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{CMDLINE, Host, bulkhead_binary, disk};

const GUEST_KIB: u64 = 128 << 10;
/// Limit of the monitor's own memory, with one disk.
const MOST_KIB: u64 = 5120;

/// Resident memory of guest 0's monitor without the guest's memory, which is resident from the
/// start.
fn resident_kib(host: &Host) -> Result<u64> {
    let rollup = host.run(&format!("cat /proc/$(cat {})/smaps_rollup", host.path("guest0.pid")))?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).context("no Rss")?;
    let resident: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(resident - GUEST_KIB)
}

#[test]
fn monitor_uses_little_memory() -> Result<()> {
    let host = Host::start("startup-memory")?;
    let mut resident = Vec::new();
    for count in [1, 24] {
        let image = |n: u32| host.path(&format!("{n}.img"));
        let tables: String =
            (1..=count).map(|n| disk(&format!("disk{n}"), &image(n), "")).collect();
        for n in 1..=count {
            host.run(&format!("truncate -s 16M {}", image(n)))?;
        }
        let guest = host.boot(&host.small_guest(1, &tables))?;
        guest.run(
            "for disk in /dev/vd*; do dd if=/dev/zero of=$disk bs=1M count=4 oflag=direct 2>/dev/null || exit 1; \
             dd if=$disk of=/dev/null bs=1M iflag=direct 2>/dev/null || exit 1; done",
        )?;
        resident.push(resident_kib(&host)?);
        println!("{count} disks: {} KiB without the guest's memory", resident_kib(&host)?);
        assert_eq!(guest.power_off()?, 0);
    }
    assert!(resident.first().is_some_and(|one| *one <= MOST_KIB), "{resident:?} KiB");
    Ok(())
}

/// Runs each program twice, with and without a disk, and prints for each run: program, number of
/// disks, time in seconds of its start and of its first entry into the guest, guest uptime at init.
/// All files are in memory: no run waits for a disk of the host.
///
/// The microvm is as small as it boots here: with ACPI, by which Linux finds the PCI bus, without
/// PIC and PIT (its firmware leaves the PIT running, which crashes Linux). Its initramfs is padded
/// to a page, because QEMU loads it over the ACPI tables otherwise.
const SCRIPT: &str = r#"
trace=/sys/kernel/tracing
mount -t tracefs trace $trace; echo mono >$trace/trace_clock; echo traceoff >$trace/events/kvm/kvm_entry/trigger
echo 1 >$trace/events/kvm/kvm_entry/enable; echo 1 >$trace/events/sched/sched_process_exec/enable
cp /l2/vmlinux /l2/initramfs /run/ && truncate -s %4096 /run/initramfs && truncate -s 256M /run/disk.img
cmdline="CMDLINE bulkhead.once"
measure() {
  program=$1 disks=$2; shift 2
  echo "$program with $disks disks" >/dev/console
  rm -f /run/console; echo 0 >$trace/tracing_on; echo >$trace/trace
  echo 1 >$trace/tracing_on # Until the first entry.
  timeout 60 "$@" || exit 1
  at() { sed -n "s/.* \([0-9.]*\): $1.*/\1/p" $trace/trace | head -n 1; }
  echo "$program $disks $(at "sched_process_exec: filename=[^ ]*$program") $(at kvm_entry:) \
    $(sed -n 's/.*GUEST-UP \([0-9.]*\).*/\1/p' /run/console)"
}
bulkhead() {
  { printf '[machine]\nvcpus = 1\nmemory = "256MiB"\n[console]\nfile = "/run/console"\n'
    printf '[kernel]\nimage = "/run/vmlinux"\ninitramfs = "/run/initramfs"\ncmdline = "%s"\n' "$cmdline"
    [ $1 = 0 ] || printf '[[disk]]\nid = "disk"\npath = "/run/disk.img"\n'; } >/run/vm.toml
  measure bulkhead $1 ./bulkhead run /run/vm.toml
}
microvm() {
  disks=$1 machine=microvm,acpi=on,rtc=on,pit=off,pic=off$2; shift 2
  measure qemu-system-x86_64 $disks qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot \
    -accel kvm -cpu host -m 256M -M $machine "$@" \
    -kernel /run/vmlinux -initrd /run/initramfs -append "$cmdline" -serial file:/run/console
}
for round in cold warm; do
  bulkhead 1
  microvm 1 ,pcie=on -device virtio-blk-pci,drive=disk,serial=disk -device virtio-rng-pci \
    -drive if=none,id=disk,file=/run/disk.img,format=raw,aio=io_uring
  bulkhead 0
  microvm 0 ""
done
"#;

/// Measurements of one run.
struct Run {
    start_to_guest: f64,
    uptime_at_init: f64,
}

/// The last run of `program` with `disks` disks, when all files are in the host's page cache.
fn last_run(text: &str, program: &str, disks: &str) -> Result<Run> {
    let words = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .rfind(|words| words.starts_with(&[program, disks]));
    let numbers: Vec<f64> = words
        .iter()
        .flatten()
        .skip(2)
        .map(|word| word.parse())
        .collect::<Result<_, _>>()
        .context(text.to_owned())?;
    let [started, entered, uptime_at_init] = numbers[..] else {
        anyhow::bail!("{program} with {disks} disks was not measured:\n{text}")
    };
    Ok(Run { start_to_guest: entered - started, uptime_at_init })
}

/// Resolution of /proc/uptime in seconds, with a margin for rounding.
const UPTIME_STEP: f64 = 0.0101;

/// In emulated time, so that differences are those of the programs.
#[test]
#[ignore = "long: make guests"]
fn guest_starts_no_later_than_under_qemu_microvm() -> Result<()> {
    let program = bulkhead_binary()?;
    let output = Host::deterministic(
        "startup-time",
        &[(&program, "bulkhead")],
        &SCRIPT.replace("CMDLINE", CMDLINE),
        Duration::from_secs(120),
    )?;
    ensure!(output.status == 0, "status {}: {}", output.status, output.text);
    println!("                      start to guest   guest uptime at init");
    for disks in ["1", "0"] {
        let ours = last_run(&output.text, "bulkhead", disks)?;
        let theirs = last_run(&output.text, "qemu-system-x86_64", disks)?;
        for (name, run) in [("bulkhead", &ours), ("microvm", &theirs)] {
            println!(
                "{name:>10}, {disks} disks   {:>11.1} ms   {:>17.2} s",
                run.start_to_guest * 1e3,
                run.uptime_at_init
            );
        }
        assert!(ours.start_to_guest <= theirs.start_to_guest);
        assert!(ours.uptime_at_init <= theirs.uptime_at_init + UPTIME_STEP);
    }
    Ok(())
}
