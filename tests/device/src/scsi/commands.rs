//! Commands and responses (§5.6.6.1).

use std::sync::Arc;
use std::time::{Duration, Instant};

use block::{CacheMode, Operation};
use driver::{Command, Descriptor, Initiator, Used, response};

use super::{attach, controller, file_disk, read_10, start, write_10};

fn test_unit_ready(lun: u8) -> Command {
    Command::new(lun, &[0; 6])
}

#[test]
fn read_returns_written_data() {
    let (mut initiator, disk, _) = start(2);
    let data: Vec<u8> = (0..4096).map(|index| u8::try_from(index % 251).unwrap()).collect();
    let written = initiator.run(1, &Command::new(0, &write_10(8, 8)).with_data_out(&data));
    assert_eq!((written.response, written.status, written.residual), (0, 0, 0));
    assert_eq!(written.written, 12);
    let read = initiator.run(0, &Command::new(0, &read_10(8, 8)).with_data_in(4096));
    assert_eq!((read.status, read.residual, read.data), (0, 0, data.clone()));
    assert_eq!(read.written, 12 + 96 + 4096, "the used length ends with the data");
    assert_eq!(disk.content()[4096..8192], data);
}

#[test]
fn residual_counts_unused_bytes() {
    let (mut initiator, _, _) = start(1);
    let read = initiator.run(0, &Command::new(0, &read_10(0, 1)).with_data_in(2000));
    assert_eq!((read.status, read.residual), (0, 2000 - 512));
    let write = initiator.run(0, &Command::new(0, &write_10(0, 1)).with_data_out(&[1; 600]));
    assert_eq!((write.status, write.residual), (0, 88));
    let inquiry = initiator.run(0, &Command::new(0, &[0x12, 0, 0, 0, 10, 0]).with_data_in(36));
    assert_eq!((inquiry.status, inquiry.residual, inquiry.written), (0, 26, 12 + 96 + 10));
    assert_eq!(inquiry.data[10..], [0xa5; 26], "no byte is written beyond the allocation length");
    let refused = initiator.run(0, &Command::new(0, &read_10(u32::MAX, 1)).with_data_in(512));
    assert_eq!((refused.status, refused.residual), (2, 512));
    assert_eq!(refused.sense_triple(), (5, 0x21, 0));
    assert_eq!(refused.written, 12 + 18);
}

#[test]
fn small_buffers_are_an_overrun() {
    let (mut initiator, disk, _) = start(1);
    for command in [
        Command::new(0, &read_10(0, 2)).with_data_in(1023),
        Command::new(0, &read_10(0, 1)),
        Command::new(0, &write_10(0, 2)).with_data_out(&[1; 1023]),
        Command::new(0, &write_10(0, 2)).with_data_in(1024),
        Command::new(0, &[0x12, 0, 0, 0, 36, 0]).with_data_in(20),
        Command::new(0, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0]).with_data_out(&[0; 23]),
    ] {
        let answer = initiator.run(0, &command);
        assert_eq!(answer.response, response::OVERRUN, "{command:?}");
        assert!(answer.data.iter().all(|byte| *byte == 0xa5));
    }
    assert_eq!(disk.take_pushed(), []);
}

#[test]
fn addresses_without_unit() {
    let (mut initiator, _, _) = start(1);
    let to = |lun: [u8; 8], cdb: &[u8]| Command { lun, ..Command::new(0, cdb).with_data_in(36) };
    let inquiry = [0x12, 0, 0, 0, 36, 0];
    for nowhere in [[1, 1, 0, 0, 0, 0, 0, 0], [0; 8], [0xc1, 1, 0, 0, 0, 0, 0, 0], [0xff; 8]] {
        assert_eq!(initiator.run(0, &to(nowhere, &inquiry)).response, response::BAD_TARGET);
    }
    for no_unit in
        [[1, 0, 0, 1, 0, 0, 0, 0], [1, 0, 0x7f, 0xff, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 1]]
    {
        let answer = initiator.run(0, &to(no_unit, &inquiry));
        assert_eq!((answer.response, answer.status, answer.data[0]), (0, 0, 0x7f));
        let answer = initiator.run(0, &to(no_unit, &[0; 6]));
        assert_eq!((answer.status, answer.sense_triple()), (2, (5, 0x25, 0)));
    }
    // The flat space addressing method selects the same unit.
    assert_eq!(initiator.run(0, &to([1, 0, 0x40, 0, 0, 0, 0, 0], &inquiry)).data[0], 0);
}

/// §5.6.6.1: data in both directions requires INOUT.
#[test]
fn bidirectional_data_requires_inout() {
    let both = Command::new(0, &read_10(0, 1)).with_data_in(512).with_data_out(&[0; 8]);
    let (mut initiator, _, _) = start(1);
    let answer = initiator.run(0, &both);
    assert_eq!((answer.response, answer.status, answer.residual), (0, 0, 8));
    let (device, bus) = controller(1);
    let disk = driver::TestDisk::new(Default::default());
    attach(&bus, 0, 0, Arc::new(disk));
    let mut initiator = Initiator::start(device, 0);
    initiator.clear_unit_attention(0);
    assert_eq!(initiator.run(0, &both).response, response::FAILURE);
    assert_eq!(initiator.run(0, &test_unit_ready(0)).status, 0);
}

/// §2.7.4: the device accepts any framing.
#[test]
fn any_framing_is_accepted() {
    let (mut initiator, disk, _) = start(1);
    let data: Vec<u8> = (0..1024).map(|index| u8::try_from(index % 250).unwrap()).collect();
    let mut bytes = vec![1, 0, 0, 0, 0, 0, 0, 0];
    bytes.extend([0; 11]);
    bytes.extend(write_10(2, 2));
    bytes.resize(19 + 32, 0);
    bytes.extend(&data);
    let whole = initiator.readable(&bytes);
    let room = initiator.writable_buffer(12 + 96, 0xff);
    for cuts in [vec![whole.len], vec![1, 50, 100], vec![51, 512], vec![8, 8, 8, 8, 8, 8, 8]] {
        disk.fill(0);
        let mut chain = Vec::new();
        let (mut at, mut left) = (whole.addr, whole.len);
        for cut in cuts.iter().copied().chain([u32::MAX]) {
            let len = cut.min(left);
            if len > 0 {
                chain.push(Descriptor::readable(at, len));
            }
            (at, left) = (at + u64::from(len), left - len);
        }
        for (at, len) in [(0, 5), (5, 7), (12, 90), (102, 6)] {
            chain.push(Descriptor::writable(room + at, len));
        }
        let head = initiator.offer(2, &chain);
        assert_eq!(initiator.rings[2].wait_used(), Used { id: head.into(), len: 12 });
        assert_eq!(initiator.device.machine().read(room, 12), [0; 12]);
        assert_eq!(disk.content()[1024..2048], data, "{cuts:?}");
    }
}

#[test]
fn host_error_is_check_condition() {
    let (mut initiator, disk, _) = start(1);
    for (errno, cdb, expected) in [
        (libc::EIO, read_10(0, 1), (3, 0x11, 0)),
        (libc::EIO, write_10(0, 1), (3, 0x0c, 0)),
        (libc::ENOSPC, write_10(0, 1), (7, 0x27, 7)),
        (libc::EIO, super::transfer_10(0x35, 0, 0), (3, 0x0c, 0)),
    ] {
        disk.fail_next(errno);
        let command = Command::new(0, &cdb).with_data_out(&[0; 512]).with_data_in(512);
        let answer = initiator.run(0, &command);
        assert_eq!((answer.response, answer.status), (0, 2));
        assert_eq!((answer.sense_triple(), answer.residual), (expected, 1024));
    }
}

/// A command of several host requests.
#[test]
fn commands_of_several_steps_complete() {
    let (mut initiator, disk, _) = start(1);
    let mut write_same = vec![0x93, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 128, 0, 0];
    let block = [0x5a; 512];
    initiator.succeed(&Command::new(0, &write_same).with_data_out(&block));
    assert!(disk.content().iter().all(|byte| *byte == 0x5a));
    write_same[13] = 0;
    assert_eq!(initiator.run(0, &Command::new(0, &write_same).with_data_out(&block)).status, 2);

    let data: Vec<u8> = (0..64 << 10).map(|index: u32| index.to_le_bytes()[0]).collect();
    // WRITE AND VERIFY (10).
    initiator.succeed(&Command::new(0, &super::transfer_10(0x2e, 0, 128)).with_data_out(&data));
    let mut verify = super::transfer_10(0x2f, 0, 128);
    verify[1] = 2;
    initiator.succeed(&Command::new(0, &verify).with_data_out(&data));
    let mut other = data.clone();
    other[40_000] ^= 1;
    let answer = initiator.run(0, &Command::new(0, &verify).with_data_out(&other));
    assert_eq!(answer.sense_triple(), (0xe, 0x1d, 0));
    assert_eq!(u32::from_be_bytes(*answer.sense[3..].first_chunk().unwrap()), 40_000);

    let _ = disk.take_pushed();
    let mut fua_read = read_10(0, 1);
    fua_read[1] = 8;
    assert_eq!(initiator.succeed(&Command::new(0, &fua_read).with_data_in(512)), data[..512]);
    assert!(matches!(disk.take_pushed()[..], [Operation::Read { .. }, Operation::Flush]));

    let mut unmap = vec![0, 54, 0, 48, 0, 0, 0, 0];
    for lba in [0u64, 8, 16] {
        unmap.extend(lba.to_be_bytes());
        unmap.extend([0, 0, 0, 4, 0, 0, 0, 0]);
    }
    initiator.succeed(&Command::new(0, &[0x42, 0, 0, 0, 0, 0, 0, 0, 56, 0]).with_data_out(&unmap));
    assert_eq!(disk.take_pushed().len(), 3);
}

#[test]
fn compare_and_write_over_real_files() {
    for mode in [CacheMode::WriteBack, CacheMode::None] {
        let (device, bus) = controller(1);
        let (file, disk) = file_disk(1 << 20, mode);
        attach(&bus, 0, 0, Arc::new(disk));
        let mut initiator = Initiator::start(device, u64::MAX);
        initiator.clear_unit_attention(0);
        let cdb = [0x89, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0];
        let both = [[0; 1024], [7; 1024]].concat();
        initiator.succeed(&Command::new(0, &cdb).with_data_out(&both));
        assert_eq!(std::fs::read(file.path()).unwrap()[1536..2560], [7; 1024]);
        let answer = initiator.run(0, &Command::new(0, &cdb).with_data_out(&both));
        assert_eq!((answer.sense_triple(), answer.sense[6]), ((0xe, 0x1d, 0), 0), "{mode}");
    }
}

/// UNMAP with the maximum of partial granules that cannot be merged: they wait once, not each in
/// turn.
#[test]
fn partial_granules_of_one_unmap_wait_once() {
    const PIECES: u16 = 256;
    let (device, bus) = controller(1);
    let (_file, disk) = file_disk(8 << 20, CacheMode::WriteBack);
    attach(&bus, 0, 0, Arc::new(disk));
    let mut initiator = Initiator::start(device, u64::MAX);
    initiator.clear_unit_attention(0);
    let bytes = PIECES * 16;
    let mut list = [(bytes + 6).to_be_bytes(), bytes.to_be_bytes(), [0; 2], [0; 2]].concat();
    for piece in 0..PIECES {
        list.extend((u64::from(piece) * 16 + 1).to_be_bytes());
        list.extend(1_u32.to_be_bytes());
        list.extend([0; 4]);
    }
    let len = u16::try_from(list.len()).unwrap().to_be_bytes();
    let unmap = Command::new(0, &[0x42, 0, 0, 0, 0, 0, 0, len[0], len[1], 0]).with_data_out(&list);
    let took = (0..3).map(|_| {
        let start = Instant::now();
        initiator.succeed(&unmap);
        start.elapsed()
    });
    let took = took.min().unwrap();
    println!("{PIECES} pieces: {took:?}");
    assert!(took < Duration::from_millis(2) * u32::from(PIECES) / 2, "{took:?}");
}
