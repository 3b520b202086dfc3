//! The contract, over a wrapper that forwards every call: the start of a layer, a recorder or a
//! network disk.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod common;
mod contract;

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use block::{
    Backend, BackingSpace, ByteOffset, CacheMode, Completion, Crossing, DiskStatus, EngineKind,
    EngineSetup, Extent, Geometry, IoEngine, OpenError, RawFile, Request, ResizeError, Segment,
    Wake,
};

const ENGINE: EngineKind = EngineKind::Auto;

fn disk_under_test(file: RawFile) -> Box<dyn Backend> {
    Box::new(PassThrough(Box::new(file)))
}

struct PassThrough(Box<dyn Backend>);

impl Backend for PassThrough {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn cache_mode(&self) -> CacheMode {
        self.0.cache_mode()
    }

    fn read_only(&self) -> bool {
        self.0.read_only()
    }

    fn engine(&self, setup: &EngineSetup<'_>) -> Result<Box<dyn IoEngine>, OpenError> {
        Ok(Box::new(PassThroughEngine(self.0.engine(setup)?)))
    }

    fn status(&self) -> DiskStatus {
        self.0.status()
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn stop_holding(&self) {
        self.0.stop_holding();
    }

    fn allocation(&self, from: ByteOffset, limit: usize) -> io::Result<Vec<Extent>> {
        self.0.allocation(from, limit)
    }

    fn backing_space(&self) -> io::Result<Option<BackingSpace>> {
        self.0.backing_space()
    }

    fn check_soft_limit(&self) -> io::Result<Option<Crossing>> {
        self.0.check_soft_limit()
    }

    fn resize(&self, size: Option<u64>) -> Result<u64, ResizeError> {
        self.0.resize(size)
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self.0.as_any()
    }
}

struct PassThroughEngine(Box<dyn IoEngine>);

impl IoEngine for PassThroughEngine {
    fn push(&mut self, request: Request<'_>) {
        self.0.push(request);
    }

    fn push_contiguous(&mut self, tag: u16, segment: Segment, at: ByteOffset, is_write: bool) {
        self.0.push_contiguous(tag, segment, at, is_write);
    }

    fn submit(&mut self) -> io::Result<()> {
        self.0.submit()
    }

    fn reap(&mut self, completed: &mut Vec<Completion>) {
        self.0.reap(completed);
    }

    fn parked(&self) -> usize {
        self.0.parked()
    }

    fn due(&self) -> Option<Instant> {
        self.0.due()
    }

    fn cancel(&mut self, tag: u16) -> bool {
        self.0.cancel(tag)
    }

    fn is_ready(&self) -> bool {
        self.0.is_ready()
    }

    fn poll_fd(&mut self) -> io::Result<BorrowedFd<'_>> {
        self.0.poll_fd()
    }

    fn clear_poll_fd(&mut self) {
        self.0.clear_poll_fd();
    }

    fn wait(&mut self) -> io::Result<Wake> {
        self.0.wait()
    }
}
