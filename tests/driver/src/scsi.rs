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

/// What the driver leaves in buffers that the device is to fill.
const POISON: u8 = 0xa5;
/// Bytes of a response before its sense data.
const RESPONSE: u32 = 12;

/// One command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The eight bytes that address it.
    pub lun: [u8; 8],
    /// The driver's name for it.
    pub id: u64,
    /// The command descriptor block, padded to `cdb_size`.
    pub cdb: Vec<u8>,
    /// Data to the device.
    pub out: Vec<u8>,
    /// Bytes of data from the device.
    pub data_in: u32,
}

impl Command {
    /// A command for a unit of target 0.
    #[must_use]
    pub fn new(lun: u8, cdb: &[u8]) -> Self {
        let lun = [1, 0, 0, lun, 0, 0, 0, 0];
        Self { lun, id: 0, cdb: cdb.to_vec(), out: Vec::new(), data_in: 0 }
    }

    /// The same with data to the device.
    #[must_use]
    pub fn out(self, data: &[u8]) -> Self {
        Self { out: data.to_vec(), ..self }
    }

    /// The same with room for data from the device.
    #[must_use]
    pub fn room(self, data_in: u32) -> Self {
        Self { data_in, ..self }
    }

    /// The same under another name.
    #[must_use]
    pub fn named(self, id: u64) -> Self {
        Self { id, ..self }
    }
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The response byte.
    pub response: u8,
    /// The status byte.
    pub status: u8,
    /// The sense data.
    pub sense: Vec<u8>,
    /// Bytes that were not used of the data buffers.
    pub residual: u32,
    /// The data from the device.
    pub data: Vec<u8>,
    /// The length in the used ring.
    pub written: u32,
}

impl Answer {
    /// Sense key, code and qualifier of fixed format sense data.
    #[must_use]
    pub fn sense_triple(&self) -> (u8, u8, u8) {
        assert_eq!(self.sense[0] & 0x7f, 0x70, "fixed format");
        (self.sense[2], self.sense[12], self.sense[13])
    }
}

/// A command on its way.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    head: u16,
    response: u64,
    data: u64,
    data_len: u32,
}

impl Sent {
    /// The head of its chain, as the used ring names it.
    #[must_use]
    pub fn head_id(&self) -> u64 {
        self.head.into()
    }
}

/// A SCSI controller with its driver running.
pub struct Host {
    /// The device.
    pub device: Device,
    /// What was negotiated.
    pub features: u64,
    /// Queue 0 for task management, 1 for events, then the request queues.
    pub rings: Vec<Ring>,
    /// Memory for buffers.
    pub arena: Arena,
    /// What the device was told of the sizes.
    pub cdb_size: u32,
    /// Bytes of sense data.
    pub sense_size: u32,
}

impl Host {
    /// Brings up the device with those of `features` it offers.
    #[must_use]
    pub fn start(device: Device, features: u64) -> Self {
        let features = device.offered() & (features | feature::VERSION_1);
        assert!(device.negotiate(features), "the device takes what it offered");
        let mut rings_at = Arena::new(0x1_0000, 0x10_0000);
        let queue = |index| device.queue(index, 64, features, &mut rings_at);
        let rings = (0..device.queues()).map(queue).collect();
        device.enable_interrupts();
        device.start();
        let arena = Arena::new(0x10_0000, LOW_BYTES);
        Self { device, features, rings, arena, cdb_size: 32, sense_size: 96 }
    }

    /// Offers a command on a request queue and kicks.
    pub fn send(&mut self, queue: u16, command: &Command) -> Sent {
        let mut header = command.lun.to_vec();
        header.extend(command.id.to_le_bytes());
        header.extend([0; 3]);
        header.extend(&command.cdb);
        header.resize(19 + self.cdb_size as usize, 0);
        let response_len = RESPONSE + self.sense_size;
        let mut chain = vec![self.readable(&header)];
        if !command.out.is_empty() {
            chain.push(self.readable(&command.out));
        }
        let response = self.room(response_len, 0);
        chain.push(Descriptor::writable(response, response_len));
        let mut data = 0;
        if command.data_in > 0 {
            data = self.room(command.data_in, POISON);
            chain.push(Descriptor::writable(data, command.data_in));
        }
        let head = self.offer(queue + 2, &chain);
        Sent { head, response, data, data_len: command.data_in }
    }

    /// Offers a chain on any queue and kicks.
    pub fn offer(&mut self, queue: u16, chain: &[Descriptor]) -> u16 {
        let ring = &mut self.rings[usize::from(queue)];
        let head = ring.offer(chain);
        if ring.publish() {
            self.device.function.kick(queue);
        }
        head
    }

    /// A device-readable buffer with these bytes.
    pub fn readable(&mut self, bytes: &[u8]) -> Descriptor {
        let at = self.arena.take(bytes.len() as u64, 8);
        self.device.machine().put(at, bytes);
        Descriptor::readable(at, u32::try_from(bytes.len()).unwrap())
    }

    /// Room for `len` bytes, filled with `byte`.
    pub fn room(&mut self, len: u32, byte: u8) -> u64 {
        let at = self.arena.take(len.into(), 8);
        self.device.machine().put(at, &vec![byte; len as usize]);
        at
    }

    /// What the driver finds in the buffers of a command.
    #[must_use]
    pub fn answer(&self, sent: &Sent, used: Used) -> Answer {
        assert_eq!(used.id, u32::from(sent.head), "another chain was used");
        let machine = self.device.machine();
        let head = machine.get(sent.response, RESPONSE.into());
        let word = |at: usize| u32::from_le_bytes(*head[at..].first_chunk().unwrap());
        let sense_len = word(0);
        assert!(sense_len <= self.sense_size);
        Answer {
            response: head[11],
            status: head[10],
            residual: word(4),
            sense: machine.get(sent.response + u64::from(RESPONSE), sense_len.into()),
            data: machine.get(sent.data, sent.data_len.into()),
            written: used.len,
        }
    }

    /// Waits for the next command of a request queue, which is this one.
    pub fn wait(&mut self, queue: u16, sent: &Sent) -> Answer {
        let used = self.rings[usize::from(queue) + 2].wait_used();
        self.answer(sent, used)
    }

    /// Runs one command on a request queue.
    pub fn run(&mut self, queue: u16, command: &Command) -> Answer {
        let sent = self.send(queue, command);
        self.wait(queue, &sent)
    }

    /// Runs a command that succeeds, and returns its data.
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

    /// Tells each unit's power-on condition, which every command is told first.
    pub fn hear_attention(&mut self, lun: u8) {
        let answer = self.run(0, &Command::new(lun, &[0; 6]));
        assert_eq!(answer.sense_triple(), (6, 0x29, 0), "the unit has just started");
    }

    /// Sends a task management function. The response byte goes to the returned address.
    pub fn send_function(&mut self, subtype: u32, lun: [u8; 8], id: u64) -> (u16, u64) {
        let mut request = vec![0; 4];
        request.extend(subtype.to_le_bytes());
        request.extend(lun);
        request.extend(id.to_le_bytes());
        let readable = self.readable(&request);
        let at = self.room(1, POISON);
        let head = self.offer(0, &[readable, Descriptor::writable(at, 1)]);
        (head, at)
    }

    /// Runs a task management function and returns its response.
    pub fn manage(&mut self, subtype: u32, lun: [u8; 8], id: u64) -> u8 {
        let (head, at) = self.send_function(subtype, lun, id);
        let used = self.rings[0].wait_used();
        assert_eq!(used, Used { id: head.into(), len: 1 });
        self.device.machine().get(at, 1)[0]
    }

    /// Gives the device a buffer for an event, and returns where it is.
    pub fn listen(&mut self) -> u64 {
        let at = self.room(16, POISON);
        self.offer(1, &[Descriptor::writable(at, 16)]);
        at
    }

    /// Waits for the event in that buffer.
    pub fn hear(&mut self, at: u64) -> Vec<u8> {
        assert_eq!(self.rings[1].wait_used().len, 16);
        self.device.machine().get(at, 16)
    }

    /// Whether no event comes for a while.
    pub fn hears_nothing(&mut self) -> bool {
        std::thread::sleep(std::time::Duration::from_millis(50));
        self.rings[1].take_used().is_none()
    }

    /// Waits until the device asks for a reset.
    pub fn wait_for_reset_wish(&self) {
        let wish = || self.device.needs_reset().then_some(());
        wait_for(wish).expect("the device asks for a reset");
    }
}
