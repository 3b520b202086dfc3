//! A frontend with a guest's driver: what a monitor does, in one thread.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use devices::GuestMemory;
use devices::virtio::QueueLayout;
use rustix::fs::{MemfdFlags, memfd_create};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use fixtures::wait_for;

use super::{Arena, Descriptor, Ring, Used, feature};

/// `VHOST_USER_F_PROTOCOL_FEATURES`.
const PROTOCOL: u64 = 1 << 30;
/// What a driver for block devices takes.
const WANTED: u64 = PROTOCOL
    | feature::VERSION_1
    | feature::BLK_FLUSH
    | feature::BLK_CONFIG_WCE
    | feature::BLK_MQ
    | feature::BLK_DISCARD
    | feature::BLK_WRITE_ZEROES;
const MEMORY_BYTES: usize = 16 << 20;
/// Where the buffers begin; the rings are below.
const BUFFERS: u64 = 0x10_0000;
/// Entries of each ring.
const SIZE: u16 = 64;
/// What the driver leaves in the status byte.
const NO_STATUS: u8 = 0xff;

/// A request on its way.
#[derive(Clone, Copy, Debug)]
pub struct PendingRequest {
    /// Its chain's head.
    pub head: u16,
    data: u64,
    len: u32,
    status: u64,
}

/// One ring: the driver's half and its events.
pub struct RingPart {
    /// The driver's half.
    pub ring: Ring,
    /// To the device.
    pub kick: EventFd,
    /// From the device.
    pub call: EventFd,
    /// From the device, when the ring is broken.
    pub error: EventFd,
}

/// The memory a frontend keeps for its back end.
pub struct Kept {
    /// How it is laid out.
    pub told: VhostUserInflight,
    /// What is behind it.
    pub file: File,
}

/// See the module's documentation.
pub struct Monitor {
    /// The protocol.
    pub frontend: Frontend,
    /// The guest's memory.
    pub memory: GuestMemory,
    /// The guest's rings.
    pub rings: Vec<RingPart>,
    /// Features as negotiated.
    pub features: u64,
    /// Where messages of the back end arrive.
    pub channel: UnixStream,
    /// What is kept for the back end.
    pub kept: Option<Kept>,
    arena: Arena,
}

impl Monitor {
    /// Connects, with `queues` fresh rings, and runs them. `keeps` says whether it keeps the record of requests in flight.
    #[must_use]
    pub fn start(socket: &Path, queues: u16, features: u64, keeps: bool) -> Self {
        let memory = shared_memory();
        let rings = (0..queues).map(|index| ring(&memory, index, features)).collect();
        let arena = Arena::new(BUFFERS, MEMORY_BYTES as u64);
        let (frontend, channel) = connect(socket, queues);
        let mut monitor = Self { frontend, memory, rings, features, channel, kept: None, arena };
        monitor.negotiate();
        if keeps {
            let asked = VhostUserInflight::new(0, 0, queues, SIZE);
            let (told, file) = monitor.frontend.get_inflight_fd(&asked).unwrap();
            monitor.kept = Some(Kept { told, file });
        }
        monitor.run(&vec![0; usize::from(queues)]);
        monitor
    }

    /// Connects again to a back end that was away, as QEMU does: rings go on from their used index.
    pub fn reconnect(&mut self, socket: &Path) {
        let queues = u16::try_from(self.rings.len()).unwrap();
        // The old connection ends first: there is one frontend at a time.
        self.frontend = Frontend::from_stream(UnixStream::pair().unwrap().0, 1);
        (self.frontend, self.channel) = connect(socket, queues);
        self.negotiate();
        let bases: Vec<_> = self.rings.iter().map(|part| part.ring.used_index()).collect();
        self.run(&bases);
    }

    fn negotiate(&mut self) {
        self.frontend.set_owner().unwrap();
        let offered = self.frontend.get_features().unwrap();
        self.features = offered & (WANTED | self.features) | PROTOCOL;
        // The crate takes this as leave to negotiate the protocol.
        self.frontend.set_features(self.features).unwrap();
        let protocol = self.frontend.get_protocol_features().unwrap();
        let wanted = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        assert!(protocol.contains(wanted), "{protocol:?}");
        self.frontend.set_protocol_features(wanted).unwrap();
        self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.frontend.set_backend_request_fd(&theirs).unwrap();
        self.channel = ours;
    }

    /// Shares memory and rings, and lets them run from the given available indices.
    pub fn run(&mut self, bases: &[u16]) {
        if let Some(Kept { told, file }) = &self.kept {
            self.frontend.set_inflight_fd(told, file.as_raw_fd()).unwrap();
        }
        self.share_memory();
        for (index, base) in bases.iter().enumerate() {
            self.set_up(index, *base);
            self.frontend.set_vring_enable(index, true).unwrap();
        }
    }

    /// Sends the table of the guest's memory.
    pub fn share_memory(&self) {
        self.frontend.set_mem_table(&[self.region()]).unwrap();
    }

    /// The one region of the guest's memory.
    #[must_use]
    pub fn region(&self) -> VhostUserMemoryRegionInfo {
        let region = self.memory.find_region(GuestAddress(0)).unwrap();
        VhostUserMemoryRegionInfo::from_guest_region(region).unwrap()
    }

    /// Tells of a ring, from its size to its kick.
    pub fn set_up(&self, index: usize, base: u16) {
        let part = &self.rings[index];
        let frontend = &self.frontend;
        frontend.set_vring_num(index, SIZE).unwrap();
        frontend.set_vring_base(index, base).unwrap();
        frontend.set_vring_addr(index, &self.addresses(index)).unwrap();
        frontend.set_vring_call(index, &part.call).unwrap();
        frontend.set_vring_err(index, &part.error).unwrap();
        frontend.set_vring_kick(index, &part.kick).unwrap();
    }

    /// Where a ring is, in this process.
    #[must_use]
    pub fn addresses(&self, index: usize) -> VringConfigData {
        let base = self.memory.find_region(GuestAddress(0)).unwrap().as_ptr() as u64;
        let layout = self.rings[index].ring.layout();
        VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: base + layout.descriptors,
            used_ring_addr: base + layout.used,
            avail_ring_addr: base + layout.available,
            log_addr: None,
        }
    }

    /// Stops a ring, and says which entry comes next.
    #[must_use]
    pub fn stop(&self, index: usize) -> u16 {
        u16::try_from(self.frontend.get_vring_base(index).unwrap()).unwrap()
    }

    /// `N` bytes of the device's configuration.
    #[must_use]
    pub fn config<const N: usize>(&mut self, offset: u32) -> [u8; N] {
        let len = u32::try_from(N).unwrap();
        let flags = VhostUserConfigFlags::empty();
        let (_, bytes) = self.frontend.get_config(offset, len, flags, &[0; N]).unwrap();
        bytes.try_into().unwrap()
    }

    /// Switches the write cache (Virtio 1.2 §5.2.4, `writeback`).
    pub fn set_write_cache(&mut self, on: bool) {
        self.frontend.set_config(32, VhostUserConfigFlags::WRITABLE, &[u8::from(on)]).unwrap();
    }

    /// Offers a request with data to the device, not yet shown.
    pub fn offer_write(
        &mut self,
        queue: usize,
        kind: u32,
        sector: u64,
        data: &[u8],
    ) -> PendingRequest {
        let at = self.arena.take(data.len() as u64, 512);
        self.memory.write_slice(data, GuestAddress(at)).unwrap();
        let len = u32::try_from(data.len()).unwrap();
        let buffer = (len > 0).then(|| Descriptor::readable(at, len));
        self.offer(queue, kind, sector, buffer, at)
    }

    /// Offers a read, not yet shown.
    pub fn offer_read(&mut self, queue: usize, sector: u64, len: u32) -> PendingRequest {
        let at = self.arena.take(len.into(), 512);
        self.memory.write_slice(&vec![0xa5; len as usize], GuestAddress(at)).unwrap();
        self.offer(queue, 0, sector, Some(Descriptor::writable(at, len)), at)
    }

    fn offer(
        &mut self,
        queue: usize,
        kind: u32,
        sector: u64,
        buffer: Option<Descriptor>,
        data: u64,
    ) -> PendingRequest {
        let header = self.arena.take(16, 8);
        let words = [kind.to_le_bytes(), [0; 4]].concat();
        let bytes = [words, sector.to_le_bytes().to_vec()].concat();
        self.memory.write_slice(&bytes, GuestAddress(header)).unwrap();
        let status = self.arena.take(1, 1);
        self.memory.write_obj(NO_STATUS, GuestAddress(status)).unwrap();
        let len = buffer.map_or(0, |buffer| buffer.len);
        let chain: Vec<_> = std::iter::once(Descriptor::readable(header, 16))
            .chain(buffer)
            .chain([Descriptor::writable(status, 1)])
            .collect();
        let head = self.rings[queue].ring.offer(&chain);
        PendingRequest { head, data, len, status }
    }

    /// Shows the device what was offered, and kicks it if it wants that.
    pub fn publish(&mut self, queue: usize) {
        let part = &mut self.rings[queue];
        if part.ring.publish() {
            part.kick.write(1).unwrap();
        }
    }

    /// The next used chain of a queue.
    pub fn wait_used(&mut self, queue: usize) -> Used {
        self.rings[queue].ring.wait_used()
    }

    /// What came of a request.
    #[must_use]
    pub fn status(&self, request: &PendingRequest) -> u8 {
        self.memory.read_obj(GuestAddress(request.status)).unwrap()
    }

    /// The data of a request.
    #[must_use]
    pub fn data(&self, request: &PendingRequest) -> Vec<u8> {
        let mut data = vec![0; request.len as usize];
        self.memory.read_slice(&mut data, GuestAddress(request.data)).unwrap();
        data
    }

    /// Runs one request alone on its queue, which succeeds.
    fn run_alone(&mut self, queue: usize, request: &PendingRequest) {
        self.publish(queue);
        assert_eq!(self.wait_used(queue).id, u32::from(request.head));
        assert_eq!(self.status(request), 0, "the request succeeds");
    }

    /// Writes, which succeeds.
    pub fn write(&mut self, queue: usize, sector: u64, data: &[u8]) {
        let request = self.offer_write(queue, 1, sector, data);
        self.run_alone(queue, &request);
    }

    /// Reads, which succeeds.
    pub fn read(&mut self, queue: usize, sector: u64, len: u32) -> Vec<u8> {
        let request = self.offer_read(queue, sector, len);
        self.run_alone(queue, &request);
        self.data(&request)
    }

    /// Flushes, which succeeds.
    pub fn flush(&mut self, queue: usize) {
        let request = self.offer_write(queue, 4, 0, &[]);
        self.run_alone(queue, &request);
    }

    /// Offers a discard, not yet shown.
    pub fn offer_discard(&mut self, queue: usize, sector: u64, sectors: u32) -> PendingRequest {
        let words = [sectors.to_le_bytes(), [0; 4]].concat();
        let range = [sector.to_le_bytes().to_vec(), words].concat();
        self.offer_write(queue, 11, 0, &range)
    }

    /// Discards, which succeeds.
    pub fn discard(&mut self, queue: usize, sector: u64, sectors: u32) {
        let request = self.offer_discard(queue, sector, sectors);
        self.run_alone(queue, &request);
    }
}

fn shared_memory() -> GuestMemory {
    let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(MEMORY_BYTES as u64).unwrap();
    let range = (GuestAddress(0), MEMORY_BYTES, Some(FileOffset::new(file, 0)));
    GuestMemory::from_ranges_with_files([range]).unwrap()
}

fn ring(memory: &GuestMemory, index: u16, features: u64) -> RingPart {
    let base = 0x1000 * u64::from(index);
    let layout =
        QueueLayout { size: SIZE, descriptors: base, available: base + 0x400, used: base + 0x800 };
    let event = || EventFd::new(EFD_NONBLOCK).unwrap();
    let ring = Ring::new(memory.clone(), layout, features);
    RingPart { ring, kick: event(), call: event(), error: event() }
}

/// Connects; the channel is one until there is another. Tries again when turned away: a process that another test is just
/// forking holds the connection before open for a moment.
fn connect(socket: &Path, queues: u16) -> (Frontend, UnixStream) {
    let try_once = || {
        let frontend = Frontend::connect(socket, queues.into()).ok()?;
        frontend.get_features().ok().map(|_| frontend)
    };
    let frontend = wait_for(try_once).expect("it listens, and has no other frontend");
    (frontend, UnixStream::pair().unwrap().0)
}
