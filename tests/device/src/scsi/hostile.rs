//! A driver that lies: chains that are no requests, and requests that are nonsense.

use driver::{Command, Descriptor, HOLE, Initiator, response};
use proptest::prelude::*;

use super::{read_10, start};

fn works(host: &mut Initiator) {
    assert_eq!(host.run(0, &Command::new(0, &read_10(0, 1)).with_data_in(512)).status, 0);
}

/// Without room for a response there is nothing to answer with.
#[test]
fn a_chain_without_a_response_asks_for_a_reset() {
    for writable in [vec![], vec![1], vec![12 + 95], vec![12, 95]] {
        let (mut host, disk, _) = start(1);
        let mut chain = vec![host.readable(&[1; 51])];
        let at = host.writable_buffer(200, 0);
        chain.extend(writable.iter().map(|len| Descriptor::writable(at, *len)));
        host.offer(2, &chain);
        host.wait_needs_reset();
        host.device.reset();
        let mut host = Initiator::start(host.device.clone(), u64::MAX);
        host.clear_unit_attention(0);
        works(&mut host);
        assert_eq!(disk.engines(), 1);
    }
}

#[test]
fn buffers_outside_of_memory_harm_nobody() {
    let (mut host, _, _) = start(1);
    let header = [&[1, 0, 0, 0, 0, 0, 0, 0][..], &[0; 11], &read_10(0, 1), &[0; 22]].concat();
    let header = host.readable(&header);
    let at = host.writable_buffer(108, 0xff);
    // Data that is nowhere.
    let chain = [header, Descriptor::writable(at, 108), Descriptor::writable(HOLE, 512)];
    host.offer(2, &chain);
    host.rings[2].wait_used();
    assert_eq!(host.device.machine().read(at + 11, 1), [response::FAILURE]);
    // A header that is too short, or nowhere.
    for bad in [Descriptor::readable(header.addr, 50), Descriptor::readable(HOLE, 51)] {
        host.device.machine().write(at, &[0xff; 108]);
        host.offer(2, &[bad, Descriptor::writable(at, 108)]);
        host.rings[2].wait_used();
        assert_eq!(host.device.machine().read(at + 11, 1), [response::FAILURE]);
    }
    works(&mut host);
    // A response that is nowhere.
    host.offer(2, &[header, Descriptor::writable(HOLE, 108)]);
    host.wait_needs_reset();
}

#[test]
fn sizes_beyond_reason_cost_nothing() {
    let (mut host, _, _) = start(1);
    for (offset, value) in [(24, 0u32), (24, u32::MAX), (20, 0), (20, u32::MAX)] {
        host.device.function.write(driver::Structure::Device, offset, &value.to_le_bytes());
        let header = host.readable(&[1; 64]);
        let at = host.writable_buffer(108, 0xff);
        host.offer(2, &[header, Descriptor::writable(at, 108)]);
        if (offset, value) == (20, u32::MAX) {
            host.wait_needs_reset();
        } else {
            host.rings[2].wait_used();
        }
    }
}

#[test]
fn odd_control_and_event_buffers_are_given_back() {
    let (mut host, _, bus) = start(1);
    // Events want room for one.
    let at = host.writable_buffer(15, 0);
    host.offer(1, &[Descriptor::writable(at, 15)]);
    assert_eq!(host.rings[1].wait_used().len, 0);
    // A function that is cut short.
    let readable = host.readable(&[0; 23]);
    let at = host.writable_buffer(1, 0xff);
    host.offer(0, &[readable, Descriptor::writable(at, 1)]);
    host.rings[0].wait_used();
    assert_eq!(host.device.machine().read(at, 1), [response::FAILURE]);
    works(&mut host);
    // One without room for its answer.
    let readable = host.readable(&[0; 24]);
    host.offer(0, &[readable]);
    host.wait_needs_reset();
    drop(bus);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Requests of any bytes, on all queues at once, and the controller works after a reset.
    #[test]
    fn noise_harms_nobody(
        requests in prop::collection::vec(
            (0..4u16, prop::collection::vec(any::<u8>(), 1..80), 0..700u32, any::<bool>(), any::<u8>()),
            1..24,
        ),
    ) {
        let (mut host, disk, _) = start(2);
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
            let mut chain = vec![host.readable(&bytes)];
            let at = host.writable_buffer(writable + 1, 0);
            if writable > 0 {
                chain.push(Descriptor::writable(at, writable));
            }
            host.offer(queue, &chain);
        }
        host.device.reset();
        prop_assert!(before <= 1 && disk.engines() == 0);
        let mut host = Initiator::start(host.device.clone(), u64::MAX);
        let first = host.run(0, &Command::new(0, &[0; 6]));
        prop_assert_eq!(first.sense_triple(), (6, 0x29, 0));
        prop_assert_eq!(host.run(1, &Command::new(0, &read_10(0, 1)).with_data_in(512)).status, 0);
    }
}
