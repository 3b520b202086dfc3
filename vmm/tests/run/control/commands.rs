//! Pause, resume, the power button, and resizes.

use std::fs;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{CONTROL, DISK_BYTES, Rig};
use crate::guest::{
    BUTTON, Machine, SERIAL, halt, out, power_off, signal, wait, wait_for, wait_for_text,
    wait_until,
};

/// A guest that prints without end, which shows its progress.
fn printing_guest() -> Rig {
    // The jump target is the `out`.
    let rig = Rig::start(&[out(SERIAL, b'.'), vec![0xeb, 0xf7]]);
    wait_for_text(&rig.machine.path("console"), "...");
    rig
}

fn printed(rig: &Rig) -> u64 {
    fs::metadata(rig.machine.path("console")).unwrap().len()
}

fn assert_progress(rig: &Rig) {
    let before = printed(rig);
    wait_until("progress of the guest", || printed(rig) > before);
}

#[test]
fn a_paused_guest_makes_no_progress_until_resume() {
    let rig = printing_guest();
    for _ in 0..3 {
        let answer = rig.post("/v1/pause", "");
        assert_eq!((answer.status, answer.json()["state"].as_str()), (200, Some("paused")));
        assert_eq!(rig.state(), "paused");
        // Earlier output may still be on its way to the file.
        sleep(Duration::from_millis(50));
        let before = printed(&rig);
        sleep(Duration::from_millis(100));
        assert_eq!(printed(&rig), before, "progress while paused");
        assert_eq!(rig.post("/v1/pause", "").status, 200, "a second pause has no effect");
        let answer = rig.post("/v1/resume", "");
        assert_eq!((answer.status, answer.json()["state"].as_str()), (200, Some("running")));
        assert_eq!(rig.post("/v1/resume", "").status, 200);
        assert_progress(&rig);
    }
    assert_eq!(rig.end(), Some(13));
}

#[test]
fn a_press_of_the_power_button_takes_effect_after_resume() {
    let mut rig = Rig::power_button();
    assert_eq!(rig.post("/v1/pause", "").status, 200);
    let answer = rig.post("/v1/power-button", "");
    assert_eq!((answer.status, answer.json()["state"].as_str()), (202, Some("paused")));
    sleep(Duration::from_millis(200));
    assert!(rig.child.try_wait().unwrap().is_none(), "powered off while paused");
    assert_eq!(rig.post("/v1/resume", "").status, 200);
    assert_eq!(wait(&mut rig.child).code(), Some(0));
    assert!(!rig.socket().exists());
}

#[test]
fn the_power_button_starts_no_grace_period() {
    let rig = printing_guest();
    assert_eq!(rig.post("/v1/power-button", "").status, 202);
    // Longer than the grace period of 300 ms.
    sleep(Duration::from_millis(600));
    assert_progress(&rig);
}

#[test]
fn a_signal_resumes_a_paused_machine() {
    let mut rig = Rig::power_button();
    assert_eq!(rig.post("/v1/pause", "").status, 200);
    signal(&rig.child, Signal::TERM);
    assert_eq!(wait(&mut rig.child).code(), Some(0), "the guest powered off");
}

#[test]
fn pause_is_refused_during_shutdown() {
    let more = format!("{CONTROL}\n");
    let machine = Machine::with(&[halt()], &more);
    machine.configure("memory = \"32MiB\"\nshutdown_grace = \"60s\"", &more);
    let mut rig = Rig::of(machine);
    signal(&rig.child, Signal::TERM);
    wait_until("the refusal", || rig.post("/v1/pause", "").status == 409);
    assert_eq!(rig.state(), "running");
    signal(&rig.child, Signal::TERM);
    assert_eq!(wait(&mut rig.child).code(), Some(13));
}

#[test]
fn a_second_signal_stops_a_paused_machine_at_once() {
    let start = Instant::now();
    let mut rig = Rig::start(&[halt()]);
    assert_eq!(rig.post("/v1/pause", "").status, 200);
    signal(&rig.child, Signal::TERM);
    signal(&rig.child, Signal::INT);
    assert_eq!(wait(&mut rig.child).code(), Some(13));
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_disk_grows_to_a_size_or_to_its_file() {
    let rig = Rig::with_disks();
    let answer = rig.post("/v1/disks/root/resize", "{\"size_bytes\": 8388608}");
    assert_eq!((answer.status, answer.json()["size_bytes"].as_u64()), (200, Some(2 * DISK_BYTES)));
    assert_eq!(fs::metadata(rig.machine.path("root.img")).unwrap().len(), 2 * DISK_BYTES);
    assert_eq!(rig.get("/v1/disks/root").json()["size_bytes"], 2 * DISK_BYTES);

    let fast = fs::OpenOptions::new().write(true).open(rig.machine.path("fast.img")).unwrap();
    fast.set_len(3 * DISK_BYTES).unwrap();
    assert_eq!(
        rig.get("/v1/disks/fast").json()["size_bytes"],
        DISK_BYTES,
        "unchanged before the resize"
    );
    assert_eq!(rig.post("/v1/disks/fast/resize", "").json()["size_bytes"], 3 * DISK_BYTES);
    assert_eq!(rig.post("/v1/disks/fast/resize", "{}").json()["size_bytes"], 3 * DISK_BYTES);
    assert_eq!(rig.end(), Some(0));
}

#[test]
fn a_resize_beyond_rlimit_fsize_fails() {
    let more = format!("{CONTROL}[[disk]]\nid = \"root\"\npath = \"root.img\"\n");
    let machine = Machine::with(&[wait_for(BUTTON, 1), power_off(), halt()], &more);
    machine.configure(super::SETTINGS, &more);
    fs::File::create(machine.path("root.img")).unwrap().set_len(DISK_BYTES).unwrap();
    let mut limited = Command::new("sh");
    // In units of 512 bytes: 8 MiB.
    limited.args(["-c", "ulimit -f 16384; exec \"$0\" run \"$1\"", env!("CARGO_BIN_EXE_bulkhead")]);
    limited.arg(machine.path("vm.toml")).stdin(Stdio::null());
    let child = limited.spawn().unwrap();
    let rig = Rig::running(machine, child);
    let answer = rig.post("/v1/disks/root/resize", "{\"size_bytes\": 16777216}");
    assert_eq!(answer.status, 500, "{answer:?}");
    assert!(answer.body.contains("File too large"), "{answer:?}");
    assert_eq!(rig.get("/v1/disks/root").json()["size_bytes"], DISK_BYTES);
    assert_eq!(rig.end(), Some(0));
}
