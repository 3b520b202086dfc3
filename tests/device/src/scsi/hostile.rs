//! Hostile virtio-scsi drivers: malformed chains and invalid requests.

use driver::{Command, Descriptor, HOLE, Initiator, response};
use proptest::prelude::*;

use super::{read_10, start};

/// Checks that the controller executes a command.
fn check_works(initiator: &mut Initiator) {
    assert_eq!(initiator.run(0, &Command::new(0, &read_10(0, 1)).with_data_in(512)).status, 0);
}

/// Without a response buffer no status can be reported.
#[test]
fn chain_without_response_needs_reset() {
    for writable in [vec![], vec![1], vec![12 + 95], vec![12, 95]] {
        let (mut initiator, disk, _) = start(1);
        let mut chain = vec![initiator.readable(&[1; 51])];
        let at = initiator.writable_buffer(200, 0);
        chain.extend(writable.iter().map(|len| Descriptor::writable(at, *len)));
        initiator.offer(2, &chain);
        initiator.wait_needs_reset();
        initiator.device.reset();
        let mut initiator = Initiator::start(initiator.device.clone(), u64::MAX);
        initiator.clear_unit_attention(0);
        check_works(&mut initiator);
        assert_eq!(disk.engines(), 1);
    }
}

#[test]
fn buffers_outside_memory() {
    let (mut initiator, _, _) = start(1);
    let header = [&[1, 0, 0, 0, 0, 0, 0, 0][..], &[0; 11], &read_10(0, 1), &[0; 22]].concat();
    let header = initiator.readable(&header);
    let at = initiator.writable_buffer(108, 0xff);
    // Data outside memory.
    let chain = [header, Descriptor::writable(at, 108), Descriptor::writable(HOLE, 512)];
    initiator.offer(2, &chain);
    initiator.rings[2].wait_used();
    assert_eq!(initiator.device.machine().read(at + 11, 1), [response::FAILURE]);
    // A header that is too short, or outside memory.
    for bad in [Descriptor::readable(header.addr, 50), Descriptor::readable(HOLE, 51)] {
        initiator.device.machine().write(at, &[0xff; 108]);
        initiator.offer(2, &[bad, Descriptor::writable(at, 108)]);
        initiator.rings[2].wait_used();
        assert_eq!(initiator.device.machine().read(at + 11, 1), [response::FAILURE]);
    }
    check_works(&mut initiator);
    // A response outside memory.
    initiator.offer(2, &[header, Descriptor::writable(HOLE, 108)]);
    initiator.wait_needs_reset();
}

#[test]
fn excessive_sizes_allocate_nothing() {
    let (mut initiator, _, _) = start(1);
    for (offset, value) in [(24, 0u32), (24, u32::MAX), (20, 0), (20, u32::MAX)] {
        initiator.device.function.write(driver::Structure::Device, offset, &value.to_le_bytes());
        let header = initiator.readable(&[1; 64]);
        let at = initiator.writable_buffer(108, 0xff);
        initiator.offer(2, &[header, Descriptor::writable(at, 108)]);
        if (offset, value) == (20, u32::MAX) {
            initiator.wait_needs_reset();
        } else {
            initiator.rings[2].wait_used();
        }
    }
}

#[test]
fn malformed_control_and_event_buffers_are_used() {
    let (mut initiator, _, bus) = start(1);
    // An event buffer that is too small.
    let at = initiator.writable_buffer(15, 0);
    initiator.offer(1, &[Descriptor::writable(at, 15)]);
    assert_eq!(initiator.rings[1].wait_used().len, 0);
    // A truncated function.
    let readable = initiator.readable(&[0; 23]);
    let at = initiator.writable_buffer(1, 0xff);
    initiator.offer(0, &[readable, Descriptor::writable(at, 1)]);
    initiator.rings[0].wait_used();
    assert_eq!(initiator.device.machine().read(at, 1), [response::FAILURE]);
    check_works(&mut initiator);
    // A function without a response buffer.
    let readable = initiator.readable(&[0; 24]);
    initiator.offer(0, &[readable]);
    initiator.wait_needs_reset();
    drop(bus);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Random bytes on all queues; the controller works after a reset.
    #[test]
    fn random_requests_are_survived(
        requests in prop::collection::vec(
            (0..4u16, prop::collection::vec(any::<u8>(), 1..80), 0..700u32, any::<bool>(), any::<u8>()),
            1..24,
        ),
    ) {
        let (mut initiator, disk, _) = start(2);
        let before = disk.engines();
        for (queue, mut bytes, writable, addressed, opcode) in requests {
            if addressed {
                bytes.resize(60, 0);
                bytes[..8].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
                bytes[19] = opcode;
                if queue == 0 {
                    bytes[..4].fill(0);
                }
            }
            let mut chain = vec![initiator.readable(&bytes)];
            let at = initiator.writable_buffer(writable + 1, 0);
            if writable > 0 {
                chain.push(Descriptor::writable(at, writable));
            }
            initiator.offer(queue, &chain);
        }
        initiator.device.reset();
        prop_assert!(before <= 1 && disk.engines() == 0);
        let mut initiator = Initiator::start(initiator.device.clone(), u64::MAX);
        let first = initiator.run(0, &Command::new(0, &[0; 6]));
        prop_assert_eq!(first.sense_triple(), (6, 0x29, 0));
        prop_assert_eq!(initiator.run(1, &Command::new(0, &read_10(0, 1)).with_data_in(512)).status, 0);
    }
}
