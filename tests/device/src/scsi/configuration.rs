//! Identity, features and configuration space (§5.6.1–§5.6.5).

use driver::{Command, Initiator, Structure};

use super::{attach, controller, start};

fn word(host: &Initiator, offset: u32) -> u32 {
    u32::from_le_bytes(host.device.config(offset))
}

#[test]
fn the_configuration_says_what_there_is() {
    let (host, _, bus) = start(3);
    assert_eq!(word(&host, 0), 3, "request queues");
    assert_eq!(host.device.queues(), 5);
    assert_eq!(word(&host, 4), 254, "segments");
    assert_eq!((word(&host, 16), word(&host, 20), word(&host, 24)), (16, 96, 32));
    assert_eq!(host.device.config::<4>(28), [0, 0, 0, 0], "one channel, one target");
    assert_eq!(word(&host, 32), 16383);
    attach(&bus, 9, 1, std::sync::Arc::new(driver::TestDisk::new(Default::default())));
    assert_eq!(host.device.config::<4>(28), [0, 0, 9, 0]);
    assert_eq!(host.features & 7, 7, "INOUT, HOTPLUG, CHANGE");
}

/// §5.6.4: a reset brings the sizes back.
#[test]
fn the_driver_sets_two_sizes_and_no_more() {
    let (mut host, disk, _) = start(1);
    for offset in (0..36).step_by(4) {
        let before = word(&host, offset);
        host.device.function.write(Structure::Device, offset, &24u32.to_le_bytes());
        let expected = if [20, 24].contains(&offset) { 24 } else { before };
        assert_eq!(word(&host, offset), expected, "{offset}");
    }
    (host.cdb_size, host.sense_size) = (24, 24);
    disk.fill(7);
    let read =
        Command::new(0, &[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]).with_data_in(512);
    assert_eq!(host.succeed(&read), [7; 512]);
    // Sense data is cut to its room.
    host.device.function.write(Structure::Device, 20, &8u32.to_le_bytes());
    host.sense_size = 8;
    let refused = host.run(0, &Command::new(0, &[0xff; 6]));
    assert_eq!((refused.status, refused.sense), (2, vec![0x70, 0, 5, 0, 0, 0, 0, 10]));
    // A command that the driver cannot send whole.
    host.device.function.write(Structure::Device, 24, &10u32.to_le_bytes());
    host.cdb_size = 10;
    assert_eq!(host.run(0, &read).status, 2);
    host.device.reset();
    assert_eq!((word(&host, 20), word(&host, 24)), (96, 32));
}

#[test]
fn a_controller_without_disks_has_no_targets() {
    let (device, _) = controller(1);
    let mut host = Initiator::start(device, u64::MAX);
    let answer = host.run(0, &Command::new(0, &[0x12, 0, 0, 0, 36, 0]).with_data_in(36));
    assert_eq!(answer.response, driver::response::BAD_TARGET);
    host.device.reset();
}
