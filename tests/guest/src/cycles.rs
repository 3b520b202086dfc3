//! Repeated boot and power-off without a failure. `BULKHEAD_CYCLES` sets the number;
//! `make cycles` runs 50.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::{Host, disk};

const CYCLES: u32 = 10;

/// Runs a number of cycles with one configuration; stops at the first failure.
const WORKER: &str = r#"
worker=$1 cycles=$2 program=$3
for cycle in $(seq $cycles); do
  rm -f console$worker
  timeout 180 $program run guest$worker.toml >output$worker 2>&1 </dev/null; status=$?
  if [ $status != 0 ] || ! grep -q GUEST-UP console$worker; then
    echo "worker $worker, cycle $cycle of $cycles: status $status"; cat output$worker console$worker; exit 1
  fi
done"#;

#[test]
#[ignore = "long: make guests"]
fn guests_boot_and_power_off_repeatedly() -> Result<()> {
    let cycles = match std::env::var("BULKHEAD_CYCLES") {
        Ok(text) => text.parse().context("BULKHEAD_CYCLES is a number")?,
        Err(_) => CYCLES,
    };
    let host = Host::start("cycles")?;
    let program = host.put_bulkhead()?;
    let worker = host.write("worker.sh", WORKER)?;
    // Two guests at once, one on each processor of the host: one guest with one vCPU, one with two.
    for vcpus in [1, 2] {
        let image = host.path(&format!("disk{vcpus}.img"));
        host.run(&format!("truncate -s 64M {image}"))?;
        let console = format!("[console]\nfile = \"{}\"\n", host.path(&format!("console{vcpus}")));
        let tables = disk("data", &image, "") + &console;
        let config = host.guest_config(vcpus, "128MiB", "initramfs", "bulkhead.once", &tables);
        host.write(&format!("guest{vcpus}.toml"), &config)?;
    }
    let started = Instant::now();
    host.run_for(
        &format!(
            "cd {} && {{ bash {worker} 1 {} {program} & one=$!; bash {worker} 2 {} {program} && wait $one; }}",
            host.path(""),
            cycles.div_ceil(2),
            cycles / 2,
        ),
        Duration::from_secs(120) + Duration::from_secs(30) * cycles,
    )?;
    let seconds = started.elapsed().as_secs_f64();
    println!("{cycles} cycles in {seconds:.0} s, {:.1} s each", seconds / f64::from(cycles));
    Ok(())
}
