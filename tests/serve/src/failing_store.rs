//! A store that fails requests: a loop device whose file is cut off.

use std::fs::File;

use driver::vhost_user::Monitor;
use fixtures::host::{Loop, Mount};
use fixtures::{needs, scratch, wait_for};
use lab::ServeProcess;
use rustix::io::Errno;
use rustix::process::Signal;
use serde_json::Value;

const MIB: u64 = 1 << 20;
const SECTORS: u64 = 4 * MIB / 512;

/// A service of a loop device of 4 MiB.
struct Failing {
    // Dropped in this order: the program ends before its device.
    monitor: Monitor,
    served: ServeProcess,
    _device: Loop,
    image: tempfile::NamedTempFile,
}

impl Failing {
    fn start(keys: &str) -> Self {
        let image = tempfile::NamedTempFile::new_in(scratch()).unwrap();
        image.as_file().set_len(4 * MIB).unwrap();
        let device = Loop::new(image.path());
        let keys = format!("{keys}\n[control]\nsocket = \"control.sock\"");
        let served = ServeProcess::start_at(&device.0, &keys);
        let monitor = Monitor::start(&served.socket(), 1, 0, true);
        Self { monitor, served, _device: device, image }
    }

    /// The kernel reads nothing beyond the end of the file.
    fn fail(&self) {
        File::options().write(true).open(self.image.path()).unwrap().set_len(0).unwrap();
    }

    fn ctl(&self, arguments: &[&str]) -> String {
        let mut command = self.served.command(&["ctl", "control.sock"]);
        let output = command.args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

#[test]
fn errors_of_the_host_are_a_warning_with_their_age_and_one_event() {
    if !needs::root() {
        return;
    }
    let mut failing = Failing::start("cache = \"none\"");
    failing.fail();
    for _ in 0..3 {
        let read = failing.monitor.offer_read(0, SECTORS - 8, 4096);
        failing.monitor.publish(0);
        let _ = failing.monitor.wait_used(0);
        assert_ne!(failing.monitor.status(&read), 0, "the host fails");
    }
    let status = failing.ctl(&["status"]);
    let warning = "warning: disk data: 3 requests failed on the host, the last ";
    let reason = " s ago (read: Input/output error";
    assert!(status.contains(warning) && status.contains(reason), "{status}");
    let json: Value = serde_json::from_str(&failing.ctl(&["status", "--json"])).unwrap();
    let errors = &json["disks"][0]["host_errors"];
    assert_eq!((&errors["requests"], &errors["operation"]), (&3.into(), &"read".into()));
    assert_eq!(errors["errno"], Errno::IO.raw_os_error());
    let metrics = failing.ctl(&["metrics"]);
    assert!(metrics.contains("bulkhead_disk_host_errors_total{disk=\"data\"} 3\n"), "{metrics}");
    let events =
        wait_for(|| Some(failing.ctl(&["events"])).filter(|all| all.contains("host errors")));
    let events = events.expect("an event");
    assert_eq!(events.matches("host errors").count(), 1, "{events}");
    assert!(events.contains("the last: read: Input/output error"), "{events}");
    assert!(failing.served.log().contains("data"), "{}", failing.served.log());
    let Failing { monitor, mut served, _device, image: _ } = failing;
    drop(monitor);
    served.terminate();
}

/// A loop device on a full file system takes data into its page cache that it cannot write.
#[test]
fn a_disk_that_cannot_be_closed_is_named() {
    if !needs::root() {
        return;
    }
    let store = Mount::new("tmpfs", "size=1m");
    let device = Loop::new(&store.file(4 * MIB));
    let mut served = ServeProcess::start_at(&device.0, "cache = \"writeback\"");
    let mut monitor = Monitor::start(&served.socket(), 1, 0, true);
    for at in 0..256 {
        monitor.write(0, at * 16, &[1; 8 << 10]);
    }
    drop(monitor);
    served.signal(Signal::TERM);
    assert_eq!(served.wait().code(), Some(1), "{}", served.log());
    let log = served.log();
    for text in
        ["cannot close the disk; data written to it may be lost", "disk data: Input/output error"]
    {
        assert!(log.contains(text), "{log}");
    }
}
