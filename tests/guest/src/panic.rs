//! Panics of a guest's kernel: the exit code, and the message on the console.

use std::time::Duration;

use anyhow::Result;
use lab::{EXIT_TIMEOUT, Guest, Host};

/// Without times, so that a line starts with its message.
const ARGUMENTS: &str = "printk.time=0";
const MEMORY_BYTES: u64 = 128 << 20;

/// Boots a guest, runs `panic`, and checks the exit code and that the console has `message`.
fn check(
    name: &str,
    message: &str,
    panic: impl FnOnce(&Host, &Guest<'_>) -> Result<()>,
) -> Result<()> {
    let host = Host::start(name)?;
    let guest = host.boot(&host.guest_config(2, "128MiB", "initramfs", ARGUMENTS, ""))?;
    panic(&host, &guest)?;
    assert_eq!(guest.wait_exit(EXIT_TIMEOUT)?, 11, "{}", guest.vmm_output()?);
    guest.wait_line(&format!("Kernel panic - not syncing: {message}"), Duration::from_secs(20))?;
    Ok(())
}

#[test]
fn a_panic_has_its_message_on_the_console() -> Result<()> {
    check("panic-sysrq", "sysrq triggered crash", |_, guest| {
        let error = guest.run("echo c >/proc/sysrq-trigger").unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains("the monitor has exited with status 11"), "{error}");
        assert!(error.contains("Kernel panic"), "the lab shows the end of the console: {error}");
        Ok(())
    })
}

/// Linux handles a breakpoint in its code like an NMI, and prints nothing meanwhile: the message
/// follows the event that reports the panic.
#[test]
#[ignore = "long: make guests"]
fn a_panic_during_which_linux_cannot_print_has_its_message_on_the_console() -> Result<()> {
    check("panic-breakpoint", "Fatal exception in interrupt", |host, guest| {
        let entry = guest.run("grep ' __x64_sys_sethostname$' /proc/kallsyms | cut -d ' ' -f 1")?;
        // The boot protocol of an ELF kernel loads it where it is linked.
        host.run(&format!(
            "pid=$(cat {})
            while IFS='- ' read -r start end _; do [ $((0x$end - 0x$start)) = {MEMORY_BYTES} ] && break; done </proc/$pid/maps
            at=$((0x$start + 0x{} - 0xffffffff80000000))
            printf '\\314' | dd of=/proc/$pid/mem bs=1 seek=$at conv=notrunc status=none",
            host.path("guest0.pid"),
            entry.trim(),
        ))?;
        guest.send("hostname broken\n")
    })
}
