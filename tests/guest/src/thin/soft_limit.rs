//! The soft limit of a store: events, status, and the guest's unit attention.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Host, disk};
use serde_json::Value;

use super::{Bus, Store, ThinGuest};
use crate::control_socket::{self, ctl};

/// Time limit of a soft limit event. The store is polled every two seconds.
const EVENT_TIMEOUT: Duration = Duration::from_secs(120);
/// Linux' message for the unit attention 38h/07h.
const SOFT_THRESHOLD: &str = "thin provisioning soft threshold";

/// A guest whose disk is on a small file system of the host.
struct SmallFileSystem<'host> {
    host: &'host Host,
    guest: ThinGuest<'host>,
}

impl<'host> SmallFileSystem<'host> {
    fn start(host: &'host Host, bus: Bus) -> Result<Self> {
        let (scratch, small) = (host.scratch("ext4")?, host.path("small"));
        let image = format!("{small}/data.img");
        host.run(&format!(
            "modprobe loop; truncate -s 256M {scratch}/small && mkfs.ext4 -q -F {scratch}/small && mkdir {small} && \
             mount -o loop {scratch}/small {small} && truncate -s 64M {image}"
        ))?;
        let settings = format!("{}thin = {{ soft_limit = \"60%\" }}", bus.setting());
        let tables = disk("data", &image, &settings) + &control_socket::table(host);
        let guest = host.boot(&host.guest_config(1, "512MiB", "initramfs-tools", "", &tables))?;
        Ok(Self { host, guest: ThinGuest { host, guest, store: Store::Ext4, files: vec![image] } })
    }

    fn reached(&self) -> Result<Value> {
        Ok(control_socket::stats(self.host, "data")?["soft_limit"]["reached"].clone())
    }

    /// The disk's events so far.
    fn events(&self) -> Result<Vec<String>> {
        let events: Value = serde_json::from_str(&ctl(self.host, "events --json")?)?;
        let events = events["events"].as_array().context("no events")?;
        assert!(events.iter().all(|event| event["disk"] == "data"), "{events:?}");
        Ok(events.iter().filter_map(|event| event["event"].as_str().map(str::to_owned)).collect())
    }

    fn wait_for_events(&self, expected: &[&str]) -> Result<()> {
        let start = Instant::now();
        loop {
            let events = self.events()?;
            if events == expected {
                return Ok(());
            }
            ensure!(
                events.len() < expected.len() && start.elapsed() < EVENT_TIMEOUT,
                "{events:?} instead of {expected:?}"
            );
            thread::sleep(Duration::from_millis(500));
        }
    }

    /// Allocates three quarters of the free space to another file.
    fn fill(&self) -> Result<()> {
        let small = self.host.path("small");
        self.host.run(&format!(
            "fallocate -l $(( ($(stat -f -c '%a * %S' {small})) / 4 * 3 )) {small}/ballast"
        ))?;
        Ok(())
    }

    fn empty(&self) -> Result<()> {
        self.host.run(&format!("rm {}", self.host.path("small/ballast")))?;
        Ok(())
    }

    /// Has the guest read and write, and counts its kernel's messages of a soft threshold.
    fn guest_warnings(&self, bus: Bus) -> Result<usize> {
        let node = bus.node(0);
        self.guest.guest.run(&format!(
            "dd if=/dev/zero of={node} bs=4k count=1 oflag=direct 2>/dev/null && dd if={node} of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null"
        ))?;
        // Filtered in the guest: the console is slow, and each of its exits costs the emulated
        // processor.
        let log =
            self.guest.guest.run("dmesg | grep -i -e 'provisioning' -e 'I/O error' || true")?;
        assert!(!log.contains("I/O error"), "{log}");
        let warnings = log.lines().filter(|line| line.contains(SOFT_THRESHOLD));
        Ok(warnings.inspect(|line| println!("{line}")).count())
    }
}

impl Drop for SmallFileSystem<'_> {
    fn drop(&mut self) {
        // Needed if the host is this machine.
        let small = self.host.path("small");
        self.host.try_run(&format!("umount -l {small}")).ok();
    }
}

/// Each crossing of the soft limit is one event of the control socket and, over virtio-scsi, one
/// unit attention of the guest.
fn check_soft_limit(bus: Bus) -> Result<()> {
    let host = Host::start(&format!("thin-limit-{bus:?}").to_lowercase())?;
    let store = SmallFileSystem::start(&host, bus)?;
    let expected = |warnings| if bus == Bus::Scsi { warnings } else { 0 };
    let (reached, receded) = ("soft_limit_reached", "soft_limit_receded");
    thread::sleep(Duration::from_secs(5)); // More than two polls of the store.
    assert_eq!((store.reached()?, store.events()?), (Value::Bool(false), vec![]));
    assert_eq!(store.guest_warnings(bus)?, 0);

    store.fill()?;
    store.wait_for_events(&[reached])?;
    assert_eq!(store.reached()?, Value::Bool(true));
    let status = ctl(&host, "status")?;
    assert!(status.contains("warning: disk data: soft limit: 60 % of the space"), "{status}");
    assert_eq!(store.guest_warnings(bus)?, expected(1));
    assert_eq!(store.guest_warnings(bus)?, expected(1), "one warning for each crossing");

    store.empty()?;
    store.wait_for_events(&[reached, receded])?;
    assert_eq!(store.reached()?, Value::Bool(false));
    assert!(!ctl(&host, "status")?.contains("soft limit"));
    assert_eq!(store.guest_warnings(bus)?, expected(1));

    store.fill()?;
    store.wait_for_events(&[reached, receded, reached])?;
    assert_eq!(store.guest_warnings(bus)?, expected(2));
    println!("{}", ctl(&host, "events")?);
    assert_eq!(store.guest.guest.power_off()?, 0);
    let log = store.guest.guest.vmm_output()?;
    assert_eq!(log.matches("soft limit reached: 60 % of the space").count(), 2, "{log}");
    Ok(())
}

#[test]
#[ignore = "long: make guests"]
fn soft_limit_is_reported_over_virtio_blk() -> Result<()> {
    check_soft_limit(Bus::Block)
}

#[test]
fn soft_limit_is_reported_over_virtio_scsi() -> Result<()> {
    check_soft_limit(Bus::Scsi)
}
