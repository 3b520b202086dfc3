//! `bulkhead crash explore`.

use std::fs;
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use fixtures::{PATIENCE, needs, with_default_signals};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use snapbox::cmd::OutputAssert;
use snapbox::str;
use tempfile::TempDir;

use crate::log_file::LogFile;
use crate::{CHECK, crash, folder};

fn explore(folder: &TempDir, check: &str, more: &[&str]) -> OutputAssert {
    let arguments = ["explore", "disk.log", "--base", "base.img", "--jobs", "1", "--check", check];
    crash(folder, &[&arguments, more].concat())
}

fn json(run: &OutputAssert) -> Value {
    serde_json::from_slice(&run.get_output().stdout).unwrap()
}

#[test]
fn a_safe_commit_passes() {
    if !needs::root() {
        return;
    }
    explore(&folder(true), CHECK, &[]).code(0).stderr_eq("").stdout_eq(str![[r#"
disk.log over base.img: no failing state was found

  checks      [..] in [..]
  known       [..] more states, as these read the same
  power cuts  [..] that leave different states
  explored    all that was asked for
  samples     up to 1000, of seed 0

"#]]);
}

#[test]
fn a_commit_without_a_flush_fails() {
    if !needs::root() {
        return;
    }
    explore(&folder(false), CHECK, &[]).code(3).stderr_eq("").stdout_eq(str![[r#"
disk.log over base.img: the check fails in a state that a power cut can leave

state 2-0: exit status 4
  power cut   after 2 completions and mark "committed�[31m"
  lost        write 0: 512 bytes at 4096
  output      the data is missing

  bulkhead crash explain disk.log --base base.img 2-0
  bulkhead crash open disk.log --base base.img 2-0
  bulkhead crash open disk.log --base base.img 2-0 --run [..]

  checks      [..] in [..], 1 of them to reduce and repeat failures
  known       [..] more states, as these read the same
  power cuts  [..] that leave different states
  explored    until a failing state was found
  samples     up to 1000, of seed 0

"#]]);
}

#[test]
fn all_failing_states_are_found() {
    if !needs::root() {
        return;
    }
    let run = explore(&folder(false), CHECK, &["--keep-going", "--json"]).code(3).stderr_eq("");
    let found = json(&run);
    assert_eq!((&found["complete"], &found["end"]), (&true.into(), &"complete".into()));
    let failures = found["failures"].as_array().unwrap();
    assert!(!failures.is_empty(), "{found:#}");
    for failure in failures {
        assert_eq!(failure["end"], "exit status 4");
        assert_eq!(failure["output"], "the data is missing\n");
    }
    assert_eq!(found["has_marks"], true);
}

#[test]
fn a_check_that_always_fails_proves_nothing() {
    if !needs::root() {
        return;
    }
    let check = "printf 'it is \\033[31mred'; exit 1";
    explore(&folder(true), check, &[]).code(1).stderr_eq("").stdout_eq(str![[r#"
disk.log over base.img: the check fails without a power cut

state 5: exit status 1
  power cut   after 5 completions and mark "committed�[31m"
  output      it is �[31mred

  bulkhead crash explain disk.log --base base.img 5
  bulkhead crash open disk.log --base base.img 5
  bulkhead crash open disk.log --base base.img 5 --run [..]

  checks      [..] in [..], 1 of them to reduce and repeat failures
  known       [..] more states, as these read the same
  power cuts  [..] that leave different states
  explored    nothing, as failures would prove nothing
  samples     up to 1000, of seed 0

"#]]);
}

#[test]
fn wrong_command_lines_are_refused() {
    let folder = folder(true);
    let wrong: [&[&str]; 6] = [
        &["--time", "10"],
        &["--timeout", "0s"],
        &["--states", "0"],
        &["--jobs", "0"],
        &["--atomic", "page"],
        &["--lost", "-1"],
    ];
    for more in wrong {
        explore(&folder, "true", more).code(2);
    }
    crash(&folder, &["explore", "disk.log", "--base", "base.img"]).code(2);
    crash(&folder, &["explore", "disk.log", "--check", "true"]).code(2);
}

#[test]
fn a_host_that_fails_is_no_failing_state() {
    if !needs::root() {
        return;
    }
    let folder = folder(true);
    explore(&folder, "no-such-program", &[]).code(1).stdout_eq("").stderr_eq(str![[r#"
error: state 5: cannot run the check: a command was not found (exit status 127): /bin/sh: 1: no-such-program: not found

"#]]);
    explore(&folder, "true", &["--from-mark", "never"]).code(2).stdout_eq("").stderr_eq(str![[
        r#"
error: the recording has no mark "never"

"#
    ]]);
    fs::write(folder.path().join("disk.log"), "no log").unwrap();
    explore(&folder, "true", &[]).code(1).stdout_eq("").stderr_eq(str![[r#"
error: disk.log over base.img: it is not a log of writes: it has not the signature of dm-log-writes

"#]]);
    let missing = ["explore", "disk.log", "--base", "no.img", "--check", "true"];
    crash(&folder, &missing).code(1).stdout_eq("").stderr_eq(str![[r#"
error: disk.log over no.img: cannot read the base: No such file or directory (os error 2)

"#]]);
}

#[test]
fn a_check_without_an_end_fails() {
    if !needs::root() {
        return;
    }
    let run = explore(&folder(true), "sleep 30", &["--timeout", "1s", "--json"]).code(1);
    assert_eq!(json(&run)["failures"][0]["end"], "no end within 1 s");
    assert_eq!(json(&run)["end"], "baseline");
    let run = explore(&folder(true), "sleep 30", &["--timeout", "1s"]).code(1);
    let text = String::from_utf8_lossy(&run.get_output().stdout).into_owned();
    assert!(text.contains("does not end in its time without a power cut either"), "{text}");
}

#[test]
fn limits_end_the_exploration() {
    if !needs::root() {
        return;
    }
    let run = explore(&folder(true), CHECK, &["--states", "2", "--json"]).code(0);
    assert_eq!((&json(&run)["end"], &json(&run)["checks"]), (&"states".into(), &2.into()));
    let run = explore(&folder(true), "sleep 0.6", &["--time", "1s", "--json"]).code(0);
    assert_eq!((&json(&run)["end"], &json(&run)["complete"]), (&"time".into(), &false.into()));
}

#[test]
fn a_recording_that_failed_is_reported_as_such() {
    if !needs::root() {
        return;
    }
    let folder = folder(true);
    let mut log = LogFile::new();
    log.write(0, b"first");
    log.flush();
    log.failed_end("the log is too slow");
    log.save(&folder.path().join("disk.log"));
    let run = explore(&folder, "true", &[]).code(0);
    run.stdout_eq(str![[r#"
...
  log         ended early, what followed is missing: the log is too slow

"#]]);
    let run = explore(&folder, "true", &["--json"]).code(0);
    assert_eq!(json(&run)["log_failure"], "the log is too slow");
}

#[test]
fn the_result_is_junit_as_well() {
    if !needs::root() {
        return;
    }
    let folder = folder(false);
    let file = folder.path().join("crash.xml");
    let check = format!("({CHECK}) || {{ printf '<&\\033'; exit 4; }}");
    explore(&folder, &check, &["--junit", "crash.xml"]).code(3);
    let xml = fs::read_to_string(&file).unwrap();
    snapbox::assert_data_eq!(
        xml,
        str![[r#"
<?xml version="1.0" encoding="UTF-8"?>
<testsuites>
  <testsuite name="bulkhead crash explore" tests="1" failures="1" errors="0" skipped="0" time="[..]">
    <properties>
      <property name="checks" value="[..]"/>
      <property name="pruned" value="[..]"/>
      <property name="power_cuts" value="[..]"/>
      <property name="complete" value="false"/>
    </properties>
    <testcase classname="disk.log" name="state 2-0">
      <failure message="exit status 4, with 1 write lost">the data is missing
&lt;&amp;�</failure>
    </testcase>
  </testsuite>
</testsuites>

"#]]
    );
    explore(&folder, "true", &["--junit", "crash.xml"]).code(0);
    assert!(fs::read_to_string(&file).unwrap().contains("name=\"power cuts\"/>"));
    explore(&folder, "true", &["--junit", "crash.xml", "--states", "1"]).code(0);
    let xml = fs::read_to_string(&file).unwrap();
    assert!(xml.contains("<error message=\"no power cut was explored\"/>"), "{xml}");
    // Before the exploration.
    let check = "touch checked";
    let run = explore(&folder, check, &["--junit", "no/crash.xml"]).code(1);
    run.stdout_eq("").stderr_eq(str![[r#"
error: cannot write no/crash.xml: No such file or directory (os error 2)

"#]]);
    assert!(!folder.path().join("checked").exists());
    for kept in ["disk.log", "base.img"] {
        explore(&folder, check, &["--junit", kept]).code(1).stdout_eq("");
        assert!(folder.path().join(kept).metadata().unwrap().len() > 0);
    }
}

#[test]
fn an_exploration_without_a_result_is_an_error_in_the_reports() {
    if !needs::root() {
        return;
    }
    let folder = folder(false);
    let reports = ["--json", "--junit", "crash.xml"];
    let nothing = "the check accepts all";
    let cases: [(&str, &[&str], i32, &str); 3] = [
        ("true", &["--control"], 1, nothing),
        ("no-such-program", &[], 1, "a command was not found"),
        ("true", &["--from-mark", "<never>"], 2, "the recording has no mark"),
    ];
    for (check, more, code, reason) in cases {
        let run = explore(&folder, check, &[&reports, more].concat()).code(code);
        let found = json(&run);
        assert_eq!((&found["end"], &found["complete"]), (&"error".into(), &false.into()));
        assert!(found["error"].as_str().unwrap().contains(reason), "{found:#}");
        let xml = fs::read_to_string(folder.path().join("crash.xml")).unwrap();
        assert!(xml.contains("errors=\"1\"") && xml.contains(reason), "{xml}");
        assert_eq!(xml.matches("<error message=").count(), 1, "{xml}");
    }
}

#[test]
fn a_checker_guest_without_a_configuration_is_a_wrong_command_line() {
    if !needs::root() {
        return;
    }
    let run = explore(&folder(true), "true", &["--check-guest", "nope.toml"]).code(2);
    run.stdout_eq("").stderr_eq(str![[r#"
...
error: the configuration of the checker guest is wrong: nope.toml

"#]]);
}

#[test]
fn a_host_without_a_temporary_folder_is_told_so() {
    let folder = folder(true);
    let program = crate::program(folder.path()).env("TMPDIR", "/no/such/folder");
    let arguments = ["crash", "explore", "disk.log", "--base", "base.img", "--check", "true"];
    program.args(arguments).assert().code(1).stdout_eq("").stderr_eq(str![[r#"
error: /no/such/folder is no folder; set TMPDIR to one for temporary files

"#]]);
}

#[test]
fn what_is_no_recording_is_refused() {
    let folder = folder(true);
    let log = folder.path().join("disk.log");
    let refused = |reason: &str| {
        explore(&folder, "true", &[]).code(1).stdout_eq("").stderr_eq(format!("error: {reason}\n"));
    };
    let mut recording = LogFile::new();
    recording.flush();
    recording.end("the machine was stopped");
    recording.save(&log);
    refused("disk.log: the log has no writes: the guest changed nothing on this disk");
    LogFile::new().save(&log);
    refused("disk.log: the log has no writes: the guest changed nothing on this disk");
    fs::write(&log, "").unwrap();
    refused("disk.log is empty: nothing was recorded in it");
    fs::remove_file(&log).unwrap();
    fs::create_dir(&log).unwrap();
    refused("disk.log is a folder; name a log, as DISK.log in it");
    crash(&folder, &["log", "disk.log"]).code(1).stdout_eq("").stderr_eq(str![[r#"
error: disk.log is a folder; name a log, as DISK.log in it

"#]]);
}

#[test]
fn a_signal_ends_the_exploration_within_a_second() {
    if !needs::root() {
        return;
    }
    let folder = folder(true);
    let mut program = with_default_signals(snapbox::cmd::cargo_bin!("bulkhead"));
    let check = "touch started; setsid sleep 7651; exit 0";
    program.args(["crash", "explore", "disk.log", "--base", "base.img", "--check", check]);
    let program = program.current_dir(folder.path()).stdout(Stdio::piped());
    let mut program = program.spawn().unwrap();
    let started = folder.path().join("started");
    let start = Instant::now();
    while !started.exists() {
        assert!(start.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(10));
    }
    let signalled = Instant::now();
    kill_process(Pid::from_child(&program), Signal::INT).unwrap();
    assert_eq!(program.wait().unwrap().code(), Some(130));
    assert!(signalled.elapsed() < Duration::from_secs(1), "{:?}", signalled.elapsed());
    let mut output = String::new();
    program.stdout.unwrap().read_to_string(&mut output).unwrap();
    assert!(output.contains("until it was interrupted"), "{output}");
    let processes = Command::new("pgrep").args(["-f", "sleep 7651"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&processes.stdout), "");
}

#[test]
fn a_killed_exploration_leaves_no_mount() {
    if !needs::root() {
        return;
    }
    let folder = folder(true);
    let mut program = Command::new(snapbox::cmd::cargo_bin!("bulkhead"));
    let check = "dirname $BULKHEAD_DISK >mount.new; mv mount.new mount; sleep 1";
    program.args(["crash", "explore", "disk.log", "--base", "base.img", "--check", check]);
    // The folder of a killed program is left.
    program.env("TMPDIR", folder.path());
    let mut program = program.current_dir(folder.path()).stdout(Stdio::null()).spawn().unwrap();
    let noted = folder.path().join("mount");
    let start = Instant::now();
    while !noted.exists() {
        assert!(start.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(10));
    }
    kill_process(Pid::from_child(&program), Signal::KILL).unwrap();
    program.wait().unwrap();
    let state = fs::read_to_string(noted).unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = std::path::Path::new(state.trim()).parent().unwrap().to_owned();
    assert!(!mounts.contains(mount.to_str().unwrap()), "{mounts}");
    assert!(fs::read_dir(&mount).unwrap().next().is_none());
}

/// Over it no lost write is noticed.
#[test]
fn the_disk_after_its_recording_is_no_base() {
    if !needs::root() {
        return;
    }
    let folder = folder(false);
    let mut disk = vec![0; 32 << 10];
    for (at, text) in [(4096, "data\n"), (0, "commit\n"), (3 * 4096, "more\n")] {
        disk[at..at + text.len()].copy_from_slice(text.as_bytes());
    }
    fs::write(folder.path().join("base.img"), disk).unwrap();
    explore(&folder, CHECK, &[]).code(1).stdout_eq("").stderr_eq(str![[r#"
error: base.img is not the base of disk.log: it is the disk as it was after its recording, over which no lost write is noticed: it has what was written, in 3 of 3 blocks; name the disk as it was before the recording, or insist with --force-base

"#]]);
    explore(&folder, CHECK, &["--force-base"]).code(0).stderr_eq("");
}
