//! Persistent reservations of one initiator.

use super::*;

const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const RELEASE: u8 = 2;
const CLEAR: u8 = 3;
const PREEMPT: u8 = 4;
const IGNORE: u8 = 6;

impl Rig {
    fn reserve(&self, action: u8, kind: u8, key: u64, action_key: u64) -> Result<(), Failure> {
        let mut list = [key.to_be_bytes(), action_key.to_be_bytes(), [0; 8]].concat();
        list[20] = 0;
        let cdb = [0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0];
        self.execute(&cdb, &list).map(drop)
    }

    /// Generation, key and type.
    fn state(&self) -> (u32, Option<u64>, Option<u8>) {
        let keys = self.query(&hex("5e 00 00 00 00 00 00 00ff 00"));
        let held = self.query(&hex("5e 01 00 00 00 00 00 00ff 00"));
        assert_eq!(keys[..4], held[..4]);
        let word = |bytes: &[u8]| u64::from_be_bytes(*bytes.first_chunk().unwrap());
        let key = (keys.len() > 8).then(|| word(&keys[8..]));
        let kind = (held.len() > 8).then(|| held[21]);
        if kind.is_some() {
            assert_eq!((held.len(), Some(word(&held[8..]))), (24, key));
        }
        (u32::from_be_bytes(*keys.first_chunk().unwrap()), key, kind)
    }
}

#[test]
fn register_reserve_release() {
    let rig = Rig::new();
    let conflict = Err(Failure::Conflict);
    assert_eq!(rig.state(), (0, None, None));
    assert_eq!(rig.reserve(RESERVE, 1, 0, 0), conflict, "not registered");
    assert_eq!(rig.reserve(REGISTER, 0, 5, 7), conflict, "key of no registration");
    assert_eq!(rig.reserve(REGISTER, 0, 0, 7), Ok(()));
    assert_eq!(rig.reserve(REGISTER, 0, 0, 8), conflict);
    assert_eq!(rig.reserve(RESERVE, 3, 7, 0), Ok(()));
    assert_eq!(rig.state(), (1, Some(7), Some(3)));
    assert_eq!(rig.reserve(RESERVE, 3, 7, 0), Ok(()), "again");
    assert_eq!(rig.reserve(RESERVE, 1, 7, 0), conflict, "another type");
    assert_eq!(rig.reserve(RELEASE, 1, 7, 0), Err(Failure::Check(Sense::INVALID_RELEASE)));
    assert_eq!(rig.reserve(RELEASE, 3, 8, 0), conflict);
    assert_eq!(rig.reserve(RELEASE, 3, 7, 0), Ok(()));
    assert_eq!(rig.reserve(RELEASE, 3, 7, 0), Ok(()), "not held");
    assert_eq!(rig.state(), (1, Some(7), None));
    assert_eq!(rig.reserve(IGNORE, 0, 99, 9), Ok(()));
    assert_eq!(rig.reserve(RESERVE, 8, 9, 0), Ok(()));
    assert_eq!(rig.reserve(REGISTER, 0, 9, 0), Ok(()), "unregistering releases");
    assert_eq!(rig.state(), (3, None, None));
}

#[test]
fn clear_and_preempt() {
    let rig = Rig::new();
    assert_eq!(rig.reserve(REGISTER, 0, 0, 7), Ok(()));
    assert_eq!(rig.reserve(RESERVE, 5, 7, 0), Ok(()));
    assert_eq!(rig.reserve(PREEMPT, 6, 7, 8), Err(Failure::Conflict), "unknown key");
    assert_eq!(
        rig.reserve(PREEMPT, 6, 7, 0),
        Err(Failure::Check(Sense::invalid_parameter(8, None)))
    );
    assert_eq!(rig.reserve(PREEMPT, 6, 7, 7), Ok(()));
    assert_eq!(rig.state(), (2, Some(7), Some(6)));
    assert_eq!(rig.reserve(CLEAR, 0, 7, 0), Ok(()));
    assert_eq!(rig.state(), (3, None, None));
    assert_eq!(rig.reserve(REGISTER, 0, 0, 7), Ok(()));
    assert_eq!(rig.reserve(PREEMPT, 1, 7, 7), Ok(()), "its own registration");
    assert_eq!(rig.state(), (5, None, None));
}

/// Unsupported features are refused and not reported.
#[test]
fn capabilities_match_the_checks() {
    let rig = Rig::new();
    assert_eq!(rig.query(&hex("5e 02 00 00 00 00 00 00ff 00")), hex("0008 00 80 ea01 0000"));
    for bit in [0, 2, 3] {
        let mut list = [0; 24];
        (list[15], list[20]) = (7, 1 << bit);
        let outcome = rig.execute(&hex("5f 00 00 00 00 00 00 0018 00"), &list);
        assert_eq!(outcome.err(), Some(Failure::Check(Sense::invalid_parameter(20, Some(bit)))));
    }
    assert_eq!(rig.reserve(REGISTER, 0, 0, 7), Ok(()));
    for kind in 0..16 {
        let outcome = rig.reserve(RESERVE, kind, 7, 0);
        if [1, 3, 5, 6, 7, 8].contains(&kind) {
            assert_eq!(outcome, Ok(()));
            let full = rig.query(&hex("5e 03 00 00 00 00 00 00ff 00"));
            assert_eq!((full.len(), full[20], full[21]), (8 + 48, 1, kind));
            assert_eq!(rig.reserve(RELEASE, kind, 7, 0), Ok(()));
        } else {
            let refused = Failure::Check(Sense::invalid_field_in_cdb(2, Some(3)));
            assert_eq!(outcome, Err(refused));
        }
    }
    let scope = Failure::Check(Sense::invalid_field_in_cdb(2, Some(7)));
    assert_eq!(rig.reserve(RESERVE, 0x11, 7, 0), Err(scope));
}

#[test]
fn registrations_survive_a_reset() {
    let rig = Rig::new();
    assert_eq!(rig.reserve(REGISTER, 0, 0, 7), Ok(()));
    rig.unit.reset(Attention::UnitReset);
    assert_eq!(rig.refusal(&hex("00 00 00 00 00 00"), &[]).triple(), (Key::UnitAttention, 0x29, 3));
    assert_eq!(rig.state().1, Some(7));
}
