//! The base that a layer is merged into: a layer, a raw image or a device. May block.

use std::fs::FileTimes;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::super::file::{host_error, read_header, write_header};
use super::super::header::Header;
use super::super::identity::{BaseIdentity, BaseKind};
use super::super::map::LayerMap;
use super::super::map_file::read_map;
use super::super::open::{missing, sync};
use super::super::uuid::Uuid;
use super::chain::write_options;
use super::target::Target;
use super::top::ChangedTop;
use crate::shell::shell_path;
use crate::{Backend, DiskFormat, DiskOptions, OpenError, RawFile, ResizeError};

/// See the module's documentation.
#[derive(Debug)]
pub(in super::super) struct MergeBase {
    path: PathBuf,
    file: Arc<RawFile>,
    kind: BaseKind,
    /// Size of its disk in bytes.
    size: u64,
    /// The header of a layer.
    layer: Option<Header>,
}

impl MergeBase {
    /// Locks the base of the layer.
    ///
    /// # Errors
    ///
    /// It is missing, read only, in use, or no layer where it should be one.
    pub(super) fn open(top: &ChangedTop, path: &Path) -> Result<Self, OpenError> {
        if !path.exists() {
            return Err(missing(&top.path, path));
        }
        require_writable_mode(top.header.base.kind, path)?;
        let options = DiskOptions { format: DiskFormat::Raw, ..write_options() };
        Self::of(top, path, Arc::new(RawFile::open_container(path, &options)?))
    }

    /// The base of the layer in a file that is locked, and is open to be written.
    ///
    /// # Errors
    ///
    /// Its mode forbids writes, or it is no layer where it should be one.
    pub(in super::super) fn of(
        top: &ChangedTop,
        path: &Path,
        file: Arc<RawFile>,
    ) -> Result<Self, OpenError> {
        let kind = top.header.base.kind;
        require_writable_mode(kind, path)?;
        sync(file.file(), path)?;
        let layer = match kind {
            BaseKind::Layer => Some(read_header(file.file(), path)?),
            BaseKind::File | BaseKind::Device => None,
        };
        let size = match &layer {
            Some(header) => header.size,
            None => size_of(&file, path)?,
        };
        Ok(Self { path: path.into(), file, kind, size, layer })
    }

    pub(in super::super) fn size(&self) -> u64 {
        self.size
    }

    /// The header of a base that is a layer.
    pub(in super::super) fn layer(&self) -> Option<&Header> {
        self.layer.as_ref()
    }

    /// Its path.
    pub(in super::super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes its content durable so far.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(in super::super) fn sync_data(&self) -> Result<(), OpenError> {
        self.file.file().sync_data().map_err(host_error(&self.path, "make it durable"))
    }

    /// Refuses a base that cannot have the size of the layer.
    ///
    /// # Errors
    ///
    /// It is one.
    pub(in super::super) fn require_room(&self, top: &ChangedTop) -> Result<(), OpenError> {
        let most = match (&self.layer, self.kind) {
            (Some(header), _) => header.size_max(),
            (None, BaseKind::Device) => self.size,
            (None, _) => return Ok(()),
        };
        if top.header.size > most {
            let (path, size) = (shell_path(&top.path), top.header.size);
            let why = format!(
                "it can have {most} bytes, and the layer has {size}; make a new image with \
                 `bulkhead layer flatten {path} NEW_IMAGE`"
            );
            return Err(OpenError::Unsuitable { path: self.path.clone(), why });
        }
        Ok(())
    }

    /// Lengthens the file of a layer, if it is to grow. Its disk keeps its size.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(in super::super) fn lengthen(&self, top: &ChangedTop) -> Result<(), OpenError> {
        let Some(header) = &self.layer else { return Ok(()) };
        let length = header.data_at() + self.size.max(top.header.size);
        let file = self.file.file();
        let extended = file.metadata().and_then(|metadata| {
            if metadata.len() < length { file.set_len(length) } else { Ok(()) }
        });
        extended.map_err(host_error(&self.path, "extend it"))
    }

    /// Gives the base the identity and the size that it has while it is changed, which every other
    /// layer over it refuses. Durable before its content changes.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(in super::super) fn begin(
        &mut self,
        top: &mut ChangedTop,
        id: Uuid,
    ) -> Result<(), OpenError> {
        let size = self.size.max(top.header.size);
        match &self.layer {
            Some(found) => {
                let header = Header { frozen: Some(id), is_receiving: true, size, ..found.clone() };
                if *found != header {
                    self.write(header)?;
                }
            }
            None if self.kind == BaseKind::File => {
                if size > self.size {
                    self.grow(top, size)?;
                }
                self.touch(&top.header.base)?;
            }
            None => {}
        }
        self.size = size;
        Ok(())
    }

    /// Grows a raw image. If that fails, no merge is in progress.
    fn grow(&self, top: &mut ChangedTop, size: u64) -> Result<(), OpenError> {
        let Err(error) = self.file.resize(Some(size)) else { return Ok(()) };
        let was_kept = size_of(&self.file, &self.path).is_ok_and(|found| found == self.size);
        let is_first = top.header.base.change(&self.identity()?, &self.path).is_none();
        if was_kept && is_first {
            top.write(Header { merge: None, ..top.header.clone() })?;
        }
        let why = match error {
            ResizeError::Host { what, source } => format!("cannot {what}: {source}"),
            other => other.to_string(),
        };
        Err(OpenError::Unsuitable { path: self.path.clone(), why })
    }

    /// Gives a raw image another modification time than `recorded` has. The first write would do
    /// that too, but its data may be durable before its time.
    fn touch(&self, recorded: &BaseIdentity) -> Result<(), OpenError> {
        let mut now = SystemTime::now();
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let second = i64::try_from(since.as_secs()).unwrap_or_default();
        if (second, since.subsec_nanos()) == (recorded.seconds, recorded.nanoseconds) {
            now += Duration::from_secs(1);
        }
        let file = self.file.file();
        let set = file.set_times(FileTimes::new().set_modified(now));
        set.and_then(|()| file.sync_all()).map_err(host_error(&self.path, "mark it as changed"))
    }

    /// The map of a base that is a layer.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(in super::super) fn map(&self) -> Result<Option<LayerMap>, OpenError> {
        let map = |header| read_map(self.file.file(), &self.path, header);
        self.layer.as_ref().map(map).transpose()
    }

    /// The base as the target of a copy.
    pub(super) fn target<'b>(&'b self, map: Option<&'b LayerMap>) -> Target<'b> {
        let data_at = self.layer.as_ref().map_or(0, Header::data_at);
        let mut target = Target::new(self.file.file(), &self.path, data_at, self.size);
        target.map = map;
        target
    }

    /// Marks the base as whole, after all of its content is durable.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(in super::super) fn finish(&mut self) -> Result<(), OpenError> {
        let Some(header) = self.layer.clone() else {
            // With its modification time.
            let synced = self.file.file().sync_all();
            return synced.map_err(host_error(&self.path, "make it durable"));
        };
        self.write(Header { is_receiving: false, ..header })
    }

    fn write(&mut self, header: Header) -> Result<(), OpenError> {
        let header = header.next();
        let written = write_header(self.file.file(), &header);
        written.map_err(host_error(&self.path, "write its header"))?;
        self.layer = Some(header);
        Ok(())
    }

    /// Its present identity.
    ///
    /// # Errors
    ///
    /// The host's error.
    pub(in super::super) fn identity(&self) -> Result<BaseIdentity, OpenError> {
        match &self.layer {
            Some(header) => Ok(header.identity()),
            None => {
                let identity = BaseIdentity::of_raw(self.file.file());
                identity.map_err(host_error(&self.path, "read it"))
            }
        }
    }
}

/// Refuses a base whose mode forbids writes, which root may write nevertheless.
fn require_writable_mode(kind: BaseKind, path: &Path) -> Result<(), OpenError> {
    let metadata = path.metadata().map_err(host_error(path, "query it"))?;
    if kind != BaseKind::Device && metadata.permissions().mode() & 0o222 == 0 {
        let why = "its mode forbids writes, so that no layer is merged into it; allow them first, \
                   if it may change";
        return Err(OpenError::Unsuitable { path: path.into(), why: why.into() });
    }
    Ok(())
}

fn size_of(file: &RawFile, path: &Path) -> Result<u64, OpenError> {
    rustix::fs::seek(file.file(), rustix::fs::SeekFrom::End(0))
        .map_err(|errno| host_error(path, "query its size")(errno.into()))
}
