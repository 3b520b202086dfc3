//! Tests of the lab itself, with guests under QEMU: a failure here is not one of `bulkhead`.

use std::time::{Duration, Instant};

use anyhow::Result;
use lab::{Guest, Host};

fn qemu_guest<'host>(host: &'host Host, more: &str) -> Result<Guest<'host>> {
    host.spawn_vmm(&format!(
        "qemu-system-x86_64 -accel kvm -cpu host -M q35 -m 256M -nodefaults -display none -no-reboot \
         -kernel {} -initrd {} -append 'console=ttyS0 quiet cryptomgr.notests no_timer_check' \
         -serial unix:$CONSOLE,server=on,wait=off {more}",
        host.kit("vmlinuz"),
        host.kit("initramfs")
    ))
}

/// Presses the guest's power button through QEMU and waits for QEMU's event.
fn press_power_button(host: &Host) -> Result<()> {
    let script = format!(
        r#"coproc socat - UNIX-CONNECT:{} 2>/dev/null
printf '{{"execute":"qmp_capabilities"}}{{"execute":"system_powerdown"}}' >&"${{COPROC[1]}}"
while read -r line <&"${{COPROC[0]}}"; do case $line in *POWERDOWN*) kill "$COPROC_PID"; break ;; esac; done"#,
        host.path("qmp.sock")
    );
    host.run(&script)?;
    Ok(())
}

#[test]
fn restored_host_runs_commands_and_copies_files() -> Result<()> {
    let started = Instant::now();
    let host = Host::start("smoke-commands")?;
    println!("restored in {:.2} s", started.elapsed().as_secs_f64());
    assert_eq!(host.run("echo one; echo two >&2")?.trim(), "one\ntwo");
    assert_eq!(host.try_run("exit 7")?.status, 7);
    assert_eq!(host.run("for word in a 'b \\n c'; do\n  echo \"$word\"\ndone")?, "a\nb \\n c\n");
    let here = std::env::current_exe()?;
    let there = host.put(&here, "copy")?;
    let back = tempfile::NamedTempFile::new()?;
    host.get(&there, back.path())?;
    assert!(std::fs::read(&here)? == std::fs::read(back.path())?, "the copied file differs");
    Ok(())
}

#[test]
fn guest_boots_runs_commands_and_powers_off() -> Result<()> {
    let host = Host::start("smoke-guest")?;
    let started = Instant::now();
    let guest = qemu_guest(&host, "")?;
    guest.wait_up()?;
    println!("guest up after {:.2} s", started.elapsed().as_secs_f64());
    assert!(guest.run("uname -a")?.contains("cloud-amd64"));
    assert_eq!(guest.try_run("false")?.status, 1);
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn guest_powers_off_by_button() -> Result<()> {
    let host = Host::start("smoke-button")?;
    let guest =
        qemu_guest(&host, &format!("-qmp unix:{},server=on,wait=off", host.path("qmp.sock")))?;
    guest.wait_up()?;
    press_power_button(&host)?;
    guest.wait_line("GUEST-POWER-BUTTON", Duration::from_secs(60))?;
    assert_eq!(guest.wait_exit(Duration::from_secs(60))?, 0);
    Ok(())
}

#[test]
#[ignore = "long: make guests"]
fn stock_debian_powers_off_by_button() -> Result<()> {
    let host = Host::start("smoke-debian")?;
    let guest = host.spawn_vmm(&format!(
        "qemu-system-x86_64 -accel kvm -cpu host -M q35 -m 512M -nodefaults -display none -no-reboot \
         -kernel {} -initrd {} -append 'console=ttyS0 quiet cryptomgr.notests no_timer_check root=/dev/vda' \
         -serial unix:$CONSOLE,server=on,wait=off -qmp unix:{},server=on,wait=off \
         -drive file={},format=raw,if=virtio",
        host.kit("vmlinuz"),
        host.kit("initramfs"),
        host.path("qmp.sock"),
        host.debian()?
    ))?;
    guest.wait_up()?;
    assert_eq!(guest.run("systemctl is-active lab-agent")?.trim(), "active");
    press_power_button(&host)?;
    assert_eq!(guest.wait_exit(Duration::from_secs(120))?, 0);
    Ok(())
}
