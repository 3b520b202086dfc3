//! The metrics page, in Prometheus' text format 0.0.4. Control socket thread.
//!
//! Counters are per queue. Latencies are summed over the queues of a disk, in buckets that end at
//! powers of two.

use std::fmt::{Display, Write};
use std::sync::Arc;
use std::time::Duration;

use devices::storage::{Histogram, OperationKind, QueueStats};

use super::collect::{DiskSnapshot, View};
use super::latency::Counts;
use super::model::{Discards, EnospcHold, Record, RunState};
use crate::disks::ManagedDisk;
use crate::log;

/// The value of `Content-Type`.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Every fourth bucket of [`Histogram`] ends at a power of two.
const BUCKET_STEP: usize = 4;

/// All metrics of the machine.
pub(super) fn render(view: &View) -> String {
    let mut page = Page(String::new());
    machine(&mut page, view);
    let disks = view.disks.all();
    let snapshots: Vec<_> = disks.iter().map(|disk| DiskSnapshot::of(disk)).collect();
    disk_states(&mut page, &snapshots);
    discards(&mut page, &snapshots);
    host_errors(&mut page, &snapshots);
    enospc_holds(&mut page, &snapshots);
    recordings(&mut page, &snapshots);
    queues(&mut page, &disks);
    requests(&mut page, &disks);
    latencies(&mut page, &disks);
    page.0
}

struct Page(String);

impl Page {
    /// Begins a family of metrics.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// Adds a sample. The values of `labels` need no escapes, by the rules for disk ids.
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        let mut opening = '{';
        for (label, text) in labels {
            let _ = write!(self.0, "{opening}{label}=\"{text}\"");
            opening = ',';
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn single(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    fn histogram(&mut self, name: &str, labels: &[(&str, &str)], counts: &Counts) {
        let bucket = format!("{name}_bucket");
        for (end, below) in counts.cumulative().step_by(BUCKET_STEP) {
            let end = end.as_secs_f64().to_string();
            self.sample(&bucket, &[labels, &[("le", &end)]].concat(), below);
        }
        self.sample(&bucket, &[labels, &[("le", "+Inf")]].concat(), counts.count());
        self.sample(&format!("{name}_sum"), labels, counts.sum().as_secs_f64());
        self.sample(&format!("{name}_count"), labels, counts.count());
    }
}

fn machine(page: &mut Page, view: &View) {
    page.family("bulkhead_info", "gauge", "The program.");
    page.sample("bulkhead_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    let paused = u8::from(view.state() == RunState::Paused);
    page.single("bulkhead_paused", "Whether the machine is paused.", paused);
    let uptime = view.started.elapsed().as_secs_f64();
    page.single("bulkhead_uptime_seconds", "Time since the guest started.", uptime);
    let name = "bulkhead_log_dropped_messages_total";
    page.family(name, "counter", "Log messages that standard error did not take.");
    page.sample(name, &[], log::dropped());
    if let Some(machine) = &view.machine {
        page.single("bulkhead_vcpus", "Virtual processors.", machine.vcpus);
        page.single("bulkhead_memory_bytes", "Guest memory.", machine.memory_bytes);
    }
}

fn disk_states(page: &mut Page, disks: &[DiskSnapshot<'_>]) {
    let mut gauge = |name: &str, help: &str, value: fn(&DiskSnapshot<'_>) -> u64| {
        page.family(name, "gauge", help);
        for snapshot in disks {
            page.sample(name, &[("disk", snapshot.disk.config.id())], value(snapshot));
        }
    };
    gauge("bulkhead_disk_size_bytes", "Size.", |snapshot| {
        snapshot.disk.control.geometry().capacity
    });
    let help = "Whether the guest sees a volatile write cache.";
    gauge("bulkhead_disk_write_cache", help, |snapshot| snapshot.disk.control.write_cache().into());
    gauge("bulkhead_disk_unsafe", "Whether flushes are ignored.", |snapshot| {
        snapshot.is_unsafe().into()
    });
    let help = "Age of the oldest request, if the host keeps it for 5 s or longer; else 0.";
    gauge("bulkhead_disk_stalled_seconds", help, |snapshot| {
        snapshot.disk.stall().map_or(0, |age| age.as_secs())
    });
    let help = "Requests held for ENOSPC or EDQUOT.";
    gauge("bulkhead_disk_enospc_hold_requests", help, |snapshot| {
        snapshot.status.enospc_hold.map_or(0, |hold| hold.requests.into())
    });
    gauge("bulkhead_disk_lost_writes", "Whether acknowledged writes were lost.", |snapshot| {
        snapshot.status.lost_writes.is_some().into()
    });
    let help = "Whether the storage is known to lose flushed data at a power cut.";
    gauge("bulkhead_disk_flushes_not_kept", help, |snapshot| {
        (snapshot.flush_promise() == "not_kept").into()
    });
    let help = "Whether usage of the backing store has reached the soft limit.";
    gauge("bulkhead_disk_soft_limit_reached", help, |snapshot| {
        snapshot.status.soft_limit.is_some_and(|limit| limit.reached).into()
    });
}

fn discards(page: &mut Page, disks: &[DiskSnapshot<'_>]) {
    let mut counter = |result: &str, help: &str, bytes: fn(&Discards) -> u64| {
        let name = format!("bulkhead_disk_discard_{result}_bytes_total");
        page.family(&name, "counter", help);
        for snapshot in disks {
            let labels = [("disk", snapshot.disk.config.id())];
            page.sample(&name, &labels, bytes(&snapshot.discards()));
        }
    };
    counter("requested", "Bytes that the guest discarded.", |discards| discards.requested_bytes);
    let help = "Bytes freed only because neighbouring discards were merged.";
    counter("merged", help, |discards| discards.merged_bytes);
    counter("freed", "Bytes freed on the host.", |discards| discards.freed_bytes);
    counter("skipped", "Discarded bytes that were not freed.", |discards| discards.skipped_bytes);
}

/// The age exists only for disks with errors.
fn host_errors(page: &mut Page, disks: &[DiskSnapshot<'_>]) {
    let name = "bulkhead_disk_host_errors_total";
    page.family(name, "counter", "Requests that the host has failed.");
    for snapshot in disks {
        let requests = snapshot.status.host_errors.map_or(0, |errors| errors.requests);
        page.sample(name, &[("disk", snapshot.disk.config.id())], requests);
    }
    let name = "bulkhead_disk_host_error_age_seconds";
    page.family(name, "gauge", "Time since the host failed a request. Absent without errors.");
    for snapshot in disks {
        let Some(errors) = snapshot.host_errors() else { continue };
        let seconds = Duration::from_millis(errors.age_ms).as_secs_f64();
        page.sample(name, &[("disk", snapshot.disk.config.id())], seconds);
    }
}

/// Samples exist only while requests are held.
fn enospc_holds(page: &mut Page, disks: &[DiskSnapshot<'_>]) {
    let mut gauge = |name: &str, help: &str, milliseconds: fn(&EnospcHold) -> u64| {
        page.family(name, "gauge", help);
        for snapshot in disks {
            let Some(hold) = snapshot.enospc_hold() else { continue };
            let labels = [("disk", snapshot.disk.config.id()), ("error", hold.error.as_str())];
            let seconds = Duration::from_millis(milliseconds(&hold)).as_secs_f64();
            page.sample(name, &labels, seconds);
        }
    };
    let help = "Age of the oldest held request, by the host's error. Absent without held requests.";
    gauge("bulkhead_disk_enospc_hold_age_seconds", help, |hold| hold.age_ms);
    let help = "Time until the oldest held request fails, unless space is freed.";
    gauge("bulkhead_disk_enospc_hold_deadline_seconds", help, |hold| hold.deadline_ms);
}

/// Samples exist only for recorded disks.
fn recordings(page: &mut Page, disks: &[DiskSnapshot<'_>]) {
    let mut gauge = |name: &str, help: &str, value: fn(&Record) -> u64| {
        page.family(name, "gauge", help);
        for snapshot in disks {
            let Some(record) = snapshot.record() else { continue };
            page.sample(name, &[("disk", snapshot.disk.config.id())], value(&record));
        }
    };
    let help = "Length of the log of a recorded disk.";
    gauge("bulkhead_disk_record_bytes", help, |record| record.bytes);
    let help = "Whether the recording stopped while the disk was in use.";
    gauge("bulkhead_disk_record_failed", help, |record| record.failed.into());
}

fn queues(page: &mut Page, disks: &[Arc<ManagedDisk>]) {
    let mut family = |name: &str, kind: &str, help: &str, value: fn(&QueueStats) -> u64| {
        page.family(name, kind, help);
        for (disk, number, queue) in all_queues(disks) {
            page.sample(name, &[("disk", disk), ("queue", &number)], value(queue));
        }
    };
    let counter = "counter";
    family("bulkhead_disk_in_flight", "gauge", "Requests in the engine.", |queue| {
        queue.in_flight.get()
    });
    family("bulkhead_disk_rounds_total", counter, "Rounds of the worker's loop.", |queue| {
        queue.rounds.get()
    });
    family("bulkhead_disk_interrupts_total", counter, "Interrupts sent.", |queue| {
        queue.interrupts.get()
    });
    family("bulkhead_disk_yields_total", counter, "Times the CPU was yielded.", |queue| {
        queue.yields.get()
    });
    family("bulkhead_disk_answered_total", counter, "Requests without I/O.", |queue| {
        queue.answered.get()
    });
}

fn requests(page: &mut Page, disks: &[Arc<ManagedDisk>]) {
    let mut by_kind = |name: &str, help: &str, value: fn(&QueueStats, OperationKind) -> u64| {
        page.family(name, "counter", help);
        for (disk, number, queue) in all_queues(disks) {
            for kind in OperationKind::ALL {
                let labels = [("disk", disk), ("queue", &number), ("kind", kind.name())];
                page.sample(name, &labels, value(queue, kind));
            }
        }
    };
    by_kind("bulkhead_disk_requests_total", "Requests completed.", |queue, kind| {
        queue.kind(kind).requests.get()
    });
    let help = "Bytes transferred, discarded or zeroed.";
    by_kind("bulkhead_disk_bytes_total", help, |queue, kind| queue.kind(kind).bytes.get());
    by_kind("bulkhead_disk_errors_total", "Requests that failed.", |queue, kind| {
        queue.kind(kind).errors.get()
    });
}

/// The disk's name, the number and the statistics of each queue.
fn all_queues(disks: &[Arc<ManagedDisk>]) -> impl Iterator<Item = (&str, String, &QueueStats)> {
    disks.iter().flat_map(|disk| {
        let queues = disk.control.stats().iter().enumerate();
        queues.map(|(number, queue)| (disk.config.id(), number.to_string(), &**queue))
    })
}

fn latencies(page: &mut Page, disks: &[Arc<ManagedDisk>]) {
    let mut family = |name: &str, help: &str, histogram: fn(&QueueStats) -> &Histogram| {
        page.family(name, "histogram", help);
        for disk in disks {
            let queues = disk.control.stats().iter();
            let counts = Counts::of(queues.map(|queue| histogram(queue)));
            page.histogram(name, &[("disk", disk.config.id())], &counts);
        }
    };
    let help = "Time in the ring of a busy worker, an upper bound.";
    family("bulkhead_disk_wait_seconds", help, |queue| &queue.wait);
    let help = "Time from completion until the driver could see it.";
    family("bulkhead_disk_completion_seconds", help, |queue| &queue.completion);
    let name = "bulkhead_disk_backend_seconds";
    page.family(name, "histogram", "Time in the engine and the host.");
    for disk in disks {
        for kind in OperationKind::ALL {
            let queues = disk.control.stats().iter();
            let counts = Counts::of(queues.map(|queue| &queue.kind(kind).backend));
            let labels = [("disk", disk.config.id()), ("kind", kind.name())];
            page.histogram(name, &labels, &counts);
        }
    }
}
