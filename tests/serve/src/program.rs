//! The program around the disk: its sockets, its lock, its words and its exit codes.

use std::fs;
use std::os::unix::net::UnixStream;

use driver::vhost_user::Monitor;
use fixtures::wait_for;
use lab::ServeProcess;
use rustix::process::Signal;

const MIB: u64 = 1 << 20;

/// Runs another one on the same disk, which must fail with `code` and say `why`.
fn refused(served: &ServeProcess, socket: &str, config: &str, code: i32, why: &str) {
    fs::write(served.folder().join("other.toml"), config).unwrap();
    let run = served.command(&["serve", "--socket", socket, "other.toml"]).output().unwrap();
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(run.status.code(), Some(code), "{said}");
    assert!(said.contains(why), "{said}");
}

#[test]
fn it_says_what_it_serves_and_to_whom() {
    let mut served = ServeProcess::start(16 * MIB, "cache = \"unsafe\"");
    let said = served.log();
    assert!(said.contains("disk.img, 16 MiB, read-write, 4 queues, at disk.sock"), "{said}");
    assert!(said.contains("cache mode unsafe"), "{said}");
    assert!(said.contains("UNSAFE"), "{said}");
    let monitor = Monitor::start(&served.socket(), 1, 0, true);
    served.wait_log("a frontend has connected", 1);
    // One at a time.
    let mut second = UnixStream::connect(served.socket()).unwrap();
    served.wait_log("a second frontend was refused", 1);
    assert_eq!(std::io::Read::read(&mut second, &mut [0]).unwrap(), 0);
    drop(monitor);
    served.wait_log("the frontend closed the connection", 1);
    served.terminate();
    assert!(!served.socket().exists(), "the socket goes with the program");
}

#[test]
fn what_is_used_already_is_refused() {
    let served = ServeProcess::start(MIB, "");
    let disk = "[disk]\nid = \"a\"\npath = \"disk.img\"\n";
    refused(&served, "disk.sock", disk, 1, "in use");
    // The image stays locked with no frontend there.
    refused(&served, "other.sock", disk, 1, "in use");
    refused(&served, "nowhere/disk.sock", disk, 1, "cannot listen on the vhost-user socket");
    fs::write(served.folder().join("file"), "precious").unwrap();
    refused(&served, "file", disk, 1, "cannot listen");
    assert_eq!(fs::read_to_string(served.folder().join("file")).unwrap(), "precious");
    refused(&served, "other.sock", "[disk]\nid = \"a\"\npath = \"no.img\"\n", 2, "does not exist");
    refused(&served, "other.sock", "[disk]\nid = \"a\"\npth = \"x\"\n", 2, "did you mean `path`?");
    refused(&served, "other.sock", "[machine]\nmemory = \"1GiB\"\n", 2, "unknown table `machine`");
}

#[test]
fn a_socket_left_by_a_killed_process_is_replaced() {
    let mut served = ServeProcess::start(MIB, "");
    served.kill();
    assert!(served.socket().exists());
    served.restart();
    Monitor::start(&served.socket(), 1, 0, true).write(0, 0, &[1; 512]);
}

#[test]
fn a_signal_ends_it_with_requests_done_and_a_frontend_there() {
    let mut served = ServeProcess::start(16 * MIB, "");
    let mut monitor = Monitor::start(&served.socket(), 1, 0, true);
    let requests: Vec<_> =
        (0..20).map(|at| monitor.offer_write(0, 1, at * 64, &vec![5; 32 << 10])).collect();
    monitor.publish(0);
    wait_for(|| (monitor.queues[0].ring.used_index() > 0).then_some(())).unwrap();
    served.signal(Signal::INT);
    assert_eq!(served.wait().code(), Some(0), "{}", served.log());
    let done = requests.iter().filter(|request| monitor.status(request) == 0).count();
    assert_eq!(done, usize::from(monitor.queues[0].ring.used_index()), "and none half");
}

#[test]
fn check_accepts_the_file_of_a_disk() {
    let served = ServeProcess::start(MIB, "queues = 2");
    let run = |arguments: &[&str]| {
        let run = served.command(arguments).output().unwrap();
        (
            run.status.code(),
            String::from_utf8(run.stdout).unwrap() + &String::from_utf8_lossy(&run.stderr),
        )
    };
    let (code, said) = run(&["check", "--explain", "disk.toml"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("ready to serve") && said.contains("a completed write"), "{said}");
    let (code, said) = run(&["check", "--json", "disk.toml"]);
    let json: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &json["disk"]["queues"]), (Some(0), &2.into()), "{said}");
    let (code, said) = run(&["run", "disk.toml"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("bulkhead serve"), "{said}");
}
