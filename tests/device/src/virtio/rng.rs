//! The entropy device (§5.4).

use devices::virtio::Rng;
use driver::{Arena, Descriptor, Device, Machine, Ring, feature};
use fixtures::PATIENCE;

fn start(features: u64) -> (Device, Ring) {
    let device = Device::find(&Machine::new(vec![Box::new(Rng)]), 1);
    let features = features | feature::VERSION_1;
    assert!(device.negotiate(features));
    let ring = device.queue(0, 16, features, &mut Arena::new(0x1_0000, 0x2_0000));
    device.enable_interrupts();
    device.start();
    (device, ring)
}

fn request(device: &Device, ring: &mut Ring, chain: &[Descriptor]) -> u32 {
    let _ = ring.offer(chain);
    if ring.publish() {
        device.function.kick(0);
    }
    ring.wait_used().len
}

/// §5.4.6.2: "The device MUST place one or more random bytes into the buffer, but it MAY use less
/// than the entire buffer length."
#[test]
fn s5_4_6_2_buffers_are_filled_to_the_used_length() {
    for features in [0, feature::EVENT_IDX] {
        let (device, mut ring) = start(features);
        for len in [1, 2, 64, 4096, 65536] {
            device.machine().write(0x10_0000, &vec![0; len as usize]);
            let written = request(&device, &mut ring, &[Descriptor::writable(0x10_0000, len)]);
            assert!(written >= 1 && written <= len);
            let bytes = device.machine().read(0x10_0000, len.into());
            let (filled, rest) = bytes.split_at(written as usize);
            assert!(written < 16 || filled.iter().any(|byte| *byte != 0));
            assert!(rest.iter().all(|byte| *byte == 0), "no byte beyond the used length");
        }
        let chain = [Descriptor::writable(0x10_0000, 7), Descriptor::writable(0x20_0000, 9)];
        assert_eq!(request(&device, &mut ring, &chain), 16);
    }
}

/// Chains without writable memory are used with length 0.
#[test]
fn chains_without_writable_buffers() {
    let (device, mut ring) = start(0);
    for chain in [
        [Descriptor::readable(0x10_0000, 64)],
        [Descriptor::writable(0x8000_0000, 64)],
        [Descriptor::writable(0x10_0000, 0)],
    ] {
        assert_eq!(request(&device, &mut ring, &chain), 0);
    }
    assert_eq!(request(&device, &mut ring, &[Descriptor::writable(0x10_0000, 8)]), 8);
    ring.offer_raw(999);
    device.function.kick(0);
    assert_eq!(device.config_line().wait(PATIENCE), 1);
    assert!(device.needs_reset());
    device.reset();
    assert_eq!(device.status(), 0);
}
