//! Memory aligned for direct I/O.

/// The size and alignment of a [`Page`], in bytes. Disks whose direct I/O wants more are refused.
pub(crate) const PAGE: usize = 4096;

/// One aligned page.
#[repr(C, align(4096))]
#[derive(Clone, Debug)]
pub(crate) struct Page(pub(crate) [u8; PAGE]);

impl Page {
    /// All zero.
    pub(crate) const ZERO: Self = Self([0; PAGE]);
}
