//! The serial port: a 16550A (PC16550D data sheet, section 8) as a [`BusDevice`].
//!
//! vCPU threads access the registers; the thread that owns the console provides input. The
//! transmitter is always empty. Input stays in the receive FIFO until the guest reads it: a reset
//! of the FIFO by FCR keeps it, so that input typed before the driver starts reaches the guest.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;

/// Bytes in the receive FIFO. Drivers take 16 at least, and read until LSR says empty.
const FIFO_BYTES: usize = 64;
/// Once full, the FIFO takes input again from this fill level.
const REFILL_BYTES: usize = FIFO_BYTES / 2;

/// Register offsets, without the divisor latch.
mod register {
    pub(super) const DATA: u64 = 0;
    pub(super) const IER: u64 = 1;
    /// FCR for writes.
    pub(super) const IIR: u64 = 2;
    pub(super) const LCR: u64 = 3;
    pub(super) const MCR: u64 = 4;
    pub(super) const LSR: u64 = 5;
    pub(super) const MSR: u64 = 6;
    pub(super) const SCR: u64 = 7;
}

const IER_RECEIVED_DATA: u8 = 0x01;
const IER_TRANSMITTER_EMPTY: u8 = 0x02;
const IER_VALID: u8 = 0x0f;
const IIR_NONE: u8 = 0x01;
const IIR_TRANSMITTER_EMPTY: u8 = 0x02;
const IIR_RECEIVED_DATA: u8 = 0x04;
/// The FIFOs are enabled, whatever FCR says: a driver that does not use them sees no difference.
const IIR_FIFOS: u8 = 0xc0;
const LCR_DIVISOR_LATCH: u8 = 0x80;
/// Eight data bits, the state in which firmware leaves the port.
const LCR_DEFAULT: u8 = 0x03;
const MCR_DTR: u8 = 0x01;
const MCR_RTS: u8 = 0x02;
const MCR_OUT1: u8 = 0x04;
const MCR_OUT2: u8 = 0x08;
const MCR_LOOP: u8 = 0x10;
const MCR_VALID: u8 = 0x1f;
const LSR_DATA_READY: u8 = 0x01;
/// THR and the transmitter's shift register are empty.
const LSR_TRANSMITTER_EMPTY: u8 = 0x60;
const MSR_CTS: u8 = 0x10;
const MSR_DSR: u8 = 0x20;
const MSR_RI: u8 = 0x40;
const MSR_DCD: u8 = 0x80;
/// Divisor for 9600 baud.
const DIVISOR: [u8; 2] = [12, 0];

/// The receiver of the guest's output. vCPU threads.
pub trait SerialOutput: Send {
    /// Takes all of `bytes`. Must not block.
    fn send(&mut self, bytes: &[u8]);
}

/// A 16550A with its eight registers.
pub struct SerialPort<W> {
    interrupt: EventFd,
    has_room: Arc<OwnedFd>,
    output: W,
    received: VecDeque<u8>,
    /// The owner of the console waits for `has_room`.
    is_refill_awaited: bool,
    /// The transmitter became empty, and the driver has not read that from IIR.
    is_empty_reported: bool,
    /// Level of the interrupt line.
    is_line_high: bool,
    ier: u8,
    lcr: u8,
    mcr: u8,
    scr: u8,
    divisor: [u8; 2],
}

impl<W: SerialOutput> SerialPort<W> {
    /// Number of ports.
    pub const LENGTH: u16 = 8;

    /// A port that raises `interrupt`, signals the eventfd `has_room` when it takes input again
    /// after [`SerialPort::room`] was zero, and sends the guest's output to `output`.
    pub fn new(interrupt: EventFd, has_room: Arc<OwnedFd>, output: W) -> Self {
        Self {
            interrupt,
            has_room,
            output,
            received: VecDeque::with_capacity(FIFO_BYTES),
            is_refill_awaited: false,
            is_empty_reported: false,
            is_line_high: false,
            ier: 0,
            lcr: LCR_DEFAULT,
            mcr: MCR_OUT2,
            scr: 0,
            divisor: DIVISOR,
        }
    }

    /// Number of bytes that [`SerialPort::receive`] accepts now. After zero, `has_room` is
    /// signalled once there is room.
    pub fn room(&mut self) -> usize {
        let room = if self.is_loopback() { 0 } else { FIFO_BYTES - self.received.len() };
        self.is_refill_awaited |= room == 0;
        room
    }

    /// Passes input to the guest. Returns the number of bytes accepted, at most
    /// [`SerialPort::room`].
    pub fn receive(&mut self, input: &[u8]) -> usize {
        let accepted = input.len().min(self.room());
        self.received.extend(input.iter().take(accepted));
        // New data is an event of its own: a driver that lost the last edge gets another one.
        self.is_line_high &= accepted == 0;
        self.update_line();
        accepted
    }

    fn is_loopback(&self) -> bool {
        self.mcr & MCR_LOOP != 0
    }

    fn is_divisor_latch(&self) -> bool {
        self.lcr & LCR_DIVISOR_LATCH != 0
    }

    /// The pending interrupt of the highest priority, as IIR encodes it.
    fn pending(&self) -> u8 {
        if self.ier & IER_RECEIVED_DATA != 0 && !self.received.is_empty() {
            IIR_RECEIVED_DATA
        } else if self.ier & IER_TRANSMITTER_EMPTY != 0 && self.is_empty_reported {
            IIR_TRANSMITTER_EMPTY
        } else {
            IIR_NONE
        }
    }

    /// The line is high while an interrupt is pending. Its rise is an edge for the interrupt
    /// controller.
    fn update_line(&mut self) {
        let is_high = self.pending() != IIR_NONE;
        if is_high && !self.is_line_high {
            signal(&self.interrupt);
        }
        self.is_line_high = is_high;
    }

    fn update_room(&mut self) {
        if self.is_refill_awaited && !self.is_loopback() && self.received.len() <= REFILL_BYTES {
            self.is_refill_awaited = false;
            // Fails only if the counter is at its maximum; then the event is pending.
            let _ = rustix::io::write(&*self.has_room, &1_u64.to_ne_bytes());
        }
    }

    fn read_register(&mut self, offset: u64) -> u8 {
        let [divisor_low, divisor_high] = self.divisor;
        match offset {
            register::DATA if self.is_divisor_latch() => divisor_low,
            register::IER if self.is_divisor_latch() => divisor_high,
            register::DATA => self.received.pop_front().unwrap_or(0),
            register::IER => self.ier,
            register::IIR => {
                let pending = self.pending();
                // Reading the cause acknowledges an empty transmitter, and nothing else.
                self.is_empty_reported &= pending != IIR_TRANSMITTER_EMPTY;
                pending | IIR_FIFOS
            }
            register::LCR => self.lcr,
            register::MCR => self.mcr,
            register::LSR => {
                let ready = if self.received.is_empty() { 0 } else { LSR_DATA_READY };
                LSR_TRANSMITTER_EMPTY | ready
            }
            register::MSR => self.modem_status(),
            register::SCR => self.scr,
            _ => 0xff,
        }
    }

    /// A connected modem; in loopback mode, the modem control outputs.
    fn modem_status(&self) -> u8 {
        if !self.is_loopback() {
            return MSR_CTS | MSR_DSR | MSR_DCD;
        }
        let wires =
            [(MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD)];
        let set = wires.iter().filter(|(output, _)| self.mcr & output != 0);
        set.fold(0, |status, (_, input)| status | input)
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        match offset {
            register::DATA if self.is_divisor_latch() => self.divisor[0] = value,
            register::IER if self.is_divisor_latch() => self.divisor[1] = value,
            register::DATA => self.transmit(value),
            register::IER => {
                self.ier = value & IER_VALID;
                self.is_empty_reported |= self.ier & IER_TRANSMITTER_EMPTY != 0;
            }
            register::LCR => self.lcr = value,
            register::MCR => self.mcr = value & MCR_VALID,
            register::SCR => self.scr = value,
            // FCR, and registers that are read-only.
            _ => {}
        }
    }

    fn transmit(&mut self, byte: u8) {
        if !self.is_loopback() {
            self.output.send(&[byte]);
        } else if self.received.len() < FIFO_BYTES {
            self.received.push_back(byte);
        }
        self.is_empty_reported = true;
        // Each byte is an event of its own, as if the line had fallen while it was sent.
        self.is_line_high &= self.pending() != IIR_TRANSMITTER_EMPTY;
    }
}

/// Signals an eventfd. Fails only if the counter is at its maximum; then the event is pending.
fn signal(event: &EventFd) {
    let _ = event.write(1);
}

impl<W: SerialOutput> BusDevice for SerialPort<W> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // Registers are bytes: a longer access is a string instruction on one register.
        data.fill_with(|| self.read_register(offset));
        self.update_line();
        self.update_room();
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for &byte in data {
            self.write_register(offset, byte);
            self.update_line();
        }
        self.update_room();
    }
}

#[cfg(test)]
mod tests {
    use super::register::{DATA, IER, IIR, LCR, LSR, MCR, MSR};
    use super::*;

    use proptest::prelude::*;
    use rustix::event::{EventfdFlags, eventfd};

    impl SerialOutput for Vec<u8> {
        fn send(&mut self, bytes: &[u8]) {
            self.extend(bytes);
        }
    }

    struct Rig {
        port: SerialPort<Vec<u8>>,
        line: EventFd,
        has_room: Arc<OwnedFd>,
    }

    impl Rig {
        fn new() -> Self {
            let interrupt = EventFd::new(libc::EFD_NONBLOCK).unwrap();
            let has_room = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
            let line = interrupt.try_clone().unwrap();
            Self {
                port: SerialPort::new(interrupt, Arc::clone(&has_room), Vec::new()),
                line,
                has_room,
            }
        }

        fn read(&mut self, register: u64) -> u8 {
            let mut data = [0];
            self.port.read(register, &mut data);
            data[0]
        }

        fn write(&mut self, register: u64, value: u8) {
            self.port.write(register, &[value]);
        }

        /// Whether the interrupt was raised since the last call.
        fn interrupted(&self) -> bool {
            self.line.read().is_ok()
        }

        fn is_refilled(&self) -> bool {
            rustix::io::read(&*self.has_room, &mut [0; 8]).is_ok()
        }
    }

    #[test]
    fn a_string_write_sends_each_byte() {
        let mut rig = Rig::new();
        rig.port.write(DATA, b"hello");
        assert_eq!(rig.port.output, b"hello");
    }

    #[test]
    fn received_data_is_pending_until_the_fifo_is_empty() {
        let mut rig = Rig::new();
        rig.write(IER, IER_RECEIVED_DATA);
        assert_eq!(rig.port.receive(&[b'x'; FIFO_BYTES]), FIFO_BYTES);
        assert!(rig.interrupted());
        for _ in 0..FIFO_BYTES {
            assert_eq!(rig.read(IIR), IIR_RECEIVED_DATA | IIR_FIFOS);
            assert_eq!(rig.read(LSR) & LSR_DATA_READY, LSR_DATA_READY);
            assert_eq!(rig.read(DATA), b'x');
        }
        assert_eq!(rig.read(IIR), IIR_NONE | IIR_FIFOS);
        assert_eq!(rig.read(LSR) & LSR_DATA_READY, 0);
        assert!(!rig.interrupted(), "one interrupt for one arrival");
        rig.port.receive(b"a");
        assert!(rig.interrupted());
        rig.port.receive(b"b");
        assert!(rig.interrupted(), "an arrival is an event though the line is high");
    }

    #[test]
    fn enabling_an_interrupt_whose_cause_is_pending_raises_it() {
        let mut rig = Rig::new();
        rig.port.receive(b"a");
        assert!(!rig.interrupted());
        rig.write(IER, IER_RECEIVED_DATA);
        assert!(rig.interrupted());
        rig.write(IER, 0);
        rig.write(IER, IER_RECEIVED_DATA);
        assert!(rig.interrupted(), "the line fell and rose");
    }

    #[test]
    fn reading_iir_acknowledges_an_empty_transmitter() {
        let mut rig = Rig::new();
        rig.write(IER, IER_TRANSMITTER_EMPTY);
        assert!(rig.interrupted());
        assert_eq!(rig.read(IIR), IIR_TRANSMITTER_EMPTY | IIR_FIFOS);
        assert_eq!(rig.read(IIR), IIR_NONE | IIR_FIFOS);
        rig.write(DATA, b'a');
        assert!(rig.interrupted(), "the byte was sent");
        rig.write(DATA, b'b');
        assert!(rig.interrupted(), "each byte is an event");
    }

    #[test]
    fn received_data_has_priority_over_an_empty_transmitter() {
        let mut rig = Rig::new();
        rig.write(IER, IER_RECEIVED_DATA | IER_TRANSMITTER_EMPTY);
        rig.port.receive(b"a");
        assert_eq!(rig.read(IIR), IIR_RECEIVED_DATA | IIR_FIFOS);
        assert_eq!(rig.read(DATA), b'a');
        assert_eq!(rig.read(IIR), IIR_TRANSMITTER_EMPTY | IIR_FIFOS);
    }

    #[test]
    fn a_full_fifo_accepts_nothing_and_signals_room_when_half_empty() {
        let mut rig = Rig::new();
        assert_eq!(rig.port.receive(&[b'x'; FIFO_BYTES + 9]), FIFO_BYTES);
        assert_eq!(rig.port.receive(b"y"), 0);
        for _ in REFILL_BYTES + 1..FIFO_BYTES {
            rig.read(DATA);
        }
        assert!(!rig.is_refilled());
        rig.read(DATA);
        assert!(rig.is_refilled());
        assert_eq!(rig.port.room(), FIFO_BYTES - REFILL_BYTES);
    }

    #[test]
    fn loopback_receives_its_output_and_keeps_input_waiting() {
        let mut rig = Rig::new();
        rig.write(MCR, MCR_LOOP | MCR_OUT2 | MCR_RTS);
        assert_eq!(rig.read(MSR), MSR_DCD | MSR_CTS);
        rig.write(DATA, b'l');
        assert_eq!((rig.read(DATA), rig.port.output.len()), (b'l', 0));
        rig.port.write(DATA, &[0; 2 * FIFO_BYTES]);
        assert_eq!(rig.port.received.len(), FIFO_BYTES, "bounded");
        rig.port.received.clear();
        assert_eq!((rig.port.room(), rig.port.receive(b"input")), (0, 0));
        rig.write(MCR, MCR_OUT2);
        assert!(rig.is_refilled(), "input is taken again");
        assert_eq!(rig.read(MSR), MSR_CTS | MSR_DSR | MSR_DCD);
    }

    #[test]
    fn the_divisor_latch_covers_two_registers() {
        let mut rig = Rig::new();
        rig.write(IER, IER_RECEIVED_DATA);
        rig.write(LCR, LCR_DIVISOR_LATCH);
        rig.write(DATA, 1);
        rig.write(IER, 2);
        assert_eq!((rig.read(DATA), rig.read(IER)), (1, 2));
        rig.write(LCR, LCR_DEFAULT);
        assert_eq!((rig.read(IER), rig.port.output.len()), (IER_RECEIVED_DATA, 0));
    }

    /// A driver as Linux has it: an interrupt handler that reads at most `limit` bytes each time it
    /// finds data, until IIR shows none. It masks the interrupts while it prints.
    #[derive(Clone, Debug)]
    enum Action {
        /// Input arrives.
        Type(usize),
        /// The console writes a message with all interrupts masked.
        Print,
        /// The driver sends a byte and wants to hear of its end.
        Send,
    }

    fn handle_interrupts(rig: &mut Rig, limit: usize, got: &mut Vec<u8>) {
        while rig.interrupted() {
            while rig.read(IIR) & IIR_NONE == 0 {
                for _ in 0..limit {
                    if rig.read(LSR) & LSR_DATA_READY == 0 {
                        break;
                    }
                    got.push(rig.read(DATA));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn a_driver_that_follows_interrupts_gets_all_input(
            actions in prop::collection::vec(prop_oneof![
                3 => (1..200usize).prop_map(Action::Type),
                1 => Just(Action::Print),
                1 => Just(Action::Send),
            ], 1..40),
            limit in 1..300usize,
        ) {
            let mut rig = Rig::new();
            let enabled = IER_RECEIVED_DATA | IER_TRANSMITTER_EMPTY;
            rig.write(IER, enabled);
            let (mut sent, mut got) = (Vec::new(), Vec::new());
            let mut waiting: VecDeque<u8> = VecDeque::new();
            for action in actions {
                match action {
                    Action::Type(count) => {
                        let number = |at| u8::try_from((sent.len() + at) % 251).unwrap();
                        let new: Vec<u8> = (0..count).map(number).collect();
                        sent.extend(&new);
                        waiting.extend(new);
                    }
                    Action::Print => {
                        rig.write(IER, 0);
                        rig.write(DATA, b'p');
                        rig.write(IER, enabled);
                    }
                    Action::Send => rig.write(DATA, b's'),
                }
                // The console's thread: it looks for room at first, then only when signalled.
                let mut looks = true;
                while looks {
                    let room = rig.port.room().min(waiting.len());
                    let part: Vec<u8> = waiting.drain(..room).collect();
                    prop_assert_eq!(rig.port.receive(&part), part.len());
                    handle_interrupts(&mut rig, limit, &mut got);
                    looks = rig.is_refilled() || (!waiting.is_empty() && rig.port.room() > 0);
                }
                prop_assert!(waiting.is_empty(), "input stalls");
            }
            prop_assert_eq!(got, sent);
        }
    }
}
