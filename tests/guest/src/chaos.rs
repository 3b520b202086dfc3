//! A guest under `fio --verify` while its host disturbs the monitor.

use std::time::Duration;

use anyhow::{Context, Result};
use lab::{Host, disk};

use crate::control_socket::{ctl, table};

const LIMIT: Duration = Duration::from_secs(900);

/// Each round: SIGSTOP, a frozen store, a flood of the control socket and half a request, a low
/// limit of descriptors, and a low memory.high while the store is frozen.
const DISTURBANCES: &str = r#"
pid=$(cat $RUN/guest0.pid); cgroup=/sys/fs/cgroup/chaos
mountpoint -q /sys/fs/cgroup || mount -t cgroup2 none /sys/fs/cgroup
echo +memory >/sys/fs/cgroup/cgroup.subtree_control
mkdir $cgroup; echo $pid >$cgroup/cgroup.procs
for round in 1 2 3; do
  kill -STOP $pid; sleep 1; kill -CONT $pid; sleep 1
  fsfreeze --freeze $SCRATCH; sleep 1; fsfreeze --unfreeze $SCRATCH; sleep 1
  for client in 1 2 3 4 5 6 7 8; do
    $RUN/bulkhead ctl $RUN/control.sock status --json >/dev/null & clients="$clients $!"
  done
  printf 'GET /v1/status HT' | timeout 2 socat - UNIX-CONNECT:$RUN/control.sock >/dev/null & clients="$clients $!"
  prlimit --pid $pid --nofile=$(ls /proc/$pid/fd | wc -l):
  for client in $clients; do wait $client || true; done; clients=
  prlimit --pid $pid --nofile=1024:
  echo 32M >$cgroup/memory.high; fsfreeze --freeze $SCRATCH; sleep 1
  fsfreeze --unfreeze $SCRATCH; echo max >$cgroup/memory.high
done
"#;

/// Threads and descriptors of the monitor, without the kernel's threads of its io_urings (iou-wrk).
fn usage(host: &Host) -> Result<[u64; 2]> {
    let text = host.run(&format!(
        "pid=$(cat {}); cat /proc/$pid/task/*/comm | grep -cv ^iou-; ls /proc/$pid/fd | wc -l",
        host.path("guest0.pid")
    ))?;
    let mut counts = text.lines().map(|line| line.trim().parse::<u64>());
    let mut next = || counts.next().context("two lines")?.context("a number");
    Ok([next()?, next()?])
}

#[test]
#[ignore = "long: make guests"]
fn a_guest_loses_nothing_while_its_host_is_disturbed() -> Result<()> {
    let host = Host::start("chaos")?;
    let scratch = host.scratch("ext4")?;
    let mut tables = table(&host);
    for mode in ["writeback", "none"] {
        let image = format!("{scratch}/{mode}.img");
        host.run(&format!("truncate -s 16M {image}"))?;
        tables += &disk(mode, &image, &format!("cache = \"{mode}\"\nqueues = 2"));
    }
    let guest = host.boot(&host.guest_config(2, "512MiB", "initramfs-tools", "", &tables))?;
    // The engines exist from the first I/O on.
    guest.run(
        "dd if=/dev/vda of=/dev/null bs=1M count=1; dd if=/dev/vdb of=/dev/null bs=1M count=1",
    )?;
    let before = usage(&host)?;
    guest.run(
        "(fio --ioengine=libaio --direct=1 --iodepth=8 --numjobs=2 --thread --rw=randwrite --size=4m --offset_increment=4m --bs=4k \
         --verify=crc32c --verify_backlog=64 --verify_fatal=1 --do_verify=1 --end_fsync=1 --loops=1000 --time_based --runtime=30 \
         --group_reporting --output-format=terse --terse-version=3 \
         --name=writeback --filename=/dev/vda --new_group --name=none --filename=/dev/vdb >/tmp/fio.out 2>&1; echo end $? >>/tmp/fio.out) &",
    )?;
    let variables = format!("RUN={}\nSCRATCH={scratch}\n", host.path(""));
    let script = host.write("disturbances.sh", &format!("{variables}{DISTURBANCES}"))?;
    host.run_for(&format!("bash -e {script}"), LIMIT)?;
    let output = guest
        .run_for("until grep -q ^end /tmp/fio.out; do sleep 1; done; cat /tmp/fio.out", LIMIT)?;
    assert!(output.contains("end 0"), "{output}");
    assert!(output.contains(";writeback;0;0;"), "one group of jobs without errors: {output}");
    assert_eq!(guest.run("dmesg | grep -c 'I/O error' || true")?.trim(), "0");
    assert_eq!(usage(&host)?, before, "threads and descriptors of the monitor");
    let status = ctl(&host, "status")?;
    assert!(!status.contains("may be lost"), "{status}");
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}
