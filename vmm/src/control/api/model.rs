//! The JSON of the control socket. `resources/openapi.json` describes the same.
//!
//! The server writes it and `bulkhead ctl` reads it, so the two cannot differ.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The machine, or a served disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// Version of the program.
    pub(crate) version: String,
    /// Process id of the program.
    pub(crate) pid: u32,
    pub(crate) state: RunState,
    /// Time since the guest started, including pauses.
    pub(crate) uptime_ms: u64,
    /// Null where a disk is served to another monitor, as is the memory.
    pub(crate) vcpus: Option<u8>,
    pub(crate) memory_bytes: Option<u64>,
    /// In the order of the configuration.
    pub(crate) disks: Vec<Disk>,
}

/// Whether the guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RunState {
    Running,
    Paused,
}

/// The answer to a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) state: RunState,
    /// Requests of all disks in flight.
    pub(crate) in_flight: u64,
}

/// The body of a pause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pause {
    /// Answer after the requests in flight have completed.
    #[serde(default)]
    pub(crate) drain: bool,
}

/// The body of a resize.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Resize {
    /// New size of the file; absent to adopt the current size of the file or device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) size_bytes: Option<u64>,
}

/// The body of a request for a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SnapshotRequest {
    /// A part of the names of the frozen layers.
    pub(crate) name: String,
    /// The disks; by default all that the guest can write and that are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) disks: Option<Vec<String>>,
}

/// A snapshot that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    pub(crate) name: String,
    pub(crate) disks: Vec<FrozenDisk>,
    /// For how long requests were held, without the flush.
    pub(crate) held_us: u64,
    /// How long the flush took meanwhile.
    pub(crate) flush_us: u64,
}

/// A disk of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FrozenDisk {
    pub(crate) id: String,
    /// The frozen layer.
    pub(crate) path: String,
}

/// The body of a request for a mark.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MarkRequest {
    /// The text of the mark.
    pub(crate) text: String,
    /// The disks; by default all that are recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) disks: Option<Vec<String>>,
}

/// A mark that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(crate) text: String,
    /// The disks whose logs have it.
    pub(crate) disks: Vec<String>,
}

/// The body of a request for a commit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CommitRequest {
    /// The disks; by default all that have a frozen layer that a snapshot has made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) disks: Option<Vec<String>>,
    /// Also if other layers cannot be used afterwards.
    #[serde(default)]
    pub(crate) force: bool,
}

/// The commit that runs, or the last one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CommitStatus {
    /// In the order in which they are merged; empty before the first commit.
    pub(crate) disks: Vec<LayerCommit>,
}

/// The commit of one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerCommit {
    pub(crate) id: String,
    /// The frozen layer.
    pub(crate) layer: String,
    /// Its base.
    pub(crate) base: String,
    /// `waiting`, `running`, `merged`, `stopped` or `failed`.
    pub(crate) state: String,
    pub(crate) done_bytes: u64,
    pub(crate) total_bytes: u64,
    pub(crate) elapsed_ms: u64,
    /// For how long requests were held, without the flush; null before the end.
    pub(crate) held_us: Option<u64>,
    /// How long the flush took meanwhile.
    pub(crate) flush_us: Option<u64>,
    /// Why the layer is still there after it was merged; null if it is gone.
    pub(crate) kept: Option<String>,
    /// Why it failed.
    pub(crate) error: Option<String>,
}

/// Direct transfers that go through a copy: the reason, or null.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StableCopies {
    pub(crate) reads: Option<String>,
    pub(crate) writes: Option<String>,
}

/// One disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Disk {
    pub(crate) id: String,
    pub(crate) path: String,
    /// The address of a SCSI disk; null for a virtio-blk disk.
    pub(crate) scsi: Option<Scsi>,
    /// The guest no longer finds the disk. It is removed when its requests in flight have
    /// completed.
    pub(crate) detaching: bool,
    /// Problems of the disk; empty for a healthy one.
    pub(crate) warnings: Vec<String>,
    pub(crate) size_bytes: u64,
    pub(crate) logical_block_bytes: u32,
    pub(crate) physical_block_bytes: u32,
    pub(crate) readonly: bool,
    /// The cache mode.
    pub(crate) cache: String,
    /// Whether the guest sees a volatile write cache now. The guest may disable it.
    pub(crate) write_cache: bool,
    /// Acknowledged writes were lost. Flushes fail until the disk is reopened.
    pub(crate) lost_writes: bool,
    /// Direct transfers that are copied, and the reasons.
    #[serde(default)]
    pub(crate) stable_copies: StableCopies,
    /// Whether the storage keeps flushed data, as far as it showed when the disk was opened:
    /// `kept`, `not_kept` or `unknown`.
    #[serde(default)]
    pub(crate) flushes: String,
    /// Requests that the host has failed; null if there are none.
    #[serde(default)]
    pub(crate) host_errors: Option<HostErrors>,
    /// Requests held for ENOSPC or EDQUOT; null if there are none.
    pub(crate) enospc_hold: Option<EnospcHold>,
    /// The soft limit on the space of the backing store; null if there is none.
    pub(crate) soft_limit: Option<SoftLimit>,
    /// The changes of an ephemeral disk; null for a disk that is kept.
    #[serde(default)]
    pub(crate) ephemeral: Option<Ephemeral>,
    /// The recording; null for a disk that is not recorded.
    #[serde(default)]
    pub(crate) record: Option<Record>,
    /// Results of the guest's discards.
    pub(crate) discards: Discards,
    pub(crate) engine: Engine,
    /// The sum of all queues.
    pub(crate) total: Stats,
    /// Each queue, by its number.
    pub(crate) queues: Vec<Stats>,
}

/// Address of a SCSI disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Scsi {
    pub(crate) controller: u8,
    pub(crate) target: u8,
    /// The logical unit number.
    pub(crate) lun: u16,
}

/// The recording of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The log.
    pub(crate) path: String,
    /// Its length.
    pub(crate) bytes: u64,
    /// Its entries.
    pub(crate) entries: u64,
    /// Why it has ended; null before that.
    pub(crate) end: Option<String>,
    /// It ended too early.
    pub(crate) failed: bool,
}

/// The changes of an ephemeral disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ephemeral {
    /// The folder of the file without a name; null for the memory of the host.
    pub(crate) folder: Option<String>,
    /// Bytes in blocks that were written.
    pub(crate) used_bytes: u64,
    /// Most bytes; null without a limit.
    pub(crate) limit_bytes: Option<u64>,
    /// Requests that would have exceeded the limit, and failed.
    pub(crate) refused: u64,
}

/// Requests that the host has failed since the disk was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostErrors {
    /// Number of requests.
    pub(crate) requests: u64,
    /// The last one: `read`, `write`, `compare and write`, `flush`, `discard` or `write zeroes`.
    pub(crate) operation: String,
    /// Its error number (errno(3)); null if it was no error of a system call.
    pub(crate) errno: Option<i32>,
    /// Time since it failed.
    pub(crate) age_ms: u64,
}

/// Requests held because the host is out of space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EnospcHold {
    /// Number of requests.
    pub(crate) requests: u64,
    /// The host's error: `ENOSPC` or `EDQUOT`.
    pub(crate) error: String,
    /// The error in words.
    pub(crate) reason: String,
    /// Age of the oldest request.
    pub(crate) age_ms: u64,
    /// Time until the oldest request fails, unless space is freed.
    pub(crate) deadline_ms: u64,
}

/// The soft limit on the space of a disk's backing store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SoftLimit {
    /// The limit, in percent of the store's size.
    pub(crate) percent: u8,
    /// Whether usage has reached the limit.
    pub(crate) reached: bool,
    /// Used space of the store, by all its users; null if the host does not report it.
    pub(crate) used_bytes: Option<u64>,
    /// Free space of the store.
    pub(crate) available_bytes: Option<u64>,
}

/// Results of a guest's discards, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Discards {
    /// Discarded by the guest.
    pub(crate) requested_bytes: u64,
    /// Freed only because neighbouring discards were merged; included in `freed_bytes`.
    pub(crate) merged_bytes: u64,
    /// Freed on the host.
    pub(crate) freed_bytes: u64,
    /// Not freed: parts of a discard granule, and discards that the host refused.
    pub(crate) skipped_bytes: u64,
}

/// The latest events, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Events {
    pub(crate) events: Vec<Event>,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Event {
    /// Consecutive, from 1. Only the latest events are kept.
    pub(crate) number: u64,
    /// Time since 1970, in UTC.
    pub(crate) time_ms: u64,
    /// `soft_limit_reached`, `soft_limit_receded`, `requests_stalled`, `requests_resumed`,
    /// `host_errors`, `writes_lost`, `snapshot_made`, `layer_merged`, `recording_stopped`,
    /// `disk_attached`, `disk_detached` or `disk_detached_with_loss`.
    pub(crate) event: String,
    /// The disk's name.
    pub(crate) disk: String,
    /// Description for people.
    pub(crate) text: String,
}

/// The I/O engine of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Engine {
    pub(crate) name: String,
    /// Why this engine was chosen.
    pub(crate) reason: String,
}

/// Statistics since the guest started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stats {
    /// Requests in the engine now.
    pub(crate) in_flight: u64,
    /// Rounds of the workers' loop.
    pub(crate) rounds: u64,
    /// Interrupts sent.
    pub(crate) interrupts: u64,
    /// Times that a worker yielded its CPU while polling.
    pub(crate) yields: u64,
    /// Time that a worker currently polls before it sleeps: the maximum of all queues.
    pub(crate) poll_ns: u64,
    /// Requests completed without I/O.
    pub(crate) answered: u64,
    /// By kind of request.
    pub(crate) requests: BTreeMap<String, Requests>,
    /// Time in the ring while the worker was busy, an upper bound.
    pub(crate) wait: Latency,
    /// Time from the backend's completion until the driver could see it.
    pub(crate) completion: Latency,
}

/// Statistics of one kind of request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Requests {
    /// Completed, successfully or not.
    pub(crate) count: u64,
    /// Successfully transferred, discarded or zeroed.
    pub(crate) bytes: u64,
    pub(crate) errors: u64,
    /// Time in the engine and the host.
    pub(crate) backend: Latency,
}

/// A latency histogram. Each figure is the upper end of a bucket, at most a quarter too high; null
/// without samples, or in the bucket without an end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) count: u64,
    pub(crate) sum_ns: u64,
    pub(crate) p50_ns: Option<u64>,
    pub(crate) p99_ns: Option<u64>,
    pub(crate) max_ns: Option<u64>,
    /// The buckets that are not empty.
    pub(crate) buckets: Vec<Bucket>,
}

/// Number of samples up to the end of this bucket and beyond the end of the previous one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bucket {
    /// Null for the last bucket, which has no end.
    pub(crate) up_to_ns: Option<u64>,
    pub(crate) count: u64,
}
