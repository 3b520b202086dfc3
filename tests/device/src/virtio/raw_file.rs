//! The block device over the production engines and image files.

use std::io::Write;
use std::sync::Arc;

use block::{CacheMode, DiskOptions, Named, RawFile};
use driver::{Disk, Framing, Request, feature, kind};
use fixtures::scratch;
use tempfile::NamedTempFile;

use super::plug;

/// A file of 1 MiB filled with `byte`.
fn file(byte: u8) -> NamedTempFile {
    let mut file = NamedTempFile::new_in(scratch()).unwrap();
    file.write_all(&vec![byte; 1 << 20]).unwrap();
    file
}

fn start(file: &NamedTempFile, mode: CacheMode, read_only: bool, queues: u16) -> Disk {
    let options = DiskOptions { read_only, ..DiskOptions::new(mode) };
    let backend = RawFile::open(file.path(), &options).unwrap();
    Disk::start(plug(queues, Arc::new(backend)), u64::MAX, 64)
}

#[test]
fn all_cache_modes_read_write_flush_and_zero() {
    for &mode in CacheMode::ALL {
        let file = file(0x11);
        let mut disk = start(&file, mode, false, 1);
        assert_eq!(disk.read(2040, 4096), [0x11; 4096], "{mode}: the last sectors");
        disk.write(8, &[0x22; 8192]);
        disk.flush();
        let zero = Request::ranges(kind::WRITE_ZEROES, &[(16, 8, 0)]);
        assert_eq!(disk.run(&zero).status, 0, "{mode}");
        if disk.features & feature::BLK_DISCARD != 0 {
            let discard = Request::ranges(kind::DISCARD, &[(1024, 1024, 0)]);
            assert_eq!(disk.run(&discard).status, 0, "{mode}");
        }
        disk.flush();
        let content = std::fs::read(file.path()).unwrap();
        assert_eq!(content.len(), 1 << 20, "{mode}");
        assert_eq!(content[..4096], [0x11; 4096], "{mode}");
        assert_eq!(content[4096..8192], [0x22; 4096], "{mode}");
        assert_eq!(content[8192..12288], [0; 4096], "{mode}");
    }
}

/// Direct I/O requires alignment, which the driver's buffers lack.
#[test]
fn direct_io_accepts_unaligned_buffers() {
    let file = file(0);
    let mut disk = start(&file, CacheMode::None, false, 1);
    let data: Vec<u8> = (0..8192u32).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect();
    for cuts in [vec![], vec![16], vec![17, 513], vec![16, 512, 1, 1, 4096]] {
        let framing = Framing { readable: cuts.clone(), writable: cuts, indirect: false };
        let _ = disk.arena.alloc(3, 1);
        assert_eq!(disk.run_framed(0, &Request::write(8, &data), &framing).status, 0);
        let outcome = disk.run_framed(0, &Request::read(8, 8192), &framing);
        assert_eq!((outcome.status, outcome.written), (0, 8193));
        assert_eq!(outcome.data, data);
    }
}

#[test]
fn read_only_disk_is_unchanged() {
    let file = file(0x33);
    let mut disk = start(&file, CacheMode::WriteBack, true, 1);
    assert_eq!(disk.run(&Request::write(0, &[0; 512])).status, 1);
    assert_eq!(disk.read(0, 4096), [0x33; 4096]);
}

/// Full queues on several workers, and resets with requests in flight.
#[test]
fn full_queues_survive_resets() {
    let file = file(0);
    let mut disk = start(&file, CacheMode::WriteBack, false, 2);
    for round in 1..20u8 {
        let mut pending = Vec::new();
        for at in 0..32u64 {
            let queue = usize::try_from(at % 2).unwrap();
            let request = Request::write(at * 8, &[round; 4096]);
            pending.push((queue, disk.offer(queue, &request, &Framing::usual(&request))));
        }
        (0..2).for_each(|queue| disk.kick(queue));
        let mut status = vec![0xff; 2];
        for (queue, _) in &pending {
            let _ = disk.rings[*queue].wait_used();
        }
        for (_, pending) in &pending {
            status = disk.device.machine().read(pending.writable, 1);
            assert_eq!(status, [0]);
        }
        assert_eq!(status, [0]);
        assert_eq!(disk.read(0, 32 * 4096), vec![round; 32 * 4096]);
        if round % 5 == 0 {
            disk.restart();
        }
    }
}
