//! Streams: the changes of a layer, to be applied over a copy of its base elsewhere.
//! `docs/layer-stream.md` has the format byte by byte.

mod export;
mod format;
mod import;
mod reader;
mod writer;

pub use self::export::{ExportedStream, LayerExport};
pub use self::import::{ImportedLayer, LayerImport};
