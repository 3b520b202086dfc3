//! Makes the engine of a queue, and decides which one.

use std::borrow::Cow;
use std::sync::Arc;

use crate::disk_state::OpenDisk;
use crate::threads;
use crate::uring::UringEngine;
use crate::{EngineChoice, EngineKind, EngineSetup, IoEngine, Named, OpenError};

/// Makes an engine as the disk's options ask for it.
///
/// # Errors
///
/// The host refuses a resource of the engine. A refused io_uring is an error only if the options
/// insist on it.
pub(crate) fn make(
    disk: &Arc<OpenDisk>,
    setup: &EngineSetup<'_>,
) -> Result<Box<dyn IoEngine>, OpenError> {
    let kind = disk.file.options.engine;
    let record = |kind: EngineKind, reason: Cow<'static, str>, is_fallback| {
        disk.record_engine(EngineChoice { name: kind.name(), reason }, is_fallback);
    };
    let make_threads = || threads::engine(Arc::clone(disk), setup);
    if kind == EngineKind::Threads {
        let engine = make_threads()?;
        record(EngineKind::Threads, "configured".into(), false);
        return Ok(Box::new(engine));
    }
    match UringEngine::new(disk, setup) {
        Ok(engine) => {
            let automatic = "the fastest, and this host allows it";
            let reason = if kind == EngineKind::Auto { automatic } else { "configured" };
            record(EngineKind::IoUring, reason.into(), false);
            Ok(Box::new(engine))
        }
        Err(refusal @ OpenError::NoIoUring(_)) if kind == EngineKind::Auto => {
            let engine = make_threads()?;
            record(EngineKind::Threads, refusal.to_string().into(), true);
            Ok(Box::new(engine))
        }
        Err(error) => Err(error),
    }
}
