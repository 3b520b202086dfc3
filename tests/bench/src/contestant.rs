//! The contestants: this stack, fio and QEMU's storage daemon.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::figures::Figures;
use super::fio::{self, Settings};
use super::workload::Workload;
use super::{ours, qsd};

/// Duration of a run.
pub(super) const RUN: Duration = Duration::from_millis(700);

/// A contestant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Contestant {
    Ours,
    Fio,
    FioPlain,
    FioFixed,
    Qsd,
}

impl Contestant {
    pub(super) const ALL: [Self; 5] =
        [Self::Ours, Self::Fio, Self::FioPlain, Self::FioFixed, Self::Qsd];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Fio => "fio",
            Self::FioPlain => "fio_plain",
            Self::FioFixed => "fio_fixed",
            Self::Qsd => "qsd",
        }
    }

    pub(super) fn run(self, path: &Path, workload: &Workload) -> Result<Figures> {
        match self {
            Self::Ours => ours::run(path, workload, RUN),
            Self::Fio => fio::run(path, workload, Settings::Best, RUN),
            Self::FioPlain => fio::run(path, workload, Settings::Plain, RUN),
            Self::FioFixed => fio::run(path, workload, Settings::Fixed, RUN),
            Self::Qsd => qsd::run(path, workload, RUN),
        }
    }
}
