//! Disks that are attached to a running machine and detached from it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::status::{check, schema};
use super::{CONTROL, Rig, SETTINGS, ctl_output, text};
use crate::guest::{BUTTON, Machine, halt, power_off, signal, wait, wait_for, wait_until};
use crate::limits::{INHERITED, needed, with_descriptors};

const IMAGE_BYTES: u64 = 1 << 20;

/// A machine with an empty controller 0, a controller 3 with one disk, and a virtio-blk disk.
fn start() -> Rig {
    let more = format!(
        "{CONTROL}[[scsi]]\nqueues = 1\n\
         [[disk]]\nid = \"root\"\npath = \"root.img\"\n\
         [[disk]]\nid = \"scsi\"\npath = \"scsi.img\"\nbus = \"virtio-scsi\"\ncontroller = 3\n"
    );
    let machine = Machine::with(&[wait_for(BUTTON, 1), power_off(), halt()], &more);
    machine.configure(&format!("vcpus = 2\n{SETTINGS}"), &more);
    for name in ["root.img", "scsi.img", "data.img", "more.img"] {
        File::create(machine.path(name)).unwrap().set_len(IMAGE_BYTES).unwrap();
    }
    Rig::of(machine)
}

/// Writes the file of a disk to attach.
fn file(rig: &Rig, text: &str) -> String {
    let path = rig.machine.path("disk.toml");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn disk(id: &str, more: &str) -> String {
    format!("[[disk]]\nid = \"{id}\"\npath = \"{id}.img\"\nbus = \"virtio-scsi\"\n{more}")
}

/// Like [`resources`], after the clients have disconnected.
fn resources_at_rest(rig: &Rig, image: &Path) -> (usize, usize, usize) {
    std::thread::sleep(std::time::Duration::from_millis(500));
    resources(rig, image)
}

/// Numbers of descriptors of the image, of threads, and of all descriptors.
fn resources(rig: &Rig, image: &Path) -> (usize, usize, usize) {
    let of = |what: &str| -> Vec<PathBuf> {
        let entries = fs::read_dir(format!("/proc/{}/{what}", rig.child.id())).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    let fds = of("fd");
    let image = image.canonicalize().unwrap();
    let is_image = |fd: &&PathBuf| fs::read_link(fd).is_ok_and(|to| to == image);
    (fds.iter().filter(is_image).count(), of("task").len(), fds.len())
}

/// Whether the image is not locked.
fn is_unlocked(image: &Path) -> bool {
    let file = File::options().read(true).write(true).open(image).unwrap();
    fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

#[test]
fn repeated_attach_and_detach_leaks_nothing() {
    let rig = start();
    let image = rig.machine.path("data.img");
    let data = file(&rig, &disk("data", ""));
    // The first answers allocate memory and descriptors that the machine keeps.
    ctl_output(&rig, &["attach", &data]);
    ctl_output(&rig, &["detach", "data"]);
    let before = resources_at_rest(&rig, &image);
    assert_eq!(before.0, 0);
    for _ in 0..10 {
        let attached = ctl_output(&rig, &["attach", &data]);
        assert_eq!(attached, "data is attached as LUN 0 of target 0 of controller 0\n");
        assert!(resources(&rig, &image).0 > 0 && !is_unlocked(&image));
        let shown = rig.get("/v1/disks/data").json();
        check(&shown, &schema("Disk"), "disk");
        assert_eq!(shown["scsi"], json!({ "controller": 0, "target": 0, "lun": 0 }));
        assert_eq!(
            (&shown["detaching"], &shown["size_bytes"]),
            (&false.into(), &IMAGE_BYTES.into())
        );
        assert_eq!(shown["queues"].as_array().unwrap().len(), 1, "the queues of its controller");
        assert!(
            ctl_output(&rig, &["metrics"])
                .contains("bulkhead_disk_size_bytes{disk=\"data\"} 1048576")
        );
        let detached = ctl_output(&rig, &["detach", "data"]);
        assert!(detached.starts_with("data is detached: its data is on stable storage"));
        assert!(is_unlocked(&image));
        assert_eq!(rig.request("GET", "/v1/disks/data", "").status, 404);
        // The detach thread and the client may exist a moment longer.
        wait_until("the resources to be released", || resources(&rig, &image) == before);
    }
    assert_eq!(rig.end(), Some(0));
}

#[test]
fn attach_and_detach_are_events() {
    let rig = start();
    let data =
        file(&rig, &disk("data", "target = 7\nlun = 300\n[disk.thin]\nsoft_limit = \"1%\"\n"));
    let shown: Value =
        serde_json::from_str(&ctl_output(&rig, &["attach", &data, "--json"])).unwrap();
    check(&shown, &schema("Disk"), "disk");
    assert_eq!(shown["scsi"], json!({ "controller": 0, "target": 7, "lun": 300 }));
    // The soft limit is watched.
    let has_event = |kind: &str| {
        let events = rig.get("/v1/events").json();
        events["events"].as_array().unwrap().iter().any(|event| event["event"] == kind)
    };
    wait_until("the soft limit", || has_event("soft_limit_reached"));
    let end: Value =
        serde_json::from_str(&ctl_output(&rig, &["--json", "detach", "data"])).unwrap();
    check(&end, &schema("Event"), "event");
    assert_eq!((&end["event"], &end["disk"]), (&"disk_detached".into(), &"data".into()));
    assert!(has_event("disk_attached"));
    let is_watched = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", rig.child.id())).unwrap();
        let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm"));
        tasks.map(|task| name(task.unwrap())).any(|name| name.is_ok_and(|name| name == "space\n"))
    };
    wait_until("the watch to end", || !is_watched());
    assert!(ctl_output(&rig, &["events"]).contains("disk detached"));
}

/// Including a disk of the configuration, and while the machine is paused.
#[test]
fn an_attached_disk_gets_the_lowest_free_lun() {
    let rig = start();
    ctl_output(&rig, &["detach", "scsi"]);
    assert!(is_unlocked(&rig.machine.path("scsi.img")));
    ctl_output(&rig, &["pause"]);
    let attached = |text: &str| ctl_output(&rig, &["attach", &file(&rig, text)]);
    let place = |lun, controller| format!("as LUN {lun} of target 0 of controller {controller}\n");
    assert!(attached(&disk("data", "")).ends_with(&place(0, 0)));
    // A warning does not prevent the attach.
    let risky = rig.ctl(&["attach", &file(&rig, &disk("more", "cache = \"unsafe\""))]);
    assert!(text(&risky.stdout).ends_with(&place(1, 0)) && risky.status.success());
    assert!(text(&risky.stderr).contains("ignores the guest's flushes"), "{risky:?}");
    assert!(attached(&disk("scsi", "controller = 3")).ends_with(&place(0, 3)));
    ctl_output(&rig, &["detach", "data"]);
    assert!(attached(&disk("data", "")).ends_with(&place(0, 0)), "the lowest free LUN");
    ctl_output(&rig, &["resume"]);
    assert_eq!(rig.end(), Some(0));
}

#[test]
fn refused_disks_leave_no_resources() {
    let mut rig = start();
    let image = rig.machine.path("data.img");
    ctl_output(&rig, &["attach", &file(&rig, &disk("more", ""))]);
    let before = resources_at_rest(&rig, &image);
    let refused = |text: &str, code: i32, reasons: &[&str]| {
        let output = rig.ctl(&["attach", &file(&rig, text)]);
        let stderr = super::text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{text}: {stderr}");
        for reason in reasons {
            assert!(stderr.contains(reason), "{reason}: {stderr}");
        }
    };
    // Errors of the text, with their place.
    let blk = "[[disk]]\nid = \"data\"\npath = \"data.img\"\n";
    refused(
        blk,
        2,
        &["a virtio-blk disk cannot be attached", "disk.toml:1", "write `bus = \"virtio-scsi\"`"],
    );
    refused(&disk("data", "colour = 1"), 2, &["unknown key `colour`", "disk.toml:5"]);
    refused(
        &(disk("data", "") + &disk("more", "")),
        2,
        &["the file has more than one disk", "disk.toml:5"],
    );
    refused("[disk]\nid = \"data\"\n", 2, &["write `[[disk]]`"]);
    refused("", 2, &["the file has no `[[disk]]`"]);
    refused(&(disk("data", "") + "[machine]\nvcpus = 1\n"), 2, &["unknown table `machine`"]);
    // Errors of the machine and its host.
    refused(&disk("none", ""), 1, &["none.img` does not exist", "create it with `truncate"]);
    refused(&disk("root", ""), 1, &["there is already a disk \"root\"; give it another `id`"]);
    let other_name = disk("data", "").replace("data.img", "root.img");
    refused(&other_name, 1, &["root.img is the image of this machine's disk \"root\"; detach"]);
    let taken = "LUN 0 of target 0 of controller 0 is taken; write another `lun`";
    refused(&disk("data", "lun = 0"), 1, &[taken]);
    let no_controller = "has no SCSI controller 1; it has: 0, 3; further ones need `[[scsi]]`";
    refused(&disk("data", "controller = 1"), 1, &[no_controller]);
    refused(&disk("data", "queues = 2"), 1, &["2 queues exceed the 1 of the controller"]);
    fs::write(&image, [&b"QFI\xfb\0\0\0\x03"[..], &[0; 504]].concat()).unwrap();
    let remedy = format!("`qemu-img convert -f qcow2 -O raw {0} {0}.raw`", image.display());
    refused(&disk("data", ""), 1, &["data.img: not a raw image but qcow2; make", &remedy]);
    fs::write(&image, [0; 512]).unwrap();
    let lock = File::options().write(true).open(&image).unwrap();
    fcntl_lock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    let in_use = format!("data.img: in use by process {}; end its user", std::process::id());
    refused(&disk("data", ""), 1, &[&in_use]);
    drop(lock);
    assert!(is_unlocked(&image));
    assert_eq!(resources_at_rest(&rig, &image), before);
    assert_eq!(rig.get("/v1/status").json()["disks"].as_array().unwrap().len(), 3);

    let output = rig.ctl(&["detach", "root"]);
    let why = "the disk \"root\" is on virtio-blk; only a disk with `bus = \"virtio-scsi\"`";
    assert!(text(&output.stderr).contains(why), "{output:?}");
    assert!(text(&rig.ctl(&["detach", "none"]).stderr).contains("the disks are: root, scsi, more"));
    signal(&rig.child, Signal::TERM);
    assert_eq!(wait(&mut rig.child).code(), Some(0));
}

/// The engines of an attached disk are made at its first I/O, which must not find the limit.
#[test]
fn attach_beyond_the_descriptor_limit_is_refused() {
    let more = format!("{CONTROL}[[scsi]]\n");
    let machine = Machine::with(&[wait_for(BUTTON, 1), power_off(), halt()], &more);
    for name in ["data.img", "more.img"] {
        File::create(machine.path(name)).unwrap().set_len(IMAGE_BYTES).unwrap();
    }
    let settings = format!("vcpus = 2\n{SETTINGS}");
    machine.configure(&settings, &format!("{more}{}", disk("data", "")));
    let need = needed(&machine, "descriptors");
    machine.configure(&settings, &more);
    let one_disk = need - needed(&machine, "descriptors");

    let mut command = with_descriptors(16, need + INHERITED);
    command.arg("run").arg(machine.path("vm.toml"));
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let rig = Rig::running(machine, child);
    ctl_output(&rig, &["attach", &file(&rig, &disk("data", ""))]);
    let image = rig.machine.path("more.img");
    let before = resources_at_rest(&rig, &image);
    let refused = rig.ctl(&["attach", &file(&rig, &disk("more", ""))]);
    let stderr = text(&refused.stderr);
    let numbers = format!("this machine needs {} file descriptors (", need + one_disk);
    assert_eq!(refused.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(&numbers) && stderr.contains("LimitNOFILE="), "{stderr}");
    assert_eq!(resources_at_rest(&rig, &image), before);
    assert!(is_unlocked(&image));

    ctl_output(&rig, &["detach", "data"]);
    ctl_output(&rig, &["attach", &file(&rig, &disk("more", ""))]);
    assert_eq!(rig.end(), Some(0));
}

#[test]
fn invalid_bodies_are_refused() {
    let rig = start();
    let image = rig.machine.path("data.img");
    let good = json!({ "path": image, "bus": "virtio-scsi" });
    let with = |key: &str, value: Value| {
        let mut body = good.clone();
        body[key] = value;
        body.to_string()
    };
    for (body, detail) in [
        (String::new(), "not a disk"),
        ("[]".into(), "not an object"),
        ("null".into(), "not an object"),
        ("[".repeat(5000), "not a disk"),
        (with("id", "other".into()), "`id` is given twice"),
        (with("lun", Value::Null), "keys of the disk are invalid"),
        (with("lun", (-1).into()), "`lun`"),
        (with("lun", 1e300.into()), "`lun`"),
        (with("thin", "80%".into()), "thin"),
        (with("path", "data.img".into()), "`path` is relative"),
        (with("path", "/dev/null".into()), "neither a regular file nor a block device"),
        (with("cache", "fast".into()), "`cache`"),
        (with("bus", "virtio-blk".into()), "a virtio-blk disk cannot be attached"),
        (with("\"\n[machine]", 1.into()), "unknown key"),
    ] {
        let answer = rig.request("PUT", "/v1/disks/data", &body);
        let problem = answer.json();
        assert_eq!(answer.status, 400, "{body}: {problem}");
        check(&problem, &schema("Problem"), "problem");
        assert!(problem["detail"].as_str().unwrap().contains(detail), "{body}: {problem}");
        assert_ne!(problem["remedy"], "", "{problem}");
    }
    let answer = rig.request("PUT", "/v1/disks/a%20b", &good.to_string());
    assert_eq!(answer.status, 400, "{answer:?}");
    let thin = with("thin", json!({ "soft_limit": "90%" }));
    assert_eq!(rig.request("PUT", "/v1/disks/data", &thin).status, 201);
    assert_eq!(rig.get("/v1/disks/data").json()["soft_limit"]["percent"], 90);
    let answer = rig.request("DELETE", "/v1/disks/data", "");
    assert_eq!(answer.status, 202);
    check(&answer.json(), &schema("Disk"), "disk");
    assert_eq!(answer.json()["detaching"], true);
    wait_until("the end of the disk", || rig.request("GET", "/v1/disks/data", "").status == 404);
}
