//! The device under attack, and what must hold after each one.

use std::sync::Arc;

use devices::virtio::Block;
use driver::{Descriptor, Device, Disk, Machine, Request, Shape, TestDisk, feature};
use fixtures::{PATIENCE, wait_for};

/// Where cases put a header, data, the status byte, and a table.
pub(crate) const HEADER: u64 = 0x20_0000;
pub(crate) const DATA: u64 = 0x21_0000;
pub(crate) const STATUS: u64 = 0x22_0000;
pub(crate) const TABLE: u64 = 0x23_0000;

/// What the status byte holds until the device writes it.
pub(crate) const UNTOUCHED: u8 = 0xff;
pub(crate) const OK: u8 = 0;
pub(crate) const IO_ERROR: u8 = 1;
pub(crate) const UNSUPPORTED: u8 = 2;

/// Bytes of one sector, sectors of the disk.
pub(crate) const SECTOR: u32 = 512;
pub(crate) const SECTORS: u64 = 128;

pub(crate) struct Victim {
    pub(crate) disk: Disk,
    pub(crate) backend: TestDisk,
}

impl Victim {
    pub(crate) fn new() -> Self {
        Self::with(Shape::default(), feature::INDIRECT_DESC)
    }

    pub(crate) fn with(shape: Shape, features: u64) -> Self {
        let backend = TestDisk::new(shape);
        let block = Block::new("victim", "serial", 1, Arc::new(backend.clone()));
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

    /// Puts a request's header and data to [`HEADER`], and takes the status byte back.
    pub(crate) fn prepare(&self, request: &Request) -> u32 {
        let bytes = request.readable();
        self.write(HEADER, &bytes);
        self.write(STATUS, &[UNTOUCHED]);
        u32::try_from(bytes.len()).unwrap()
    }

    pub(crate) fn status(&self) -> u8 {
        self.read(STATUS, 1)[0]
    }

    /// Kicks whatever the device says it wants.
    pub(crate) fn kick(&self) {
        self.disk.device.function.kick(0);
    }

    /// Offers a chain of buffers with the status byte where [`STATUS`] is, and returns it and the
    /// length in the used ring.
    pub(crate) fn answer(&mut self, chain: &[Descriptor]) -> (u8, u32) {
        self.write(STATUS, &[UNTOUCHED]);
        let head = self.disk.rings[0].offer(chain);
        let _ = self.disk.rings[0].publish();
        self.kick();
        let used = self.disk.rings[0].wait_used();
        assert_eq!(used.id, u32::from(head));
        assert!(!self.disk.device.needs_reset());
        (self.status(), used.len)
    }

    /// The device asks for a reset, interrupts, and works after it.
    #[track_caller]
    pub(crate) fn needs_reset(mut self) {
        let asks = || self.disk.device.needs_reset().then_some(());
        wait_for(asks).expect("the device asks for a reset");
        assert_eq!(self.disk.device.config_line().wait(PATIENCE), 1, "and tells the driver, once");
        assert_eq!(self.backend.engines(), 1, "the worker is there");
        self.works_after_reset();
    }

    /// A reset, a new start, and everything works.
    #[track_caller]
    pub(crate) fn works_after_reset(&mut self) {
        self.disk.restart();
        self.works();
    }

    /// A write arrives and a read brings it back.
    #[track_caller]
    pub(crate) fn works(&mut self) {
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

impl Drop for Victim {
    /// A test that fails while the disk is held must not wait for it.
    fn drop(&mut self) {
        self.backend.resume();
    }
}

/// A chain that asks for `request` with the usual framing at the usual places.
pub(crate) fn usual_chain(victim: &Victim, request: &Request) -> Vec<Descriptor> {
    let readable = victim.prepare(request);
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
