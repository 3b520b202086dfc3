//! Boot of both kernel formats, and the exit code of each way a guest can end.

use std::time::Duration;

use anyhow::Result;
use lab::{EXIT_TIMEOUT, Guest, Host};

/// The machine of a scenario without its kernel command line.
struct Machine {
    kernel: &'static str,
    vcpus: u8,
    memory: &'static str,
}

const SMALL: Machine = Machine { kernel: "vmlinux", vcpus: 1, memory: "128MiB" };

impl Machine {
    /// Boots the lab's guest on a new host and runs `scenario` once the guest is up.
    fn boot(
        &self,
        name: &str,
        more: &str,
        scenario: impl FnOnce(&Host, &Guest<'_>) -> Result<()>,
    ) -> Result<()> {
        let host = Host::start(name)?;
        let guest = host.boot(&format!(
            "[machine]\nvcpus = {}\nmemory = \"{}\"\nshutdown_grace = \"60s\"\n\
             [kernel]\nimage = \"{}\"\ninitramfs = \"{}\"\ncmdline = \"console=ttyS0 quiet {more}\"\n",
            self.vcpus,
            self.memory,
            host.kit(self.kernel),
            host.kit("initramfs"),
        ))?;
        scenario(&host, &guest)
    }
}

/// Checks the guest's number of processors and a power-off without output of the monitor.
fn check_processors(machine: &Machine, name: &str) -> Result<()> {
    machine.boot(name, "", |_, guest| {
        assert_eq!(guest.run("nproc")?.trim(), machine.vcpus.to_string());
        assert_eq!(guest.power_off()?, 0);
        let output = guest.vmm_output()?;
        assert!(
            output.is_empty() || output.contains("`vcpus` exceeds the number of host CPUs"),
            "{output}"
        );
        Ok(())
    })
}

#[test]
fn bzimage_boots_on_one_processor() -> Result<()> {
    check_processors(&Machine { kernel: "vmlinuz", ..SMALL }, "boot-bzimage")
}

#[test]
fn vmlinux_boots_on_one_processor() -> Result<()> {
    check_processors(&SMALL, "boot-vmlinux")
}

#[test]
#[ignore = "long: make guests"]
fn bzimage_boots_on_four_processors() -> Result<()> {
    check_processors(&Machine { kernel: "vmlinuz", vcpus: 4, ..SMALL }, "boot-bzimage-4")
}

#[test]
#[ignore = "long: make guests"]
fn vmlinux_boots_on_four_processors_with_memory_above_4_gib() -> Result<()> {
    let machine = Machine { vcpus: 4, memory: "5GiB", ..SMALL };
    machine.boot("boot-5g", "", |_, guest| {
        assert_eq!(guest.run("nproc")?.trim(), "4");
        let total = guest.run("awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo")?;
        let total: u64 = total.trim().parse()?;
        assert!((4700..5120).contains(&total), "{total} MiB");
        assert_eq!(guest.power_off()?, 0);
        Ok(())
    })
}

#[test]
fn boot_log_has_no_timeouts() -> Result<()> {
    SMALL.boot("boot-log", "", |host, guest| {
        let log = guest.run("dmesg")?;
        for message in ["timed out", "timeout", "ACPI Error", "ACPI BIOS", "MP-BIOS", "unable"] {
            assert!(!log.contains(message), "{message}: {log}");
        }
        assert!(log.contains("rtc_cmos"), "{log}");
        let clock = "cat /sys/devices/system/clocksource/clocksource0/current_clocksource";
        assert_eq!(guest.run(clock)?.trim(), "kvm-clock");
        let times = [host.run("date +%s")?, guest.run("date +%s")?];
        let [host_time, guest_time] = times.map(|time| time.trim().parse::<i64>());
        assert!((host_time? - guest_time?).abs() < 60, "the clocks of host and guest differ");
        assert_eq!(guest.power_off()?, 0);
        Ok(())
    })
}

/// The monitor's exit code after `reboot -f` with `how` on the kernel command line.
fn reboot(name: &str, how: &str) -> Result<i32> {
    let mut code = 0;
    SMALL.boot(name, how, |_, guest| {
        guest.send("reboot -f\n")?;
        code = guest.wait_exit(EXIT_TIMEOUT)?;
        Ok(())
    })?;
    Ok(code)
}

#[test]
fn reboot_by_any_method_exits_with_10() -> Result<()> {
    for how in ["", "reboot=a", "reboot=k"] {
        assert_eq!(reboot("boot-reboot", how)?, 10, "{how}");
    }
    Ok(())
}

#[test]
fn triple_fault_exits_with_12() -> Result<()> {
    assert_eq!(reboot("boot-triple-fault", "reboot=t")?, 12);
    Ok(())
}

#[test]
fn sigterm_presses_power_button() -> Result<()> {
    SMALL.boot("boot-button", "", |_, guest| {
        // The guest's reader of the button must be running first.
        guest.run("until cat /proc/[0-9]*/comm 2>/dev/null | grep -qx head; do sleep 0.1; done")?;
        guest.signal("TERM")?;
        guest.wait_line("GUEST-POWER-BUTTON", Duration::from_secs(60))?;
        assert_eq!(guest.wait_exit(EXIT_TIMEOUT)?, 0);
        Ok(())
    })
}
