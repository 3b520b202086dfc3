//! Reads and writes of a check on its disk.

use std::sync::Arc;

use fixtures::needs;

use crate::disk::{TestDisk, ext4};
use crate::{checker, checker_with, failure, passes};

const DISK: usize = 1 << 20;

#[test]
fn a_read_reaches_the_disk_with_exactly_its_range() {
    if !needs::root() {
        return;
    }
    let disk = Arc::new(TestDisk::numbered(DISK));
    let block = "dd if=$BULKHEAD_DISK bs=4096 skip=7 count=1 status=none";
    let command =
        format!("{block} | od -An -v -tu1 -w4096 | grep -q '^ *7 *7 ' && {block} | wc -c");
    passes(&checker(&command), &disk);
    // Once, as the second time the kernel has it.
    let page = 28_672..32_768;
    assert_eq!(disk.reads(), vec![page]);
    passes(&checker(&command), &disk);
    assert_eq!(disk.reads().len(), 2);
}

#[test]
fn odd_ranges_are_read_by_pages() {
    if !needs::root() {
        return;
    }
    let disk = Arc::new(TestDisk::numbered(DISK + 512));
    let odd = "dd if=$BULKHEAD_DISK bs=1 skip=4094 count=4 status=none | od -An -tu1";
    passes(&checker(&format!("{odd} | grep -q '^   0   0   1   1$'")), &disk);
    assert_eq!(disk.reads(), [0..4096, 4096..8192]);
    // To its end, and not beyond.
    let whole =
        "test $(wc -c <$BULKHEAD_DISK) = 1049088 && test $(cat $BULKHEAD_DISK | wc -c) = 1049088";
    passes(&checker(whole), &disk);
    assert!(disk.reads().iter().all(|read| read.end <= disk.bytes().len() as u64));
}

#[test]
fn blocks_of_all_states_are_given_ahead_of_reads_in_order() {
    if !needs::root() {
        return;
    }
    let disk = Arc::new(TestDisk::numbered(DISK).same_from(16 * 4096));
    let sum = "od -An -v -tu1 -w4096 $BULKHEAD_DISK | awk '$1 != (NR - 1) % 251 { exit 1 }'";
    passes(&checker(sum), &disk);
    let reads = disk.reads();
    // The others are read one by one.
    assert!(reads.len() >= 17 && reads.len() < 40, "{reads:?}");
    assert!((0..16).all(|block| reads.contains(&(block * 4096..(block + 1) * 4096))), "{reads:?}");
}

#[test]
fn nothing_is_given_ahead_while_a_disk_is_written() {
    if !needs::root() {
        return;
    }
    let disk = Arc::new(TestDisk::numbered(DISK).same_from(0));
    // The descriptor is open for writing; what is written is what is read, here and afterwards.
    let writer = "exec 3<>$BULKHEAD_DISK; cat $BULKHEAD_DISK >/dev/null; \
        printf new | dd of=$BULKHEAD_DISK bs=1 seek=409600 conv=notrunc status=none; \
        test $(dd if=$BULKHEAD_DISK bs=1 skip=409600 count=3 status=none) = new";
    passes(&checker(writer), &disk);
    assert_eq!(disk.reads().len(), DISK / 4096);
    assert_eq!(&disk.bytes()[409_600..409_603], b"new");
}

#[test]
fn writes_stay_with_their_disk() {
    if !needs::root() {
        return;
    }
    let write = checker(
        "dd if=$BULKHEAD_DISK bs=4096 count=1 status=none | od -An -tu1 | grep -q '^   0   0' && \
         printf hello | dd of=$BULKHEAD_DISK bs=1 seek=4000 conv=notrunc,fsync status=none && \
         test $(dd if=$BULKHEAD_DISK bs=1 skip=4000 count=5 status=none) = hello",
    );
    // The second would read what the first wrote, if the kernel took one file for the other.
    for _ in 0..2 {
        let disk = Arc::new(TestDisk::numbered(DISK));
        passes(&write, &disk);
        assert_eq!(&disk.bytes()[3999..4006], b"\0hello\0");
    }
}

#[test]
fn ranges_are_zeroed_and_the_size_stays() {
    if !needs::root() {
        return;
    }
    let disk = Arc::new(TestDisk::numbered(DISK));
    passes(&checker("fallocate -p -o 8192 -l 8192 $BULKHEAD_DISK"), &disk);
    passes(&checker("fallocate -z -o 40960 -l 4096 $BULKHEAD_DISK"), &disk);
    passes(&checker("fallocate -l 4096 $BULKHEAD_DISK"), &disk);
    let bytes = disk.bytes();
    let blocks: Vec<u8> = bytes.chunks(4096).map(|block| block[0]).collect();
    assert_eq!(blocks[..13], [0, 1, 0, 0, 4, 5, 6, 7, 8, 9, 0, 11, 12]);
    let refused = [
        ("truncate -s 4096 $BULKHEAD_DISK", "Operation not permitted"),
        (": >$BULKHEAD_DISK", "Operation not permitted"),
        ("echo x | dd of=$BULKHEAD_DISK oflag=append conv=notrunc", "No space left"),
        ("fallocate -o 1048576 -l 4096 $BULKHEAD_DISK", "No space left"),
        ("fallocate -c -o 0 -l 4096 $BULKHEAD_DISK", "not supported"),
        ("echo x >>$BULKHEAD_MARKS", "Permission denied"),
        ("rm $BULKHEAD_DISK", "Operation not permitted"),
        ("touch ${BULKHEAD_DISK}2", "Operation not permitted"),
        ("mkdir ${BULKHEAD_DISK}2", "Operation not permitted"),
        ("mv $BULKHEAD_DISK ${BULKHEAD_DISK}2", "Operation not permitted"),
        ("ln $BULKHEAD_DISK ${BULKHEAD_DISK}2", "Operation not permitted"),
        ("ln -s x ${BULKHEAD_DISK}2", "Operation not permitted"),
        ("mknod ${BULKHEAD_DISK}2 p", "Operation not permitted"),
        ("rmdir $(dirname $BULKHEAD_DISK)", "Operation not permitted"),
        ("cat ${BULKHEAD_DISK}2", "No such file"),
    ];
    for (command, reason) in refused {
        let (_, output) = failure(&checker(command), &disk);
        assert!(output.contains(reason), "{command}: {output}");
    }
    assert_eq!(disk.bytes(), bytes);
}

#[test]
fn marks_are_a_file() {
    if !needs::root() {
        return;
    }
    let disk = Arc::new(TestDisk::numbered(4096));
    let marks = checker(
        "test \"$(tail -n 1 $BULKHEAD_MARKS)\" = after && cd $(dirname $BULKHEAD_MARKS) && test \"$(ls)\" = 'disk\nmarks'; ls >&2; cat $BULKHEAD_MARKS; exit 3",
    );
    let (end, output) = failure(&marks, &disk);
    assert_eq!((end.as_str(), output.as_str()), ("exit status 3", "disk\nmarks\nbefore\nafter\n"));
}

#[test]
fn a_file_system_is_checked() {
    if !needs::root() {
        return;
    }
    let fsck = checker("e2fsck -fn $BULKHEAD_DISK");
    let image = ext4(16);
    let good = Arc::new(TestDisk::new(image.clone()));
    passes(&fsck, &good);
    let read: u64 = good.reads().iter().map(|read| read.end - read.start).sum();
    assert!(read < 8 << 20, "{read} bytes were read");
    // The group descriptors, after the superblock.
    let mut bad = image;
    bad[4096..4096 + 64].fill(0xff);
    let (end, output) = failure(&fsck, &Arc::new(TestDisk::new(bad)));
    assert!(end.starts_with("exit status"), "{end}");
    assert!(output.contains("e2fsck"), "{output}");
}

#[test]
fn a_loop_device_can_be_mounted() {
    if !needs::root() {
        return;
    }
    let command = "case $BULKHEAD_DISK in /dev/loop*) ;; *) exit 9;; esac; cd $BULKHEAD_TMP && \
        mkdir m && mount $BULKHEAD_DISK m && test $(ls m | wc -l) = 41 && \
        head -c 4194304 /dev/zero | tr '\\0' Z >m/new && pwd; exit 5";
    let mounts = checker_with(command, |options| options.uses_loop = true);
    let disk = Arc::new(TestDisk::new(ext4(16)));
    let (end, output) = failure(&mounts, &disk);
    assert_eq!(end, "exit status 5", "{output}");
    // The file system that was left mounted went with the check, and wrote what it had to.
    assert!(disk.bytes().iter().filter(|byte| **byte == b'Z').count() >= 4 << 20);
    assert!(!std::path::Path::new(output.trim()).exists(), "{output}");
    assert_eq!(loop_devices_of_states(), 0);
}

fn loop_devices_of_states() -> usize {
    let names = std::fs::read_dir("/sys/block").unwrap();
    let files = names.filter_map(|name| {
        std::fs::read_to_string(name.unwrap().path().join("loop/backing_file")).ok()
    });
    files.filter(|file| file.contains("bulkhead-crash")).count()
}
