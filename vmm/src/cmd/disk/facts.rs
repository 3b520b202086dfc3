//! Facts about a disk, each learned by a query that cannot hang the program.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use block::{
    BaseFacts, CacheMode, DiscardLimits, DiskOptions, Extent, FormatVerdict, ImageFormat,
    ImageLock, LevelHead, OpenError, ProbedFormat, StoreSpace, StoreStack, Survey, layer_chain,
    stores_below,
};

use crate::cmd::progress::ProgressLine;
use crate::host_query::{HostQuery, LIMIT};

/// A fact, or the reason that it could not be learned.
pub(super) type Fact<T> = Result<T, String>;

/// The facts that the host reports apart from the size of a disk.
pub(super) struct Facts {
    pub(super) discard: Fact<Option<DiscardLimits>>,
    pub(super) space: Fact<StoreSpace>,
    pub(super) lock: Fact<ImageLock>,
    pub(super) format: Fact<(ProbedFormat, FormatVerdict)>,
    pub(super) stack: Fact<StoreStack>,
    pub(super) extents: Fact<Vec<Extent>>,
    /// The disk of the file, if that is a layer.
    pub(super) layer: Option<Fact<LayerFacts>>,
    /// Bytes in whole granules of zeroes, if they were counted.
    pub(super) zeroes: Option<Fact<u64>>,
}

/// The disk of a layer.
pub(super) struct LayerFacts {
    /// From the layer to the raw base.
    pub(super) levels: Vec<LevelHead>,
    /// The storage of what the layer stands on.
    pub(super) bases: Vec<BaseFacts>,
}

impl Facts {
    /// Queries all facts at the same time; with `scan` it also reads the data.
    pub(super) fn query(path: &Path, survey: &Arc<Survey>, scan: bool) -> Self {
        let extents = ExtentQuery::start(survey);
        let discard = start(survey, Survey::discard);
        let space = start(survey, Survey::space);
        let lock = start(survey, Survey::lock);
        let format = start(survey, Survey::format);
        let stack = start(survey, Survey::stack);
        let (discard, space, lock) = (fact(discard), fact(space), fact(lock));
        let (format, stack) = (fact(format), fact(stack));
        let extents = extents.collect().map_err(|error| error.to_string());
        let is_layer = format.as_ref().is_ok_and(|(_, verdict)| is_layer(verdict));
        let layer = is_layer.then(|| layer(path));
        let zeroes = scan.then(|| {
            let (discard, extents) = (discard.clone()?, extents.as_ref().map_err(Clone::clone)?);
            count_zeroes(survey, discard, extents).map_err(|error| error.to_string())
        });
        Self { discard, space, lock, format, stack, extents, layer, zeroes }
    }

    /// Whether a fact could not be learned.
    pub(super) fn is_incomplete(&self) -> bool {
        self.discard.is_err()
            || self.space.is_err()
            || self.lock.is_err()
            || self.format.is_err()
            || self.stack.is_err()
            || self.extents.is_err()
            || self.layer.as_ref().is_some_and(Result::is_err)
            || self.zeroes.as_ref().is_some_and(Result::is_err)
    }
}

/// Space of a disk in its backing store.
pub(super) fn space(survey: &Arc<Survey>) -> Fact<StoreSpace> {
    fact(start(survey, Survey::space))
}

/// Whether the file is a layer.
pub(super) fn has_layer(survey: &Arc<Survey>) -> Fact<bool> {
    Ok(is_layer(&fact(start(survey, Survey::format))?.1))
}

fn is_layer(verdict: &FormatVerdict) -> bool {
    matches!(verdict, FormatVerdict::Foreign { format: ImageFormat::Layer, .. })
}

/// The disk of the layer at `path`.
fn layer(path: &Path) -> Fact<LayerFacts> {
    let path = path.to_owned();
    fact(HostQuery::start(move || {
        let levels = layer_chain(&path)?;
        let options = DiskOptions::new(CacheMode::WriteBack);
        let bases = levels.get(1).map(|base| stores_below(&base.path, &options));
        Ok(LayerFacts { levels, bases: bases.unwrap_or_default() })
    }))
}

type FactQuery<T> = HostQuery<Result<T, OpenError>>;

fn start<T: Send + 'static>(
    survey: &Arc<Survey>,
    query: fn(&Survey) -> Result<T, OpenError>,
) -> FactQuery<T> {
    let survey = Arc::clone(survey);
    HostQuery::start(move || query(&survey))
}

fn fact<T: Send + 'static>(query: FactQuery<T>) -> Fact<T> {
    match query.answer() {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// A query of a disk's data and holes. A large file may have many of them: the limit is for each
/// part of the answer.
pub(super) struct ExtentQuery(HostQuery<io::Result<Vec<Extent>>>);

impl ExtentQuery {
    pub(super) fn start(survey: &Arc<Survey>) -> Self {
        let survey = Arc::clone(survey);
        Self(HostQuery::stream(LIMIT, move |answers| send_extents(&survey, answers)))
    }

    pub(super) fn collect(mut self) -> io::Result<Vec<Extent>> {
        let mut extents = Vec::new();
        while let Some(part) = self.0.next()? {
            extents.extend(part?);
        }
        Ok(extents)
    }
}

/// Sends the extents in parts, each after a tenth of the time limit.
fn send_extents(survey: &Survey, answers: &Sender<io::Result<Vec<Extent>>>) {
    let (mut part, mut sent) = (Vec::new(), Instant::now());
    for extent in survey.extents() {
        match extent {
            Ok(extent) => part.push(extent),
            Err(error) => {
                let _ = answers.send(Err(error));
                return;
            }
        }
        if sent.elapsed() >= LIMIT / 10 {
            let _ = answers.send(Ok(std::mem::take(&mut part)));
            sent = Instant::now();
        }
    }
    let _ = answers.send(Ok(part));
}

enum Scan {
    /// Bytes of one read.
    Read(u64),
    Done(io::Result<u64>),
}

/// Time limit of one read, which may have to wait for a machine's I/O.
const READ_LIMIT: Duration = Duration::from_secs(10);

fn count_zeroes(
    survey: &Arc<Survey>,
    discard: Option<DiscardLimits>,
    extents: &[Extent],
) -> io::Result<u64> {
    let data = extents.iter().filter(|extent| extent.data).map(|extent| extent.range.len).sum();
    let mut progress = ProgressLine::new("reading", data);
    let survey = Arc::clone(survey);
    let mut scan = HostQuery::stream(READ_LIMIT, move |answers| {
        let zeroes = survey.count_zeroes(discard, |bytes| {
            let _ = answers.send(Scan::Read(bytes));
        });
        let _ = answers.send(Scan::Done(zeroes));
    });
    loop {
        match scan.next()? {
            Some(Scan::Read(bytes)) => progress.advance(bytes),
            Some(Scan::Done(zeroes)) => return zeroes,
            None => return Err(io::Error::other("the query ended without an answer")),
        }
    }
}
