//! The kernel's record of requests at block devices: the event `block_bio_queue`, in an instance of
//! the trace file system that nothing else uses (Linux's `Documentation/trace/ftrace.rst`).
//!
//! The event comes after `submit_bio_noacct` has taken the flags of a flush from requests to a
//! device with a queue that is set to "write through": it shows what the device is given.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The two places of the trace file system.
const ROOTS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
const EVENT: &str = "events/block/block_bio_queue";
const PREFIX: &str = "bulkhead-prove-";
/// Size of the buffer of each CPU: some thousand events.
const BUFFER_KIB: &str = "512";
/// The kernel's limit for the text of a filter is a page.
const FILTER_BYTES: usize = 4000;

/// The number of a block device: major and minor.
pub(super) type Device = (u32, u32);

/// A request that was queued at a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockEvent {
    pub(super) device: Device,
    /// It writes sectors.
    pub(super) writes: bool,
    /// It is a flush, or is preceded by one.
    pub(super) flushes: bool,
    /// Its data is durable when it completes (FUA).
    pub(super) is_durable: bool,
}

/// A recording of the events of some devices. Dropping it removes the instance.
#[derive(Debug)]
pub(super) struct BlockTrace {
    instance: PathBuf,
    /// `tracing_on`. While it is open, the kernel does not remove the instance; `None` at the end.
    switch: Option<File>,
}

impl BlockTrace {
    /// Prepares the recording.
    ///
    /// # Errors
    ///
    /// The kernel's error; `NotFound` if no trace file system is mounted.
    pub(super) fn start(devices: &[Device]) -> io::Result<Self> {
        let roots = ROOTS.iter().map(|root| Path::new(root).join("instances"));
        let mut found = roots.filter(|instances| instances.is_dir());
        let instances = found.next().ok_or(io::ErrorKind::NotFound)?;
        remove_abandoned(&instances);
        let instance = instances.join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir(&instance)?;
        let mut trace = Self { instance, switch: None };
        let switch = File::options().write(true).open(trace.instance.join("tracing_on"))?;
        trace.switch = Some(switch);
        trace.record(false)?;
        trace.set("buffer_size_kb", BUFFER_KIB)?;
        let filter = filter(devices);
        if filter.len() <= FILTER_BYTES {
            trace.set(&format!("{EVENT}/filter"), &filter)?;
        }
        trace.set(&format!("{EVENT}/enable"), "1")?;
        Ok(trace)
    }

    fn set(&self, file: &str, value: &str) -> io::Result<()> {
        fs::write(self.instance.join(file), value)
    }

    /// Forgets the events.
    pub(super) fn clear(&self) -> io::Result<()> {
        self.set("trace", "")
    }

    /// Starts or stops to record events.
    pub(super) fn record(&self, on: bool) -> io::Result<()> {
        let mut switch = self.switch.as_ref().ok_or(io::ErrorKind::NotFound)?;
        switch.write_all(if on { b"1" } else { b"0" })
    }

    /// The events recorded since [`BlockTrace::clear`].
    ///
    /// # Errors
    ///
    /// The kernel's error, or events were lost.
    pub(super) fn events(&self) -> io::Result<Vec<BlockEvent>> {
        parse(&fs::read_to_string(self.instance.join("trace"))?)
    }
}

impl Drop for BlockTrace {
    fn drop(&mut self) {
        self.switch = None;
        // The kernel removes an instance with its events.
        if let Err(error) = fs::remove_dir(&self.instance) {
            tracing::warn!(path = %self.instance.display(), %error, "cannot remove the trace");
        }
    }
}

/// Removes instances of processes that were killed. The kernel keeps those in use (`EBUSY`).
fn remove_abandoned(instances: &Path) {
    for entry in fs::read_dir(instances).into_iter().flatten().filter_map(Result::ok) {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// A filter for events of these devices. The kernel's device numbers have 20 bits for the minor.
fn filter(devices: &[Device]) -> String {
    let numbers =
        devices.iter().map(|(major, minor)| (u64::from(*major) << 20) | u64::from(*minor));
    let terms: Vec<_> = numbers.map(|number| format!("dev == {number}")).collect();
    if terms.is_empty() { "dev == 0".to_owned() } else { terms.join(" || ") }
}

/// Parses the text of a trace. Lines of events have the form
/// `fio-77 [000] ..... 12.345678: block_bio_queue: 8,0 FWFS 2048 + 8 [fio]`.
fn parse(text: &str) -> io::Result<Vec<BlockEvent>> {
    let mut events = Vec::new();
    for line in text.lines() {
        if let Some(counts) = line.strip_prefix("# entries-in-buffer/entries-written: ") {
            let counts = counts.split_whitespace().next().unwrap_or_default();
            if counts.split_once('/').is_some_and(|(kept, written)| kept != written) {
                return Err(io::Error::other("the kernel lost block events: too many at a time"));
            }
        }
        if line.starts_with('#') {
            continue;
        }
        let Some((_, event)) = line.split_once(": block_bio_queue: ") else { continue };
        let Some(event) = parse_event(event) else {
            return Err(io::Error::other(format!("a block event of unknown form: {event}")));
        };
        events.push(event);
    }
    Ok(events)
}

fn parse_event(event: &str) -> Option<BlockEvent> {
    let mut words = event.split(' ');
    let (major, minor) = words.next()?.split_once(',')?;
    // The flags of `blk_fill_rwbs`: F for a flush before the operation, W for a write, F for FUA.
    let flags = words.next()?;
    let (_, _, sectors) = (words.next()?, words.next()?, words.next()?);
    Some(BlockEvent {
        device: (major.parse().ok()?, minor.parse().ok()?),
        writes: flags.contains('W') && sectors != "0",
        flushes: flags.starts_with('F'),
        is_durable: flags.chars().skip(1).any(|flag| flag == 'F'),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_parsed() {
        let text = "# tracer: nop\n#\n# entries-in-buffer/entries-written: 5/5   #P:2\n#\n\
            fio: x-77    [001] .....  6.1: block_bio_queue: 8,0 WS 2048 + 8 [a b]\n\
            jbd2/x-8     [000] d..1.  6.2: block_bio_queue: 259,3 FWFS 9 + 8 [jbd2]\n\
            x-9          [000] .....  6.3: block_bio_queue: 7,0 FWS 0 + 0 [x]\n\
            x-9          [000] .....  6.4: block_bio_queue: 7,0 RA 0 + 8 [x]\n\
            x-9          [000] .....  6.5: block_bio_queue: 7,1 WFSM 0 + 8 [x]\n";
        let event = |device, writes, flushes, is_durable| BlockEvent {
            device,
            writes,
            flushes,
            is_durable,
        };
        let expected = [
            event((8, 0), true, false, false),
            event((259, 3), true, true, true),
            event((7, 0), false, true, false),
            event((7, 0), false, false, false),
            event((7, 1), true, false, true),
        ];
        assert_eq!(parse(text).unwrap(), expected);
    }

    #[test]
    fn lost_and_unknown_events_are_errors() {
        assert!(parse("# entries-in-buffer/entries-written: 4/5   #P:2\n").is_err());
        for event in ["", "8,0", "8 W 0 + 8", "8,x W 0 + 8", "8,0 W 0 +"] {
            assert!(parse(&format!("a-1: block_bio_queue: {event}\n")).is_err(), "{event:?}");
        }
    }

    #[test]
    fn a_filter_has_the_numbers_of_the_kernel() {
        assert_eq!(filter(&[(254, 0), (7, 3)]), "dev == 266338304 || dev == 7340035");
        assert_eq!(filter(&[]), "dev == 0");
    }

    /// The instance of a killed process is not in use.
    #[test]
    fn an_instance_in_use_is_not_removed() {
        let instances = Path::new(ROOTS[0]).join("instances");
        if !fixtures::needs::root() {
            return;
        }
        if !instances.exists() {
            fixtures::host::sh("mount", &["-t", "tracefs", "tracefs", ROOTS[0]]);
        }
        let abandoned = instances.join(format!("{PREFIX}abandoned"));
        // It may be left by an earlier run.
        let _ = fs::create_dir(&abandoned);
        assert!(abandoned.exists());
        let trace = BlockTrace::start(&[]).unwrap();
        assert!(!abandoned.exists());
        let again = BlockTrace::start(&[]).map(drop).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        trace.clear().unwrap();
        assert_eq!(trace.events().unwrap(), []);
        let instance = trace.instance.clone();
        drop(trace);
        assert!(!instance.exists());
    }
}
