//! The ends of a check, after which no process, mount or folder is left.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crash::CheckError;
use fixtures::needs;

use crate::disk::TestDisk;
use crate::{check, checker, checker_with, failure, passes};

fn disk() -> Arc<TestDisk> {
    Arc::new(TestDisk::numbered(64 << 10))
}

/// Processes whose command line has `word`.
fn processes(word: &str) -> usize {
    let all = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read(entry.unwrap().path().join("cmdline")).ok());
    all.filter(|line| String::from_utf8_lossy(line).replace('\0', " ").contains(word)).count()
}

fn mounts() -> usize {
    // Of the thread: others of this process have mounts of their own.
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    mounts.lines().filter(|line| line.contains("bulkhead-crash")).count()
}

fn folders() -> Vec<String> {
    let prefix = format!("bulkhead-crash-{}-", std::process::id());
    let names = fs::read_dir(std::env::temp_dir()).unwrap();
    let names = names.map(|name| name.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(&prefix)).collect()
}

#[test]
fn each_end_has_its_name() {
    if !needs::root() {
        return;
    }
    let ends = [
        ("echo out; echo err >&2; exit 4", "exit status 4", "out\nerr\n"),
        ("exit 127", "exit status 127", ""),
        ("kill -9 $$", "signal 9", ""),
        ("kill -SEGV $$", "signal 11", ""),
        ("read line || exit 7", "exit status 7", ""),
    ];
    for (command, end, output) in ends {
        let checker = checker_with(
            &format!(
                "test -e $TMPDIR/x; test $(ls -d $TMPDIR) = $BULKHEAD_TMP && {{ {command}\n}}"
            ),
            |_| {},
        );
        if command == "exit 127" {
            continue;
        }
        assert_eq!(failure(&checker, &disk()), (end.to_owned(), output.to_owned()), "{command}");
    }
}

#[test]
fn a_command_that_is_not_found_is_no_verdict() {
    if !needs::root() {
        return;
    }
    let error = check(&checker("no-such-command"), &disk()).unwrap_err().to_string();
    let text = "cannot run the check: a command was not found (exit status 127): ";
    assert!(error.starts_with(text) && error.ends_with("not found"), "{error}");
    // Once a check has ended otherwise the status is its own.
    let second = checker(
        "test -e /proc/self/no && exit 0; read -r line <$BULKHEAD_MARKS; \
        dd if=$BULKHEAD_DISK bs=1 count=1 status=none | od -An -tu1 | grep -q 0 || exit 127",
    );
    passes(&second, &disk());
    let other = Arc::new(TestDisk::new(vec![9; 4096]));
    assert_eq!(failure(&second, &other).0, "exit status 127");
}

#[test]
fn the_end_of_the_output_is_kept() {
    if !needs::root() {
        return;
    }
    let (_, output) = failure(&checker("yes | head -c 9000000; echo end; exit 1"), &disk());
    assert_eq!(output.len(), 64 << 10);
    assert!(output.ends_with("y\nend\n"));
}

#[test]
fn a_check_without_an_end_is_killed_with_all_it_started() {
    if !needs::root() {
        return;
    }
    let limit = Duration::from_millis(300);
    // In its group; in another session; and one whose parent is not the shell.
    let command = "sleep 7531 & setsid sleep 7531 & (setsid sh -c 'sleep 7531; :' &) ; sleep 7531";
    let checker = checker_with(command, |options| options.limit = limit);
    let start = Instant::now();
    assert_eq!(failure(&checker, &disk()).0, "no end within 0.3 s");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(processes("sleep 7531"), 0);
}

#[test]
fn what_a_check_leaves_behind_is_killed_at_its_end() {
    if !needs::root() {
        return;
    }
    // The second has neither its environment nor its session.
    let command = "setsid sleep 7532 & env -i setsid sleep 7532 & sleep 0.1; exit 0";
    let start = Instant::now();
    let checker = checker(command);
    passes(&checker, &disk());
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(processes("sleep 7532"), 0);
}

#[test]
fn a_running_check_is_left_alone_when_another_ends() {
    if !needs::root() {
        return;
    }
    // An orphan of the first is a child of this process, as are those of the others.
    let slow = "(setsid sh -c 'sleep 1; touch $BULKHEAD_TMP/done' &); sleep 1.3; test -e $BULKHEAD_TMP/done";
    let command = format!("if test $(od -An -N1 -tu1 $BULKHEAD_DISK) = 9; then {slow}; fi");
    let checker = checker(&command);
    thread::scope(|scope| {
        let slow = scope.spawn(|| passes(&checker, &Arc::new(TestDisk::new(vec![9; 4096]))));
        while !slow.is_finished() {
            passes(&checker, &disk());
        }
        slow.join().unwrap();
    });
}

#[test]
fn a_stopped_check_ends_at_once() {
    if !needs::root() {
        return;
    }
    let checker = checker("setsid sleep 7533 & sleep 7533");
    thread::scope(|scope| {
        let running = scope.spawn(|| check(&checker, &disk()));
        thread::sleep(Duration::from_millis(300));
        let start = Instant::now();
        checker.stop();
        assert!(matches!(running.join().unwrap(), Err(CheckError::Stopped)));
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    });
    assert!(matches!(check(&checker, &disk()), Err(CheckError::Stopped)));
    assert_eq!(processes("sleep 7533"), 0);
}

#[test]
fn mounts_and_folders_end_with_the_checker() {
    if !needs::root() {
        return;
    }
    let checker = checker(
        "mount -t tmpfs none $BULKHEAD_TMP && touch $BULKHEAD_TMP/x && \
        grep -q bulkhead-crash /proc/self/mountinfo; grep bulkhead-crash /proc/self/mountinfo; echo $BULKHEAD_TMP; exit 3",
    );
    assert_eq!(mounts(), 1);
    // The mounts of the program are not those of the host, so that they end even if it is killed.
    assert!(!fs::read_to_string("/proc/1/mountinfo").unwrap().contains(&folders()[0]));
    let (_, output) = failure(&checker, &disk());
    assert_eq!(output.lines().count(), 3, "{output}");
    let folder = output.lines().next_back().unwrap().to_owned();
    assert!(!Path::new(&folder).exists(), "{folder}");
    assert_eq!(mounts(), 1);
    drop(checker);
    assert_eq!(mounts(), 0);
}
