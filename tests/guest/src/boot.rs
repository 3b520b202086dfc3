//! Real guests boot, and end in each way a guest can end.

use std::time::Duration;

use anyhow::Result;
use lab::{EXIT_TIMEOUT, Guest, Host};

/// The machine of a scenario, but for its kernel's command line.
struct Machine {
    kernel: &'static str,
    vcpus: u8,
    memory: &'static str,
}

const SMALL: Machine = Machine { kernel: "vmlinux", vcpus: 1, memory: "128MiB" };

impl Machine {
    /// Boots the lab's guest on a host of its own, and leaves it to `scenario` once it takes
    /// commands.
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

/// What the guest counts, and that it powers off without a complaint of the program.
fn counts(machine: &Machine, name: &str) -> Result<()> {
    machine.boot(name, "", |_, guest| {
        assert_eq!(guest.run("nproc")?.trim(), machine.vcpus.to_string());
        assert_eq!(guest.power_off()?, 0);
        let said = guest.vmm_output()?;
        assert!(said.is_empty() || said.contains("`vcpus` is more than this host has"), "{said}");
        Ok(())
    })
}

#[test]
fn a_bzimage_boots_on_one_processor() -> Result<()> {
    counts(&Machine { kernel: "vmlinuz", ..SMALL }, "boot-bzimage")
}

#[test]
fn a_vmlinux_boots_on_one_processor() -> Result<()> {
    counts(&SMALL, "boot-vmlinux")
}

#[test]
fn a_bzimage_boots_on_four_processors() -> Result<()> {
    counts(&Machine { kernel: "vmlinuz", vcpus: 4, ..SMALL }, "boot-bzimage-4")
}

#[test]
fn a_vmlinux_boots_on_four_processors_with_memory_beyond_the_hole() -> Result<()> {
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
fn nothing_makes_the_guest_wait() -> Result<()> {
    SMALL.boot("boot-log", "", |host, guest| {
        let log = guest.run("dmesg")?;
        for trouble in ["timed out", "timeout", "ACPI Error", "ACPI BIOS", "MP-BIOS", "unable"] {
            assert!(!log.contains(trouble), "{trouble}: {log}");
        }
        assert!(log.contains("rtc_cmos"), "{log}");
        let clock = "cat /sys/devices/system/clocksource/clocksource0/current_clocksource";
        assert_eq!(guest.run(clock)?.trim(), "kvm-clock");
        let times = [host.run("date +%s")?, guest.run("date +%s")?];
        let [of_host, of_guest] = times.map(|time| time.trim().parse::<i64>());
        assert!((of_host? - of_guest?).abs() < 60, "the guest has another time");
        assert_eq!(guest.power_off()?, 0);
        Ok(())
    })
}

/// The exit code after `reboot`.
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
fn a_reboot_is_ten_however_linux_does_it() -> Result<()> {
    for how in ["", "reboot=a", "reboot=k"] {
        assert_eq!(reboot("boot-reboot", how)?, 10, "{how}");
    }
    Ok(())
}

#[test]
fn a_triple_fault_is_twelve() -> Result<()> {
    assert_eq!(reboot("boot-triple-fault", "reboot=t")?, 12);
    Ok(())
}

#[test]
fn a_panic_is_eleven() -> Result<()> {
    SMALL.boot("boot-panic", "", |_, guest| {
        guest.send("echo c >/proc/sysrq-trigger\n")?;
        assert_eq!(guest.wait_exit(EXIT_TIMEOUT)?, 11);
        Ok(())
    })
}

#[test]
fn sigterm_presses_the_power_button() -> Result<()> {
    SMALL.boot("boot-button", "", |_, guest| {
        // Who reads the button in the guest has to be there first.
        guest.run("until cat /proc/[0-9]*/comm 2>/dev/null | grep -qx head; do sleep 0.1; done")?;
        guest.signal("TERM")?;
        guest.wait_line("GUEST-POWER-BUTTON", Duration::from_secs(60))?;
        assert_eq!(guest.wait_exit(EXIT_TIMEOUT)?, 0);
        Ok(())
    })
}
