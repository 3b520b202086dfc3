//! virtio-scsi disks as Linux and the tools of sg3-utils see them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests fail by panicking")]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use devices::scsi::Identity;
use lab::{EXIT_TIMEOUT, Guest, Host, ManyDisks, disk};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// Time limit for writing hundreds of MiB in an emulated guest.
const LONG: Duration = Duration::from_secs(600);

fn scsi_disk(id: &str, path: &str, more: &str) -> String {
    disk(id, path, &format!("bus = \"virtio-scsi\"\n{more}"))
}

/// Waits until the guest has found `count` SCSI disks: Linux scans them asynchronously.
fn wait_for_disks(guest: &Guest<'_>, count: usize) -> Result<()> {
    guest.run(&format!(
        "for i in $(seq 100); do test $(ls -d /sys/block/sd* 2>/dev/null | wc -l) = {count} && exit; sleep 0.1; done; exit 1"
    ))?;
    Ok(())
}

/// The guest's name of the disk at an address: Linux names them in the order of its scan.
fn name_of(guest: &Guest<'_>, target: u8, lun: u16) -> Result<String> {
    Ok(guest.run(&format!("ls /sys/bus/scsi/devices/0:0:{target}:{lun}/block"))?.trim().to_owned())
}

/// More disks than a PCI bus has slots, on one controller and two targets.
#[test]
#[ignore = "long: make guests"]
fn many_disks_share_a_controller() -> Result<()> {
    const DISKS: u64 = 40;
    let host = Host::start("scsi-many")?;
    let disks = ManyDisks::make(&host, DISKS)?;
    let place = |n: u64| if n.is_multiple_of(4) { "target = 3" } else { "" };
    let tables = disks.tables(|n, name, image| scsi_disk(name, image, place(n)));
    let guest = host.boot(&host.small_guest(2, &tables))?;
    wait_for_disks(&guest, DISKS.try_into()?)?;
    // VPD page 80h without its header.
    disks.check_identities(&guest, "sd*", "tail -c +5 $disk/device/vpd_pg80")?;
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn file_survives_reboot() -> Result<()> {
    let host = Host::start("scsi-reboot")?;
    let scratch = host.scratch("ext4")?;
    let image = format!("{scratch}/data.img");
    host.run(&format!("truncate -s 128M {image} && mkfs.ext4 -q -F {image}"))?;
    let table = scsi_disk("data", &image, "cache = \"none\"");
    let config = host.guest_config(2, "256MiB", "initramfs", "", &table);
    let guest = host.boot(&config)?;
    wait_for_disks(&guest, 1)?;
    guest.run("mount /dev/sda /mnt")?;
    let sum = guest
        .run_for("dd if=/dev/urandom bs=1M count=64 2>/dev/null | tee /mnt/file | md5sum", LONG)?;
    assert_eq!(guest.run("stat -c %s /mnt/file")?.trim(), (64 * MIB).to_string());
    guest.run_for("sync", LONG)?;
    guest.send("reboot -f\n")?; // Without unmounting.
    assert_eq!(guest.wait_exit(EXIT_TIMEOUT)?, 10);
    drop(guest);
    let guest = host.boot(&config)?;
    wait_for_disks(&guest, 1)?;
    guest.run("mount /dev/sda /mnt")?;
    assert_eq!(guest.run_for("md5sum </mnt/file", LONG)?, sum);
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

/// `bulkhead ctl resize` under a running guest.
#[test]
fn guest_sees_scsi_disk_grow() -> Result<()> {
    let host = Host::start("scsi-resize")?;
    let scratch = host.scratch("ext4")?;
    let socket = host.path("control.sock");
    host.run(&format!("truncate -s 64M {scratch}/a.img {scratch}/b.img"))?;
    let tables = scsi_disk("a", &format!("{scratch}/a.img"), "")
        + &scsi_disk("b", &format!("{scratch}/b.img"), "")
        + &format!("[control]\nsocket = \"{socket}\"\n");
    let guest = host.boot(&host.small_guest(2, &tables))?;
    wait_for_disks(&guest, 2)?;
    let (a, b) = (name_of(&guest, 0, 0)?, name_of(&guest, 0, 1)?);
    guest.run(&format!(
        "mke2fs -q /dev/{b} && mount /dev/{b} /mnt && echo kept >/mnt/file && sync"
    ))?;
    let ctl =
        |command: &str| host.run(&format!("{} ctl {socket} {command}", host.path("bulkhead")));
    assert_eq!(ctl("resize b 96MiB")?, "b has 96 MiB\n");
    guest.run(&format!(
        "for i in $(seq 100); do test $(cat /sys/block/{b}/size) = {} && exit; sleep 0.1; done; exit 1",
        96 * MIB / 512
    ))?;
    guest
        .run("dmesg | grep -q 'Capacity data has changed'")
        .context("the guest saw no unit attention")?;
    assert_eq!(
        guest.run(&format!("cat /sys/block/{a}/size"))?.trim(),
        (64 * MIB / 512).to_string()
    );
    guest.run("dd if=/dev/urandom of=/run/noise bs=4k count=1 2>/dev/null")?;
    guest
        .run(&format!("dd if=/run/noise of=/dev/{b} bs=4k seek=24575 oflag=direct 2>/dev/null"))?;
    guest.run(&format!(
        "dd if=/dev/{b} bs=4k skip=24575 count=1 iflag=direct 2>/dev/null | cmp - /run/noise"
    ))?;
    assert_eq!(guest.run("cat /mnt/file")?.trim(), "kept");
    let status = || -> Result<Value> { Ok(serde_json::from_str(&ctl("stats b --json")?)?) };
    assert_eq!(status()?["size_bytes"], 96 * MIB);

    // Linux switches the write cache by mode page 08h.
    let cached = |on: bool| -> Result<()> {
        let status = status()?;
        ensure!(status["write_cache"] == on, "{status}");
        Ok(())
    };
    cached(true)?;
    let kind = format!("/sys/block/{b}/device/scsi_disk/*/cache_type");
    guest.run(&format!("echo 'write through' >$(echo {kind})"))?;
    assert_eq!(guest.run(&format!("cat {kind}"))?.trim(), "write through");
    cached(false)?;
    guest.run(&format!("echo 'write back' >$(echo {kind})"))?;
    cached(true)?;
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

/// A guest with two disks: 512-byte blocks on target 0, 4 KiB blocks on target 1.
struct ToolsGuest<'host> {
    guest: Guest<'host>,
    /// The guest's names of the disks, which replace `sda` and `sdb` in commands.
    names: [String; 2],
    /// NAA identifier of the first disk.
    naa: String,
}

impl<'host> ToolsGuest<'host> {
    fn start(host: &'host Host) -> Result<Self> {
        let scratch = host.scratch("ext4")?;
        let image = format!("{scratch}/a.img");
        host.run(&format!("truncate -s 64M {image}; truncate -s 32M {scratch}/b.img"))?;
        let tables =
            scsi_disk("a", &image, "serial = \"SERIAL-1\"\nthin = { soft_limit = \"90%\" }")
                + &scsi_disk(
                    "b",
                    &format!("{scratch}/b.img"),
                    "target = 1\nlun = 7\nblock_size = 4096\ncache = \"none\"",
                );
        let config = host.guest_config(2, "512MiB", "initramfs-tools", "", &tables);
        let guest = host.boot(&config)?;
        wait_for_disks(&guest, 2)?;
        let naa = format!("{:016x}", Identity::new("SERIAL-1", &image).naa);
        let names = [name_of(&guest, 0, 0)?, name_of(&guest, 1, 7)?];
        Ok(Self { guest, names, naa })
    }

    /// `command` with the guest's names of the disks.
    fn named(&self, command: &str) -> String {
        let [first, second] = &self.names;
        command.replace("sda", "@").replace("sdb", second).replace('@', first)
    }

    /// Runs a tool, which must succeed, and returns its output.
    #[track_caller]
    fn tool(&self, command: &str) -> String {
        self.guest.run(&self.named(command)).unwrap()
    }

    /// Runs a tool, which must exit with `code`, and returns its output.
    #[track_caller]
    fn fails(&self, command: &str, code: u8) -> String {
        let text =
            self.guest.run(&self.named(&format!("{command} 2>&1; echo \"exit $?\""))).unwrap();
        assert!(text.trim_end().ends_with(&format!("exit {code}")), "{command}: {text}");
        text
    }
}

/// Checks that `text` contains each of `lines`, ignoring the amount of white space.
#[track_caller]
fn has(text: &str, lines: &[&str]) {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let found: Vec<String> = text.lines().map(words).collect();
    for line in lines {
        assert!(
            found.iter().any(|found| found.contains(&words(line))),
            "{line:?} is not in:\n{text}"
        );
    }
}

#[test]
fn sg3_utils_output_matches_the_standards() -> Result<()> {
    let host = Host::start("scsi-tools")?;
    let guest = ToolsGuest::start(&host)?;
    inquiries(&guest);
    capacities(&guest);
    provisioning(&guest);
    comparisons(&guest);
    commands_and_logs(&guest);
    reservations(&guest);
    other_commands(&guest);
    assert_eq!(guest.guest.power_off()?, 0);
    Ok(())
}

fn inquiries(guest: &ToolsGuest<'_>) {
    has(
        &guest.tool("sg_inq -d /dev/sda"),
        &[
            "PQual=0 PDT=0 RMB=0",
            "version=0x06 [SPC-4]",
            "CmdQue=1",
            "Vendor identification: BULKHEAD",
            "Product identification: DISK",
            "SAM-5 (no version claimed)",
            "SPC-4 (no version claimed)",
            "SBC-3 (no version claimed)",
        ],
    );
    has(
        &guest.tool("sg_vpd -a /dev/sda"),
        &[
            "Unit serial number [sn]",
            "Product serial number: SERIAL-1",
            &format!("0x{}", guest.naa),
            "vendor id: BULKHEAD",
            "vendor specific: SERIAL-1",
            "HEADSUP=0 ORDSUP=0 SIMPSUP=1",
            "V_SUP=1",
            "Write same non-zero (WSNZ): 1",
            "Maximum compare and write length: 0x80",
            "Maximum transfer length: 0x10000",
            "Maximum unmap LBA count: 0x400000",
            "Maximum unmap block descriptor count: 0x100",
            "Optimal unmap granularity: 0x8",
            "Unmap granularity alignment valid: true",
            "Maximum write same length: 0x400000",
            "Non-rotating medium",
            "LBPU=1",
            "LBPWS=1",
            "LBPWS10=1",
            "LBPRZ=0x1",
            "ANC_SUP=0",
            "Provisioning type: thin provisioned",
        ],
    );
    // Linux' view.
    has(
        &guest.tool("lsblk -dno NAME,SIZE,VENDOR,HCTL -S"),
        &[&guest.named("sda 64M BULKHEAD 0:0:0:0"), &guest.named("sdb 32M BULKHEAD 0:0:1:7")],
    );
    let modes = guest
        .tool("cd /sys/block/sda/device/scsi_disk/*; cat provisioning_mode zeroing_mode; cd /");
    assert_eq!(modes.trim(), "unmap\nwritesame_16_unmap");
}

fn capacities(guest: &ToolsGuest<'_>) {
    has(
        &guest.tool("sg_readcap /dev/sda"),
        &[
            "Last LBA=131071 (0x1ffff)",
            "Logical block length=512 bytes",
            "Device size: 67108864 bytes",
        ],
    );
    has(
        &guest.tool("sg_readcap -l /dev/sda"),
        &[
            "prot_en=0",
            "lbpme=1, lbprz=1",
            "Last LBA=131071",
            "Logical blocks per physical block exponent=3",
            "Lowest aligned LBA=0",
        ],
    );
    has(
        &guest.tool("sg_readcap -l /dev/sdb"),
        &["Last LBA=8191", "Logical block length=4096 bytes", "physical block exponent=0"],
    );
}

fn provisioning(guest: &ToolsGuest<'_>) {
    let status = |lba: u32| guest.tool(&format!("sg_get_lba_status --lba={lba} /dev/sda"));
    guest.tool("dd if=/dev/urandom of=/dev/sda bs=1M count=8 oflag=direct 2>&1");
    has(
        &status(0),
        &["[1] LBA: 0x0 blocks: 16384 mapped", "[2] LBA: 0x4000 blocks: 114688 deallocated"],
    );
    guest.tool("sg_unmap --lba=2048 --num=2048 -f /dev/sda");
    has(
        &status(0),
        &[
            "[1] LBA: 0x0 blocks: 2048 mapped",
            "[2] LBA: 0x800 blocks: 2048 deallocated",
            "[3] LBA: 0x1000 blocks: 12288 mapped",
        ],
    );
    has(&status(3000), &["[1] LBA: 0xbb8 blocks: 1096 deallocated"]);
    guest.tool(
        "dd if=/dev/sda bs=1M skip=1 count=1 iflag=direct 2>/dev/null | cmp -n 1048576 - /dev/zero",
    );
    guest.tool("sg_write_same --unmap --lba=4096 --num=2048 /dev/sda");
    has(&status(2048), &["[1] LBA: 0x800 blocks: 4096 deallocated"]);
    // A pattern on deallocated blocks.
    guest.tool("dd if=/dev/urandom of=/tmp/block bs=512 count=1 2>/dev/null");
    guest.tool("sg_write_same --16 --lba=2048 --num=16 --in=/tmp/block --xferlen=512 /dev/sda");
    guest.tool("sg_write_same --10 --lba=2064 --num=8 --in=/tmp/block --xferlen=512 /dev/sda");
    guest.tool(
        "for i in $(seq 24); do cat /tmp/block; done >/tmp/blocks; \
         dd if=/dev/sda bs=512 skip=2048 count=24 iflag=direct 2>/dev/null | cmp - /tmp/blocks",
    );
    guest.tool("sg_write_same --ndob --lba=2048 --num=24 /dev/sda");
    guest.tool("dd if=/dev/sda bs=512 skip=2048 count=24 iflag=direct 2>/dev/null | cmp -n 12288 - /dev/zero");
    let anchored = guest.fails("sg_write_same --16 --anchor --unmap --lba=1 --num=1 /dev/sda", 5);
    has(&anchored, &["Illegal request"]);
    let outside = guest.fails("sg_unmap --lba=131071 --num=2 -f -v /dev/sda", 22);
    has(&outside, &["Logical block address out of range"]);
}

fn comparisons(guest: &ToolsGuest<'_>) {
    guest.tool(
        "dd if=/dev/sda of=/tmp/old bs=512 count=1 iflag=direct 2>/dev/null; \
         dd if=/dev/urandom of=/tmp/new bs=512 count=1 2>/dev/null; cat /tmp/old /tmp/new >/tmp/both",
    );
    let command = "sg_compare_and_write --in=/tmp/both --lba=0 --num=1 --xferlen=1024 /dev/sda";
    guest.tool(command);
    guest.tool("dd if=/dev/sda bs=512 count=1 iflag=direct 2>/dev/null | cmp - /tmp/new");
    has(
        &guest.fails(command, 14),
        &["Miscompare at byte offset:", "sg_compare_and_write failed: Miscompare"],
    );
    guest.tool("sg_verify --lba=0 --count=128 /dev/sda");
    guest.tool("sg_verify --lba=0 --count=1 --ndo=512 --in=/tmp/new /dev/sda");
    guest.fails("sg_verify --lba=0 --count=1 --ndo=512 --in=/tmp/old /dev/sda", 14);
}

fn commands_and_logs(guest: &ToolsGuest<'_>) {
    has(
        &guest.tool("sg_opcodes /dev/sda"),
        &[
            "00 6 0,0 Test Unit Ready",
            "2a 10 0,0 Write(10)",
            "42 10 0,0 Unmap",
            "89 16 0,0 Compare and write",
            "93 16 0,0 Write same(16)",
            "9e 12 16 0,0 Get LBA status(16)",
            "5f 6 10 0,0 Persistent reserve out, register and ignore existing key",
            "a3 c 12 0,0 Report supported operation codes",
        ],
    );
    has(
        &guest.tool("sg_opcodes --opcode=0x93 /dev/sda"),
        &[
            "Command is supported [conforming to SCSI standard]",
            "Usage data: 93 ff ff ff ff ff ff ff ff ff ff ff ff ff 00 04",
        ],
    );
    has(&guest.tool("sg_opcodes --opcode=0x48 /dev/sda"), &["Command is NOT supported"]);
    has(
        &guest.tool("sg_opcodes --tmf /dev/sda"),
        &["Abort task", "Logical unit reset", "Query task set", "I_T nexus reset"],
    );
    has(
        &guest.tool("sg_logs /dev/sda"),
        &["0x00 Supported log pages [sp]", "0x0c Logical block provisioning [lbp]"],
    );
    let page = guest.tool("sg_logs --page=0xc /dev/sda");
    has(&page, &["Available LBA mapping resource count:", "Used LBA mapping resource count:"]);
    let number = |line: &str| {
        let line = page.lines().find(|found| found.contains(line)).unwrap();
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    // In MiB: the scratch file system has a few GiB.
    assert!((1..1 << 20).contains(&number("Available LBA mapping resource count:")));
    assert!((1..1 << 20).contains(&number("Used LBA mapping resource count:")));
}

fn reservations(guest: &ToolsGuest<'_>) {
    has(
        &guest.tool("sg_persist -c /dev/sda"),
        &[
            "Persist Through Power Loss Capable(PTPL_C): 0",
            "Type Mask Valid(TMV): 1",
            "Write Exclusive, all registrants: 1",
            "Exclusive Access, registrants only: 1",
        ],
    );
    guest.tool("sg_persist --out --register --param-sark=0xabc /dev/sda");
    guest.tool("sg_persist --out --reserve --param-rk=0xabc --prout-type=3 /dev/sda");
    has(&guest.tool("sg_persist -k /dev/sda"), &["1 registered reservation key follows:", "0xabc"]);
    has(
        &guest.tool("sg_persist -r /dev/sda"),
        &["Key=0xabc", "scope: LU_SCOPE, type: Exclusive Access"],
    );
    has(&guest.tool("sg_persist -s /dev/sda"), &["<< Reservation holder >>"]);
    has(
        &guest.fails("sg_persist --out --release --param-rk=0x1 --prout-type=3 /dev/sda", 24),
        &["Reservation conflict"],
    );
    guest.tool("dd if=/dev/zero of=/dev/sda bs=512 count=1 oflag=direct 2>&1");
    guest.tool("sg_persist --out --release --param-rk=0xabc --prout-type=3 /dev/sda");
    guest.tool("sg_persist --out --register --param-rk=0xabc /dev/sda");
    has(&guest.tool("sg_persist -k /dev/sda"), &["there are NO registered reservation keys"]);
    has(
        &guest.fails("sg_persist --out --register --param-sark=0xabc --param-aptpl /dev/sda", 19),
        &["Invalid field in parameter list"],
    );
}

fn other_commands(guest: &ToolsGuest<'_>) {
    for kind in ["--block", "--crypto", "--overwrite --zero", "--fail"] {
        let refused = guest.fails(&format!("sg_sanitize --quick {kind} /dev/sda"), 9);
        has(&refused, &["Invalid opcode"]);
    }
    has(
        &guest.tool("sg_modes -a /dev/sda"),
        &["WP=0, CAPPID=0, DpoFua=1", "00 08 12 04 00", "00 0a 0a 02 10 00"],
    );
    has(
        &guest.tool("sg_modes --page=0x1c,2 /dev/sda"),
        &[
            "Logical block provisioning, page_control: current",
            "00 5c 02 00 14 00",
            "10 81 02 00 00",
        ],
    );
    has(&guest.tool("sg_luns /dev/sda"), &["1 lun entry", "0000000000000000"]);
    has(&guest.tool("sg_luns /dev/sdb"), &["1 lun entry", "0007000000000000"]);
    has(&guest.tool("sg_requests /dev/sda"), &["Sense key: No Sense"]);
    guest.tool("sg_sync /dev/sda");
    // sg resets a logical unit through the control queue.
    guest.tool("modprobe sg; sg_reset -d /dev/sg0");
    has(&guest.tool("dmesg | tail -3"), &["device reset"]);
    guest.tool("dd if=/dev/sda of=/dev/null bs=1M count=4 iflag=direct 2>&1");
    has(&guest.tool("dmesg | tail -3"), &["Power-on or device reset occurred"]);
}
