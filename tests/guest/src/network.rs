//! A guest's network over a tap of its host.

use anyhow::Result;
use lab::Host;

/// The tap. Name and network (TEST-NET-1) do not collide with those of this machine, if it is the
/// host.
const TAP: &str = "bulkhead-test";
const SIZE: &str = "8M";

/// The tap, removed when dropped: it would outlive the scenario if the host is this machine.
struct Tap<'host>(&'host Host);

impl<'host> Tap<'host> {
    fn new(host: &'host Host) -> Result<Self> {
        host.run(&format!("ip tuntap add dev {TAP} mode tap"))?;
        let tap = Self(host);
        host.run(&format!("ip addr add 192.0.2.1/24 dev {TAP} && ip link set {TAP} up"))?;
        Ok(tap)
    }
}

impl Drop for Tap<'_> {
    fn drop(&mut self) {
        self.0.run(&format!("ip link del {TAP}")).ok();
    }
}

#[test]
#[ignore = "long: make guests"]
fn guest_and_host_exchange_data() -> Result<()> {
    let host = Host::start("network")?;
    let _tap = Tap::new(&host)?;
    let net = format!("[[net]]\ntap = \"{TAP}\"\nmac = \"02:00:00:00:00:05\"\n");
    let guest = host.boot(&host.small_guest(2, &net))?;
    assert_eq!(guest.run("cat /sys/class/net/eth0/address")?.trim(), "02:00:00:00:00:05");
    guest.run("ip addr add 192.0.2.2/24 dev eth0 && ip link set eth0 up")?;
    for size in [56, 1400, 8000] {
        guest.run(&format!("ping -c 3 -W 10 -s {size} 192.0.2.1"))?;
        host.run(&format!("ping -c 3 -W 10 -s {size} 192.0.2.2"))?;
    }

    let file = host.path("file");
    let sum = host.run(&format!("head -c {SIZE} /dev/urandom | tee {file} | md5sum"))?;
    host.run(&format!("socat -u FILE:{file} TCP-LISTEN:7000,bind=192.0.2.1 >/dev/null 2>&1 &"))?;
    host.run("until ss -ltn | grep -q :7000; do sleep 0.1; done")?;
    assert_eq!(
        guest.run("nc 192.0.2.1 7000 </dev/null | tee /tmp/file | md5sum")?,
        sum,
        "to the guest"
    );
    host.run(&format!("socat -u TCP-LISTEN:7001,bind=192.0.2.1 CREATE:{file}.back >/dev/null 2>&1 & echo $! >{file}.pid"))?;
    host.run("until ss -ltn | grep -q :7001; do sleep 0.1; done")?;
    guest.run("nc 192.0.2.1 7001 </tmp/file")?;
    host.run(&format!("while test -e /proc/$(cat {file}.pid); do sleep 0.1; done"))?;
    assert_eq!(host.run(&format!("md5sum <{file}.back"))?, sum, "to the host");
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}
