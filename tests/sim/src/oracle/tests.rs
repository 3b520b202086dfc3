//! Tests of the oracle on short histories.

use super::*;

fn put(number: u32) -> Effect {
    Effect::Put(Value::Written(number))
}

fn legal_after_cut(oracle: &Oracle) -> Vec<u32> {
    let legal = |number: &u32| oracle.check_after_cut(0, &Value::Written(*number).bytes(0)).is_ok();
    (0..5).filter(legal).collect()
}

#[test]
fn flush_makes_completed_writes_durable() {
    let mut oracle = Oracle::new(1, false, 0);
    for number in 1..4 {
        let now = Time::from(number) * 10;
        let id = oracle.offer(put(number), 0, 1, now);
        oracle.complete(id, true, false, now + 5);
    }
    assert_eq!(legal_after_cut(&oracle), [0, 1, 2, 3]);
    oracle.flush_succeeded(30).unwrap();
    assert_eq!(
        legal_after_cut(&oracle),
        [2, 3],
        "the third completed after the flush was submitted"
    );
    oracle.flush_succeeded(40).unwrap();
    assert_eq!(legal_after_cut(&oracle), [3]);
}

#[test]
fn what_the_medium_held_outlives_what_precedes_it() {
    let history = || {
        let mut oracle = Oracle::new(1, false, 0);
        let one = oracle.offer(put(1), 0, 1, 10);
        oracle.complete(one, true, false, 15);
        oracle.offer(put(2), 0, 1, 20);
        let read = oracle.offer_read(0, 1, 30);
        (oracle, read)
    };
    let (mut oracle, read) = history();
    oracle.medium_held(&read, 0, Value::Written(2), Some(30), false);
    assert_eq!(legal_after_cut(&oracle), [0, 1, 2], "the second write is in flight");
    oracle.medium_held(&read, 0, Value::Written(1), Some(30), false);
    assert_eq!(legal_after_cut(&oracle), [1, 2]);
    oracle.medium_held(&read, 0, Value::Written(2), None, false);
    assert_eq!(legal_after_cut(&oracle), [2]);
    let (mut oracle, read) = history();
    oracle.reopened = Some((30, vec![None]));
    oracle.medium_held(&read, 0, Value::Written(2), None, true);
    assert_eq!(legal_after_cut(&oracle), [0, 1, 2], "the predecessor has lost data");
}

/// A durable write has replaced the zeroes that a read found before; other zeroes followed.
#[test]
fn what_the_medium_held_is_of_its_time() {
    let mut oracle = Oracle::new(1, false, 0);
    let zeroes = oracle.offer(Effect::Put(Value::Zero), 0, 1, 10);
    oracle.complete(zeroes, true, true, 15);
    let read = oracle.offer_read(0, 1, 20);
    let one = oracle.offer(put(2), 0, 1, 20);
    oracle.complete(one, true, true, 25);
    oracle.offer(Effect::Put(Value::Zero), 0, 1, 30);
    oracle.medium_held(&read, 0, Value::Zero, None, false);
    assert_eq!(legal_after_cut(&oracle), [2]);
}

#[test]
fn cancelled_operation_has_no_effect() {
    let mut oracle = Oracle::new(1, false, 0);
    let id = oracle.offer(put(1), 0, 1, 10);
    let read = oracle.offer_read(0, 1, 10);
    oracle.cancel(id, 15);
    assert_eq!(legal_after_cut(&oracle), [0]);
    assert!(oracle.check_read(&read, 0, &Value::Written(1).bytes(0), false).is_err());
}

#[test]
fn concurrent_writes_are_both_candidates() {
    let mut oracle = Oracle::new(1, false, 0);
    let (one, two) = (oracle.offer(put(1), 0, 1, 1), oracle.offer(put(2), 0, 1, 2));
    oracle.complete(two, true, true, 3);
    assert_eq!(legal_after_cut(&oracle), [1, 2]);
    oracle.complete(one, true, true, 4);
    assert_eq!(legal_after_cut(&oracle), [1, 2]);
    let read = oracle.offer_read(0, 1, 9);
    let check = |number: u32| oracle.check_read(&read, 0, &Value::Written(number).bytes(0), false);
    assert!(check(1).is_ok() && check(2).is_ok() && check(0).is_err());
}

#[test]
fn read_returns_last_completed_value() {
    let mut oracle = Oracle::new(1, false, 0);
    let one = oracle.offer(put(1), 0, 1, 1);
    let read = |oracle: &Oracle, number, lost| {
        let read = oracle.offer_read(0, 1, 9);
        oracle.check_read(&read, 0, &Value::Written(number).bytes(0), lost).is_ok()
    };
    assert!(read(&oracle, 0, false) && read(&oracle, 1, false));
    oracle.complete(one, true, false, 2);
    assert!(!read(&oracle, 0, false) && read(&oracle, 1, false));
    assert!(read(&oracle, 0, true), "legal after a lost write");
    let discard = oracle.offer(Effect::Anything, 0, 1, 3);
    oracle.complete(discard, true, true, 4);
    assert!(read(&oracle, 1, false) && !read(&oracle, 0, false));
    let read = oracle.offer_read(0, 1, 9);
    assert!(oracle.check_read(&read, 0, &Value::Zero.bytes(0), false).is_ok());
}

/// Even if a concurrent write is durable when the read completes.
#[test]
fn read_may_return_value_at_submission() {
    let mut oracle = Oracle::new(1, false, 0);
    let read = oracle.offer_read(0, 1, 1);
    let id = oracle.offer(put(1), 0, 1, 2);
    oracle.complete(id, true, true, 3);
    for number in [0, 1] {
        let bytes = Value::Written(number).bytes(0);
        assert!(oracle.check_read(&read, 0, &bytes, false).is_ok());
    }
}

#[test]
fn write_of_dead_process_lands_before_successor_opens_or_never() {
    for landed in [0, 1] {
        let mut oracle = Oracle::new(1, false, 0);
        let orphan = oracle.offer(put(1), 0, 1, 1);
        oracle.complete(orphan, false, false, 2);
        let [visible, illegal] = [landed, 2].map(|number| Value::Written(number).bytes(0));
        assert!(oracle.reopen(|_| &illegal, false, 3).is_err());
        oracle.reopen(|_| &visible, false, 3).unwrap();
        let read = oracle.offer_read(0, 1, 4);
        for number in [0, 1] {
            let bytes = Value::Written(number).bytes(0);
            assert_eq!(oracle.check_read(&read, 0, &bytes, false).is_ok(), number == landed);
        }
        assert_eq!(legal_after_cut(&oracle), [0, 1], "it may be volatile");
    }
}

#[test]
fn no_flush_succeeds_after_a_failed_one() {
    let mut oracle = Oracle::new(1, false, 0);
    oracle.flush_failed(5);
    assert!(oracle.flush_succeeded(4).is_ok(), "submitted before");
    assert!(oracle.flush_succeeded(6).is_err());
}

fn compare(oracle: &mut Oracle, number: u32, expected: u32, now: Time) -> PendingCompare {
    oracle.offer_compare(Value::Written(number), 0, vec![Value::Written(expected)], now)
}

#[test]
fn value_is_replaced_by_one_compare_and_write() {
    let mut oracle = Oracle::new(1, false, 0);
    let [one, two] = [1, 2].map(|number| compare(&mut oracle, number, 0, 1));
    oracle.compare_succeeded(&one, false, false, 2).unwrap();
    assert!(oracle.compare_succeeded(&two, false, false, 3).is_err());
    oracle.compare_failed(&two, 0, false, 3).unwrap();
    assert_eq!(legal_after_cut(&oracle), [0, 1], "the second has no effect");
    let late = compare(&mut oracle, 3, 0, 4);
    assert!(oracle.compare_succeeded(&late, false, false, 5).is_err(), "an old value");
    oracle.compare_failed(&late, 0, false, 5).unwrap();
    let last = compare(&mut oracle, 4, 1, 6);
    assert!(oracle.compare_failed(&last, 0, false, 7).is_err(), "the only legal value");
}

#[test]
fn write_concurrent_with_compare_and_write_is_found_or_follows() {
    for expected in [0, 1] {
        let mut oracle = Oracle::new(1, false, 0);
        let write = oracle.offer(put(1), 0, 1, 1);
        let pending = compare(&mut oracle, 2, expected, 1);
        oracle.complete(write, true, false, 2);
        oracle.compare_succeeded(&pending, false, false, 3).unwrap();
        let last = if expected == 1 { 2 } else { 1 };
        let read = oracle.offer_read(0, 1, 4);
        for number in 0..3 {
            let bytes = Value::Written(number).bytes(0);
            let is_legal = oracle.check_read(&read, 0, &bytes, false).is_ok();
            assert_eq!(is_legal, number == last, "found {expected}, read {number}");
        }
    }
}
