//! Changes of layers that no machine uses: the verbs of `bulkhead layer` that write.
//!
//! Each takes the lock of every file that it writes, as a machine does, and those of the files that
//! it reads against writers. A program that is killed, or a power cut, leaves at each point a disk
//! that reads as before or as after, and the same verb finishes what was begun.

mod chain;
mod commit;
mod copy;
mod flatten;
mod freeze;
mod leftover;
mod merge_base;
mod neighbours;
mod rebase;
mod reset;
mod target;
mod top;
mod walk;

pub(super) use self::chain::write_options;
pub use self::commit::{CommitOptions, CommittedLayer, commit_layer};
pub(super) use self::commit::{begin, copy_all, others};
pub use self::copy::{CopyProgress, OnProgress};
pub use self::flatten::{FlattenedImage, flatten_layer};
pub use self::freeze::{FrozenLayer, freeze_layer};
pub(super) use self::leftover::{Retired, clear_leftover, retire, retire_merged};
pub(super) use self::merge_base::MergeBase;
pub(super) use self::neighbours::neighbours;
pub use self::rebase::{RebasedLayer, rebase_layer};
pub use self::reset::{ResetLayer, reset_layer};
pub(super) use self::top::ChangedTop;
pub(super) use self::walk::require_unchanged_below;
