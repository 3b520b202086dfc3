//! The commands that messages may advise, each with the reason that it harms no data. A command
//! that no message has fails the test, so that the list can only shrink.

use style::rules::remedies::Advised;

pub(crate) const ADVISED_COMMANDS: &[Advised] = &[
    // They only read.
    ("bulkhead check --explain", "reads"),
    ("bulkhead crash checks", "reads"),
    ("bulkhead crash explore", "reads the log and the image, which it does not change"),
    ("bulkhead disk inspect", "reads, and takes no lock"),
    ("bulkhead layer map {}", "reads"),
    ("bulkhead layer info", "reads, and takes no lock"),
    ("bulkhead layer info {}", "reads, and takes no lock"),
    ("dmesg", "reads"),
    ("dmsetup ls", "reads"),
    ("findmnt", "reads"),
    ("ls -l {}", "reads"),
    ("lsblk", "reads"),
    ("lsblk {}", "reads"),
    ("namei -l {}", "reads"),
    ("qemu-img info {}", "reads"),
    ("udevadm info --export-db", "reads"),
    ("udevadm settle", "waits"),
    ("ulimit -Hn", "shows the limit"),
    ("ulimit -u", "shows the limit"),
    ("zfs list -t volume", "reads"),
    // They read one file and write another, whose name was free when the message was made.
    ("cp --sparse=always {} {} && truncate -s %{} {}", "changes the copy only"),
    ("gzip -dc", "reads, and writes to standard output; without -c it would remove the file"),
    ("qemu-img convert -f {} -O raw {} {}", "writes to a free name"),
    ("xz -dc", "as gzip"),
    ("zstd -dc", "as gzip"),
    ("{} -dc <{} >{}", "writes to a free name"),
    // They create, and leave what exists.
    ("bulkhead layer create", "fails if the layer exists"),
    ("bulkhead layer create --base {} NEW_LAYER", "fails if the layer exists"),
    ("bulkhead layer flatten", "fails if the image exists"),
    ("bulkhead layer flatten {} NEW_IMAGE", "fails if the image exists"),
    ("touch -d @{}.{} {}", "sets a modification time, and no content"),
    ("mkdir -p {}", "creates missing directories; not below /dev, /proc and /sys"),
    ("sudo ip link set {} up", "for a TAP device that is missing"),
    ("sudo ip tuntap add dev {} mode tap user $USER", "fails if the device exists"),
    ("ip tuntap add dev tap0 mode tap", "fails if the device exists"),
    ("truncate -s '>10G' {}", "never shrinks a file, as it is at least that size; of an empty one"),
    ("truncate -s '>{}' {}", "never shrinks a file; not below /dev, /proc and /sys"),
    // They change layers, and no content that a disk reads.
    ("bulkhead layer commit", "continues one that was begun"),
    ("bulkhead layer commit {}", "continues one that was begun"),
    (
        "bulkhead ctl VM commit",
        "the disk reads the same, and it is refused if other layers would break",
    ),
    ("bulkhead layer rebase --base NEW_PATH {}", "the layer reads the same afterwards"),
    ("bulkhead layer rebase --base LOWER_LEVEL LAYER", "the layer reads the same afterwards"),
    ("bulkhead layer rebase --base {} {}", "the layer reads the same afterwards"),
    // They change settings of the host, and no data.
    ("echo \"write back\" >/sys/block/{}/queue/write_cache", "makes the kernel send flushes"),
    ("echo 0 >{}/zfs_nocacheflush; echo 0 >{}/zil_nocacheflush", "makes ZFS send flushes"),
    ("mount -o remount,{} {}", "with barriers, which make the file system send flushes"),
    ("mount -t tracefs tracefs /sys/kernel/tracing", "where Linux's documentation has it"),
    ("zfs set refreservation=auto", "reserves space, and fails if there is none"),
    ("zfs set sync=standard {}", "makes ZFS store what it acknowledges"),
    ("lvextend", "refuses to shrink"),
    ("modprobe kvm_amd", "loads a driver"),
    ("modprobe kvm_intel", "loads a driver"),
    ("modprobe(8)", "the driver of a device that is missing"),
    ("sudo usermod -aG kvm $USER", "adds to the groups of the user; removes none"),
    // Programs of ours, or that connect to one.
    ("bulkhead serve", "as the user wants it"),
    ("curl --unix-socket", "names a client"),
    // No commands: storeys, and a program that has failed.
    ("btrfs checksums on {}", "a storey"),
    ("btrfs {} on {}", "a storey"),
    ("zfs", "the program that did not answer"),
    ("zfs volume", "a storey"),
];
