//! Exports a layer.

use std::io::{BufWriter, Write};
use std::path::Path;

use super::super::chain::{LayerChain, LayerPiece};
use super::super::file::host_error;
use super::super::new_file::NewFile;
use super::super::uuid::Uuid;
use super::format::{DATA_MAX, StreamHeader};
use super::writer::{StreamTotals, StreamWriter};
use crate::OpenError;

/// A layer that is to be exported. No machine can write it meanwhile.
#[derive(Debug)]
pub struct LayerExport {
    chain: LayerChain,
    /// The level that the changes apply to.
    below: usize,
    header: StreamHeader,
}

/// A stream that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportedStream {
    /// The identity of the layer.
    pub uuid: Uuid,
    /// Size of its disk in bytes.
    pub size: u64,
    /// Bytes of the disk that the stream has, as data or zeroes.
    pub changed: u64,
    /// Those that are data.
    pub data: u64,
}

impl LayerExport {
    /// Locks the layer at `path` and everything below it as a reader does. The changes are to apply
    /// to its base, or to `from`, which is below that.
    ///
    /// # Errors
    ///
    /// See [`LayerChain::lock`] and [`LayerChain::level_of`].
    pub fn open(path: &Path, from: Option<&Path>) -> Result<Self, OpenError> {
        let chain = LayerChain::lock(path)?;
        let below = from.map_or(Ok(1), |from| chain.level_of(from))?;
        let base = chain.identity(below).ok_or_else(|| OpenError::Unsuitable {
            path: path.into(),
            why: "it stands on nothing".into(),
        })?;
        let header = StreamHeader {
            uuid: chain.header.uuid,
            frozen: chain.header.frozen,
            size: chain.size(),
            base: base.clone(),
        };
        Ok(Self { chain, below, header })
    }

    /// Size of the disk in bytes, which is that of the progress.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.header.size
    }

    /// The file that the changes apply to.
    #[must_use]
    pub fn base(&self) -> &Path {
        self.chain.path(self.below)
    }

    /// Writes the stream to a new file, which has its name when it is complete and durable.
    /// `progress` gets the bytes of the disk that are done.
    ///
    /// # Errors
    ///
    /// The file exists, or the host's error.
    pub fn to_file(
        &self,
        path: &Path,
        progress: impl FnMut(u64),
    ) -> Result<ExportedStream, OpenError> {
        if path.symlink_metadata().is_ok() {
            let why = "it exists already; a stream is never written over a file";
            return Err(OpenError::Unsuitable { path: path.into(), why: why.into() });
        }
        let new = NewFile::at(path, 0).map_err(name_pipe)?;
        let exported = self.to_writer(new.file(), path, progress)?;
        new.file().sync_all().map_err(host_error(path, "make it durable"))?;
        new.link(path)?;
        Ok(exported)
    }

    /// Writes the stream to `out`, whose name in messages is `name`.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub fn to_writer(
        &self,
        out: impl Write,
        name: &Path,
        progress: impl FnMut(u64),
    ) -> Result<ExportedStream, OpenError> {
        let out = BufWriter::with_capacity(DATA_MAX / 4, out);
        let writer = StreamWriter::new(out, &self.header).map_err(host_error(name, "write it"))?;
        let StreamTotals { changed, data, .. } = self.write(writer, name, progress)?;
        Ok(ExportedStream { uuid: self.header.uuid, size: self.header.size, changed, data })
    }

    fn write(
        &self,
        mut writer: StreamWriter<impl Write>,
        name: &Path,
        mut progress: impl FnMut(u64),
    ) -> Result<StreamTotals, OpenError> {
        let (mut done, mut buffer) = (0, vec![0; DATA_MAX]);
        for piece in self.chain.changes(self.below) {
            let piece = piece.map_err(host_error(self.chain.path(0), "find its data"))?;
            let LayerPiece { range, level, data } = piece;
            if !data {
                let written = writer.zeroes(range.start.0, range.len);
                written.map_err(host_error(name, "write it"))?;
            }
            let mut at = range.start.0;
            while data && at < piece.end() {
                let len = usize::try_from(piece.end() - at).unwrap_or(DATA_MAX).min(DATA_MAX);
                let part = buffer.get_mut(..len).unwrap_or_default();
                let file = self.chain.path(level.unwrap_or_default());
                self.chain.read(0, at, part).map_err(host_error(file, "read it"))?;
                writer.data(at, part).map_err(host_error(name, "write it"))?;
                at += len as u64;
                progress(at - done);
                done = at;
            }
        }
        progress(self.header.size - done);
        writer.end().map_err(host_error(name, "write it"))
    }
}

/// The error of a file system without files that have no name, with the remedy.
fn name_pipe(error: OpenError) -> OpenError {
    match error {
        OpenError::Host { path, source, .. } if is_unsupported(&source) => {
            let why =
                "its file system cannot make a file without a name; write to standard output, \
                       `-`, and redirect it"
                    .to_owned();
            OpenError::Unsuitable { path, why }
        }
        error => error,
    }
}

fn is_unsupported(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR))
}
