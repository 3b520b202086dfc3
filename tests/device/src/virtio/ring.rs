//! The split virtqueue (§2.7): framing, used lengths, notification suppression.

use std::time::Duration;

use driver::{Descriptor, Disk, Framing, Request, feature, kind};
use fixtures::{PATIENCE, wait_for};

use super::start;

/// Time to wait for an interrupt that must not arrive.
const QUIET: Duration = Duration::from_millis(20);

/// §2.7.4.2: "The device MUST NOT make assumptions about the particular arrangement of
/// descriptors."
#[test]
fn s2_7_4_2_any_framing_is_accepted() {
    let (mut disk, backend) = start(u64::MAX);
    let content: Vec<u8> = (0..1u32 << 16).map(|at| at.to_le_bytes()[1] ^ 0x5a).collect();
    backend.set_content(&content);
    let splits: [&[u32]; 8] =
        [&[], &[16], &[1], &[15], &[17], &[4, 4, 8], &[511, 1, 1], &[1, 1, 1, 1, 1, 1, 500]];
    let mut data = 0u8;
    for (readable, writable) in splits.iter().flat_map(|a| splits.iter().map(move |b| (a, b))) {
        for indirect in [false, true] {
            let framing =
                Framing { readable: readable.to_vec(), writable: writable.to_vec(), indirect };
            data = data.wrapping_add(1);
            let outcome = disk.run_framed(0, &Request::write(2, &[data; 1024]), &framing);
            assert_eq!((outcome.status, outcome.written), (0, 1), "{framing:?}");
            assert_eq!(backend.content()[1024..2048], [data; 1024], "{framing:?}");
            let outcome = disk.run_framed(0, &Request::read(1, 1536), &framing);
            assert_eq!((outcome.status, outcome.written), (0, 1537), "{framing:?}");
            assert_eq!(outcome.data, backend.content()[512..2048], "{framing:?}");
        }
    }
}

/// §2.7.8.2: "The device MUST write at least len bytes to descriptor, beginning at the first
/// device-writable buffer".
#[test]
fn s2_7_8_2_used_length_counts_written_bytes() {
    let (mut disk, backend) = start(0);
    assert_eq!(disk.run(&Request::read(0, 2048)).written, 2049);
    assert_eq!(disk.run(&Request::write(0, &[1; 512])).written, 1);
    assert_eq!(disk.run(&Request::bare(kind::FLUSH)).written, 1);
    // A failed read writes only its status, which is not the first writable byte.
    assert_eq!(disk.run(&Request::read(1 << 40, 512)).written, 0);
    backend.fail_next(libc::EIO);
    let outcome = disk.run(&Request::read(0, 512));
    assert_eq!((outcome.status, outcome.written), (1, 0));
}

/// Makes `count` flushes available and publishes them at once.
fn offer_batch(disk: &mut Disk, count: usize) {
    let flush = Request::bare(kind::FLUSH);
    for _ in 0..count {
        let _ = disk.offer(0, &flush, &Framing::usual(&flush));
    }
    disk.kick(0);
}

fn take_batch(disk: &mut Disk, count: usize) {
    for _ in 0..count {
        let _ = disk.rings[0].wait_used();
    }
}

/// §2.7.7.2, without EVENT_IDX: with flags 1 "the device SHOULD NOT send a notification", with
/// flags 0 it MUST.
#[test]
fn s2_7_7_2_interrupts_by_flag() {
    let (mut disk, _) = start(0);
    let line = disk.device.queue_line(0);
    for flags in [0, 1, 0] {
        disk.rings[0].set_available_flags(flags);
        // "The device MUST ignore the used_event value."
        disk.rings[0].set_used_event(0x7777);
        disk.flush();
        let patience = if flags == 0 { PATIENCE } else { QUIET };
        assert_eq!(line.wait(patience), u64::from(flags == 0), "flags {flags}");
    }
}

/// §2.7.7.2, with EVENT_IDX: "The device MUST ignore the lower bit of flags"; it sends a
/// notification only if the index passes used_event.
#[test]
fn s2_7_7_2_interrupts_by_index() {
    let (mut disk, _) = start(feature::EVENT_IDX);
    let line = disk.device.queue_line(0);
    disk.rings[0].set_available_flags(1);
    let cases = [(0u16, 1), (1, 0), (0, 1), (5, 0), (u16::MAX, 0), (0, 1)];
    for (used, (ahead, interrupts)) in (0u16..).zip(cases) {
        disk.rings[0].set_used_event(used.wrapping_add(ahead));
        disk.flush();
        let patience = if interrupts == 1 { PATIENCE } else { QUIET };
        assert_eq!(line.wait(patience), interrupts, "used_event {ahead} ahead");
    }
}

/// §2.7.7.2: the index passes used_event in the middle of a batch.
#[test]
fn s2_7_7_2_interrupt_for_index_within_batch() {
    for (event, interrupts) in [(0, 1), (2, 1), (4, 1), (5, 0), (9, 0)] {
        let (mut disk, backend) = start(feature::EVENT_IDX);
        disk.rings[0].set_used_event(event);
        backend.pause();
        offer_batch(&mut disk, 5);
        wait_for(|| (backend.pushed() == 5).then_some(())).unwrap();
        backend.resume();
        take_batch(&mut disk, 5);
        let patience = if interrupts == 1 { PATIENCE } else { QUIET };
        assert_eq!(disk.device.queue_line(0).wait(patience), interrupts, "event {event}");
    }
}

/// The device sends one notification per batch.
#[test]
fn one_interrupt_per_batch() {
    for features in [0, feature::EVENT_IDX] {
        let (mut disk, backend) = start(features);
        backend.pause();
        offer_batch(&mut disk, 5);
        wait_for(|| (backend.pushed() == 5).then_some(())).unwrap();
        assert_eq!(disk.device.queue_line(0).take(), 0);
        backend.resume();
        take_batch(&mut disk, 5);
        assert_eq!(disk.device.queue_line(0).wait(PATIENCE), 1);
        assert_eq!(disk.device.queue_line(0).wait(QUIET), 0);
    }
}

/// §2.7.10.1, without EVENT_IDX: the device's flags request kicks while its worker sleeps.
#[test]
fn s2_7_10_1_kicks_by_flag() {
    let (mut disk, backend) = start(0);
    let idle = |disk: &Disk| (disk.rings[0].used_flags() == 0).then_some(());
    for _ in 0..10 {
        disk.flush();
        wait_for(|| idle(&disk)).expect("an idle device requests kicks");
    }
    // With all slots in use, kicks are suppressed.
    backend.pause();
    for _ in 0..8 {
        offer_batch(&mut disk, 1);
        if backend.pushed() < 16 {
            disk.device.function.kick(0);
        }
    }
    backend.resume();
    take_batch(&mut disk, 8);
    wait_for(|| idle(&disk)).expect("kicks are requested again");
}

/// §2.7.10.1, with EVENT_IDX: flags stay 0 and avail_event is the next index.
#[test]
fn s2_7_10_1_kicks_by_index() {
    let (mut disk, _) = start(feature::EVENT_IDX);
    for index in 1..40 {
        disk.flush();
        let armed = || (disk.rings[0].available_event() == index).then_some(());
        wait_for(armed).expect("avail_event follows the available index");
        assert_eq!(disk.rings[0].used_flags(), 0);
    }
}

/// More requests than 16-bit indices count, in batches of all sizes, with kicks only as requested
/// and progress only by interrupt: a lost notification of either side would hang.
fn wrap_around(features: u64) {
    let (mut disk, _) = start(features);
    let line = disk.device.queue_line(0);
    // Requests completed without the engine, and flushes through it.
    let places = [0x30_0000u64, 0x30_1000];
    for (place, kind) in places.into_iter().zip([kind::GET_ID, kind::FLUSH]) {
        disk.device.machine().write(place, &Request::bare(kind).readable());
    }
    let chain = |place| [Descriptor::readable(place, 16), Descriptor::writable(place + 16, 21)];
    let (mut done, mut batch) = (0u32, 0usize);
    while done < 70_000 {
        batch = batch % 8 + 1;
        for at in 0..batch {
            let _ = disk.rings[0].offer(&chain(places[at % 2]));
        }
        disk.rings[0].set_used_event(u16::try_from((done as usize + batch - 1) & 0xffff).unwrap());
        disk.kick(0);
        let mut left = batch;
        while left > 0 {
            assert!(line.wait(PATIENCE) > 0, "no interrupt after {done} requests");
            while disk.rings[0].take_used().is_some() {
                left -= 1;
            }
        }
        done += u32::try_from(batch).unwrap();
    }
    assert_eq!(u32::from(disk.rings[0].used_index()), done & 0xffff);
}

#[test]
fn indices_wrap_around_with_flags() {
    wrap_around(0);
}

#[test]
fn indices_wrap_around_with_event_idx() {
    wrap_around(feature::EVENT_IDX);
}
