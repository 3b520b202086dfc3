//! Random commands and data: no panic, and no operation beyond the disk.

use proptest::prelude::*;

use super::*;

/// Bytes that are commands more often than random ones.
fn commands() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![4 => Just(0u8), 1 => any::<u8>(), 1 => 0..16u8];
    let opcode = prop_oneof![9 => prop::sample::select(opcodes::known_opcodes()), 1 => any::<u8>()];
    (opcode, prop::collection::vec(byte, 0..32)).prop_map(|(opcode, rest)| {
        let mut bytes = vec![opcode];
        bytes.extend(rest);
        bytes
    })
}

/// Start and length of the bytes that an operation touches.
fn touched(op: Operation, data: Data) -> (u64, u64) {
    let len = match data {
        Data::None => 0,
        Data::Initiator(len) => len,
        Data::Own(segment) => segment.len() as u64,
    };
    match op {
        Operation::Read { at } | Operation::Write { at, .. } => (at.0, len),
        Operation::CompareAndWrite { at, .. } => (at.0, len / 2),
        Operation::Flush => (0, 0),
        Operation::Discard { range, .. } | Operation::WriteZeroes { range, .. } => {
            (range.start.0, range.len)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn operations_stay_on_the_disk(
        cdb in commands(),
        out in prop::collection::vec(prop_oneof![3 => Just(0u8), 1 => any::<u8>()], 0..80),
        big: bool,
        block in prop::sample::select(vec![512, 4096]),
        read_only: bool,
        lun in prop::option::of(0..2u16),
    ) {
        let capacity = if big { u64::MAX / 8192 * 4096 } else { 64 << 10 };
        let rig = Rig::with(DiskSetup { capacity, block, read_only, ..DiskSetup::default() });
        match rig.target.execute(lun, &Cdb::new(&cdb), &&out[..]) {
            Ok(Answer::Good { data, taken }) => {
                prop_assert!(taken <= out.len() as u64);
                prop_assert!(data.len() <= 1 << 20);
            }
            Ok(Answer::Work(mut job)) => {
                let mut step = job.step();
                // Enough for all commands that end soon.
                for _ in 0..64 {
                    let (start, len) = touched(step.op, step.data);
                    prop_assert!(start.checked_add(len).is_some_and(|end| end <= capacity));
                    prop_assert!((start | len) % u64::from(block) == 0);
                    if read_only {
                        let changes = !matches!(step.op, Operation::Read { .. } | Operation::Flush);
                        prop_assert!(!changes);
                    }
                    match job.next(&rig.unit, Ok(()), &&out[..]) {
                        Next::Step(next) => step = next,
                        Next::Done(_) => break,
                    }
                }
            }
            Err(Failure::Check(sense)) => {
                prop_assert!(sense.encode(false).len() == 18 && sense.encode(true).len() >= 8);
            }
            Ok(Answer::Query(query)) => {
                let _ = rig.answer(query);
            }
            Err(_) => {}
        }
    }
}
