//! virtio-scsi requests (Virtio 1.2 §5.6.6): commands, task management, events.

use fixtures::wait_for;

use super::{Arena, Descriptor, Device, LOW_BYTES, Ring, Used, feature};

/// Values of a response byte.
pub mod response {
    #![allow(missing_docs, reason = "named as in the specification")]
    pub const OK: u8 = 0;
    pub const OVERRUN: u8 = 1;
    pub const ABORTED: u8 = 2;
    pub const BAD_TARGET: u8 = 3;
    pub const RESET: u8 = 4;
    pub const FAILURE: u8 = 9;
    pub const FUNCTION_SUCCEEDED: u8 = 10;
    pub const FUNCTION_REJECTED: u8 = 11;
    pub const INCORRECT_LUN: u8 = 12;
}

/// Fill of device-writable buffers before the device writes them.
const POISON: u8 = 0xa5;
/// Bytes of a response without its sense data.
const RESPONSE_BYTES: u32 = 12;

/// A SCSI command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Address of the logical unit.
    pub lun: [u8; 8],
    /// Command identifier (the SAM task tag).
    pub id: u64,
    /// Command descriptor block; zero-padded to `cdb_size` when sent.
    pub cdb: Vec<u8>,
    /// Data-out buffer.
    pub data_out: Vec<u8>,
    /// Length of the data-in buffer.
    pub data_in: u32,
}

impl Command {
    /// A command for LUN `lun` of target 0.
    #[must_use]
    pub fn new(lun: u8, cdb: &[u8]) -> Self {
        let lun = [1, 0, 0, lun, 0, 0, 0, 0];
        Self { lun, id: 0, cdb: cdb.to_vec(), data_out: Vec::new(), data_in: 0 }
    }

    /// With a data-out buffer.
    #[must_use]
    pub fn with_data_out(self, data: &[u8]) -> Self {
        Self { data_out: data.to_vec(), ..self }
    }

    /// With a data-in buffer of `data_in` bytes.
    #[must_use]
    pub fn with_data_in(self, data_in: u32) -> Self {
        Self { data_in, ..self }
    }

    /// With another identifier.
    #[must_use]
    pub fn with_id(self, id: u64) -> Self {
        Self { id, ..self }
    }
}

/// The response to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Response byte.
    pub response: u8,
    /// SCSI status.
    pub status: u8,
    /// Sense data.
    pub sense: Vec<u8>,
    /// Residual: unused bytes of the data buffers.
    pub residual: u32,
    /// Data the device wrote.
    pub data: Vec<u8>,
    /// Length in the used ring.
    pub written: u32,
}

impl Response {
    /// Sense key, ASC and ASCQ of fixed-format sense data.
    #[must_use]
    pub fn sense_triple(&self) -> (u8, u8, u8) {
        assert_eq!(self.sense[0] & 0x7f, 0x70, "fixed-format sense data");
        (self.sense[2], self.sense[12], self.sense[13])
    }
}

/// A command whose chain is available to the device.
#[derive(Clone, Copy, Debug)]
pub struct PendingCommand {
    head: u16,
    response: u64,
    data: u64,
    data_len: u32,
}

impl PendingCommand {
    /// Head of the chain, as the used ring has it.
    #[must_use]
    pub fn head_id(&self) -> u64 {
        self.head.into()
    }
}

/// The driver of a virtio-scsi controller, with DRIVER_OK set: a SCSI initiator.
pub struct Initiator {
    /// The device.
    pub device: Device,
    /// Negotiated features.
    pub features: u64,
    /// Rings of the control queue, the event queue, then the request queues.
    pub rings: Vec<Ring>,
    /// Memory of the buffers.
    pub arena: Arena,
    /// Bytes of a CDB, as configured.
    pub cdb_size: u32,
    /// Bytes of sense data, as configured.
    pub sense_size: u32,
}

impl Initiator {
    /// Initializes the device with those of `features` it offers.
    #[must_use]
    pub fn start(device: Device, features: u64) -> Self {
        let features = device.offered_features() & (features | feature::VERSION_1);
        assert!(device.negotiate(features), "the device accepts the features it offered");
        let mut rings_at = Arena::new(0x1_0000, 0x10_0000);
        let queue = |index| device.queue(index, 64, features, &mut rings_at);
        let rings = (0..device.queues()).map(queue).collect();
        device.enable_interrupts();
        device.start();
        let arena = Arena::new(0x10_0000, LOW_BYTES);
        Self { device, features, rings, arena, cdb_size: 32, sense_size: 96 }
    }

    /// Submits a command on request queue `queue`.
    pub fn send(&mut self, queue: u16, command: &Command) -> PendingCommand {
        let mut header = command.lun.to_vec();
        header.extend(command.id.to_le_bytes());
        header.extend([0; 3]);
        header.extend(&command.cdb);
        header.resize(19 + self.cdb_size as usize, 0);
        let response_len = RESPONSE_BYTES + self.sense_size;
        let mut chain = vec![self.readable(&header)];
        if !command.data_out.is_empty() {
            chain.push(self.readable(&command.data_out));
        }
        let response = self.writable_buffer(response_len, 0);
        chain.push(Descriptor::writable(response, response_len));
        let mut data = 0;
        if command.data_in > 0 {
            data = self.writable_buffer(command.data_in, POISON);
            chain.push(Descriptor::writable(data, command.data_in));
        }
        let head = self.offer(queue + 2, &chain);
        PendingCommand { head, response, data, data_len: command.data_in }
    }

    /// Submits a chain on virtqueue `queue`.
    pub fn offer(&mut self, queue: u16, chain: &[Descriptor]) -> u16 {
        let ring = &mut self.rings[usize::from(queue)];
        let head = ring.offer(chain);
        if ring.publish() {
            self.device.function.kick(queue);
        }
        head
    }

    /// A device-readable buffer that holds `bytes`.
    pub fn readable(&mut self, bytes: &[u8]) -> Descriptor {
        let at = self.arena.alloc(bytes.len() as u64, 8);
        self.device.machine().write(at, bytes);
        Descriptor::readable(at, u32::try_from(bytes.len()).unwrap())
    }

    /// Allocates `len` bytes filled with `byte` and returns their address.
    pub fn writable_buffer(&mut self, len: u32, byte: u8) -> u64 {
        let at = self.arena.alloc(len.into(), 8);
        self.device.machine().write(at, &vec![byte; len as usize]);
        at
    }

    /// Reads the response to a command from its buffers. `used` must be its used-ring entry.
    #[must_use]
    pub fn response(&self, pending: &PendingCommand, used: Used) -> Response {
        assert_eq!(used.id, u32::from(pending.head), "the used entry is of another chain");
        let machine = self.device.machine();
        let head = machine.read(pending.response, RESPONSE_BYTES.into());
        let word = |at: usize| u32::from_le_bytes(*head[at..].first_chunk().unwrap());
        let sense_len = word(0);
        assert!(sense_len <= self.sense_size);
        Response {
            response: head[11],
            status: head[10],
            residual: word(4),
            sense: machine.read(pending.response + u64::from(RESPONSE_BYTES), sense_len.into()),
            data: machine.read(pending.data, pending.data_len.into()),
            written: used.len,
        }
    }

    /// Waits for the next used entry of a request queue, which must be this command's.
    pub fn wait(&mut self, queue: u16, pending: &PendingCommand) -> Response {
        let used = self.rings[usize::from(queue) + 2].wait_used();
        self.response(pending, used)
    }

    /// Submits one command on a request queue and waits for its response.
    pub fn run(&mut self, queue: u16, command: &Command) -> Response {
        let pending = self.send(queue, command);
        self.wait(queue, &pending)
    }

    /// Runs a command on request queue 0, which must end with GOOD status, and returns its data.
    #[track_caller]
    pub fn succeed(&mut self, command: &Command) -> Vec<u8> {
        let answer = self.run(0, command);
        assert_eq!(
            (answer.response, answer.status),
            (response::OK, 0),
            "{command:02x?}: {answer:02x?}"
        );
        answer.data
    }

    /// Clears the power-on unit attention condition of LUN `lun`.
    pub fn clear_unit_attention(&mut self, lun: u8) {
        let answer = self.run(0, &Command::new(lun, &[0; 6]));
        assert_eq!(answer.sense_triple(), (6, 0x29, 0), "the unit reports its power-on condition");
    }

    /// Submits a task management function. Returns the head of its chain and the address of the
    /// response byte.
    pub fn send_task_management(&mut self, subtype: u32, lun: [u8; 8], id: u64) -> (u16, u64) {
        let mut request = vec![0; 4];
        request.extend(subtype.to_le_bytes());
        request.extend(lun);
        request.extend(id.to_le_bytes());
        let readable = self.readable(&request);
        let at = self.writable_buffer(1, POISON);
        let head = self.offer(0, &[readable, Descriptor::writable(at, 1)]);
        (head, at)
    }

    /// Submits a task management function and waits for its response.
    pub fn task_management(&mut self, subtype: u32, lun: [u8; 8], id: u64) -> u8 {
        let (head, at) = self.send_task_management(subtype, lun, id);
        let used = self.rings[0].wait_used();
        assert_eq!(used, Used { id: head.into(), len: 1 });
        self.device.machine().read(at, 1)[0]
    }

    /// Makes an event buffer available and returns its address.
    pub fn offer_event_buffer(&mut self) -> u64 {
        let at = self.writable_buffer(16, POISON);
        self.offer(1, &[Descriptor::writable(at, 16)]);
        at
    }

    /// Waits until the device writes an event to the buffer at `at`.
    pub fn wait_event(&mut self, at: u64) -> Vec<u8> {
        assert_eq!(self.rings[1].wait_used().len, 16);
        self.device.machine().read(at, 16)
    }

    /// Whether no event arrives within 50 ms.
    pub fn has_no_event(&mut self) -> bool {
        std::thread::sleep(std::time::Duration::from_millis(50));
        self.rings[1].take_used().is_none()
    }

    /// Waits until the device sets DEVICE_NEEDS_RESET.
    pub fn wait_needs_reset(&self) {
        let needs_reset = || self.device.needs_reset().then_some(());
        wait_for(needs_reset).expect("the device needs a reset");
    }
}
