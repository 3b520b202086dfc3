//! SCSI commands and task management functions, and what the driver expects of them.

use std::fmt;

use super::content::{SECTOR, Value};
use super::oracle::{OpId, PendingCompare, PendingRead, Time};
use super::queue_driver::{Answer, Framed};
use devices::virtio::Address;
use fixtures::Random;

/// Length of a CDB and of sense data on the ring, in bytes.
const CDB_BYTES: usize = 32;
const SENSE_BYTES: usize = 96;
/// Length of a response before its sense data.
const RESPONSE_BYTES: usize = 12;
/// FUA of READ, WRITE and COMPARE AND WRITE; UNMAP of WRITE SAME.
const FUA: u8 = 8;
const UNMAP: u8 = 8;
/// NDOB of WRITE SAME (16).
const NDOB: u8 = 1;
/// BYTCHK of the verifying commands: compare with the data-out buffer.
const BYTCHK: u8 = 2;
/// Bytes of MODE SENSE (6) with the caching page.
const CACHING_BYTES: u8 = 24;
/// WCE in byte 2 of the caching page.
const WCE: u8 = 4;

/// A command as the oracle knows it.
pub(super) struct Command {
    /// The driver's identifier.
    pub(super) id: u64,
    /// The number of its disk.
    pub(super) unit: usize,
    pub(super) offered: Time,
    pub(super) kind: CommandKind,
}

/// The kind of a command, and what it promises.
pub(super) enum CommandKind {
    Read {
        first: usize,
        read: PendingRead,
        fua: bool,
    },
    Change {
        ops: Vec<OpId>,
        fua: bool,
    },
    Compare {
        compare: PendingCompare,
        fua: bool,
    },
    /// `expected` is empty if nothing is compared.
    Verify {
        first: usize,
        read: PendingRead,
        expected: Vec<Value>,
    },
    WriteAndVerify {
        op: OpId,
    },
    Synchronize,
    /// MODE SELECT with this WCE.
    SelectCache(bool),
    /// MODE SENSE of WCE.
    SenseCache,
    TestReady,
}

impl Command {
    /// The changes of the disk by the command.
    pub(super) fn changes(&self) -> Vec<OpId> {
        match &self.kind {
            CommandKind::Change { ops, .. } => ops.clone(),
            CommandKind::Compare { compare, .. } => vec![compare.op],
            CommandKind::WriteAndVerify { op } => vec![*op],
            _ => Vec::new(),
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let with = |fua: &bool| if *fua { " with FUA" } else { "" };
        write!(f, "command {} of time {}: ", self.id, self.offered)?;
        match &self.kind {
            CommandKind::Read { first, fua, .. } => {
                write!(f, "READ of sector {first}{}", with(fua))
            }
            CommandKind::Change { ops, fua } => write!(f, "operations {ops:?}{}", with(fua)),
            CommandKind::Compare { compare, fua } => {
                write!(f, "COMPARE AND WRITE, operation {}{}", compare.op, with(fua))
            }
            CommandKind::Verify { first, expected, .. } => {
                write!(f, "VERIFY of sector {first}, expecting {expected:?}")
            }
            CommandKind::WriteAndVerify { op } => write!(f, "WRITE AND VERIFY, operation {op}"),
            CommandKind::Synchronize => f.write_str("SYNCHRONIZE CACHE"),
            CommandKind::SelectCache(on) => write!(f, "MODE SELECT with WCE={}", u8::from(*on)),
            CommandKind::SenseCache => f.write_str("MODE SENSE"),
            CommandKind::TestReady => f.write_str("TEST UNIT READY"),
        }
    }
}

/// Sectors of a command, a multiple of the logical block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocks {
    pub(super) first: usize,
    pub(super) count: usize,
    /// Sectors per logical block.
    pub(super) block: usize,
}

impl Blocks {
    fn lba(self) -> usize {
        self.first / self.block
    }

    fn len(self) -> usize {
        self.count / self.block
    }

    pub(super) fn sectors(self) -> std::ops::Range<usize> {
        self.first..self.first + self.count
    }
}

/// The buffers of a command without its header.
pub(super) struct Request {
    cdb: Vec<u8>,
    data_out: Vec<u8>,
    data_in: usize,
}

impl Request {
    fn new(cdb: Vec<u8>) -> Self {
        Self { cdb, data_out: Vec::new(), data_in: 0 }
    }

    fn with_data(cdb: Vec<u8>, data_out: Vec<u8>) -> Self {
        Self { data_out, ..Self::new(cdb) }
    }

    /// READ.
    pub(super) fn read(blocks: Blocks, fua: bool, random: &mut Random) -> Self {
        let cdb = cdb([0x28, 0xa8, 0x88], if fua { FUA } else { 0 }, blocks, random);
        Self { data_in: blocks.count * SECTOR, ..Self::new(cdb) }
    }

    /// WRITE.
    pub(super) fn write(blocks: Blocks, data: Vec<u8>, fua: bool, random: &mut Random) -> Self {
        Self::with_data(cdb([0x2a, 0xaa, 0x8a], if fua { FUA } else { 0 }, blocks, random), data)
    }

    /// VERIFY, which compares with `data` unless that is empty.
    pub(super) fn verify(blocks: Blocks, data: Vec<u8>, random: &mut Random) -> Self {
        let flags = if data.is_empty() { 0 } else { BYTCHK };
        Self::with_data(cdb([0x2f, 0xaf, 0x8f], flags, blocks, random), data)
    }

    /// WRITE AND VERIFY, which compares at times.
    pub(super) fn write_and_verify(blocks: Blocks, data: Vec<u8>, random: &mut Random) -> Self {
        let flags = if random.coin() { BYTCHK } else { 0 };
        Self::with_data(cdb([0x2e, 0xae, 0x8e], flags, blocks, random), data)
    }

    /// COMPARE AND WRITE of the expected data and the new data.
    pub(super) fn compare_and_write(blocks: Blocks, data: Vec<u8>, fua: bool) -> Self {
        let mut cdb = vec![0x89, if fua { FUA } else { 0 }];
        cdb.extend((blocks.lba() as u64).to_be_bytes());
        cdb.extend([0, 0, 0, u8::try_from(blocks.len()).unwrap(), 0, 0]);
        Self::with_data(cdb, data)
    }

    /// WRITE SAME of one block; without data (NDOB) if `data` is empty.
    pub(super) fn write_same(
        blocks: Blocks,
        data: Vec<u8>,
        unmap: bool,
        random: &mut Random,
    ) -> Self {
        let flags = if unmap { UNMAP } else { 0 };
        if data.is_empty() {
            return Self::new(cdb_of(0x93, flags | NDOB, blocks));
        }
        let opcode = if random.coin() { 0x41 } else { 0x93 };
        Self::with_data(cdb_of(opcode, flags, blocks), data)
    }

    /// UNMAP.
    pub(super) fn unmap(ranges: &[Blocks]) -> Self {
        let descriptors = u16::try_from(16 * ranges.len()).unwrap();
        let mut list = (descriptors + 6).to_be_bytes().to_vec();
        list.extend(descriptors.to_be_bytes());
        list.extend([0; 4]);
        for range in ranges {
            list.extend((range.lba() as u64).to_be_bytes());
            list.extend(u32::try_from(range.len()).unwrap().to_be_bytes());
            list.extend([0; 4]);
        }
        let mut cdb = vec![0x42, 0, 0, 0, 0, 0, 0];
        cdb.extend((descriptors + 8).to_be_bytes());
        cdb.push(0);
        Self::with_data(cdb, list)
    }

    /// SYNCHRONIZE CACHE of the whole disk.
    pub(super) fn synchronize(random: &mut Random) -> Self {
        let all = Blocks { first: 0, count: 0, block: 1 };
        Self::new(cdb_of(if random.coin() { 0x35 } else { 0x91 }, 0, all))
    }

    /// MODE SELECT (6) or (10) of the caching page.
    pub(super) fn select_cache(on: bool, random: &mut Random) -> Self {
        let is_long = random.coin();
        let mut list = vec![0; if is_long { 8 } else { 4 }];
        list.extend([0x08, 18, if on { WCE } else { 0 }]);
        list.extend([0; 17]);
        let len = u8::try_from(list.len()).unwrap();
        let cdb = if is_long {
            vec![0x55, 0x10, 0, 0, 0, 0, 0, 0, len, 0]
        } else {
            vec![0x15, 0x10, 0, 0, len, 0]
        };
        Self::with_data(cdb, list)
    }

    /// MODE SENSE (6) of the caching page.
    pub(super) fn sense_cache() -> Self {
        let cdb = vec![0x1a, 8, 0x08, 0, CACHING_BYTES, 0];
        Self { data_in: CACHING_BYTES.into(), ..Self::new(cdb) }
    }

    /// TEST UNIT READY.
    pub(super) fn test_ready() -> Self {
        Self::new(vec![0; 6])
    }

    /// Its buffers, with the driver's identifier.
    pub(super) fn framed(self, to: Address, id: u64) -> Framed {
        let mut header = lun_field(to).to_vec();
        header.extend(id.to_le_bytes());
        header.extend([0; 3]);
        header.extend(&self.cdb);
        header.resize(19 + CDB_BYTES, 0);
        let Self { data_out, data_in, .. } = self;
        let answer = Answer::BeforeData(RESPONSE_BYTES + SENSE_BYTES);
        Framed { header, data_out, data_in, answer }
    }
}

/// The `lun` field of an address (Virtio 1.2 §5.6.6.1).
fn lun_field(Address { target, lun }: Address) -> [u8; 8] {
    let [high, low] = lun.to_be_bytes();
    let method = if lun == 0 { 0 } else { 0x40 };
    [1, target, high | method, low, 0, 0, 0, 0]
}

/// WCE in the data of MODE SENSE.
pub(super) fn has_cache(data: &[u8]) -> bool {
    data[6] & WCE != 0
}

/// A CDB of 10, 12 or 16 bytes, one of these operation codes. The bytes behind it are zero.
fn cdb(opcodes: [u8; 3], flags: u8, blocks: Blocks, random: &mut Random) -> Vec<u8> {
    cdb_of(opcodes[random.below(3)], flags, blocks)
}

fn cdb_of(opcode: u8, flags: u8, blocks: Blocks) -> Vec<u8> {
    let (lba, count) = (blocks.lba() as u64, u32::try_from(blocks.len()).unwrap());
    let mut cdb = vec![opcode, flags];
    // The group code.
    match opcode >> 5 {
        4 => {
            cdb.extend(lba.to_be_bytes());
            cdb.extend(count.to_be_bytes());
        }
        5 => {
            cdb.extend(u32::try_from(lba).unwrap().to_be_bytes());
            cdb.extend(count.to_be_bytes());
        }
        _ => {
            cdb.extend(u32::try_from(lba).unwrap().to_be_bytes());
            cdb.push(0);
            cdb.extend(u16::try_from(count).unwrap().to_be_bytes());
        }
    }
    cdb
}

/// The end of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Good,
    /// CHECK CONDITION: sense key, additional sense code, and the INFORMATION field if it is valid.
    Check {
        key: u8,
        code: u8,
        information: Option<u32>,
    },
    /// A task management function has aborted it: VIRTIO_SCSI_S_ABORTED or VIRTIO_SCSI_S_RESET.
    Aborted(u8),
    /// VIRTIO_SCSI_S_BAD_TARGET.
    BadTarget,
}

impl End {
    /// Decodes a response.
    pub(super) fn decode(answer: &[u8]) -> Result<Self, String> {
        let word = |at: usize| u32::from_le_bytes(*answer[at..].first_chunk().unwrap());
        let (sense_len, residual, status, response) = (word(0), word(4), answer[10], answer[11]);
        let sense = &answer[RESPONSE_BYTES..];
        match (response, status) {
            (0, 0) if residual == 0 && sense_len == 0 => Ok(Self::Good),
            (0, 2) if sense_len >= 18 && sense[0] & 0x7f == 0x70 => {
                let information = u32::from_be_bytes(*sense[3..].first_chunk().unwrap());
                let information = (sense[0] & 0x80 != 0).then_some(information);
                Ok(Self::Check { key: sense[2] & 0xf, code: sense[12], information })
            }
            (2 | 4, _) => Ok(Self::Aborted(response)),
            (3, _) => Ok(Self::BadTarget),
            _ => Err(format!(
                "response {response}, status {status}, residual {residual}, {sense_len} bytes of \
                 sense data"
            )),
        }
    }
}

/// A task management function.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function {
    /// The subtype (Virtio 1.2 §5.6.6.2).
    pub(super) subtype: u32,
    /// The number of the disk that it is sent to, and the disk's address.
    pub(super) unit: usize,
    pub(super) to: Address,
    /// It concerns every disk of the schedule.
    pub(super) selects_all: bool,
    /// The identifier of ABORT TASK and QUERY TASK.
    pub(super) task: Option<u64>,
    pub(super) offered: Time,
    /// The same on the clock of the host, in nanoseconds.
    pub(super) offered_ns: u64,
    /// When the driver has seen its response.
    pub(super) ended: Option<Time>,
}

impl Function {
    /// ABORT TASK, ABORT TASK SET, CLEAR TASK SET, I_T NEXUS RESET, LOGICAL UNIT RESET, QUERY TASK
    /// and QUERY TASK SET.
    pub(super) const SUBTYPES: [u32; 7] = [0, 1, 3, 4, 5, 6, 7];

    /// I_T NEXUS RESET concerns a whole target.
    pub(super) fn is_of_target(subtype: u32) -> bool {
        subtype == 4
    }

    pub(super) fn has_task(subtype: u32) -> bool {
        matches!(subtype, 0 | 6)
    }

    /// Whether it is about a disk.
    pub(super) fn concerns(&self, unit: usize) -> bool {
        self.selects_all || self.unit == unit
    }

    pub(super) fn selects(&self, command: &Command) -> bool {
        self.concerns(command.unit) && self.task.is_none_or(|task| task == command.id)
    }

    /// The response of the commands that it aborts.
    pub(super) fn abort(&self) -> Option<u8> {
        match self.subtype {
            0 | 1 | 3 => Some(2),
            4 | 5 => Some(4),
            _ => None,
        }
    }

    /// Whether it raises a unit attention condition.
    pub(super) fn resets(&self) -> bool {
        matches!(self.subtype, 4 | 5)
    }

    /// Its buffers.
    pub(super) fn framed(&self) -> Framed {
        let mut header = vec![0; 4];
        header.extend(self.subtype.to_le_bytes());
        header.extend(lun_field(self.to));
        header.extend(self.task.unwrap_or(0).to_le_bytes());
        Framed { header, data_out: Vec::new(), data_in: 0, answer: Answer::BehindData(1) }
    }
}
