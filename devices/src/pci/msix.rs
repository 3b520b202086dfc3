//! MSI-X (PCI 3.0 §6.8.2): the table of messages that the guest writes, and the interrupt lines
//! behind it.
//!
//! A vector is unmasked if the function enables MSI-X, and neither the function mask nor the mask
//! of the entry is set. Its line is routed only then; a signal of a masked line stays pending in
//! its event.

use std::io;
use std::sync::Arc;

use block::LogLimit;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::EventFd;

use super::{CapabilityId, ConfigSpace};
use crate::{Hypervisor, MsiLine, MsiMessage, event};

/// Size of a table entry, in bytes.
const ENTRY_BYTES: u32 = 16;
const ENTRY_MASKED: u32 = 1;
/// Bits of Message Control, the register at offset 2 of the capability.
const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_MASK_ALL: u16 = 1 << 14;

struct MsixVector {
    line: Box<dyn MsiLine>,
    /// Message address, upper address, data and vector control.
    entry: [u32; 4],
    /// The message that the line is routed to; `None` while it is masked.
    unmasked: Option<MsiMessage>,
}

impl MsixVector {
    /// The message; `None` if the entry is masked.
    fn message(&self) -> Option<MsiMessage> {
        let [low, high, data, control] = self.entry;
        let address = u64::from(high) << 32 | u64::from(low);
        (control & ENTRY_MASKED == 0).then_some(MsiMessage { address, data })
    }
}

/// The MSI-X function of one device.
pub struct Msix {
    vectors: Vec<MsixVector>,
    /// Offset of the capability.
    capability: u8,
    /// Bounds the log of routes that the hypervisor refused.
    unroutable: LogLimit,
}

impl Msix {
    /// Allocates `count` vectors and adds the capability to `space`. `table` and `pending` are the
    /// offsets of the table and the pending bit array in BAR 0.
    ///
    /// # Errors
    ///
    /// The hypervisor has no line left, or the configuration space is full.
    pub fn new(
        space: &mut ConfigSpace,
        hypervisor: &dyn Hypervisor,
        count: u16,
        table: u32,
        pending: u32,
    ) -> io::Result<Self> {
        let masked = [0, 0, 0, ENTRY_MASKED];
        let vectors = (0..count)
            .map(|_| Ok(MsixVector { line: hypervisor.msi_line()?, entry: masked, unmasked: None }))
            .collect::<io::Result<Vec<_>>>()?;
        let mut body = [0; 10];
        let (control, offsets) = body.split_at_mut(2);
        control.copy_from_slice(&(count.saturating_sub(1)).to_le_bytes());
        offsets.copy_from_slice(&(u64::from(table) | u64::from(pending) << 32).to_le_bytes());
        let writable = (CONTROL_ENABLE | CONTROL_MASK_ALL).to_le_bytes();
        let capability =
            space.add_capability(CapabilityId::MsiX, &body, &writable).ok_or_else(|| {
                io::Error::other("the configuration space has no room for the MSI-X capability")
            })?;
        Ok(Self { vectors, capability, unroutable: LogLimit::default() })
    }

    /// The event of each vector.
    #[must_use]
    pub fn events(&self) -> Arc<[Arc<EventFd>]> {
        self.vectors.iter().map(|vector| Arc::clone(vector.line.event())).collect()
    }

    /// Number of vectors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.vectors.len()
    }

    /// Whether there are no vectors.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.vectors.is_empty()
    }

    /// Reads the table in dwords or qwords (§6.8.2).
    pub fn read_table(&self, offset: u32, data: &mut [u8]) {
        data.fill(0); // narrower accesses are undefined and must not leak the previous content
        for (index, dword) in data.chunks_exact_mut(4).enumerate() {
            let at = offset.wrapping_add(u32::try_from(index * 4).unwrap_or(0));
            dword.copy_from_slice(&self.dword(at).to_le_bytes());
        }
    }

    fn dword(&self, offset: u32) -> u32 {
        let vector = self.vectors.get((offset / ENTRY_BYTES) as usize);
        let word = vector.and_then(|v| v.entry.get((offset % ENTRY_BYTES / 4) as usize));
        word.copied().unwrap_or(0)
    }

    /// Writes the table and routes the vectors that the write unmasked.
    pub fn write_table(&mut self, space: &ConfigSpace, offset: u32, data: &[u8]) {
        for (index, dword) in data.as_chunks::<4>().0.iter().enumerate() {
            let at = offset.wrapping_add(u32::try_from(index * 4).unwrap_or(0));
            let vector = self.vectors.get_mut((at / ENTRY_BYTES) as usize);
            if let Some(word) =
                vector.and_then(|v| v.entry.get_mut((at % ENTRY_BYTES / 4) as usize))
            {
                *word = u32::from_le_bytes(*dword);
            }
        }
        self.update(space);
    }

    /// Reads the pending bits: signals of masked vectors.
    pub fn read_pending(&self, offset: u32, data: &mut [u8]) {
        for (byte, first) in data.iter_mut().zip((offset as usize * 8..).step_by(8)) {
            let pending = self.vectors.iter().skip(first).take(8).map(is_pending);
            *byte = pending.rev().fold(0, |bits, bit| bits << 1 | u8::from(bit));
        }
    }

    /// Adopts a change of the configuration space: enable or function mask.
    pub fn update(&mut self, space: &ConfigSpace) {
        let enabled = self.enabled(space);
        for vector in &mut self.vectors {
            route(vector, enabled, &self.unroutable);
        }
    }

    /// Whether MSI-X is enabled and the function mask is clear.
    fn enabled(&self, space: &ConfigSpace) -> bool {
        let mut control = [0; 2];
        space.read(self.capability + 2, &mut control);
        u16::from_le_bytes(control) & (CONTROL_ENABLE | CONTROL_MASK_ALL) == CONTROL_ENABLE
    }
}

/// Routes or masks a vector's line according to its entry.
fn route(vector: &mut MsixVector, enabled: bool, unroutable: &LogLimit) {
    let wanted = vector.message().filter(|_| enabled);
    if wanted == vector.unmasked {
        return;
    }
    let outcome = match wanted {
        Some(message) => vector.line.unmask(message),
        None => vector.line.mask(),
    };
    match outcome {
        Ok(()) => vector.unmasked = wanted,
        Err(error) => {
            if let Some(suppressed) = unroutable.check() {
                tracing::error!(target: "pci", suppressed, "cannot route an interrupt: {error}");
            }
        }
    }
}

/// Whether a signal is pending in the event of a masked vector.
fn is_pending(vector: &MsixVector) -> bool {
    let event = event::as_fd(vector.line.event());
    let mut fds = [PollFd::from_borrowed_fd(event, PollFlags::IN)];
    vector.unmasked.is_none() && poll(&mut fds, Some(&Timespec::default())) == Ok(1)
}
