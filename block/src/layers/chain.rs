//! A layered disk as its files have it, for commands that read it: without an engine, through the
//! page cache. May block.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::file::{base_path, buffered, host_error, read_header};
use super::header::Header;
use super::identity::{BaseIdentity, BaseKind};
use super::info::open;
use super::levels::{Answerer, Level, LevelMap, Levels, Top};
use super::map_file::read_map;
use super::merge::require_whole;
use super::open::{LEVELS_MAX, missing, require_unchanged, too_long};
use crate::host_file::without_access_times;
use crate::{ByteOffset, ByteRange, CacheMode, DiskOptions, Extent, Extents, OpenError, RawFile};

/// The files of a layered disk, open for reading.
#[derive(Debug)]
pub struct LayerChain {
    levels: Levels,
    /// From the top down.
    files: Vec<ChainFile>,
    /// Of the top.
    pub(super) header: Header,
}

#[derive(Debug)]
struct ChainFile {
    path: PathBuf,
    file: File,
    identity: BaseIdentity,
    /// Holds the lock of a reader.
    _locked: Option<RawFile>,
}

/// A range of the disk that one level answers for with data, or with zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerPiece {
    /// The range.
    pub range: ByteRange,
    /// The level, of which the top has 0; `None` beyond the end of all bases.
    pub level: Option<usize>,
    /// Data; a hole reads zero.
    pub data: bool,
}

impl LayerPiece {
    pub(super) fn end(&self) -> u64 {
        self.range.start.0 + self.range.len
    }

    fn is_continued_by(&self, next: &Self) -> bool {
        self.end() == next.range.start.0 && (self.level, self.data) == (next.level, next.data)
    }
}

impl LayerChain {
    /// Opens the layer at `path` and everything below it. Takes no lock and writes nothing: while a
    /// machine uses it, what it has not flushed may be missing.
    ///
    /// # Errors
    ///
    /// The host's error; a file is no layer or is damaged; or a base is missing or has changed.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::open_with(path, |path| Ok((without_access_times(open(path)?), None)))
    }

    /// As [`LayerChain::open`], and keeps writers off all files.
    ///
    /// # Errors
    ///
    /// As well: a file is in use by a writer.
    pub fn lock(path: &Path) -> Result<Self, OpenError> {
        let options = DiskOptions::new(CacheMode::WriteBack).read_only();
        Self::open_with(path, |path| {
            let locked = RawFile::open_container(path, &options)?;
            let file = buffered(locked.file()).map_err(host_error(path, "open it again"))?;
            Ok((file, Some(locked)))
        })
    }

    fn open_with(
        path: &Path,
        open: impl Fn(&Path) -> Result<(File, Option<RawFile>), OpenError>,
    ) -> Result<Self, OpenError> {
        let (file, locked) = open(path)?;
        let header = read_header(&file, path)?;
        require_whole(&header, path)?;
        let top = Top {
            data_at: header.data_at(),
            map: read_map(&file, path, &header)?,
            logical_block: 512,
            is_read_only: true,
            ignores_flushes: true,
            discard: None,
            budget: None,
            unflushed: None,
        };
        let identity = header.identity();
        let mut files = vec![ChainFile { path: path.to_owned(), file, identity, _locked: locked }];
        let mut below = Vec::new();
        let mut next = Some((path.to_owned(), header.clone()));
        while let Some((layer, above)) = next {
            if files.len() == LEVELS_MAX {
                return Err(too_long(path));
            }
            let path = base_path(&layer, &above);
            if !path.exists() {
                return Err(missing(&layer, &path));
            }
            let (file, locked) = open(&path)?;
            let (level, identity, found) = level_below(&file, &path, &above)?;
            require_unchanged(&layer, &above, &path, &identity, found.as_ref())?;
            if above.size < level.size {
                return Err(smaller_than_base(&layer));
            }
            next = found.map(|found| (path.clone(), found));
            below.push(level);
            files.push(ChainFile { path, file, identity, _locked: locked });
        }
        Ok(Self { levels: Levels::new(top, below, header.size), files, header })
    }

    /// Size of the disk in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.levels.capacity()
    }

    /// The files, from the top down.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// The level below the top that has the file `path`.
    ///
    /// # Errors
    ///
    /// It has none, or `path` cannot be found.
    pub fn level_of(&self, path: &Path) -> Result<usize, OpenError> {
        let wanted = std::fs::metadata(path).map_err(host_error(path, "find it"))?;
        for (index, file) in self.files.iter().enumerate().skip(1) {
            let found = file.file.metadata().map_err(host_error(&file.path, "query it"))?;
            if (found.dev(), found.ino()) == (wanted.dev(), wanted.ino()) {
                return Ok(index);
            }
        }
        let why = "the layer does not stand on it; `bulkhead layer info` shows what it stands on";
        Err(OpenError::Unsuitable { path: path.into(), why: why.into() })
    }

    /// The file of a level; that of the top if there is none.
    #[must_use]
    pub fn path(&self, level: usize) -> &Path {
        let file = self.files.get(level).or(self.files.first());
        file.map_or(Path::new(""), |file| &file.path)
    }

    /// The identity of the disk from `level` on.
    pub(super) fn identity(&self, level: usize) -> Option<&BaseIdentity> {
        self.files.get(level).map(|file| &file.identity)
    }

    /// The disk, range by range, in order and without gaps.
    #[must_use]
    pub fn pieces(&self) -> LayerPieces<'_> {
        LayerPieces { chain: self, below: usize::MAX, at: 0, pending: None }
    }

    /// The ranges that the levels above `below` answer for, in order.
    #[must_use]
    pub fn changes(&self, below: usize) -> LayerPieces<'_> {
        LayerPieces { below, ..self.pieces() }
    }

    /// Bytes of [`LayerChain::changes`]. Asks no file.
    #[must_use]
    pub fn changed_bytes(&self, below: usize) -> u64 {
        let (mut at, mut bytes) = (0, 0);
        while at < self.size() {
            let (answerer, end) = self.levels.piece(0, at, self.size());
            if matches!(answerer, Answerer::Level(level) if level < below) {
                bytes += end - at;
            }
            at = end;
        }
        bytes
    }

    /// The piece from `at` on, at most to `end`, of the disk that the levels from `from` on are.
    /// `at` is below `end`, and `end` within the disk.
    pub(super) fn piece(&self, from: usize, at: u64, end: u64) -> io::Result<LayerPiece> {
        let (answerer, end) = self.levels.piece(from, at, end);
        let range = ByteRange { start: ByteOffset(at), len: end - at };
        let zeroes = LayerPiece { range, level: None, data: false };
        let Answerer::Level(index) = answerer else { return Ok(zeroes) };
        let Some(ChainFile { file, .. }) = self.files.get(index) else { return Ok(zeroes) };
        let place = |at| self.levels.place(index, at);
        let extent = Extents::new(file, place(at), place(end)).next().transpose()?;
        Ok(extent.map_or(zeroes, |Extent { range, data }| LayerPiece {
            range: ByteRange { start: ByteOffset(at), ..range },
            level: Some(index),
            data,
        }))
    }

    /// Reads the disk that the levels from `from` on are.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(super) fn read(&self, from: usize, mut at: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            let piece = self.piece(from, at, at + buffer.len() as u64)?;
            let len = usize::try_from(piece.range.len).unwrap_or(usize::MAX).min(buffer.len());
            let (part, rest) = buffer.split_at_mut(len);
            match piece.level.and_then(|level| Some((level, self.files.get(level)?))) {
                Some((level, file)) if piece.data => {
                    file.file.read_exact_at(part, self.levels.place(level, at))?;
                }
                _ => part.fill(0),
            }
            (at, buffer) = (piece.end(), rest);
        }
        Ok(())
    }
}

/// The base of a layer with the header `above`, its identity, and its header if it is a layer.
fn level_below(
    file: &File,
    path: &Path,
    above: &Header,
) -> Result<(Level, BaseIdentity, Option<Header>), OpenError> {
    if above.base.kind == BaseKind::Layer {
        let found = read_header(file, path)?;
        let map = LevelMap::Layer(read_map(file, path, &found)?);
        let level = Level { data_at: found.data_at(), size: found.size, map };
        return Ok((level, found.identity(), Some(found)));
    }
    let identity = BaseIdentity::of_raw(file).map_err(host_error(path, "read it"))?;
    let level = Level { data_at: 0, size: identity.size, map: LevelMap::Raw };
    Ok((level, identity, None))
}

fn smaller_than_base(layer: &Path) -> OpenError {
    let why = "its disk is smaller than that of its base, which no program of this project writes; \
               restore it from a backup";
    OpenError::Unsuitable { path: layer.into(), why: why.into() }
}

/// See [`LayerChain::pieces`] and [`LayerChain::changes`].
#[derive(Debug)]
pub struct LayerPieces<'c> {
    chain: &'c LayerChain,
    /// Levels from this one on are left out, and what no level answers for too, unless it is
    /// `usize::MAX`.
    below: usize,
    /// Where the next piece starts that is not pending.
    at: u64,
    /// A piece that the next one may continue.
    pending: Option<LayerPiece>,
}

impl LayerPieces<'_> {
    /// The next piece, as the file system reports it, or `None` after the last one.
    fn next_part(&mut self) -> io::Result<Option<LayerPiece>> {
        let size = self.chain.size();
        while self.at < size {
            let (answerer, end) = self.chain.levels.piece(0, self.at, size);
            let is_wanted = match answerer {
                Answerer::Level(level) => level < self.below,
                Answerer::Zeroes => self.below == usize::MAX,
            };
            if is_wanted {
                let piece = self.chain.piece(0, self.at, size)?;
                self.at = piece.end();
                return Ok(Some(piece));
            }
            self.at = end;
        }
        Ok(None)
    }
}

impl Iterator for LayerPieces<'_> {
    type Item = io::Result<LayerPiece>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let piece = match self.next_part() {
                Ok(Some(piece)) => piece,
                Ok(None) => return self.pending.take().map(Ok),
                Err(error) => {
                    (self.at, self.pending) = (u64::MAX, None);
                    return Some(Err(error));
                }
            };
            match &mut self.pending {
                Some(last) if last.is_continued_by(&piece) => last.range.len += piece.range.len,
                pending => {
                    if let Some(last) = pending.replace(piece) {
                        return Some(Ok(last));
                    }
                }
            }
        }
    }
}
