//! A virtual machine monitor as vhost-user front-end, and the guest driver behind it, on one
//! thread.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use devices::GuestMemory;
use devices::virtio::QueueLayout;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use fixtures::wait_for;

use super::{Arena, Descriptor, Ring, Used, feature};

/// `VHOST_USER_F_PROTOCOL_FEATURES`.
const PROTOCOL: u64 = 1 << 30;
/// Features that a virtio-blk driver accepts.
const WANTED: u64 = PROTOCOL
    | feature::VERSION_1
    | feature::BLK_FLUSH
    | feature::BLK_CONFIG_WCE
    | feature::BLK_MQ
    | feature::BLK_DISCARD
    | feature::BLK_WRITE_ZEROES;
const MEMORY_BYTES: usize = 16 << 20;
/// Start of the buffers; the rings are below.
const BUFFERS: u64 = 0x10_0000;
/// Bytes of each ring.
const RING_BYTES: usize = 0x1000;
/// Entries of each ring.
const SIZE: u16 = 64;
/// The status byte before the device writes it.
const NO_STATUS: u8 = 0xff;

/// A request whose chain is available to the device.
#[derive(Clone, Copy, Debug)]
pub struct PendingIo {
    /// Head of the chain.
    pub head: u16,
    data: u64,
    len: u32,
    status: u64,
}

/// One queue: the driver's half of the ring and its eventfds.
pub struct VhostQueue {
    /// The driver's half.
    pub ring: Ring,
    /// Signalled by the driver.
    pub kick: EventFd,
    /// Signalled by the device for an interrupt.
    pub call: EventFd,
    /// Signalled by the device when the ring is corrupt.
    pub error: EventFd,
}

/// The inflight I/O region that a front-end keeps for its back-end.
pub struct InflightRegion {
    /// Layout.
    pub layout: VhostUserInflight,
    /// Memory file.
    pub file: File,
}

/// A front-end with its guest's memory and rings.
pub struct Monitor {
    /// The protocol's connection.
    pub frontend: Frontend,
    /// Guest memory.
    pub memory: GuestMemory,
    /// The queues.
    pub queues: Vec<VhostQueue>,
    /// Negotiated features.
    pub features: u64,
    /// Receives the back-end's messages.
    pub backend_channel: UnixStream,
    /// The inflight region, if the back-end has one.
    pub inflight: Option<InflightRegion>,
    arena: Arena,
}

impl Monitor {
    /// Connects and starts `queues` empty rings. `tracked` says whether it keeps an inflight region
    /// for the back-end.
    #[must_use]
    pub fn start(socket: &Path, queues: u16, features: u64, tracked: bool) -> Self {
        let memory = shared_memory();
        let (frontend, backend_channel) = connect(socket, queues);
        let mut monitor = Self {
            frontend,
            queues: (0..queues).map(|index| queue(&memory, index, features)).collect(),
            memory,
            features,
            backend_channel,
            inflight: None,
            arena: Arena::new(BUFFERS, MEMORY_BYTES as u64),
        };
        monitor.negotiate();
        if tracked {
            let request = VhostUserInflight::new(0, 0, queues, SIZE);
            let (layout, file) = monitor.frontend.get_inflight_fd(&request).unwrap();
            // A back-end that this process starts must not inherit it.
            fcntl_setfd(&file, FdFlags::CLOEXEC).unwrap();
            monitor.inflight = Some(InflightRegion { layout, file });
        }
        monitor.run(&vec![0; usize::from(queues)]);
        monitor
    }

    /// Reconnects to a restarted back-end as QEMU does: each ring resumes at its used index.
    pub fn reconnect(&mut self, socket: &Path) {
        let queues = u16::try_from(self.queues.len()).unwrap();
        // The back-end accepts one front-end at a time: close the old connection first.
        self.frontend = Frontend::from_stream(UnixStream::pair().unwrap().0, 1);
        (self.frontend, self.backend_channel) = connect(socket, queues);
        self.negotiate();
        let bases: Vec<_> = self.queues.iter().map(|vq| vq.ring.used_index()).collect();
        self.run(&bases);
    }

    fn negotiate(&mut self) {
        self.frontend.set_owner().unwrap();
        let offered = self.frontend.get_features().unwrap();
        self.features = offered & (WANTED | self.features) | PROTOCOL;
        // vhost allows protocol features only after this acknowledgement.
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
        self.backend_channel = ours;
    }

    /// Sends memory and rings and enables them, from the available indices `bases`.
    pub fn run(&mut self, bases: &[u16]) {
        if let Some(InflightRegion { layout, file }) = &self.inflight {
            self.frontend.set_inflight_fd(layout, file.as_raw_fd()).unwrap();
        }
        self.share_memory();
        for (index, base) in bases.iter().enumerate() {
            self.set_up(index, *base);
            self.frontend.set_vring_enable(index, true).unwrap();
        }
    }

    /// Resets the device as the guest's driver does and starts empty rings under the same
    /// connection.
    pub fn restart_driver(&mut self) {
        for index in 0..self.queues.len() {
            self.frontend.get_vring_base(index).unwrap();
            let ring_start = GuestAddress(self.queues[index].ring.layout().descriptors);
            self.memory.write_slice(&[0; RING_BYTES], ring_start).unwrap();
            let ring = u16::try_from(index).unwrap();
            self.queues[index].ring = queue(&self.memory, ring, self.features).ring;
        }
        self.frontend.set_features(self.features).unwrap();
        self.run(&vec![0; self.queues.len()]);
    }

    /// Sends the guest's memory table.
    pub fn share_memory(&self) {
        self.frontend.set_mem_table(&[self.region()]).unwrap();
    }

    /// The one region of the guest's memory.
    #[must_use]
    pub fn region(&self) -> VhostUserMemoryRegionInfo {
        let region = self.memory.find_region(GuestAddress(0)).unwrap();
        VhostUserMemoryRegionInfo::from_guest_region(region).unwrap()
    }

    /// Sends a ring's size, base, addresses and eventfds.
    pub fn set_up(&self, index: usize, base: u16) {
        let vq = &self.queues[index];
        let frontend = &self.frontend;
        frontend.set_vring_num(index, SIZE).unwrap();
        frontend.set_vring_base(index, base).unwrap();
        frontend.set_vring_addr(index, &self.addresses(index)).unwrap();
        frontend.set_vring_call(index, &vq.call).unwrap();
        frontend.set_vring_err(index, &vq.error).unwrap();
        frontend.set_vring_kick(index, &vq.kick).unwrap();
    }

    /// Addresses of a ring in this process.
    #[must_use]
    pub fn addresses(&self, index: usize) -> VringConfigData {
        let base = self.memory.find_region(GuestAddress(0)).unwrap().as_ptr() as u64;
        let layout = self.queues[index].ring.layout();
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

    /// Stops a ring and returns its next available index.
    #[must_use]
    pub fn stop(&self, index: usize) -> u16 {
        u16::try_from(self.frontend.get_vring_base(index).unwrap()).unwrap()
    }

    /// Reads `N` bytes of device configuration.
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

    /// Makes a request with device-readable data available without publishing it.
    pub fn offer_write(&mut self, queue: usize, kind: u32, sector: u64, data: &[u8]) -> PendingIo {
        let at = self.arena.alloc(data.len() as u64, 512);
        self.memory.write_slice(data, GuestAddress(at)).unwrap();
        let len = u32::try_from(data.len()).unwrap();
        let buffer = (len > 0).then(|| Descriptor::readable(at, len));
        self.offer(queue, kind, sector, buffer, at)
    }

    /// Makes a read available without publishing it.
    pub fn offer_read(&mut self, queue: usize, sector: u64, len: u32) -> PendingIo {
        let at = self.arena.alloc(len.into(), 512);
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
    ) -> PendingIo {
        let header = self.arena.alloc(16, 8);
        let words = [kind.to_le_bytes(), [0; 4]].concat();
        let bytes = [words, sector.to_le_bytes().to_vec()].concat();
        self.memory.write_slice(&bytes, GuestAddress(header)).unwrap();
        let status = self.arena.alloc(1, 1);
        self.memory.write_obj(NO_STATUS, GuestAddress(status)).unwrap();
        let len = buffer.map_or(0, |buffer| buffer.len);
        let chain: Vec<_> = std::iter::once(Descriptor::readable(header, 16))
            .chain(buffer)
            .chain([Descriptor::writable(status, 1)])
            .collect();
        let head = self.queues[queue].ring.offer(&chain);
        PendingIo { head, data, len, status }
    }

    /// Publishes the available chains of a queue and kicks unless the device suppresses it.
    pub fn publish(&mut self, queue: usize) {
        let vq = &mut self.queues[queue];
        if vq.ring.publish() {
            vq.kick.write(1).unwrap();
        }
    }

    /// Waits for the next used entry of a queue.
    pub fn wait_used(&mut self, queue: usize) -> Used {
        self.queues[queue].ring.wait_used()
    }

    /// Status byte of a request.
    #[must_use]
    pub fn status(&self, request: &PendingIo) -> u8 {
        self.memory.read_obj(GuestAddress(request.status)).unwrap()
    }

    /// Data of a request.
    #[must_use]
    pub fn data(&self, request: &PendingIo) -> Vec<u8> {
        let mut data = vec![0; request.len as usize];
        self.memory.read_slice(&mut data, GuestAddress(request.data)).unwrap();
        data
    }

    /// Runs one request on an otherwise idle queue; it must succeed.
    fn run_alone(&mut self, queue: usize, request: &PendingIo) {
        self.publish(queue);
        assert_eq!(self.wait_used(queue).id, u32::from(request.head));
        assert_eq!(self.status(request), 0, "the request succeeds");
    }

    /// Writes `data`; the write must succeed.
    pub fn write(&mut self, queue: usize, sector: u64, data: &[u8]) {
        let request = self.offer_write(queue, 1, sector, data);
        self.run_alone(queue, &request);
    }

    /// Reads `len` bytes; the read must succeed.
    pub fn read(&mut self, queue: usize, sector: u64, len: u32) -> Vec<u8> {
        let request = self.offer_read(queue, sector, len);
        self.run_alone(queue, &request);
        self.data(&request)
    }

    /// Flushes; the flush must succeed.
    pub fn flush(&mut self, queue: usize) {
        let request = self.offer_write(queue, 4, 0, &[]);
        self.run_alone(queue, &request);
    }

    /// Makes a discard available without publishing it.
    pub fn offer_discard(&mut self, queue: usize, sector: u64, sectors: u32) -> PendingIo {
        let words = [sectors.to_le_bytes(), [0; 4]].concat();
        let range = [sector.to_le_bytes().to_vec(), words].concat();
        self.offer_write(queue, 11, 0, &range)
    }

    /// Discards; the discard must succeed.
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

fn queue(memory: &GuestMemory, index: u16, features: u64) -> VhostQueue {
    let base = RING_BYTES as u64 * u64::from(index);
    let layout =
        QueueLayout { size: SIZE, descriptors: base, available: base + 0x400, used: base + 0x800 };
    let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
    let ring = Ring::new(memory.clone(), layout, features);
    VhostQueue { ring, kick: event(), call: event(), error: event() }
}

/// Connects, with an unconnected back-end channel. Retries a refused connection: a child process
/// that another test is forking keeps the previous connection open for a moment.
fn connect(socket: &Path, queues: u16) -> (Frontend, UnixStream) {
    let try_once = || {
        let frontend = Frontend::connect(socket, queues.into()).ok()?;
        frontend.get_features().ok().map(|_| frontend)
    };
    let frontend = wait_for(try_once).expect("the back-end accepts the front-end");
    (frontend, UnixStream::pair().unwrap().0)
}
