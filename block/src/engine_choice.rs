//! Which engine serves a disk: what was asked for, and what came of it.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::host_file::HostFile;
use crate::threads::ThreadEngine;
use crate::uring::UringEngine;
use crate::{EngineChoice, EngineSetup, IoEngine, LogLimit, OpenError};

/// The engines one can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum EngineKind {
    /// io_uring, or threads where the host refuses it.
    #[default]
    Auto,
    /// io_uring or nothing.
    IoUring,
    /// A pool of threads for each queue.
    Threads,
}

impl EngineKind {
    /// All of them, the default first.
    pub const ALL: [Self; 3] = [Self::Auto, Self::IoUring, Self::Threads];

    /// The name used in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::IoUring => IO_URING,
            Self::Threads => THREADS,
        }
    }
}

const IO_URING: &str = "io_uring";
const THREADS: &str = "threads";

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is not the name of an engine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown engine {0:?}")]
pub struct UnknownEngine(String);

impl FromStr for EngineKind {
    type Err = UnknownEngine;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let kind = Self::ALL.into_iter().find(|kind| kind.name() == text);
        kind.ok_or_else(|| UnknownEngine(text.to_owned()))
    }
}

/// The choice of one disk.
#[derive(Debug)]
pub(crate) struct EngineSelection {
    asked: EngineKind,
    made: Mutex<Option<EngineChoice>>,
    /// Of queues that start over and over, each may come to another.
    fell_back: LogLimit,
}

impl EngineSelection {
    pub(crate) fn new(asked: EngineKind) -> Self {
        Self { asked, made: Mutex::new(None), fell_back: LogLimit::default() }
    }

    /// What came of it, or what is to be expected as long as no engine was made.
    pub(crate) fn last(&self) -> EngineChoice {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner).clone();
        made.unwrap_or(EngineChoice {
            name: self.asked.name(),
            reason: "configured; the guest has not started the disk yet".into(),
        })
    }

    /// Remembers what was chosen, and says it when it is news.
    fn note(&self, disk: &HostFile, engine: EngineChoice, fell_back: bool) {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if made.as_ref() == Some(&engine) {
            return;
        }
        let path = disk.path.display();
        let EngineChoice { name, reason } = &engine;
        if fell_back {
            if let Some(suppressed) = self.fell_back.check() {
                tracing::warn!(%path, engine = name, %reason, suppressed, "the disk has the slower engine");
            }
        } else {
            tracing::info!(%path, engine = name, %reason, "I/O engine chosen");
        }
        *made = Some(engine);
    }
}

/// Makes an engine as the disk's choice has it.
///
/// # Errors
///
/// When the host refuses what the engine needs; a refused io_uring is an error only where nothing else may do.
pub(crate) fn make(
    host: &Arc<HostFile>,
    setup: &EngineSetup<'_>,
) -> Result<Box<dyn IoEngine>, OpenError> {
    let asked = host.engine.asked;
    let note = |name, reason: Cow<'static, str>, fell_back| {
        host.engine.note(host, EngineChoice { name, reason }, fell_back);
    };
    let threads = || ThreadEngine::new(Arc::clone(host), setup);
    if asked == EngineKind::Threads {
        let engine = threads()?;
        note(THREADS, "configured".into(), false);
        return Ok(Box::new(engine));
    }
    match UringEngine::new(Arc::clone(host), setup) {
        Ok(engine) => {
            let automatic = "the fastest, and this host allows it";
            let reason = if asked == EngineKind::Auto { automatic } else { "configured" };
            note(IO_URING, reason.into(), false);
            Ok(Box::new(engine))
        }
        Err(refusal @ OpenError::NoIoUring(_)) if asked == EngineKind::Auto => {
            let engine = threads()?;
            note(THREADS, refusal.to_string().into(), true);
            Ok(Box::new(engine))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_engine_is_found_by_its_name() {
        for kind in EngineKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert!("io-uring".parse::<EngineKind>().is_err());
    }
}
