//! The block device (§5.2): configuration space and requests.

use std::sync::Arc;

use block::{DiscardLimits, Geometry};
use driver::{Data, Disk, Framing, Request, Shape, TestDisk, feature, kind};

use super::{plug, start};

/// §5.2.4: each field of the configuration follows the backend's geometry.
#[test]
fn s5_2_4_configuration_fields() {
    let geometry = Geometry {
        capacity: 10 << 20,
        logical_block: 4096,
        physical_block: 16384,
        optimal_io: 65536,
        discard: Some(DiscardLimits { granularity: 1 << 20, alignment: 0, reads_zero: false }),
    };
    let backend = TestDisk::new(Shape { geometry, ..Shape::default() });
    let device = plug(3, Arc::new(backend));
    assert!(device.negotiate(device.offered_features()));
    assert_eq!(u64::from_le_bytes(device.config(0)), (10 << 20) / 512, "capacity in sectors");
    assert_eq!(u32::from_le_bytes(device.config(12)), 254, "seg_max");
    assert_eq!(u32::from_le_bytes(device.config(20)), 4096, "blk_size");
    assert_eq!(device.config::<2>(24), [2, 0], "physical block exponent, alignment offset");
    assert_eq!(u16::from_le_bytes(device.config(26)), 4, "min_io_size in logical blocks");
    assert_eq!(u32::from_le_bytes(device.config(28)), 16, "opt_io_size in logical blocks");
    assert_eq!(device.config::<1>(32), [1], "writeback");
    assert_eq!(u16::from_le_bytes(device.config(34)), 3, "num_queues");
    assert_ne!(u32::from_le_bytes(device.config(36)), 0, "max_discard_sectors");
    assert_eq!(u32::from_le_bytes(device.config(40)), 1, "max_discard_seg");
    assert_eq!(u32::from_le_bytes(device.config(44)), 2048, "discard_sector_alignment");
    assert_ne!(u32::from_le_bytes(device.config(48)), 0, "max_write_zeroes_sectors");
    assert_eq!(u32::from_le_bytes(device.config(52)), 1, "max_write_zeroes_seg");
    assert_eq!(device.config::<1>(56), [1], "write_zeroes_may_unmap");
    // §5.2.5.2: "The device MUST initialize padding bytes unused0 and unused1 to 0."
    assert_eq!(
        (device.config::<1>(33), device.config::<2>(57), device.config::<1>(59)),
        ([0], [0, 0], [0])
    );
    assert_eq!(device.config::<8>(60), [0; 8], "zero beyond the last field");
}

/// §5.2.4: discard and `write_zeroes_may_unmap` are offered only if the backend frees space.
#[test]
fn s5_2_4_no_discard_without_backend_support() {
    let mut shape = Shape::default();
    shape.geometry.discard = None;
    let device = plug(1, Arc::new(TestDisk::new(shape)));
    assert_eq!(device.offered_features() & feature::BLK_DISCARD, 0);
    assert_ne!(device.offered_features() & feature::BLK_WRITE_ZEROES, 0);
    assert_eq!(device.config::<1>(56), [0]);
    assert_eq!(device.config::<12>(36), [0; 12]);
}

/// §5.2.3: MQ requires several queues; a read-only disk has RO and no DISCARD or WRITE_ZEROES.
#[test]
fn s5_2_3_features_follow_the_disk() {
    let offered = |queues, shape| plug(queues, Arc::new(TestDisk::new(shape))).offered_features();
    let many = feature::BLK_MQ;
    assert_eq!(
        (offered(1, Shape::default()) & many, offered(2, Shape::default()) & many),
        (0, many)
    );
    let read_only = offered(1, Shape { read_only: true, ..Shape::default() });
    let changes = feature::BLK_DISCARD | feature::BLK_WRITE_ZEROES;
    assert_eq!(read_only & (feature::BLK_RO | changes), feature::BLK_RO);
    assert_eq!(offered(1, Shape::default()) & (feature::BLK_RO | changes), changes);
    let always = feature::BLK_SEG_MAX | feature::BLK_SIZE | feature::BLK_TOPOLOGY;
    let ring = feature::EVENT_IDX | feature::INDIRECT_DESC;
    assert_eq!(read_only & (always | ring), always | ring);
}

/// §5.2.6: GET_ID returns 20 bytes, without terminator if the serial number fills them.
#[test]
fn s5_2_6_get_id() {
    let (mut disk, _) = start(0);
    let outcome = disk.run(&Request { kind: kind::GET_ID, sector: 0, data: Data::In(20) });
    assert_eq!((outcome.status, outcome.written), (0, 21));
    assert_eq!(outcome.data, b"0123456789abcdefghij");
}

/// §5.2.6.2: "After a write zeroes command is completed, reads of the specified ranges of sectors
/// MUST return zeroes. This is true independent of whether unmap was set or clear."
#[test]
fn s5_2_6_2_zeroed_ranges_read_zero() {
    for unmap in [0, 1] {
        let (mut disk, backend) = start(u64::MAX);
        backend.fill(0xff);
        let zero = Request::ranges(kind::WRITE_ZEROES, &[(3, 5, unmap)]);
        assert_eq!(disk.run(&zero).status, 0);
        let content = disk.read(2, 7 * 512);
        assert_eq!(content[512..6 * 512], [0; 5 * 512]);
        assert!(content[..512].iter().chain(&content[6 * 512..]).all(|byte| *byte == 0xff));
    }
}

/// §5.2.6.2: a discard reaches the backend with its exact range.
#[test]
fn s5_2_6_2_discard_reaches_backend() {
    let (mut disk, backend) = start(u64::MAX);
    assert_eq!(disk.run(&Request::ranges(kind::DISCARD, &[(8, 16, 0)])).status, 0);
    let pushed = backend.take_pushed();
    let [block::Operation::Discard { range, .. }] = pushed[..] else { panic!("{pushed:?}") };
    assert_eq!((range.start.0, range.len), (4096, 8192));
}

/// §5.2.6.2: a host error sets the status byte of its request only.
#[test]
fn s5_2_6_2_host_error_sets_status() {
    let (mut disk, backend) = start(0);
    for (errno, status) in
        [(libc::EIO, 1), (libc::ENOSPC, 1), (libc::EROFS, 1), (libc::EOPNOTSUPP, 2)]
    {
        backend.fail_next(errno);
        assert_eq!(disk.run(&Request::write(0, &[1; 512])).status, status, "errno {errno}");
        disk.write(0, &[2; 512]);
    }
}

/// §5.2.6: concurrent requests on all queues complete on their own queue.
#[test]
fn s5_2_6_many_queues() {
    let backend = TestDisk::new(Shape::default());
    let mut disk = Disk::start(plug(4, Arc::new(backend.clone())), u64::MAX, 16);
    assert_eq!(backend.engines(), 4);
    for round in 0..50u8 {
        let pending: Vec<_> = (0..4usize)
            .map(|queue| {
                let request = Request::write(queue as u64 * 8, &[round ^ 0x80; 4096]);
                let pending = disk.offer(queue, &request, &Framing::usual(&request));
                disk.kick(queue);
                pending
            })
            .collect();
        for (queue, pending) in pending.iter().enumerate() {
            let used = disk.rings[queue].wait_used();
            assert_eq!(disk.outcome(pending, used).status, 0);
        }
        assert_eq!(backend.content()[..4 * 4096], [round ^ 0x80; 4 * 4096]);
    }
}

/// §2.1.2, §3.1.1: only enabled queues have a worker.
#[test]
fn s3_1_1_disabled_queues_are_unused() {
    let backend = TestDisk::new(Shape::default());
    let device = plug(4, Arc::new(backend.clone()));
    assert!(device.negotiate(feature::VERSION_1));
    let mut arena = driver::Arena::new(0x1_0000, 0x2_0000);
    let ring = device.queue(2, 16, 0, &mut arena);
    device.enable_interrupts();
    device.start();
    assert_eq!(backend.engines(), 1);
    for queue in 0..4 {
        device.function.kick(queue);
    }
    let arena = driver::Arena::new(0x10_0000, 0x20_0000);
    let unused = |index| driver::Ring::new(device.machine().memory.clone(), ring_at(index), 0);
    let rings = vec![unused(0x4_0000), unused(0x5_0000), ring];
    let mut disk = Disk { device: device.clone(), features: feature::VERSION_1, rings, arena };
    let flush = Request::bare(kind::FLUSH);
    assert_eq!(disk.run_framed(2, &flush, &Framing::usual(&flush)).status, 0);
}

fn ring_at(addr: u64) -> devices::virtio::QueueLayout {
    let (available, used) = (addr + 0x1000, addr + 0x2000);
    devices::virtio::QueueLayout { size: 16, descriptors: addr, available, used }
}
