//! Logs and bases that others use, and bases that are no raw images.

use std::fs;
use std::path::Path;

use block::{CacheMode, DiskOptions, OpenError, RawFile};
use crash::{Recording, RecordingError};

use crate::log_files::TestLog;

/// A disk that is written.
fn serve(path: &Path) -> Result<RawFile, OpenError> {
    RawFile::open(path, &DiskOptions::new(CacheMode::WriteBack))
}

fn log_and_base() -> (tempfile::TempDir, std::path::PathBuf, std::path::PathBuf) {
    let mut log = TestLog::new(16);
    log.flush();
    log.files(&log.encode(false))
}

#[test]
fn a_log_that_is_written_is_refused() {
    let (_folder, log, base) = log_and_base();
    let writer = serve(&log).unwrap();
    let error = Recording::open(&log, &base).map(|_| ()).unwrap_err();
    assert!(matches!(error, RecordingError::LogInUse(_)), "{error}");
    let user = format!("the log is in use by process {}: ", std::process::id());
    assert!(error.to_string().starts_with(&user), "{error}");
    drop(writer);
    Recording::open(&log, &base).unwrap();
}

#[test]
fn a_base_that_is_written_is_refused() {
    let (_folder, log, base) = log_and_base();
    let writer = serve(&base).unwrap();
    let error = Recording::open(&log, &base).map(|_| ()).unwrap_err();
    assert!(matches!(error, RecordingError::BaseInUse(_)), "{error}");
    drop(writer);
    Recording::open(&log, &base).unwrap();
}

#[test]
fn the_files_of_a_recording_cannot_be_written() {
    let (_folder, log, base) = log_and_base();
    let recording = Recording::open(&log, &base).unwrap();
    // Others may read them, as a second exploration.
    Recording::open(&log, &base).unwrap();
    let careless = recording.without_flushes().unwrap();
    drop(recording);
    for file in [&log, &base] {
        let error = serve(file).map(|_| ()).unwrap_err();
        assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    }
    drop(careless);
    serve(&base).unwrap();
}

#[test]
fn a_base_of_another_format_is_refused() {
    let (_folder, log, base) = log_and_base();
    let size = fs::metadata(&base).unwrap().len();
    let with = |signature: &[u8]| {
        let mut bytes = signature.to_vec();
        bytes.resize(usize::try_from(size).unwrap(), 0);
        fs::write(&base, bytes).unwrap();
        Recording::open(&log, &base).map(|_| ())
    };
    for (signature, message) in [
        (
            &b"BLKHLAYR"[..],
            "the base is not a raw image but a layer; `bulkhead layer flatten` makes one of a layer \
             and its bases",
        ),
        (
            b"QFI\xfb\0\0\0\x03",
            "the base is not a raw image but qcow2; name a raw one with the same content",
        ),
    ] {
        assert_eq!(with(signature).unwrap_err().to_string(), message);
    }
    // The content of a raw disk.
    with(b"LUKS\xba\xbe").unwrap();
}
