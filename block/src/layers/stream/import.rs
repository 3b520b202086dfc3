//! Imports a layer from a stream.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::claim::{ClaimedBase, path_from};
use super::super::file::{host_error, write_header};
use super::super::header::{Header, PAGE_COVERS};
use super::super::identity::{BaseIdentity, BaseKind};
use super::super::info::probe_base;
use super::super::new_file::NewFile;
use super::super::unit::{BLOCK, BLOCK_BYTES};
use super::super::uuid::Uuid;
use super::format::{StreamError, StreamHeader};
use super::reader::{StreamChange, StreamReader};
use crate::OpenError;

/// A layer that was made from a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportedLayer {
    /// Its identity.
    pub uuid: Uuid,
    /// Size of its disk in bytes.
    pub size: u64,
    /// It is frozen, as the exported one was: streams of layers over that can be imported over it.
    pub is_frozen: bool,
    /// Bytes of the disk that it answers for.
    pub changed: u64,
    /// Those that came as data.
    pub data: u64,
}

/// A stream whose header was read.
pub struct LayerImport<'n, R> {
    stream: StreamReader<R>,
    /// Its name in messages.
    name: &'n Path,
}

impl<'n, R: Read> LayerImport<'n, R> {
    /// Reads the header of a stream, whose name in messages is `name`.
    ///
    /// # Errors
    ///
    /// It is no stream, is damaged, or cannot be read.
    pub fn open(input: R, name: &'n Path) -> Result<Self, OpenError> {
        let stream = StreamReader::new(input).map_err(|error| stream_error(name, error))?;
        Ok(Self { stream, name })
    }

    /// Size of the disk in bytes, which is that of the progress.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.stream.header.size
    }

    /// Makes a layer at `path` over `base`, which has to be what the stream was made over, or, with
    /// `force`, may be it. It has its name when it is complete and durable. `progress` gets the
    /// bytes of the disk that are done.
    ///
    /// # Errors
    ///
    /// `path` exists; the base is another one, is in use by a writer or cannot be read; the stream
    /// is damaged; or the host's error.
    pub fn to_layer(
        mut self,
        base: &Path,
        path: &Path,
        force: bool,
        progress: impl FnMut(u64),
    ) -> Result<ImportedLayer, OpenError> {
        if path.symlink_metadata().is_ok() {
            let why = "it exists already; a layer is never made over a file";
            return Err(OpenError::Unsuitable { path: path.into(), why: why.into() });
        }
        probe_base(base)?;
        let claimed = ClaimedBase::open(base)?;
        if matches!(claimed, ClaimedBase::Layer { .. }) {
            let why = "it is a layer that is not frozen, so that no stream was made over it; name \
                       the base that was the exported one's";
            return Err(OpenError::Unsuitable { path: base.into(), why: why.into() });
        }
        let identity = claimed.identity();
        let is_same = require_base(&self.stream.header.base, &identity, base, force)?;
        let header = header(&self.stream.header, is_same, identity, &path_from(path, base))
            .map_err(host_error(path, "make its identity"))?;
        let new = NewFile::at(path, header.data_at() + header.size)?;
        self.write(new.file(), path, &header, progress)?;
        new.file().sync_all().map_err(host_error(path, "make it durable"))?;
        write_header(new.file(), &header).map_err(host_error(path, "write its header"))?;
        new.link(path)?;
        let (totals, is_frozen) = (self.stream.totals(), header.frozen.is_some());
        let (changed, data) = (totals.changed, totals.data);
        Ok(ImportedLayer { uuid: header.uuid, size: header.size, is_frozen, changed, data })
    }

    /// Writes the data and the map.
    fn write(
        &mut self,
        file: &File,
        path: &Path,
        header: &Header,
        mut progress: impl FnMut(u64),
    ) -> Result<(), OpenError> {
        let (mut done, mut map) = (0, MapPages::new(file));
        let name = self.name;
        while let Some(change) = self.stream.next().map_err(|error| stream_error(name, error))? {
            let (start, len) = match change {
                StreamChange::Zeroes { start, len } => (start, len),
                StreamChange::Data { start, data } => {
                    let written = file.write_all_at(data, header.data_at() + start);
                    written.map_err(host_error(path, "write its data"))?;
                    (start, data.len() as u64)
                }
            };
            let end = start + len;
            map.set(start / BLOCK, end / BLOCK).map_err(host_error(path, "write its map"))?;
            progress(end - done);
            done = end;
        }
        map.write().map_err(host_error(path, "write its map"))
    }
}

fn stream_error(name: &Path, error: StreamError) -> OpenError {
    match error {
        StreamError::Host(source) => host_error(name, "read it")(source),
        error => OpenError::Unsuitable { path: name.into(), why: error.to_string() },
    }
}

/// The header of the new layer. A frozen one keeps its identity, as its disk has the same content.
fn header(
    stream: &StreamHeader,
    is_same_base: bool,
    base: BaseIdentity,
    base_path: &Path,
) -> io::Result<Header> {
    let frozen = stream.frozen.filter(|_| is_same_base);
    let uuid = if frozen.is_some() { stream.uuid } else { Uuid::random()? };
    Ok(Header { frozen, ..Header::new(uuid, stream.size, base, base_path) })
}

/// Whether a base certainly is the one of the stream, as far as identities can tell; `false` if
/// the identities cannot tell and the user vouches for it.
fn require_base(
    recorded: &BaseIdentity,
    found: &BaseIdentity,
    base: &Path,
    force: bool,
) -> Result<bool, OpenError> {
    let refuse = |why: String| Err(OpenError::Unsuitable { path: base.into(), why });
    if recorded.size != found.size {
        return refuse(format!(
            "it is not the base of the stream: it has {} bytes, not {}; name a copy of that base",
            found.size, recorded.size
        ));
    }
    let is_layer = [recorded, found].map(|identity| identity.kind == BaseKind::Layer);
    let doubt = match is_layer {
        [true, true] if recorded.uuid == found.uuid => return Ok(true),
        [true, true] => "it is another layer than the base of the stream",
        [true, false] => "the base of the stream is a layer",
        [false, true] => "it is a layer, which the base of the stream is not",
        [false, false] if recorded.sample != found.sample => {
            let why = "it is not the base of the stream: it has other content; name a copy of that \
                       base, which no program has written";
            return refuse(why.to_owned());
        }
        [false, false] if recorded.kind == found.kind => return Ok(true),
        [false, false] => "only one of it and the base of the stream is a block device",
    };
    if force {
        return Ok(false);
    }
    refuse(format!("{doubt}; if its content is certainly the same, add `--force`"))
}

/// The map of a file, written page by page in order: it takes the memory of one page.
struct MapPages<'f> {
    file: &'f File,
    /// The page that `bytes` is.
    page: u64,
    bytes: [u8; BLOCK_BYTES],
    has_bits: bool,
}

impl<'f> MapPages<'f> {
    fn new(file: &'f File) -> Self {
        Self { file, page: 0, bytes: [0; BLOCK_BYTES], has_bits: false }
    }

    /// Sets the bits of the blocks from `first` to `end`, which are behind those set before.
    fn set(&mut self, first: u64, end: u64) -> io::Result<()> {
        const PAGE_BLOCKS: u64 = PAGE_COVERS / BLOCK;
        let mut block = first;
        while block < end {
            let page = block / PAGE_BLOCKS;
            if page != self.page {
                self.write()?;
                self.page = page;
            }
            let next = end.min((page + 1) * PAGE_BLOCKS);
            let place = |block: u64| usize::try_from(block - page * PAGE_BLOCKS).unwrap_or(0);
            set_bits(&mut self.bytes, place(block), place(next));
            self.has_bits = true;
            block = next;
        }
        Ok(())
    }

    /// Writes the page and clears it.
    fn write(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.has_bits) {
            self.file.write_all_at(&self.bytes, Header::map_at() + self.page * BLOCK)?;
            self.bytes.fill(0);
        }
        Ok(())
    }
}

fn set_bits(bytes: &mut [u8], first: usize, end: usize) {
    let mut bit = first;
    while bit < end {
        if bit.is_multiple_of(8) && end - bit >= 8 {
            let whole = bit / 8..end / 8;
            bytes.get_mut(whole).unwrap_or_default().fill(0xff);
            bit = end / 8 * 8;
            continue;
        }
        if let Some(byte) = bytes.get_mut(bit / 8) {
            *byte |= 1 << (bit % 8);
        }
        bit += 1;
    }
}
