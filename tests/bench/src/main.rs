//! `make bench` and `make bench-gate`: cost of the storage stack compared with fio and QEMU's
//! storage daemon, and the limits that CI enforces.
//!
//! The stack is the production one from the transport to the host's file. The guest is played in
//! process by [`load`], so that the figures contain no VM exits. docs/performance.md describes the
//! method.

mod compare;
mod contestant;
mod copies;
mod discard_load;
mod figures;
mod fio;
mod gate;
mod host;
mod layers;
mod load;
mod ours;
mod qsd;
mod record;
mod report;
mod small_trims;
mod snapshots;
mod trims;
mod wake;
mod workload;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

use compare::{Selection, bench, pauses};
use copies::copies;
use gate::{gate, play};
use layers::layers;
use record::record;
use small_trims::small_trims;
use snapshots::snapshots;
use trims::trims;

/// Measures the storage stack.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Compare with fio and qemu-storage-daemon. Needs root.
    Compare {
        /// Interleaved rounds of 0.7 s each.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Only workloads whose names contain this.
        #[arg(long)]
        workload: Option<String>,
        /// Only these contestants: ours, fio, fio_plain, fio_fixed, qsd.
        #[arg(long = "only")]
        contestants: Vec<String>,
    },
    /// Count instructions and system calls per request; fail above the limits.
    Gate,
    /// Measure the CPU time of a worker whose driver pauses between requests.
    Pauses,
    /// Measure reads while another range of the disk is discarded. Needs root.
    Trims {
        /// Alternating pairs of runs without and with a discard.
        #[arg(long, default_value_t = 7)]
        pairs: usize,
        /// Only this store: xfs, ext4, loop, disk.
        #[arg(long)]
        store: Option<String>,
    },
    /// Measure direct I/O with stable copies and without. Needs root.
    Copies {
        /// Alternating pairs of runs of 0.7 s.
        #[arg(long, default_value_t = 7)]
        pairs: usize,
    },
    /// Measure a recorded disk beside one that is not. Needs root.
    Record {
        /// Alternating pairs of runs of 0.7 s.
        #[arg(long, default_value_t = 7)]
        pairs: usize,
        /// The folder of the logs.
        #[arg(long, default_value = "/dev/shm")]
        logs: PathBuf,
    },
    /// Measure a layer over an image, and qcow2 over it, beside the image. Needs root.
    Layers {
        /// Alternating runs of each.
        #[arg(long, default_value_t = 7)]
        pairs: usize,
        /// Only cases whose names contain this.
        #[arg(long = "only", default_value = "")]
        case: String,
    },
    /// Measure for how long snapshots of four disks under load hold their requests.
    Snapshots,
    /// Measure many small discards beside reads and writes. Needs root.
    SmallTrims {
        /// Alternating runs of each kind.
        #[arg(long, default_value_t = 5)]
        pairs: usize,
        /// Only this store: xfs, ext4, loop, disk.
        #[arg(long)]
        store: Option<String>,
    },
    /// Run batches of requests; the gate runs this under its counters.
    Play {
        /// The disk image.
        disk: PathBuf,
        /// Batches of as many requests as the queue depth.
        batches: u64,
        /// Writes, each to another block and none behind the one before, in place of reads.
        #[arg(long)]
        writes: bool,
        /// Record the disk in this log.
        #[arg(long)]
        record: Option<PathBuf>,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Action::Compare { rounds, workload, contestants } => {
            bench(&Selection { rounds, workload, contestants })
        }
        Action::Gate => gate(),
        Action::Copies { pairs } => copies(pairs),
        Action::Layers { pairs, case } => layers(pairs, &case),
        Action::Record { pairs, logs } => record(pairs, &logs),
        Action::Snapshots => snapshots(),
        Action::Pauses => pauses(),
        Action::Trims { pairs, store } => trims(pairs, store.as_deref()),
        Action::SmallTrims { pairs, store } => small_trims(pairs, store.as_deref()),
        Action::Play { disk, batches, writes, record } => {
            play(&disk, batches, writes, record.as_deref())
        }
    }
}
