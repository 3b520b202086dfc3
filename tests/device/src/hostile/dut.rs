//! The device under test (DUT), and the checks after each attack.

use std::sync::Arc;

use devices::virtio::Block;
use driver::{Descriptor, Device, Disk, Machine, Request, Shape, TestDisk, feature};
use fixtures::{PATIENCE, wait_for};

/// Addresses of a header, data, the status byte, and an indirect table.
pub(crate) const HEADER: u64 = 0x20_0000;
pub(crate) const DATA: u64 = 0x21_0000;
pub(crate) const STATUS: u64 = 0x22_0000;
pub(crate) const TABLE: u64 = 0x23_0000;

/// The status byte before the device writes it.
pub(crate) const UNTOUCHED: u8 = 0xff;
pub(crate) const OK: u8 = 0;
pub(crate) const IO_ERROR: u8 = 1;
pub(crate) const UNSUPPORTED: u8 = 2;

/// Bytes of a sector; sectors of the disk.
pub(crate) const SECTOR: u32 = 512;
pub(crate) const SECTORS: u64 = 128;

pub(crate) struct DeviceUnderTest {
    pub(crate) disk: Disk,
    pub(crate) backend: TestDisk,
}

impl DeviceUnderTest {
    pub(crate) fn new() -> Self {
        Self::with(Shape::default(), feature::INDIRECT_DESC)
    }

    pub(crate) fn with(shape: Shape, features: u64) -> Self {
        let backend = TestDisk::new(shape);
        let block = Block::new("dut", "serial", 1, Arc::new(backend.clone()));
        let machine = Machine::new(vec![Box::new(block)]);
        let features = features | feature::BLK_FLUSH | feature::BLK_CONFIG_WCE;
        let disk = Disk::start(Device::find(&machine, 1), features, 16);
        disk.device.config_line().take();
        Self { disk, backend }
    }

    pub(crate) fn write(&self, addr: u64, bytes: &[u8]) {
        self.disk.device.machine().write(addr, bytes);
    }

    pub(crate) fn read(&self, addr: u64, len: u64) -> Vec<u8> {
        self.disk.device.machine().read(addr, len)
    }

    /// Writes a request's header and data to [`HEADER`] and resets the status byte; returns their
    /// length.
    pub(crate) fn write_request(&self, request: &Request) -> u32 {
        let bytes = request.readable();
        self.write(HEADER, &bytes);
        self.write(STATUS, &[UNTOUCHED]);
        u32::try_from(bytes.len()).unwrap()
    }

    pub(crate) fn status(&self) -> u8 {
        self.read(STATUS, 1)[0]
    }

    /// Kicks unconditionally.
    pub(crate) fn kick(&self) {
        self.disk.device.function.kick(0);
    }

    /// Submits a chain with the status byte at [`STATUS`]; returns the status and the used length.
    pub(crate) fn run_chain(&mut self, chain: &[Descriptor]) -> (u8, u32) {
        self.write(STATUS, &[UNTOUCHED]);
        let head = self.disk.rings[0].offer(chain);
        let _ = self.disk.rings[0].publish();
        self.kick();
        let used = self.disk.rings[0].wait_used();
        assert_eq!(used.id, u32::from(head));
        assert!(!self.disk.device.needs_reset());
        (self.status(), used.len)
    }

    /// Checks that the device sets DEVICE_NEEDS_RESET, notifies the driver once, and works after a
    /// reset.
    #[track_caller]
    pub(crate) fn check_needs_reset(mut self) {
        let needs_reset = || self.disk.device.needs_reset().then_some(());
        wait_for(needs_reset).expect("the device needs a reset");
        assert_eq!(
            self.disk.device.config_line().wait(PATIENCE),
            1,
            "one notification of the driver"
        );
        assert_eq!(self.backend.engines(), 1, "the worker lives");
        self.check_works_after_reset();
    }

    /// Resets and initializes the device, and checks that it works.
    #[track_caller]
    pub(crate) fn check_works_after_reset(&mut self) {
        self.disk.restart();
        self.check_works();
    }

    /// Checks a write and a read.
    #[track_caller]
    pub(crate) fn check_works(&mut self) {
        assert_eq!(self.backend.engines(), 1, "one worker");
        assert!(!self.disk.device.needs_reset());
        if self.disk.device.offered_features() & feature::BLK_RO == 0 {
            self.disk.write(3, &[0x5c; 1024]);
            assert_eq!(self.backend.content()[3 * 512..5 * 512], [0x5c; 1024]);
        }
        let content = self.backend.content();
        assert_eq!(self.disk.read(0, 4096), content[..4096]);
    }
}

impl Drop for DeviceUnderTest {
    /// Resumes the disk: a test that fails while it is paused must not hang.
    fn drop(&mut self) {
        self.backend.resume();
    }
}

/// A chain of `request` in the usual framing, at [`HEADER`], [`DATA`] and [`STATUS`].
pub(crate) fn usual_chain(dut: &DeviceUnderTest, request: &Request) -> Vec<Descriptor> {
    let readable = dut.write_request(request);
    let mut chain = vec![Descriptor::readable(HEADER, 16)];
    if readable > 16 {
        chain.push(Descriptor::readable(HEADER + 16, readable - 16));
    }
    if request.data_in() > 0 {
        chain.push(Descriptor::writable(DATA, request.data_in()));
    }
    chain.push(Descriptor::writable(STATUS, 1));
    chain
}
