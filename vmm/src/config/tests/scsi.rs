//! SCSI controllers and the addresses of disks on them.

use std::path::Path;

use devices::virtio::Address;
use snapbox::{assert_data_eq, str};

use super::report_with_base;
use crate::config::{ScsiAddress, build, parse, scsi};

/// Controller, target and LUN of each disk.
fn addresses(disks: &[&str]) -> Vec<Option<(u8, u8, u16)>> {
    let table = |(n, keys): (usize, &&str)| format!("[[disk]]\nid='d{n}'\npath='d{n}'\n{keys}\n");
    let text: String = disks.iter().enumerate().map(table).collect();
    let (source, _) = parse::parse_machine(&text, Path::new("/"));
    let addresses = scsi::addresses(&source.unwrap().disks).into_iter();
    let numbers = |scsi: ScsiAddress| {
        let ScsiAddress { controller, address: Address { target, lun } } = scsi;
        (controller, target, lun)
    };
    addresses.map(|address| address.map(numbers)).collect()
}

#[test]
fn missing_numbers_get_the_lowest_free_lun() {
    let scsi = "bus='virtio-scsi'";
    assert_eq!(
        addresses(&[
            scsi,
            "",
            scsi,
            "bus='virtio-scsi'\nlun=1",
            scsi,
            "bus='virtio-scsi'\ntarget=3",
            scsi
        ]),
        [
            Some((0, 0, 0)),
            None,
            Some((0, 0, 2)),
            Some((0, 0, 1)),
            Some((0, 0, 3)),
            Some((0, 3, 0)),
            Some((0, 0, 4)),
        ]
    );
    assert_eq!(
        addresses(&["bus='virtio-scsi'\ncontroller=2\ntarget=255\nlun=16383", scsi]),
        [Some((2, 255, 16383)), Some((0, 0, 0))]
    );
}

#[test]
fn invalid_addresses() {
    assert_data_eq!(
        report_with_base(
            "[[disk]]\nid='a'\npath='a'\nlun=3\n[[disk]]\nid='b'\npath='b'\nbus='virtio-scsi'\ntarget=256\nlun=16384\n\
             [[disk]]\nid='c'\npath='c'\nbus='virtio-scsi'\nlun=1\n[[disk]]\nid='d'\npath='d'\nbus='virtio-scsi'\ntarget=0\nlun=1\n"
        ),
        str![[r#"
`lun` without `bus = "virtio-scsi"`
  3  <- only SCSI disks have this key
  write `bus = "virtio-scsi"`, or remove `lun`
`target` is out of range
  256  <- must be 0 to 255
  write a number from 0 to 255
`lun` is out of range
  16384  <- must be 0 to 16383
  write a number from 0 to 16383
two disks have LUN 1 on the same target
  1  <- second use
  1  <- first use
  give each its own `lun`, or remove the key

"#]]
    );
}

#[test]
fn all_disks_of_a_controller_share_a_slot() {
    let disk = |n| format!("[[disk]]\nid='d{n}'\npath='d{n}'\nbus='virtio-scsi'\n");
    let disks: String = (0..200).map(disk).collect();
    let nets: String = (1..30).map(|n| format!("[[net]]\ntap='t{n}'\n")).collect();
    assert_eq!(report_with_base(&format!("{disks}{nets}")), "");
    let more =
        format!("{disks}{nets}[[disk]]\nid='x'\npath='x'\nbus='virtio-scsi'\ncontroller=1\n");
    assert!(
        report_with_base(&more).contains("31 disks, controllers and nets do not fit"),
        "{more}"
    );
}

/// Number and queues of each controller, of a guest with two processors.
fn controllers(text: &str) -> Vec<(u8, u16)> {
    let text = format!("[machine]\nvcpus=2\nmemory='64MiB'\n[kernel]\nimage='vmlinuz'\n{text}");
    let (source, diagnostics) = parse::parse_machine(&text, Path::new("/"));
    assert_eq!(diagnostics, []);
    let controllers = source.map(build::machine).unwrap().unwrap().controllers.into_iter();
    controllers.map(|controller| (controller.number, controller.queues)).collect()
}

#[test]
fn controllers_of_disks_and_declared_controllers_are_merged() {
    let disk = |keys: &str| format!("[[disk]]\nid='d'\npath='d'\nbus='virtio-scsi'\n{keys}\n");
    assert_eq!(controllers(""), []);
    assert_eq!(controllers("[[scsi]]\n"), [(0, 2)]);
    assert_eq!(controllers("[[scsi]]\ncontroller=15\nqueues=1\n[[scsi]]\n"), [(0, 2), (15, 1)]);
    assert_eq!(controllers(&disk("controller=1\nqueues=1")), [(1, 1)]);
    let both = "[[scsi]]\nqueues=1\n".to_owned() + &disk("queues=2");
    assert_eq!(controllers(&both), [(0, 2)], "the largest number requested");
}

#[test]
fn invalid_controllers() {
    assert_data_eq!(
        report_with_base(
            "[[scsi]]\ncontroller=16\n[[scsi]]\ncontroller=1\nqueues=2\n[[scsi]]\ncontroller=1\ntarget=0\n"
        ),
        str![[r#"
`controller` is out of range
  16  <- must be 0 to 15
  write a number from 0 to 15
`queues` exceeds the number of vCPUs
  2  <- a guest uses at most one queue per vCPU
  [machine]  <- `vcpus` is 1
  write at most 1, or remove `queues`
SCSI controller 1 is declared twice
  [[scsi]]  <- second declaration
  [[scsi]]  <- first declaration
  give each its own `controller`, or remove one
unknown key `target`
  target  <- not a key of [[scsi]]
  the keys of [[scsi]] are: controller, queues

"#]]
    );
    // A controller with a disk takes no second slot.
    let nets: String = (0..30).map(|n| format!("[[net]]\ntap='t{n}'\n")).collect();
    assert!(
        report_with_base(&format!("{nets}[[scsi]]\n")).contains("31 disks, controllers and nets")
    );
    let nets: String = (1..30).map(|n| format!("[[net]]\ntap='t{n}'\n")).collect();
    let disk = "[[scsi]]\n[[disk]]\nid='d'\npath='d'\nbus='virtio-scsi'\n";
    assert_eq!(report_with_base(&format!("{nets}{disk}")), "");
}
