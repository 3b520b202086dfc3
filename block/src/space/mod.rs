//! Space of the backing store: how full it is, the soft limit on it, and requests held for ENOSPC.

mod backing_space;
mod enospc_hold;
mod probe;
mod soft_limit;
mod zfs_program;
mod zvol;

pub use self::backing_space::BackingSpace;
pub(crate) use self::enospc_hold::EnospcAccount;
pub use self::enospc_hold::EnospcHold;
pub use self::probe::SpaceProbe;
pub(crate) use self::soft_limit::SoftLimit;
pub use self::soft_limit::{Crossing, SoftLimitState};
pub(crate) use self::zfs_program::{zfs_properties, zpool_members};
pub(crate) use self::zvol::{Volume, is_zvol_driver};
