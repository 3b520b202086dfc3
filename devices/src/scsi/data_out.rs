//! The data-out buffer of a command.

/// Data that the initiator sent with a command.
pub trait DataOut {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Whether the buffer is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies the bytes from offset `at`. `false` if the buffer is too short or not accessible.
    fn read(&self, at: u64, into: &mut [u8]) -> bool;
}

impl DataOut for &[u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn read(&self, at: u64, into: &mut [u8]) -> bool {
        let from = usize::try_from(at).ok().and_then(|at| self.get(at..)?.get(..into.len()));
        from.map(|from| into.copy_from_slice(from)).is_some()
    }
}
