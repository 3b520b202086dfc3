//! Invalid register accesses: status, features, queues, configuration space, MSI-X.

use std::sync::Arc;

use devices::virtio::{Block, QueueLayout, Rng};
use driver::{
    Arena, Device, HOLE, LOW_BYTES, Machine, Request, Shape, Structure, TestDisk, feature, kind,
    status,
};
use fixtures::PATIENCE;

use super::dut::DeviceUnderTest;

const READY: u8 = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;

/// A valid queue layout.
fn valid_layout() -> QueueLayout {
    QueueLayout { size: 16, descriptors: 0x1_0000, available: 0x1_1000, used: 0x1_2000 }
}

/// Initializes the device with `layout` and returns its status.
fn start_with(dut: &DeviceUnderTest, layout: QueueLayout) -> u8 {
    let device = &dut.disk.device;
    assert!(device.negotiate(feature::VERSION_1));
    device.enable_interrupts();
    device.enable_queue(0, layout);
    device.start();
    device.status()
}

#[test]
fn driver_ok_without_features_ok() {
    let mut dut = DeviceUnderTest::new();
    let device = dut.disk.device.clone();
    device.reset();
    device.set_status(status::ACKNOWLEDGE | status::DRIVER);
    device.set_driver_features(feature::VERSION_1);
    device.set_status(status::ACKNOWLEDGE | status::DRIVER | status::DRIVER_OK);
    assert_eq!(device.status() & (status::DRIVER_OK | status::FEATURES_OK), 0);
    assert_eq!(dut.backend.engines(), 0, "no worker is started");
    // A correct initialization still succeeds.
    device.set_status(READY);
    let _ = device.queue(0, 16, 0, &mut Arena::new(0x1_0000, 0x2_0000));
    device.start();
    assert_eq!(device.status(), READY | status::DRIVER_OK);
    assert_eq!(dut.backend.engines(), 1);
    dut.check_works_after_reset();
}

/// §2.2.2, §3.1.1.
#[test]
fn invalid_features() {
    let mut dut = DeviceUnderTest::new();
    let device = dut.disk.device.clone();
    for features in [0, 1 << 63, feature::VERSION_1 | 1 << 40, feature::VERSION_1 | 1, u64::MAX] {
        assert!(!device.negotiate(features), "{features:#x}");
        device.set_status(READY | status::DRIVER_OK);
        assert_eq!(device.status() & status::DRIVER_OK, 0);
        assert_eq!(dut.backend.engines(), 0);
    }
    dut.check_works_after_reset();
}

#[test]
fn features_after_features_ok() {
    let dut = DeviceUnderTest::new();
    let device = &dut.disk.device;
    assert!(device.negotiate(feature::VERSION_1));
    device.set_driver_features(u64::MAX);
    device.function.write(Structure::Common, 0x08, &1u32.to_le_bytes());
    assert_eq!(device.function.common_u32(0x0c), 1, "features are fixed after FEATURES_OK");
}

#[test]
fn invalid_queue_sizes() {
    let mut dut = DeviceUnderTest::new();
    for size in [0, 3, 15, 255] {
        let status = start_with(&dut, QueueLayout { size, ..valid_layout() });
        assert_ne!(status & status::NEEDS_RESET, 0, "size {size}");
        assert_eq!(dut.disk.device.config_line().wait(PATIENCE), 1);
        assert_eq!(dut.backend.engines(), 0);
    }
    // Above the maximum: the register keeps its value, which the driver reads back.
    let device = dut.disk.device.clone();
    assert!(device.negotiate(feature::VERSION_1));
    device.function.set_queue_layout(0, QueueLayout { size: 512, ..valid_layout() });
    assert_eq!(device.function.common_u16(0x18), 256);
    dut.check_works_after_reset();
}

#[test]
fn invalid_queue_areas() {
    let mut dut = DeviceUnderTest::new();
    let misaligned = [
        QueueLayout { descriptors: 0x1_0008, ..valid_layout() },
        QueueLayout { available: 0x1_1001, ..valid_layout() },
        QueueLayout { used: 0x1_2002, ..valid_layout() },
    ];
    let outside = [HOLE, LOW_BYTES, LOW_BYTES - 16, 0xffff_ffff_ffff_fff0].map(|addr| {
        [
            QueueLayout { descriptors: addr, ..valid_layout() },
            QueueLayout { available: addr, ..valid_layout() },
            QueueLayout { used: addr, ..valid_layout() },
        ]
    });
    for layout in misaligned.into_iter().chain(outside.concat()) {
        let status = start_with(&dut, layout);
        assert_ne!(status & status::NEEDS_RESET, 0, "{layout:x?}");
        assert_eq!(dut.backend.engines(), 0);
    }
    dut.check_works_after_reset();
}

/// Overlapping areas harm only the driver.
#[test]
fn overlapping_queue_areas() {
    let mut dut = DeviceUnderTest::new();
    let same = QueueLayout { size: 256, descriptors: 0, available: 0, used: 0 };
    assert_eq!(start_with(&dut, same), READY | status::DRIVER_OK);
    for index in 0..100u16 {
        dut.write(2, &index.to_le_bytes());
        dut.kick();
    }
    dut.check_works_after_reset();
}

#[test]
fn running_queue_cannot_be_moved() {
    let mut dut = DeviceUnderTest::new();
    let before = dut.disk.rings[0].layout();
    dut.disk.device.function.set_queue_layout(0, QueueLayout { size: 2, ..valid_layout() });
    assert_eq!(dut.disk.device.function.common_u16(0x18), before.size);
    assert_eq!(u64::from(dut.disk.device.function.common_u32(0x20)), before.descriptors);
    dut.check_works();
}

#[test]
fn nonexistent_queues() {
    let mut dut = DeviceUnderTest::new();
    let function = &dut.disk.device.function;
    for index in [1u16, 2, 0xff, 0xffff] {
        function.set_queue_layout(index, valid_layout());
        function.write(Structure::Common, 0x1c, &1u16.to_le_bytes());
        assert_eq!(function.common_u16(0x18), 0, "size 0: no such queue");
        assert_eq!(function.common_u16(0x1c), 0);
        function.kick(index);
    }
    dut.check_works();
}

#[test]
fn nonexistent_vectors() {
    let dut = DeviceUnderTest::new();
    let function = &dut.disk.device.function;
    for vector in [2u16, 3, 0x7ff, 0xfffe] {
        function.write(Structure::Common, 0x10, &vector.to_le_bytes());
        assert_eq!(function.common_u16(0x10), 0xffff, "§4.1.5.1.2.1");
        function.write(Structure::Common, 0x16, &0u16.to_le_bytes());
        function.write(Structure::Common, 0x1a, &vector.to_le_bytes());
        assert_eq!(function.common_u16(0x1a), 0xffff);
    }
}

/// Each access of each width at each offset of BAR and configuration space returns, fills the
/// buffer, and leaves a working device.
#[test]
fn accesses_of_all_widths_at_all_offsets() {
    let mut dut = DeviceUnderTest::new();
    let (machine, bar) = (Arc::clone(dut.disk.device.machine()), dut.disk.device.function.bar());
    for offset in (0..0x8010u64).filter(|offset| offset % 0x1000 < 0x50) {
        for len in [1, 2, 4, 8] {
            let (mut one, mut other) = (vec![0x00; len], vec![0xff; len]);
            let found = machine.root.mmio_read(bar + offset, &mut one);
            assert_eq!(found, offset + len as u64 <= 0x8000);
            assert_eq!(machine.root.mmio_read(bar + offset, &mut other), found);
            assert!(!found || one == other, "{len} bytes at {offset:#x} are not filled");
        }
    }
    for value in [0xff, 0x00, 0x5a] {
        for offset in (0..0x8010u64).filter(|offset| offset % 0x1000 < 0x50) {
            for len in [1, 2, 4, 8] {
                let _ = machine.root.mmio_write(bar + offset, &vec![value; len]);
            }
        }
    }
    dut.check_works_after_reset();
    for register in 0..=255u8 {
        for len in [1, 2, 4] {
            dut.disk.device.function.config_read(register, &mut vec![0; len]);
            for value in [0xff, 0x00, 0x5a] {
                dut.disk.device.function.config_write(register, &vec![value; len]);
            }
        }
    }
    dut.disk.device.function.config_write(0x04, &[0, 0]);
    dut.disk.device.function.move_bar(0xc000_0000);
    dut.check_works_after_reset();
}

/// A function with decoding disabled claims no address, not even its last one.
#[test]
fn disabled_bar_claims_no_address() {
    let mut dut = DeviceUnderTest::new();
    let function = dut.disk.device.function.clone();
    let bar = function.bar();
    function.config_write(0x04, &[0, 0]);
    for addr in [bar, bar + 0x14, u64::from(u32::MAX), u64::MAX, 0] {
        assert!(!function.machine.root.mmio_read(addr, &mut [0]), "{addr:#x}");
        assert!(!function.machine.root.mmio_write(addr, &[0]), "{addr:#x}");
    }
    assert!(function.machine.hypervisor.doorbells().is_empty());
    function.config_write(0x04, &[6, 0]);
    dut.check_works();
}

#[test]
fn bar_moved_while_device_runs() {
    let mut dut = DeviceUnderTest::new();
    let function = dut.disk.device.function.clone();
    for to in [0xc800_0000u32, 0xd000_8000, 0xfff0_0000, 0xc000_0000] {
        function.move_bar(to);
        assert_eq!(function.bar(), u64::from(to));
        assert_eq!(function.machine.hypervisor.doorbells(), [function.doorbell(0)]);
        dut.check_works();
    }
    dut.disk.device.reset();
    assert!(function.machine.hypervisor.doorbells().is_empty(), "a reset detaches all doorbells");
    dut.check_works_after_reset();
}

/// Two devices at one address both survive and work once their BARs no longer overlap.
#[test]
fn bar_overlapping_another_device() {
    let backend = TestDisk::new(Shape::default());
    let block = Block::new("disk", "", 1, Arc::new(backend.clone()));
    let machine = Machine::new(vec![Box::new(block), Box::new(Rng)]);
    let other = Device::find(&machine, 2);
    assert!(other.negotiate(feature::VERSION_1));
    let _ = other.queue(0, 16, 0, &mut Arena::new(0x2_0000, 0x3_0000));
    other.start();
    let disk = driver::Disk::start(Device::find(&machine, 1), 0, 16);
    let home = u32::try_from(disk.device.function.bar()).unwrap();
    disk.device.function.move_bar(u32::try_from(other.function.bar()).unwrap());
    assert_eq!(machine.hypervisor.doorbells().len(), 1);
    disk.device.function.move_bar(home);
    let mut dut = DeviceUnderTest { disk, backend };
    dut.check_works();
    dut.check_works_after_reset();
}

/// PCI 3.0 §6.8.2.9: a vector signalled while masked is pending and is sent when unmasked.
#[test]
fn masked_interrupts_are_pending() {
    let mut dut = DeviceUnderTest::new();
    let (device, line) = (dut.disk.device.clone(), dut.disk.device.queue_line(0));
    let pending = || device.function.read::<8>(Structure::MsixPending, 0)[0];
    device.set_vector(1, true);
    assert_eq!((line.route(), pending()), (None, 0));
    dut.disk.flush();
    assert_eq!(pending(), 0b10);
    device.set_vector(1, false);
    assert_eq!(line.route().map(|message| message.data), Some(0x41));
    assert_eq!((pending(), line.wait(PATIENCE)), (0, 1), "the pending signal is delivered");

    for control in [0x00, 0xc0] {
        device.function.msix_control(control);
        assert_eq!(line.route(), None, "disabled, or function mask set");
        dut.disk.flush();
        assert_eq!(pending(), 0b10);
        device.function.msix_control(0x80);
        assert!(line.route().is_some());
        assert_eq!(line.wait(PATIENCE), 1);
    }
    dut.check_works_after_reset();
}

/// A write across two entries updates both.
#[test]
fn write_across_two_vectors() {
    let dut = DeviceUnderTest::new();
    let device = &dut.disk.device;
    let mut data = [0u8; 8];
    data[4..].copy_from_slice(&0xfee0_1000u32.to_le_bytes());
    device.function.write(Structure::MsixTable, 12, &data);
    let address = device.queue_line(0).route().map(|message| message.address);
    assert_eq!(address, Some(0xfee0_1000));
}

/// §4.1.4.9.1: configuration space gives access to each register.
#[test]
fn configuration_access_capability() {
    let mut dut = DeviceUnderTest::new();
    let function = dut.disk.device.function.clone();
    let capability = function.access_capability();
    let aim = |bar: u8, structure, offset, len: u32| {
        let at = function.address(structure, offset) - function.bar();
        function.config_write(capability + 4, &[bar]);
        function.config_write(capability + 8, &u32::try_from(at).unwrap().to_le_bytes());
        function.config_write(capability + 12, &len.to_le_bytes());
    };
    let read = |len| {
        let mut data = vec![0; len];
        function.config_read(capability + 16, &mut data);
        data
    };
    aim(0, Structure::Common, 0x14, 1);
    assert_eq!(read(1), [READY | status::DRIVER_OK]);
    aim(0, Structure::Common, 0x12, 2);
    assert_eq!(read(2), 1u16.to_le_bytes());
    aim(0, Structure::Device, 0, 4);
    assert_eq!(read(4), 128u32.to_le_bytes());

    // A kick.
    let pending = dut.disk.offer(
        0,
        &Request::bare(kind::FLUSH),
        &driver::Framing::usual(&Request::bare(kind::FLUSH)),
    );
    let _ = dut.disk.rings[0].publish();
    aim(0, Structure::Notify, 0, 2);
    function.config_write(capability + 16, &[0, 0]);
    let used = dut.disk.rings[0].wait_used();
    assert_eq!(dut.disk.outcome(&pending, used).status, 0);

    // Invalid lengths, BARs and offsets.
    for (bar, offset, len) in [(1, 0x14, 1), (0, 0x14, 3), (0, 0x14, 0), (0, 0x14, u32::MAX)] {
        aim(bar, Structure::Common, offset, len);
        function.config_write(capability + 16, &[0]);
        let _ = read(4);
    }
    for offset in [0x8000, 0xffff_fffc, 0xffff_ffff] {
        function.config_write(capability + 4, &[0]);
        function.config_write(capability + 8, &u32::to_le_bytes(offset));
        function.config_write(capability + 12, &4u32.to_le_bytes());
        function.config_write(capability + 16, &[0; 4]);
        let _ = read(4);
    }
    dut.check_works();

    // A reset of the device.
    aim(0, Structure::Common, 0x14, 1);
    function.config_write(capability + 16, &[0]);
    fixtures::wait_for(|| (read(1) == [0]).then_some(())).expect("the reset completes");
    dut.check_works_after_reset();
}

/// CONFIG_ADDRESS accepts dwords only; empty slots read as ones.
#[test]
fn configuration_ports() {
    let machine = Machine::new(vec![]);
    let read = |address: u32, port| {
        machine.root.config_write(0, &address.to_le_bytes());
        let mut data = [0; 4];
        machine.root.config_read(port, &mut data);
        u32::from_le_bytes(data)
    };
    assert_eq!(read(0x8000_0000, 4) & 0xffff, 0x1b36, "the host bridge");
    assert_eq!(read(0x8000_0000, 0), 0x8000_0000);
    for nothing in [0, 0x8000_0800, 0x8001_0000, 0x8000_0100, 0x8000_f800] {
        assert_eq!(read(nothing, 4), u32::MAX, "{nothing:#x}");
    }
    machine.root.config_write(0, &[1, 2]);
    machine.root.config_write(2, &[0]);
    let mut data = [0; 8];
    machine.root.config_read(0, &mut data);
    assert_eq!(data[..4], 0x8000_f800u32.to_le_bytes());
}
