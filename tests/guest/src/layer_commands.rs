//! The layer of a guest that has written on a full host: its export and import, and commands that a
//! power cut interrupts.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Host, disk};

use crate::enospc::SmallStore;

const CUTS_LIMIT: Duration = Duration::from_secs(300);

/// A file system over a device that can stop to write: from then on it completes writes and flushes
/// without effect, as if the power had been cut.
const DEVICE: &str = r#"
bulkhead=$1 pristine=$2 disk=$3 name=bulkhead-cut
truncate -s 160M "$disk.store" && loop=$(losetup --find --show "$disk.store")
sectors=$(blockdev --getsz "$loop")
table() { dmsetup suspend --nolockfs $name; dmsetup load $name --table "$1"; dmsetup resume $name; }
up() { table "0 $sectors linear $loop 0"; }
down() { table "0 $sectors flakey $loop 0 0 3600 1 drop_writes"; }
modprobe -a dm_mod dm_flakey
dmsetup create $name --table "0 $sectors linear $loop 0"
clean_up() { umount -l "$disk" 2>/dev/null; dmsetup remove --retry $name; losetup -d "$loop"; rm "$disk.store"; }
trap clean_up EXIT
mkfs.ext4 -q -F /dev/mapper/$name && mkdir -p "$disk" && mount /dev/mapper/$name "$disk"
now() { date +%s%3N; }
"#;

/// Cuts the power while each command runs, at random times, and repeats it afterwards: four times
/// at least, and until two cuts have interrupted it. A command that was complete in time is cut
/// earlier from then on.
const CUTS: &str = r#"
place() { rm -rf "$disk"/*; cp -p --sparse=always "$pristine"/* "$disk/"; sync -f "$disk"; }
commit() { "$bulkhead" layer commit "$disk/data.layer"; }
flatten() { "$bulkhead" layer flatten "$disk/data.layer" "$disk/flat.img"; }
reads_the_same() {
  rm -f "$disk.flat"; "$bulkhead" layer flatten "$disk/data.layer" "$disk.flat" >/dev/null
  cmp "$disk.flat" "$disk.whole"
}
"$bulkhead" layer flatten "$pristine/data.layer" "$disk.whole"
for command in commit flatten; do
  place; from=$(now); $command; whole=$(($(now) - from))
  cuts=0 interrupted=0
  while [ $cuts -lt 4 ] || [ $interrupted -lt 2 ]; do
    cuts=$((cuts + 1)); [ $cuts -le 12 ]
    place
    delay=$((whole / 8 + RANDOM % whole))
    $command >/dev/null & pid=$!
    sleep "$((delay / 1000)).$(printf %03d $((delay % 1000)))"
    down
    pkill -KILL -P $pid || true; wait $pid || true
    umount "$disk"; up; mount /dev/mapper/$name "$disk"
    problems=$("$bulkhead" layer check "$disk/data.layer" 2>&1 | grep ^problem: || true)
    echo "$command, cut after $delay of $whole ms: $(cd "$disk"; ls -A | tr '\n' ' ')$problems"
    case $problems in
      "problem: $disk/data.layer: its commit was interrupted; "*) [ $command = commit ] ;;
      *) [ -z "$problems" ] ;;
    esac
    reads_the_same
    if [ $command = commit ]; then
      if [ "$problems" ]; then interrupted=$((interrupted + 1)); else whole=$delay; fi
      commit >/dev/null; cmp "$disk/base.img" "$disk.whole"; reads_the_same
      "$bulkhead" layer check "$disk/data.layer"
    else
      # It has its name only when it is complete.
      if [ -e "$disk/flat.img" ]; then
        cmp "$disk/flat.img" "$disk.whole"; rm "$disk/flat.img"; whole=$delay
      else
        interrupted=$((interrupted + 1))
      fi
      flatten >/dev/null; cmp "$disk/flat.img" "$disk.whole"
    fi
  done
  echo "interrupted: $command $interrupted of $cuts, $SECONDS s"
done
"#;

/// A guest fills its host, which holds its writes; its layer is moved, and merged, and flattened
/// without any loss.
#[test]
#[ignore = "long: make guests"]
fn a_layer_loses_nothing_on_a_full_host_nor_in_commands() -> Result<()> {
    let host = Host::start("layer-commands")?;
    let scratch = host.scratch("ext4")?;
    let small = SmallStore::make(&host, "ext4", &scratch)?;
    host.run(&format!(
        "mkdir {scratch}/moved {scratch}/cut && cd {scratch} && \
         head -c 24M /dev/urandom >base.img && truncate -s 32M base.img && cp base.img moved/"
    ))?;
    let (base, layer) = (format!("{scratch}/base.img"), format!("{small}/data.layer"));
    let keys =
        format!("base = \"{base}\"\ncreate = true\non_enospc = \"hold\"\nhold_deadline = \"60m\"");
    let store = SmallStore::boot(&host, &disk("data", &layer, &keys))?;
    store.start_fio("--bsrange=512-64k --size=24m")?;
    let held = store.wait_until_held()?;
    println!("{held}");
    assert_eq!(store.guest.run("echo alive")?.trim(), "alive");
    store.free_space_and_finish()?;
    store.guest.run("blkdiscard -o 8M -l 4M /dev/vda")?;
    let sum = store.guest.run("sha256sum </dev/vda")?;
    assert_eq!(store.guest.power_off()?, 0);

    let bulkhead = host.path("bulkhead");
    let moved = format!("{scratch}/moved/data.layer");
    host.run(&format!(
        "cd {scratch}/moved && {bulkhead} layer export {layer} - | \
         {bulkhead} layer import --base base.img - data.layer"
    ))?;
    for (name, path) in [("here", &layer), ("there", &moved)] {
        host.run(&format!("{bulkhead} layer flatten {path} {scratch}/{name}.img"))?;
        assert_eq!(host.run(&format!("sha256sum <{scratch}/{name}.img"))?, sum, "{name}");
    }

    let script = host.write("cuts", &format!("set -e\n{DEVICE}\n{CUTS}"))?;
    let output = host
        .run_for(&format!("bash {script} {bulkhead} {scratch}/moved {scratch}/cut"), CUTS_LIMIT)?;
    println!("{output}");
    for command in ["commit", "flatten"] {
        let start = format!("interrupted: {command} ");
        ensure!(output.contains(&start), "the cuts of {command} have not ended: {output}");
    }
    Ok(())
}
