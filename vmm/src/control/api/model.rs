//! What the control socket says, as Rust sees it. `resources/openapi.json` describes the same to others.
//!
//! The server writes it and `bulkhead ctl` reads it, so that the two cannot drift apart.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// The program's version.
    pub(crate) version: String,
    /// The program's process.
    pub(crate) pid: u32,
    pub(crate) state: State,
    /// Since the guest started, pauses included.
    pub(crate) uptime_ms: u64,
    /// Null where a disk is served to another monitor, as the memory is.
    pub(crate) vcpus: Option<u8>,
    pub(crate) memory_bytes: Option<u64>,
    /// In the order of the configuration.
    pub(crate) disks: Vec<Disk>,
}

/// Whether the guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Running,
    Paused,
}

/// The answer to a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) state: State,
}

/// What a resize may ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Resize {
    /// Grow the file to this size; absent: look at the file or device again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) size_bytes: Option<u64>,
}

/// One disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Disk {
    pub(crate) id: String,
    pub(crate) path: String,
    /// Where it is on a SCSI controller; null where it is a device of its own.
    pub(crate) scsi: Option<Scsi>,
    /// The guest does not find it any more; it goes when what is in flight has ended.
    pub(crate) detaching: bool,
    /// What must not be overlooked; empty on a sound disk.
    pub(crate) warnings: Vec<String>,
    pub(crate) size_bytes: u64,
    pub(crate) logical_block_bytes: u32,
    pub(crate) physical_block_bytes: u32,
    pub(crate) readonly: bool,
    /// The cache mode.
    pub(crate) cache: String,
    /// Whether the guest has a volatile write cache now. It may switch it.
    pub(crate) write_cache: bool,
    /// Acknowledged writes were lost: flushes fail until the disk is opened anew.
    pub(crate) lost_writes: bool,
    /// Requests that wait until the host has space again; null if none does.
    pub(crate) held: Option<Held>,
    /// The mark on the space of what stores it; null if it has none.
    pub(crate) soft_limit: Option<SoftLimit>,
    /// What became of what the guest discarded.
    pub(crate) trimmed: Trimmed,
    pub(crate) engine: Engine,
    /// All queues together.
    pub(crate) total: Stats,
    /// Each queue, by its number.
    pub(crate) queues: Vec<Stats>,
}

/// A place on a SCSI controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Scsi {
    pub(crate) controller: u8,
    pub(crate) target: u8,
    /// The logical unit number.
    pub(crate) lun: u16,
}

/// What a disk holds for want of space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    /// How many requests wait.
    pub(crate) requests: u64,
    /// The host's answer: `ENOSPC` or `EDQUOT`.
    pub(crate) error: String,
    /// The same in words.
    pub(crate) reason: String,
    /// How long the oldest has waited.
    pub(crate) age_ms: u64,
    /// How long until it fails, if there is no space before.
    pub(crate) deadline_ms: u64,
}

/// A mark on the space of what stores a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SoftLimit {
    /// The mark, in percent of all space.
    pub(crate) percent: u8,
    /// Whether so much is used.
    pub(crate) reached: bool,
    /// Used by everybody; null where the host does not say.
    pub(crate) used_bytes: Option<u64>,
    /// Still to be had.
    pub(crate) available_bytes: Option<u64>,
}

/// What became of what a guest discarded, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trimmed {
    /// Asked for.
    pub(crate) asked_bytes: u64,
    /// Freed only because neighbouring pieces were gathered; part of what was freed.
    pub(crate) gathered_bytes: u64,
    /// Given back to the host.
    pub(crate) freed_bytes: u64,
    /// Not given back: parts of what the host frees at a time, and what it refused.
    pub(crate) skipped_bytes: u64,
}

/// The latest events, the oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Events {
    pub(crate) events: Vec<Event>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Event {
    /// Counts from 1 without a gap; only the latest are kept.
    pub(crate) number: u64,
    /// Since 1970, in UTC.
    pub(crate) time_ms: u64,
    /// `soft_limit_reached`, `soft_limit_receded`, `disk_attached`, `disk_detached` or `disk_detached_with_loss`.
    pub(crate) event: String,
    /// The disk it happened to.
    pub(crate) disk: String,
    /// In words.
    pub(crate) text: String,
}

/// What carries out a disk's requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Engine {
    pub(crate) name: String,
    /// Why this one.
    pub(crate) reason: String,
}

/// What was done since the guest started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stats {
    /// Requests that the engine holds now.
    pub(crate) in_flight: u64,
    /// Turns of the workers' loop.
    pub(crate) rounds: u64,
    /// Interrupts sent.
    pub(crate) interrupts: u64,
    /// How often the workers gave their CPU away while they polled.
    pub(crate) yields: u64,
    /// How long a worker would poll now before it sleeps, the longest of all queues, in nanoseconds.
    pub(crate) poll_ns: u64,
    /// Requests answered without the disk.
    pub(crate) answered: u64,
    /// By kind of request.
    pub(crate) requests: BTreeMap<String, Requests>,
    /// In the ring while the worker was busy, at most.
    pub(crate) wait: Latency,
    /// From the backend's completion until the driver could see it.
    pub(crate) completion: Latency,
}

/// What was done of one kind of request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Requests {
    /// Completed, with or without success.
    pub(crate) count: u64,
    /// Moved, discarded or zeroed with success.
    pub(crate) bytes: u64,
    pub(crate) errors: u64,
    /// In the engine and the host.
    pub(crate) backend: Latency,
}

/// Durations by magnitude. Each figure is the upper end of a bucket, at most a quarter too high; null
/// where there is nothing to tell, or no end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) count: u64,
    pub(crate) sum_ns: u64,
    pub(crate) p50_ns: Option<u64>,
    pub(crate) p99_ns: Option<u64>,
    pub(crate) max_ns: Option<u64>,
    /// Those with something in them.
    pub(crate) buckets: Vec<Bucket>,
}

/// How many took at most this long, and longer than the bucket before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bucket {
    /// Null for the last one, which has no end.
    pub(crate) up_to_ns: Option<u64>,
    pub(crate) count: u64,
}
