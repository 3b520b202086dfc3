//! What a driver does while the disk is slow: it changes everything, or resets the device.

use std::time::{Duration, Instant};

use driver::{Descriptor, Framing, Request, kind, status};
use fixtures::wait_for;

use super::victim::{DATA, HEADER, OK, Victim, usual_chain};

/// Waits until the disk was asked `count` times.
#[track_caller]
fn arrive(victim: &Victim, count: usize) {
    wait_for(|| (victim.backend.pushed() == count).then_some(())).expect("requests arrive");
}

/// Header, descriptors and ring are read once: what the driver makes of them later changes nothing.
#[test]
fn everything_is_rewritten_after_the_kick() {
    let mut victim = Victim::new();
    victim.backend.fill(0x11);
    victim.backend.pause();
    let chain = usual_chain(&victim, &Request::read(5, 512));
    let head = victim.disk.rings[0].offer(&chain);
    let _ = victim.disk.rings[0].publish();
    victim.kick();
    arrive(&victim, 1);

    victim.write(HEADER, &Request::write(SECTORS_AWAY, &[]).readable());
    for index in 0..16 {
        victim.disk.rings[0].set_descriptor(index, Descriptor::writable(0, 1 << 20).then(index));
        victim.disk.rings[0].set_available(index, 0xffff);
    }
    victim.backend.resume();
    let used = victim.disk.rings[0].wait_used();
    assert_eq!((used.id, used.len, victim.status()), (u32::from(head), 513, OK));
    assert_eq!(victim.read(DATA, 512), [0x11; 512]);
    assert_eq!(victim.backend.content(), vec![0x11; 1 << 16], "a read stays a read");
    victim.works_after_reset();
}

const SECTORS_AWAY: u64 = 64;

/// Data that changes while a write is in flight may arrive old or new, but nowhere else.
#[test]
fn data_is_rewritten_after_the_kick() {
    let mut victim = Victim::new();
    victim.backend.pause();
    let chain = usual_chain(&victim, &Request::write(9, &[0x22; 512]));
    let _ = victim.disk.rings[0].offer(&chain);
    let _ = victim.disk.rings[0].publish();
    victim.kick();
    arrive(&victim, 1);
    victim.write(HEADER + 16, &[0x33; 512]);
    victim.backend.resume();
    let _ = victim.disk.rings[0].wait_used();
    let content = victim.backend.content();
    assert_eq!(content[9 * 512..10 * 512], [0x33; 512]);
    assert!(content[..9 * 512].iter().chain(&content[10 * 512..]).all(|byte| *byte == 0));
    victim.works_after_reset();
}

/// The longest a register access may take, even where the disk never answers.
const AT_ONCE: Duration = Duration::from_millis(500);

/// §4.1.4.3.2: device status reads non-zero until the reset is complete, and no vCPU waits for it.
/// After it, no guest memory is touched.
#[test]
fn a_reset_with_requests_in_flight() {
    let mut victim = Victim::new();
    victim.backend.fill(0x44);
    victim.backend.pause();
    let pending: Vec<_> = (0..4).map(|at| victim.disk.submit(&Request::read(at, 512))).collect();
    arrive(&victim, 4);
    let used = victim.disk.rings[0].used_index();

    let device = victim.disk.device.clone();
    let start = Instant::now();
    device.set_status(0);
    for _ in 0..100 {
        assert_ne!(device.status(), 0, "four requests are in flight");
    }
    // A driver that does not wait is not listened to.
    device.set_status(status::ACKNOWLEDGE);
    assert_ne!(device.status(), status::ACKNOWLEDGE);
    victim.kick();
    assert!(start.elapsed() < AT_ONCE, "no access waits for the disk");
    assert_eq!(victim.backend.engines(), 1);

    victim.backend.resume();
    wait_for(|| (device.status() == 0).then_some(())).expect("the reset ends");
    assert_eq!((victim.backend.engines(), victim.backend.drained()), (0, 4));
    assert_eq!(victim.disk.rings[0].used_index(), used, "nothing is given back any more");

    // The memory is the driver's again.
    for request in &pending {
        victim.write(request.writable, &[0; 513]);
    }
    victim.kick();
    std::thread::sleep(Duration::from_millis(20));
    for request in &pending {
        assert_eq!(victim.read(request.writable, 513), [0; 513]);
    }
    victim.works_after_reset();
}

/// The guest turns the machine off by way of a reset of every device, again and again.
#[test]
fn resets_in_quick_succession() {
    let mut victim = Victim::new();
    for round in 0..200 {
        for at in 0..round % 5 {
            let _ = victim.disk.submit(&Request::write(at, &[1; 512]));
        }
        victim.disk.device.set_status(0);
        victim.disk.restart();
    }
    victim.works();
}

/// A second reset while the first goes on is the same reset.
#[test]
fn a_reset_during_a_reset() {
    let mut victim = Victim::new();
    victim.backend.pause();
    let _ = victim.disk.submit(&Request::bare(kind::FLUSH));
    arrive(&victim, 1);
    victim.disk.device.set_status(0);
    victim.disk.device.set_status(0);
    assert_ne!(victim.disk.device.status(), 0);
    victim.backend.resume();
    victim.works_after_reset();
}

/// A corrupt chain does not spoil the requests before it.
#[test]
fn what_is_in_flight_completes_although_the_ring_breaks() {
    let mut victim = Victim::new();
    victim.backend.pause();
    let request = Request::write(7, &[0x77; 512]);
    let pending = victim.disk.offer(0, &request, &Framing::usual(&request));
    victim.disk.kick(0);
    arrive(&victim, 1);
    victim.disk.rings[0].offer_raw(99);
    victim.kick();
    wait_for(|| victim.disk.device.needs_reset().then_some(())).expect("asks for a reset");
    victim.backend.resume();
    let used = victim.disk.rings[0].wait_used();
    assert_eq!(victim.disk.outcome(&pending, used).status, OK);
    assert_eq!(victim.backend.content()[7 * 512..8 * 512], [0x77; 512]);
    victim.works_after_reset();
}

/// Kicks of a device that asked for a reset are of no use, but cost nothing either.
#[test]
fn kicks_after_the_ring_broke() {
    let mut victim = Victim::new();
    victim.disk.rings[0].offer_raw(99);
    victim.kick();
    wait_for(|| victim.disk.device.needs_reset().then_some(())).expect("asks for a reset");
    for _ in 0..1000 {
        victim.kick();
    }
    std::thread::sleep(Duration::from_millis(20));
    let waits = victim.backend.waits();
    std::thread::sleep(Duration::from_millis(100));
    assert!(victim.backend.waits() <= waits + 1, "the worker sleeps");
    assert_eq!(victim.disk.rings[0].used_index(), 0);
    victim.needs_reset();
}

/// Requests that the disk answers in another order go to the chains they came from.
#[test]
fn completions_out_of_order() {
    let mut victim = Victim::new();
    let content: Vec<u8> = (0..1u32 << 16).map(|at| at.to_le_bytes()[1]).collect();
    victim.backend.set_content(&content);
    victim.backend.pause();
    victim.backend.in_reverse(true);
    let pending: Vec<_> =
        (0..5).map(|at| victim.disk.submit(&Request::read(at * 7, 512))).collect();
    arrive(&victim, 5);
    victim.backend.resume();
    for (outcome, at) in victim.disk.wait_all(&pending).into_iter().zip(0..) {
        assert_eq!(outcome.status, OK);
        assert_eq!(outcome.data, content[at * 7 * 512..][..512]);
    }
    assert_eq!(victim.disk.rings[0].used_entry(0).id, u32::from(pending[4].head), "last first");
    victim.works();
}
