//! An incremental backup of a guest under `fio --verify`: snapshot, export of the frozen layer,
//! commit while the guest runs.

use anyhow::Result;
use lab::{Host, disk};
use std::time::Duration;

use crate::control_socket::{ctl, table};

const LIMIT: Duration = Duration::from_secs(300);

/// Waits until the guest has written another 2 MiB, or fio has ended.
const WRITTEN: &str = "sectors() { awk '{ print $7 }' /sys/block/vda/stat; }; from=$(sectors); \
    while [ $(sectors) -lt $((from + 4096)) ] && [ ! -e /run/fio.rc ]; do sleep 1; done";

/// The guest notices nothing; the image has what each snapshot had, and the backup too, which was
/// brought up to date by the exported streams alone.
#[test]
#[ignore = "long: make guests"]
fn layers_are_merged_under_load() -> Result<()> {
    let host = Host::start("commits")?;
    let scratch = host.scratch("ext4")?;
    let bulkhead = host.path("bulkhead");
    let path = |name: &str| format!("{scratch}/{name}");
    let (base, backup) = (path("base.img"), path("backup.img"));
    host.run(&format!("head -c 24M /dev/urandom >{base} && cp -p {base} {backup}"))?;
    let keys = format!("base = \"{base}\"\ncreate = true\ncache = \"none\"\nqueues = 2");
    let tables = format!("{}{}", table(&host), disk("a", &path("a.layer"), &keys));
    let config = host.guest_config(2, "512MiB", "initramfs-tools", "", &tables);
    let guest = host.boot(&config)?;
    guest.run(
        "(fio --name=verify --filename=/dev/vda --ioengine=libaio --direct=1 --iodepth=8 --thread \
         --rw=randwrite --bsrange=512-32k --size=8m --verify=crc32c --verify_fatal=1 --loops=3 \
         --output-format=terse --terse-version=3 >/run/fio.out 2>/run/fio.err; echo $? >/run/fio.rc) &",
    )?;
    for name in ["monday", "tuesday", "wednesday"] {
        guest.run(WRITTEN)?;
        println!("{}", ctl(&host, &format!("snapshot {name}"))?);
        let (frozen, stream) = (path(&format!("a.{name}.layer")), path(&format!("{name}.stream")));
        host.run(&format!("{bulkhead} layer export {frozen} {stream}"))?;
        println!("{}", ctl(&host, "commit")?);
        let imported = path(&format!("{name}.layer"));
        host.run(&format!(
            "test ! -e {frozen} && {bulkhead} layer import --base {backup} {stream} {imported} && \
             {bulkhead} layer commit --remove {imported} && cmp {base} {backup}"
        ))?;
    }
    guest.run_for("while [ ! -e /run/fio.rc ]; do sleep 1; done", LIMIT)?;
    let output = guest.run("cat /run/fio.rc /run/fio.out /run/fio.err")?;
    assert!(output.starts_with('0') && output.contains(";verify;0;0;"), "fio failed: {output}");
    let sum = guest.run("sync; md5sum </dev/vda")?;
    assert_eq!(guest.power_off()?, 0);
    drop(guest);
    let check = host.run(&format!(
        "{bulkhead} layer check {top} && {bulkhead} layer flatten {top} {flat} && md5sum <{flat}",
        top = path("a.layer"),
        flat = path("flat")
    ))?;
    assert!(check.ends_with(sum.trim()) || check.trim().ends_with(sum.trim()), "{sum}: {check}");
    Ok(())
}
