//! `make bench` and `make bench-gate`: the storage stack beside others, and what it may cost.

mod compare;
mod contestant;
mod figures;
mod fio;
mod gate;
mod host;
mod load;
mod ours;
mod qsd;
mod report;
mod trims;
mod wake;
mod workload;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

use compare::{Selection, bench, pauses};
use gate::{gate, play};
use trims::trims;

/// Measures the storage stack.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Measure beside fio and qemu-storage-daemon. Needs root.
    Compare {
        /// Interleaved rounds of 0.7 s each.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Only workloads with this in their names.
        #[arg(long)]
        workload: Option<String>,
        /// Only these: ours, fio, fio_plain, fio_fixed, qsd.
        #[arg(long = "only")]
        contestants: Vec<String>,
    },
    /// Count instructions and system calls per request, and fail if there are too many.
    Gate,
    /// Measure the CPU time of a worker whose driver pauses between requests.
    Pauses,
    /// Measure reads while another part of their disk is discarded. Needs root.
    Trims {
        /// Alternating pairs of a run without and one with a discard.
        #[arg(long, default_value_t = 7)]
        pairs: usize,
        /// Only this: xfs, ext4, loop.
        #[arg(long)]
        store: Option<String>,
    },
    /// What the gate runs under its counters: so many batches of reads, then the end.
    Play {
        /// The disk.
        disk: PathBuf,
        /// Batches of as many requests as the queue is deep.
        batches: u64,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().what {
        What::Compare { rounds, workload, contestants } => {
            bench(&Selection { rounds, workload, contestants })
        }
        What::Gate => gate(),
        What::Pauses => pauses(),
        What::Trims { pairs, store } => trims(pairs, store.as_deref()),
        What::Play { disk, batches } => play(&disk, batches),
    }
}
