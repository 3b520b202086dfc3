//! The program: sockets, image lock, log messages, exit codes.

use std::fs;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use driver::vhost_user::Monitor;
use fixtures::wait_for;
use lab::ServeProcess;
use rustix::process::Signal;

const MIB: u64 = 1 << 20;

/// Runs a second process, which must fail with `code` and the message `message`.
fn check_refused(served: &ServeProcess, socket: &str, config: &str, code: i32, message: &str) {
    fs::write(served.folder().join("other.toml"), config).unwrap();
    let run = served.command(&["serve", "--socket", socket, "other.toml"]).output().unwrap();
    let log = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(run.status.code(), Some(code), "{log}");
    assert!(log.contains(message), "{log}");
}

#[test]
fn log_reports_disk_and_frontends() {
    let mut served = ServeProcess::start(16 * MIB, "cache = \"unsafe\"");
    let log = served.log();
    assert!(log.contains("disk.img, 16 MiB, read-write, 4 queues, at disk.sock"), "{log}");
    assert!(log.contains("cache mode unsafe"), "{log}");
    assert!(log.contains("UNSAFE"), "{log}");
    let monitor = Monitor::start(&served.socket(), 1, 0, true);
    served.wait_log("a frontend has connected", 1);
    // One front-end at a time.
    let mut second = UnixStream::connect(served.socket()).unwrap();
    served.wait_log("a second frontend was refused", 1);
    assert_eq!(std::io::Read::read(&mut second, &mut [0]).unwrap(), 0);
    drop(monitor);
    served.wait_log("the frontend closed the connection", 1);
    served.terminate();
    assert!(!served.socket().exists(), "the program removes its socket");
}

#[test]
fn image_and_socket_in_use_are_refused() {
    let served = ServeProcess::start(MIB, "");
    let disk = "[disk]\nid = \"a\"\npath = \"disk.img\"\n";
    check_refused(&served, "disk.sock", disk, 1, "in use");
    // The image is locked without a front-end as well.
    check_refused(&served, "other.sock", disk, 1, "in use");
    check_refused(&served, "nowhere/disk.sock", disk, 1, "cannot listen on the vhost-user socket");
    fs::write(served.folder().join("file"), "precious").unwrap();
    check_refused(&served, "file", disk, 1, "cannot listen");
    assert_eq!(fs::read_to_string(served.folder().join("file")).unwrap(), "precious");
    check_refused(
        &served,
        "other.sock",
        "[disk]\nid = \"a\"\npath = \"no.img\"\n",
        2,
        "does not exist",
    );
    check_refused(
        &served,
        "other.sock",
        "[disk]\nid = \"a\"\npth = \"x\"\n",
        2,
        "did you mean `path`?",
    );
    check_refused(
        &served,
        "other.sock",
        "[machine]\nmemory = \"1GiB\"\n",
        2,
        "unknown table `machine`",
    );
}

#[test]
fn start_waits_for_missing_device() {
    let served = ServeProcess::start(MIB, "");
    let config = "[disk]\nid = \"a\"\npath = \"/dev/bulkhead-test/absent\"\n";
    fs::write(served.folder().join("absent.toml"), config).unwrap();
    let run = |arguments: &[&str]| {
        let start = Instant::now();
        let run = served.command(arguments).output().unwrap();
        let log = String::from_utf8_lossy(&run.stderr).into_owned();
        assert_eq!(run.status.code(), Some(2), "{log}");
        assert!(log.contains("no such device") && log.contains("lsblk"), "{log}");
        (log.matches("waiting up to 5 s for /dev/bulkhead-test/absent").count(), start.elapsed())
    };
    let (lines, elapsed) = run(&["serve", "--socket", "absent.sock", "absent.toml"]);
    assert!(lines == 1 && elapsed >= Duration::from_secs(5), "{lines} {elapsed:?}");
    let (lines, elapsed) = run(&["check", "absent.toml"]);
    assert!(lines == 0 && elapsed < Duration::from_secs(4), "{lines} {elapsed:?}");
}

#[test]
fn stale_socket_is_replaced() {
    let mut served = ServeProcess::start(MIB, "");
    served.kill();
    assert!(served.socket().exists());
    served.restart();
    Monitor::start(&served.socket(), 1, 0, true).write(0, 0, &[1; 512]);
}

#[test]
fn signal_completes_requests_before_exit() {
    let mut served = ServeProcess::start(16 * MIB, "");
    let mut monitor = Monitor::start(&served.socket(), 1, 0, true);
    let requests: Vec<_> =
        (0..20).map(|at| monitor.offer_write(0, 1, at * 64, &vec![5; 32 << 10])).collect();
    monitor.publish(0);
    wait_for(|| (monitor.queues[0].ring.used_index() > 0).then_some(())).unwrap();
    served.signal(Signal::INT);
    assert_eq!(served.wait().code(), Some(0), "{}", served.log());
    let done = requests.iter().filter(|request| monitor.status(request) == 0).count();
    assert_eq!(done, usize::from(monitor.queues[0].ring.used_index()), "each is complete");
}

#[test]
fn check_accepts_disk_configuration() {
    let served = ServeProcess::start(MIB, "queues = 2");
    let run = |arguments: &[&str]| {
        let run = served.command(arguments).output().unwrap();
        (
            run.status.code(),
            String::from_utf8(run.stdout).unwrap() + &String::from_utf8_lossy(&run.stderr),
        )
    };
    let (code, log) = run(&["check", "--explain", "disk.toml"]);
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("ready to serve") && log.contains("a completed write"), "{log}");
    let (code, log) = run(&["check", "--json", "disk.toml"]);
    let json: serde_json::Value = serde_json::from_str(&log).unwrap();
    assert_eq!((code, &json["disk"]["queues"]), (Some(0), &2.into()), "{log}");
    let (code, log) = run(&["run", "disk.toml"]);
    assert_eq!(code, Some(2), "{log}");
    assert!(log.contains("bulkhead serve"), "{log}");
}
