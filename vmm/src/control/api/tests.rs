//! A disk in trouble looks the same in the status, on the command line and in the metrics.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use block::{
    Backend, BackingSpace, ByteOffset, CacheMode, Crossing, DiskOptions, DiskStatus, EngineSetup,
    EnospcHold, Extent, FlushPromise, Geometry, HostErrors, IoEngine, LateEnospc, LogSuper,
    LostWrites, MemoryDisk, OpenError, Problem, RawFile, RecordOptions, RecordedDisk, Recording,
    ResizeError, StableCopies, StoreFacts,
};
use devices::virtio::Block;
use fixtures::host::Mount;
use fixtures::needs;
use serde_json::Value;

use super::http::{Request, Response};
use super::metrics;
use super::model::{Disk, Status};
use super::routes::answer;
use super::{MachineView, View};
use crate::cmd::ctl::render;
use crate::config::{DiskBus, DiskConfig, MachineConfig};
use crate::control::command_channel;
use crate::disks::{
    Commits, DiskRegistry, EventLog, Hotplug, ManagedDisk, ScsiControllers, StallWatch,
};
use crate::machine::PauseGate;

/// A disk with held requests and lost writes, as the test sets them.
struct TroubledDisk {
    disk: MemoryDisk,
    hold: Option<EnospcHold>,
    host_errors: Option<HostErrors>,
    lost_writes: Option<LostWrites>,
    store: StoreFacts,
}

impl TroubledDisk {
    fn new(hold: Option<EnospcHold>, lost_writes: bool, cache: CacheMode) -> Self {
        let geometry = Geometry {
            capacity: 1 << 20,
            logical_block: 512,
            physical_block: 4096,
            optimal_io: 0,
            discard: None,
        };
        Self {
            disk: MemoryDisk::new(geometry, cache, false),
            hold,
            host_errors: None,
            lost_writes: lost_writes
                .then_some(LostWrites { time: SystemTime::UNIX_EPOCH, errno: libc::ENOSPC }),
            store: StoreFacts::default(),
        }
    }
}

impl Backend for TroubledDisk {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn cache_mode(&self) -> CacheMode {
        self.disk.cache_mode()
    }

    fn read_only(&self) -> bool {
        self.disk.read_only()
    }

    fn engine(&self, setup: &EngineSetup<'_>) -> Result<Box<dyn IoEngine>, OpenError> {
        self.disk.engine(setup)
    }

    fn status(&self) -> DiskStatus {
        let status = self.disk.status();
        let Self { host_errors, hold: enospc_hold, lost_writes, .. } = *self;
        DiskStatus { lost_writes, host_errors, enospc_hold, store: self.store.clone(), ..status }
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.sync()
    }

    fn stop_holding(&self) {
        self.disk.stop_holding();
    }

    fn allocation(&self, from: ByteOffset, limit: usize) -> io::Result<Vec<Extent>> {
        self.disk.allocation(from, limit)
    }

    fn backing_space(&self) -> io::Result<Option<BackingSpace>> {
        self.disk.backing_space()
    }

    fn check_soft_limit(&self) -> io::Result<Option<Crossing>> {
        self.disk.check_soft_limit()
    }

    fn resize(&self, size: Option<u64>) -> Result<u64, ResizeError> {
        self.disk.resize(size)
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// A log that ends by the wish of its disk, and one that fails.
#[test]
fn a_recorded_disk_is_shown_and_marked() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let inner = Arc::new(TroubledDisk::new(None, false, CacheMode::WriteBack));
    let recording = Recording::start("data", &*inner, &RecordOptions::new(log.path())).unwrap();
    let view = view(RecordedDisk::new(inner, Arc::clone(&recording)));
    let request = |method: &str, path: &str, body: &str| {
        let (method, path, body) = (method.into(), path.into(), body.as_bytes().to_vec());
        let Response { status, body, .. } = answer(&view, &Request { method, path, body });
        (status, body)
    };
    let post = |body: &str| request("POST", "/v1/mark", body);
    let stop = || request("DELETE", "/v1/disks/data/record", "");
    assert_eq!(
        post(r#"{"text":"one"}"#),
        (201, "{\"text\":\"one\",\"disks\":[\"data\"]}\n".into())
    );
    for (status, body, part) in [
        (400, "{}", "missing field `text`"),
        (400, r#"{"text":"a\nb"}"#, "without control characters"),
        (404, r#"{"text":"a","disks":["b"]}"#, "the disks are: data"),
    ] {
        let (found, answer) = post(body);
        assert!(found == status && answer.contains(part), "{found} {answer}");
    }
    let (disk, text, metrics) = shown(&view);
    let record = disk.record.unwrap();
    let path = log.path().to_str().unwrap();
    assert_eq!((record.path.as_str(), record.bytes, record.entries), (path, 1024, 1));
    assert_eq!((record.end.as_deref(), record.failed), (None, false));
    assert_eq!(keys(&serde_json::to_value(record).unwrap()), keys(&described("Record")));
    assert!(!text.contains("warning"), "{text}");
    assert!(metrics.contains("bulkhead_disk_record_bytes{disk=\"data\"} 1024\n"), "{metrics}");
    assert!(metrics.contains("bulkhead_disk_record_failed{disk=\"data\"} 0\n"), "{metrics}");

    let (status, answer) = stop();
    assert!(status == 200 && answer.contains("\"end\":\"stopped by request\""), "{answer}");
    assert_eq!(LogSuper::decode(&std::fs::read(log.path()).unwrap()).unwrap().entries, 2);
    assert_eq!(stop().0, 409);
    let (status, answer) = post(r#"{"text":"two"}"#);
    assert!(status == 409 && answer.contains("has ended: stopped by request"), "{answer}");
    let (disk, text, _) = shown(&view);
    assert!(!disk.record.unwrap().failed && !text.contains("warning"), "{text}");
}

#[test]
fn a_recording_that_fails_is_shown_and_is_an_event() {
    if !needs::root() {
        return;
    }
    let store = Mount::new("tmpfs", "size=64K");
    let inner = Arc::new(TroubledDisk::new(None, false, CacheMode::WriteBack));
    let options = RecordOptions { path: store.path().join("data.log"), limit: Some(u64::MAX) };
    let recording = Recording::start("data", &*inner, &options).unwrap();
    let view = view(RecordedDisk::new(inner, Arc::clone(&recording)));
    let marked = (0..1000).find_map(|_| recording.mark("again").err());
    let reason = "cannot write the log: No space left on device (os error 28)";
    assert_eq!(marked.unwrap().to_string(), format!("the recording has ended: {reason}"));
    let (disk, text, metrics) = shown(&view);
    let record = disk.record.unwrap();
    assert!(record.failed && record.end.as_deref() == Some(reason), "{record:?}");
    let warning = format!("warning: disk data: it is not recorded any more: {reason}\n");
    assert!(text.contains(&warning), "{text}");
    assert!(metrics.contains("bulkhead_disk_record_failed{disk=\"data\"} 1\n"), "{metrics}");

    let _watch = StallWatch::start(Arc::clone(&view.disks), Arc::clone(&view.events)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while view.events().events.is_empty() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    thread::sleep(Duration::from_millis(1500));
    let events = view.events();
    let [event] = events.events.as_slice() else { panic!("{events:?}") };
    assert_eq!((&*event.event, &*event.disk, &*event.text), ("recording_stopped", "data", reason));
    drop((view, recording));
}

#[test]
fn a_disk_that_is_not_recorded_has_no_marks() {
    let view = view(TroubledDisk::new(None, false, CacheMode::WriteBack));
    assert_eq!(shown(&view).0.record, None);
    for body in [r#"{"text":"a"}"#, r#"{"text":"a","disks":["data"]}"#] {
        let body = body.as_bytes().to_vec();
        let request = Request { method: "POST".into(), path: "/v1/mark".into(), body };
        assert_eq!(answer(&view, &request).status, 409);
    }
    let (method, path) = ("DELETE".into(), "/v1/disks/data/record".into());
    assert_eq!(answer(&view, &Request { method, path, body: Vec::new() }).status, 409);
}

fn view(backend: impl Backend + 'static) -> View {
    view_with(backend, |disk, _| disk)
}

/// A view of one disk, which `prepare` may have watched.
fn view_with(
    backend: impl Backend + 'static,
    prepare: impl FnOnce(ManagedDisk, &Arc<EventLog>) -> ManagedDisk,
) -> View {
    let mut config = DiskConfig::minimal("data.img".as_ref(), DiskBus::VirtioBlk);
    config.options.cache = backend.cache_mode();
    let control = Block::new("data", "data", 1, Arc::new(backend)).control();
    let events: Arc<EventLog> = Arc::default();
    let disk = prepare(ManagedDisk::new(config, control), &events);
    let disks = Arc::new(DiskRegistry::new([disk]));
    let controllers = ScsiControllers::default();
    let hotplug = Hotplug::new(
        Arc::clone(&disks),
        controllers,
        &MachineConfig::minimal(),
        Arc::clone(&events),
    );
    View {
        started: Instant::now(),
        machine: Some(MachineView {
            vcpus: 1,
            memory_bytes: 1 << 20,
            gate: Arc::new(PauseGate::default()),
            commands: command_channel().unwrap().0,
            hotplug: Arc::new(hotplug),
        }),
        disks,
        events,
        commits: Commits::default(),
    }
}

/// The disk in the status, the text of `ctl status`, and the metrics page.
fn shown(view: &View) -> (Disk, String, String) {
    let Status { disks, .. } = view.status();
    let text = anstream::adapter::strip_str(&render::status(&view.status())).to_string();
    (disks.into_iter().next().unwrap(), text, metrics::render(view))
}

#[test]
fn held_requests_are_shown_with_error_age_and_deadline() {
    for (errno, name, words) in [
        (libc::ENOSPC, "ENOSPC", "no space left"),
        (libc::EDQUOT, "EDQUOT", "the quota is exceeded"),
    ] {
        let now = Instant::now();
        let hold = EnospcHold {
            requests: 3,
            since: now.checked_sub(Duration::from_secs(40)).unwrap(),
            deadline: now + Duration::from_secs(20),
            errno,
        };
        let view = view(TroubledDisk::new(Some(hold), false, CacheMode::WriteBack));
        let (disk, text, metrics) = shown(&view);
        let hold = disk.enospc_hold.unwrap();
        assert_eq!((hold.requests, &*hold.error, &*hold.reason), (3, name, words));
        assert!((40_000..41_000).contains(&hold.age_ms), "{}", hold.age_ms);
        assert!((19_000..=20_000).contains(&hold.deadline_ms), "{}", hold.deadline_ms);
        let warning =
            format!("warning: disk data: 3 requests held for 40 s ({name}: {words}); unless");
        assert!(text.contains(&warning), "{text}");
        assert!(text.contains("to fail in 19 s") || text.contains("to fail in 20 s"), "{text}");
        assert!(
            metrics.contains("bulkhead_disk_enospc_hold_requests{disk=\"data\"} 3\n"),
            "{metrics}"
        );
        let sample = |name: &str| -> f64 {
            let start = format!("{name}{{disk=\"data\",error=\"{}\"}} ", hold.error);
            let line = metrics.lines().find_map(|line| line.strip_prefix(&*start));
            line.unwrap_or_else(|| panic!("no {start}: {metrics}")).parse().unwrap()
        };
        assert!((40.0..41.0).contains(&sample("bulkhead_disk_enospc_hold_age_seconds")));
        assert!((19.0..=20.0).contains(&sample("bulkhead_disk_enospc_hold_deadline_seconds")));
    }
}

/// The keys of an object.
fn keys(value: &Value) -> BTreeSet<String> {
    value.as_object().unwrap().keys().cloned().collect()
}

/// The properties of a schema in the description.
fn described(schema: &str) -> Value {
    let text = include_str!("../../../../resources/openapi.json");
    let description: Value = serde_json::from_str(text).unwrap();
    description["components"]["schemas"][schema]["properties"].clone()
}

#[test]
fn held_requests_match_the_description() {
    let now = Instant::now();
    let hold = EnospcHold { requests: 1, since: now, deadline: now, errno: libc::ENOSPC };
    let view = view(TroubledDisk::new(Some(hold), false, CacheMode::WriteBack));
    let json = serde_json::to_value(shown(&view).0.enospc_hold).unwrap();
    let described = described("EnospcHold");
    assert_eq!(keys(&json), keys(&described));
    assert!(described["error"]["enum"].as_array().unwrap().contains(&json["error"]));
}

#[test]
fn host_errors_are_shown_with_their_age() {
    let last = Instant::now().checked_sub(Duration::from_secs(70)).unwrap();
    let (requests, operation) = (3, "write zeroes");
    let host_errors = Some(HostErrors { requests, operation, errno: Some(libc::ENXIO), last });
    let healthy = TroubledDisk::new(None, false, CacheMode::WriteBack);
    let (disk, text, metrics) = shown(&view(TroubledDisk { host_errors, ..healthy }));
    let json = serde_json::to_value(disk.host_errors.unwrap()).unwrap();
    assert!((70_000..75_000).contains(&json["age_ms"].as_u64().unwrap()), "{json}");
    let warning = "warning: disk data: 3 requests failed on the host, the last 7";
    let reason = "s ago (write zeroes: No such device or address (os error 6))\n";
    assert!(text.contains(warning) && text.contains(reason), "{text}");
    assert!(metrics.contains("bulkhead_disk_host_errors_total{disk=\"data\"} 3\n"), "{metrics}");
    assert!(metrics.contains("bulkhead_disk_host_error_age_seconds{disk=\"data\"} 7"), "{metrics}");
    let described = described("HostErrors");
    assert_eq!(keys(&json), keys(&described));
    assert!(described["operation"]["enum"].as_array().unwrap().contains(&json["operation"]));
}

#[test]
fn a_disk_for_which_the_end_waits_is_shown() {
    let healthy = TroubledDisk::new(None, false, CacheMode::WriteBack);
    let view = view(healthy);
    let disk = view.disks.find("data").unwrap();
    assert_eq!(disk.pending_end(), None);
    disk.begin_end();
    let warning =
        "warning: disk data: the program has been waiting for 0 s to end: being flushed\n";
    assert!(shown(&view).1.contains(warning), "{}", shown(&view).1);
    disk.set_flushed();
    assert_eq!(shown(&view).0.warnings, Vec::<String>::new());
}

/// Every file system that runs tests is used to more than one percent.
#[test]
fn a_reached_soft_limit_is_shown_and_is_an_event() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let options = DiskOptions { soft_limit: Some(1), ..DiskOptions::new(CacheMode::WriteBack) };
    let unwatched = view(RawFile::open(image.path(), &options).unwrap());
    assert!(!shown(&unwatched).0.soft_limit.unwrap().reached, "not queried yet");
    drop(unwatched);

    let disk = RawFile::open(image.path(), &options).unwrap();
    let view = view_with(disk, |disk, events| disk.watched(events).unwrap());
    let deadline = Instant::now() + Duration::from_secs(20);
    while view.events().events.is_empty() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    let (disk, text, metrics) = shown(&view);
    let limit = disk.soft_limit.as_ref().unwrap();
    assert!(limit.reached && limit.percent == 1 && limit.used_bytes > Some(0), "{limit:?}");
    assert!(text.contains("warning: disk data: soft limit: 1 % of the space"), "{text}");
    assert!(metrics.contains("bulkhead_disk_soft_limit_reached{disk=\"data\"} 1\n"), "{metrics}");

    let events = view.events();
    let text = anstream::adapter::strip_str(&render::events(&events)).to_string();
    let [event] = events.events.as_slice() else { panic!("{events:?}") };
    assert_eq!((event.number, &*event.event, &*event.disk), (1, "soft_limit_reached", "data"));
    assert!(
        text.contains("soft limit reached  1 % of the space of its backing store is used"),
        "{text}"
    );
    for (json, schema) in [
        (serde_json::to_value(event).unwrap(), "Event"),
        (serde_json::to_value(limit).unwrap(), "SoftLimit"),
        (serde_json::to_value(&disk.discards).unwrap(), "Discards"),
        (serde_json::to_value(&disk).unwrap(), "Disk"),
    ] {
        assert_eq!(keys(&json), keys(&described(schema)), "{schema}");
    }
}

#[test]
fn a_healthy_disk_has_no_warning() {
    let view = view(TroubledDisk::new(None, false, CacheMode::WriteBack));
    let (disk, text, metrics) = shown(&view);
    assert_eq!((disk.enospc_hold, disk.warnings.len()), (None, 0));
    assert!(!text.contains("warning"), "{text}");
    assert!(metrics.contains("bulkhead_disk_enospc_hold_requests{disk=\"data\"} 0\n"), "{metrics}");
    assert!(!metrics.contains("bulkhead_disk_enospc_hold_age_seconds{"), "{metrics}");
    assert_eq!(disk.host_errors, None);
    assert!(metrics.contains("bulkhead_disk_host_errors_total{disk=\"data\"} 0\n"), "{metrics}");
    assert!(!metrics.contains("bulkhead_disk_host_error_age_seconds{"), "{metrics}");
}

#[test]
fn storage_that_keeps_no_flush_or_needs_copies_is_shown() {
    let problem = |flush| Problem {
        storey: "tank/a".to_owned(),
        what: "has sync=disabled".to_owned(),
        remedy: None,
        flush,
        is_supposed: false,
    };
    let copied = StableCopies { writes: Some("md raid1 /dev/md0".to_owned()), reads: None };
    for (flush, name, warnings, metric) in
        [(FlushPromise::Unknown, "unknown", 1, 0), (FlushPromise::NotKept, "not_kept", 2, 1)]
    {
        let store = StoreFacts {
            copied: copied.clone(),
            not_copied: copied.clone(),
            flush_problems: vec![problem(flush), problem(flush)],
            ..StoreFacts::default()
        };
        let healthy = TroubledDisk::new(None, false, CacheMode::None);
        let (disk, text, metrics) = shown(&view(TroubledDisk { store, ..healthy }));
        assert_eq!((disk.flushes.as_str(), disk.warnings.len()), (name, warnings));
        assert_eq!(disk.stable_copies.writes.as_deref(), Some("md raid1 /dev/md0"));
        assert_eq!(text.contains("tank/a has sync=disabled"), warnings == 2, "{text}");
        assert!(text.contains("damages its data: md raid1 /dev/md0"), "{text}");
        let metric = format!("bulkhead_disk_flushes_not_kept{{disk=\"data\"}} {metric}\n");
        assert!(metrics.contains(&metric), "{metrics}");
    }
}

#[test]
fn storage_that_may_accept_writes_without_space_is_shown() {
    for (is_certain, warnings) in [(false, 1), (true, 0)] {
        let late = LateEnospc { is_certain, storey: "block device /dev/sda".to_owned() };
        let volume_quota = Some("tank/q".to_owned());
        let store = StoreFacts { late_enospc: Some(late), volume_quota, ..StoreFacts::default() };
        let healthy = TroubledDisk::new(None, false, CacheMode::WriteBack);
        let (disk, text, _) = shown(&view(TroubledDisk { store, ..healthy }));
        assert_eq!(disk.warnings.len(), 1 + warnings, "a start refuses the certain one");
        assert!(text.contains("at the quota of tank/q: ZFS fails them with EIO"), "{text}");
        assert_eq!(text.contains("block device /dev/sda accepts them"), warnings == 1, "{text}");
    }
}

#[test]
fn lost_writes_and_cache_unsafe_are_shown() {
    let (disk, text, metrics) = shown(&view(TroubledDisk::new(None, true, CacheMode::WriteBack)));
    assert!(disk.lost_writes && disk.warnings[0].contains("were lost, or may be"));
    assert!(disk.warnings[0].contains("(No space left on device"), "{:?}", disk.warnings);
    assert!(disk.warnings[0].contains("reopened: make sure of the cause, restart the machine,"));
    assert!(text.contains("warning: disk data: write-back failed"), "{text}");
    assert!(metrics.contains("bulkhead_disk_lost_writes{disk=\"data\"} 1\n"), "{metrics}");
    assert!(metrics.contains("bulkhead_disk_unsafe{disk=\"data\"} 0\n"), "{metrics}");

    let (disk, text, metrics) = shown(&view(TroubledDisk::new(None, false, CacheMode::Unsafe)));
    assert!(!disk.lost_writes && disk.cache == "unsafe");
    assert!(disk.warnings[0].contains("flushes are ignored"));
    assert!(text.contains("warning: disk data: cache mode unsafe"), "{text}");
    assert!(metrics.contains("bulkhead_disk_lost_writes{disk=\"data\"} 0\n"), "{metrics}");
    assert!(metrics.contains("bulkhead_disk_unsafe{disk=\"data\"} 1\n"), "{metrics}");
}
