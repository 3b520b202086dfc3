//! Device id, features and configuration space (§5.6.1–§5.6.5).

use driver::{Command, Initiator, Structure};

use super::{attach, controller, start};

fn word(initiator: &Initiator, offset: u32) -> u32 {
    u32::from_le_bytes(initiator.device.config(offset))
}

#[test]
fn configuration_fields() {
    let (initiator, _, bus) = start(3);
    assert_eq!(word(&initiator, 0), 3, "request queues");
    assert_eq!(initiator.device.queues(), 5);
    assert_eq!(word(&initiator, 4), 254, "segments");
    assert_eq!((word(&initiator, 16), word(&initiator, 20), word(&initiator, 24)), (16, 96, 32));
    assert_eq!(initiator.device.config::<4>(28), [0, 0, 0, 0], "one channel, one target");
    assert_eq!(word(&initiator, 32), 16383);
    attach(&bus, 9, 1, std::sync::Arc::new(driver::TestDisk::new(Default::default())));
    assert_eq!(initiator.device.config::<4>(28), [0, 0, 9, 0]);
    assert_eq!(initiator.features & 7, 7, "INOUT, HOTPLUG, CHANGE");
}

/// §5.6.4: the driver sets sense and CDB size; a reset restores the defaults.
#[test]
fn only_two_sizes_are_writable() {
    let (mut initiator, disk, _) = start(1);
    for offset in (0..36).step_by(4) {
        let before = word(&initiator, offset);
        initiator.device.function.write(Structure::Device, offset, &24u32.to_le_bytes());
        let expected = if [20, 24].contains(&offset) { 24 } else { before };
        assert_eq!(word(&initiator, offset), expected, "{offset}");
    }
    (initiator.cdb_size, initiator.sense_size) = (24, 24);
    disk.fill(7);
    let read =
        Command::new(0, &[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]).with_data_in(512);
    assert_eq!(initiator.succeed(&read), [7; 512]);
    // Sense data is truncated to its size.
    initiator.device.function.write(Structure::Device, 20, &8u32.to_le_bytes());
    initiator.sense_size = 8;
    let refused = initiator.run(0, &Command::new(0, &[0xff; 6]));
    assert_eq!((refused.status, refused.sense), (2, vec![0x70, 0, 5, 0, 0, 0, 0, 10]));
    // A CDB longer than its size.
    initiator.device.function.write(Structure::Device, 24, &10u32.to_le_bytes());
    initiator.cdb_size = 10;
    assert_eq!(initiator.run(0, &read).status, 2);
    initiator.device.reset();
    assert_eq!((word(&initiator, 20), word(&initiator, 24)), (96, 32));
}

#[test]
fn controller_without_disks_has_no_targets() {
    let (device, _) = controller(1);
    let mut initiator = Initiator::start(device, u64::MAX);
    let answer = initiator.run(0, &Command::new(0, &[0x12, 0, 0, 0, 36, 0]).with_data_in(36));
    assert_eq!(answer.response, driver::response::BAD_TARGET);
    initiator.device.reset();
}
