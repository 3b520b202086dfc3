//! A guest that drives virtio devices: it starts all of their queues, and reads from every SCSI
//! disk on every request queue, so that each engine exists.

use fixtures::tiny_guest::out_32;

/// Virtual address of the PCI window, whose physical address is not in the guest's page tables, and
/// the entry of the page directory that maps it (2 MiB, present, writable).
const WINDOW: u32 = 0x3000_0000;
const WINDOW_ENTRY: u32 = 0xbc00;
const WINDOW_MAPPING: u32 = 0xc000_0083;
/// Length of a device's BAR, and the offset of its doorbells (4 bytes each).
const BAR_BYTES: u32 = 0x8000;
const DOORBELLS: u32 = 0x3000;
/// CONFIG_ADDRESS and CONFIG_DATA; the command register, and its bit that enables the BAR.
const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
const COMMAND: u32 = 4;
const MEMORY_SPACE: u32 = 2;

/// Start of the data behind the code, and the length of the data of a queue.
const DATA: u32 = 0x20_0000;
const QUEUE_BYTES: u32 = 0x4000;
const QUEUE_ENTRIES: u16 = 64;
/// Offsets in the data of a queue.
const AVAILABLE: u32 = 0x400;
const USED: u32 = 0x600;
const HEADERS: u32 = 0x1000;
const RESPONSES: u32 = 0x1800;
const BLOCKS: u32 = 0x2800;
const HEADER_BYTES: u32 = 51;
const RESPONSE_BYTES: u32 = 108;
const BLOCK_BYTES: u32 = 512;
/// The first command for a disk reports a unit attention and does not read.
const READS_PER_DISK: u16 = 3;

/// A device on the PCI bus.
#[derive(Clone, Copy, Debug)]
pub(super) struct Device {
    pub(super) queues: u16,
    /// Disks with the LUNs from 0 on target 0; `None` if this is no SCSI controller.
    pub(super) luns: Option<u8>,
}

/// The code and data of a guest that starts `devices`, which have the slots from 1, then executes
/// `end`.
pub(super) fn guest(devices: &[Device], end: &[Vec<u8>]) -> Vec<u8> {
    let mut code = store32(WINDOW_ENTRY, WINDOW_MAPPING);
    let mut data = Vec::new();
    for (slot, device) in (1..).zip(devices) {
        code.extend(start(slot, *device, &mut data));
    }
    code.extend(end.concat());
    let entry = 0x10_0000;
    code.resize((DATA - entry) as usize, 0);
    code.extend(data);
    code
}

/// Initializes a device (Virtio 1.2 §3.1.1) and submits its requests.
fn start(slot: u32, device: Device, data: &mut Vec<u8>) -> Vec<u8> {
    const DRIVER_FEATURE_SELECT: u32 = 8;
    const DRIVER_FEATURE: u32 = 12;
    const STATUS: u32 = 20;
    let bar = WINDOW + (slot - 1) * BAR_BYTES;
    let mut code = out_32(CONFIG_ADDRESS, 1 << 31 | slot << 11 | COMMAND);
    code.extend(out_32(CONFIG_DATA, MEMORY_SPACE));
    for status in [0, 1, 3] {
        code.extend(store8(bar + STATUS, status));
    }
    // VIRTIO_F_VERSION_1, bit 32.
    code.extend(store32(bar + DRIVER_FEATURE_SELECT, 1));
    code.extend(store32(bar + DRIVER_FEATURE, 1));
    code.extend(store8(bar + STATUS, 0xb));
    let first = DATA + u32::try_from(data.len()).unwrap();
    for queue in 0..device.queues {
        let memory = first + u32::from(queue) * QUEUE_BYTES;
        code.extend(configure_queue(bar, queue, memory));
        let luns = device.luns.filter(|_| queue >= 2).unwrap_or(0);
        data.extend(queue_data(memory, luns));
    }
    code.extend(store8(bar + STATUS, 0xf));
    for queue in 2..device.queues {
        let Some(luns) = device.luns else { continue };
        code.extend(store16(bar + DOORBELLS + 4 * u32::from(queue), queue));
        let used_index = first + u32::from(queue) * QUEUE_BYTES + USED + 2;
        code.extend(wait_for_word(used_index, u16::from(luns) * READS_PER_DISK));
    }
    code
}

fn configure_queue(bar: u32, queue: u16, memory: u32) -> Vec<u8> {
    const QUEUE_SELECT: u32 = 22;
    const QUEUE_SIZE: u32 = 24;
    const QUEUE_ENABLE: u32 = 28;
    const QUEUE_ADDRESSES: u32 = 32;
    let mut code = store16(bar + QUEUE_SELECT, queue);
    code.extend(store16(bar + QUEUE_SIZE, QUEUE_ENTRIES));
    for (index, part) in (0..).zip([0, AVAILABLE, USED]) {
        code.extend(store32(bar + QUEUE_ADDRESSES + 8 * index, memory + part));
        code.extend(store32(bar + QUEUE_ADDRESSES + 8 * index + 4, 0));
    }
    code.extend(store16(bar + QUEUE_ENABLE, 1));
    code
}

/// The rings of a queue at `memory`, with the reads of `luns` disks available (Virtio 1.2 §2.7).
fn queue_data(memory: u32, luns: u8) -> Vec<u8> {
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    let mut data = vec![0; QUEUE_BYTES as usize];
    let mut put = |at: u32, bytes: &[u8]| {
        let at = at as usize;
        data[at..at + bytes.len()].copy_from_slice(bytes);
    };
    let requests = u16::from(luns) * READS_PER_DISK;
    for request in 0..requests {
        let number = u32::from(request);
        let header = HEADERS + number * 64;
        let lun = u8::try_from(request / READS_PER_DISK).unwrap();
        put(header, &[1, 0, 0x40, lun]);
        // READ (10) of one block.
        put(header + 19, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        let parts = [
            (header, HEADER_BYTES, NEXT),
            (RESPONSES + number * 128, RESPONSE_BYTES, NEXT | WRITE),
            (BLOCKS + number * BLOCK_BYTES, BLOCK_BYTES, WRITE),
        ];
        for (index, (part, length, flags)) in (request * 3..).zip(parts) {
            let at = u32::from(index) * 16;
            put(at, &u64::from(memory + part).to_le_bytes());
            put(at + 8, &length.to_le_bytes());
            put(at + 12, &flags.to_le_bytes());
            put(at + 14, &(index + 1).to_le_bytes());
        }
        put(AVAILABLE + 4 + 2 * number, &(request * 3).to_le_bytes());
    }
    put(AVAILABLE + 2, &requests.to_le_bytes());
    data
}

/// `mov byte [address], value`
fn store8(address: u32, value: u8) -> Vec<u8> {
    [&[0xc6, 0x04, 0x25][..], &address.to_le_bytes(), &[value]].concat()
}

/// `mov word [address], value`
fn store16(address: u32, value: u16) -> Vec<u8> {
    [&[0x66, 0xc7, 0x04, 0x25][..], &address.to_le_bytes(), &value.to_le_bytes()].concat()
}

/// `mov dword [address], value`
fn store32(address: u32, value: u32) -> Vec<u8> {
    [&[0xc7, 0x04, 0x25][..], &address.to_le_bytes(), &value.to_le_bytes()].concat()
}

/// `cmp word [address], value; jne` back to it
fn wait_for_word(address: u32, value: u16) -> Vec<u8> {
    let compare = [0x66, 0x81, 0x3c, 0x25];
    [&compare[..], &address.to_le_bytes(), &value.to_le_bytes(), &[0x75, 0xf4]].concat()
}
