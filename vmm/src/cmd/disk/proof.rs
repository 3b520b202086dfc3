//! `bulkhead disk prove`: writes and flushes, and shows at which storeys the flush arrived.
//!
//! A thread that may hang with the store does the work. The first signal ends it between two
//! rounds, so that the scratch file and the trace are removed; the second one ends the program.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use block::{
    CacheMode, FlushPromise, FlushProof, ModeProof, Named, Scratch, ScratchError, StoreStack,
};

use super::proof_report::ProofReport;
use super::selection::SelectedDisk;
use crate::control::{SignalHandler, SignalWatch, Signals};
use crate::exit::Exit;
use crate::host_query::HostQuery;
use crate::log::{self, StatusLine};

/// Time limit for one write and its flush.
const LIMIT: Duration = Duration::from_secs(60);

enum Answer {
    Ready(PathBuf, Box<StoreStack>),
    /// A window has passed.
    Progress,
    Proved(ModeProof),
    Failed(anyhow::Error),
}

/// Proves the flushes of all cache modes; returns the report, and success if those of the disk's
/// mode are kept, or, without a configuration, those of all modes with flushes.
///
/// # Errors
///
/// The disk has no place to write to, or the host fails.
pub(super) fn prove(
    selected: &SelectedDisk,
    offset: Option<u64>,
    json: bool,
) -> anyhow::Result<(String, ExitCode)> {
    let signals = Arc::new(Signals::block().context("cannot receive signals")?);
    let cancelled = Arc::new(AtomicBool::new(false));
    let handler = Canceller(Arc::clone(&cancelled));
    let _watch = SignalWatch::start(&signals, handler).context("cannot receive signals")?;
    let path = selected.path.clone();
    let mut answers = HostQuery::stream(LIMIT, move |answers| {
        let send = |answer| {
            // The caller may have stopped waiting.
            let _ = answers.send(answer);
        };
        if let Err(error) = prove_each(&path, offset, cancelled, send) {
            send(Answer::Failed(error));
        }
    });
    let shown = selected.path.display();
    let mut line = StatusLine::default();
    let mut found = None;
    let mut modes = Vec::new();
    let hung = || format!("{shown}: a write or flush hangs; the scratch file and its trace stay");
    while let Some(answer) = answers.next().with_context(hung)? {
        match answer {
            Answer::Ready(scratch, stack) => found = Some((scratch, stack)),
            Answer::Progress => {}
            Answer::Proved(proof) => modes.push(proof),
            Answer::Failed(error) => return Err(error.context(format!("cannot prove {shown}"))),
        }
        if let (Some(mode), Some((scratch, _))) = (CacheMode::ALL.get(modes.len()), &found) {
            let (mode, scratch) = (mode.name(), scratch.display());
            line.show(format_args!("writing and flushing {scratch} as with cache = \"{mode}\""));
        }
    }
    drop(line);
    let (scratch, stack) = found.context("the proof ended without a result")?;
    let exit = exit_code(selected, &modes);
    let report = ProofReport { selected, scratch: &scratch, stack: &stack, modes: &modes };
    Ok((if json { report.json() } else { report.text() }, exit))
}

fn prove_each(
    path: &Path,
    offset: Option<u64>,
    cancelled: Arc<AtomicBool>,
    send: impl Fn(Answer),
) -> anyhow::Result<()> {
    let scratch = scratch(path, offset)?;
    let scratch_path = scratch.path().to_path_buf();
    let mut proof = FlushProof::new(scratch, cancelled)?;
    send(Answer::Ready(scratch_path, Box::new(proof.stack().clone())));
    for mode in CacheMode::ALL {
        let proved =
            proof.prove(*mode, || send(Answer::Progress)).map_err(|error| match error.kind() {
                io::ErrorKind::Interrupted => anyhow!("stopped by a signal"),
                _ => anyhow::Error::from(error).context(format!("cache = \"{mode}\"")),
            })?;
        send(Answer::Proved(proved));
    }
    Ok(())
}

/// The place to write to: a new file beside an image or in a folder, or a range of a device.
fn scratch(path: &Path, offset: Option<u64>) -> anyhow::Result<Scratch> {
    // The message of these errors includes their source.
    let message = |error: ScratchError| anyhow!("{error}");
    let metadata = fs::metadata(path)?;
    let bytes = Scratch::BYTES;
    if metadata.file_type().is_block_device() {
        let Some(offset) = offset else {
            bail!(
                "it is a device: name a range to write to with --offset; its {bytes} bytes are \
                 written back unchanged"
            );
        };
        return Scratch::range_of(path, offset).map_err(message);
    }
    if offset.is_some() {
        bail!("--offset is for a device; for this path the proof makes a new file");
    }
    if metadata.is_dir() {
        return Scratch::file_in(path, None).map_err(message);
    }
    if !metadata.is_file() {
        bail!("a disk is a regular file or a block device; this is neither");
    }
    // The storage below an image is that of the file, not that of a link to it.
    let path = fs::canonicalize(path)?;
    let folder = path.parent().context("it is in no folder")?;
    Scratch::file_in(folder, Some(&path)).map_err(message)
}

fn exit_code(selected: &SelectedDisk, modes: &[ModeProof]) -> ExitCode {
    let matters = |proof: &&ModeProof| match &selected.config {
        Some(config) => proof.mode == config.options.cache,
        None => proof.mode != CacheMode::Unsafe,
    };
    let kept = |proof: &ModeProof| proof.promise == FlushPromise::Kept;
    if modes.iter().filter(matters).all(kept) { ExitCode::SUCCESS } else { Exit::Failed.into() }
}

/// Ends the proof on a signal.
struct Canceller(Arc<AtomicBool>);

impl SignalHandler for Canceller {
    fn signalled(&mut self, taken: u32) {
        self.0.store(true, Ordering::Relaxed);
        if taken > 1 {
            log::print(format_args!("stopped; the scratch file and its trace may be left"));
            log::drain();
            std::process::exit(Exit::Failed as i32);
        }
    }
}
