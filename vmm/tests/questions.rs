//! `disk inspect`, `disk map` and `check` change nothing, take no lock, and answer although the
//! store hangs. Needs strace; loop devices and frozen file systems need root.

#![allow(clippy::unwrap_used, reason = "a failed helper fails its test")]

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use fixtures::host::Loop;
use fixtures::{Ext4, OwnedChild, killed_with_parent, needs, scratch, wait_for};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const PROGRAM: &str = env!("CARGO_BIN_EXE_bulkhead");
/// The answer takes a second; the rest is for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(3);

/// Calls that may change a file, lock it or start to do so.
const TRACED: &str = "open,openat,openat2,creat,fallocate,write,writev,pwrite64,pwritev,pwritev2,\
     truncate,ftruncate,unlink,unlinkat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,\
     mkdir,mkdirat,mknod,mknodat,setxattr,lsetxattr,fsetxattr,removexattr,lremovexattr,\
     fremovexattr,utime,utimes,utimensat,futimesat,chmod,fchmod,fchmodat,chown,fchown,lchown,\
     fchownat,copy_file_range,sendfile,splice,fsync,fdatasync,sync,syncfs,sync_file_range,fcntl,\
     flock,ioctl,io_uring_enter,io_submit";

/// The questions about a disk, as arguments; `vm.toml` and `disk.toml` name it.
fn questions(disk: &Path) -> [Vec<&str>; 5] {
    let disk = disk.to_str().unwrap();
    [
        vec!["disk", "inspect", disk],
        vec!["disk", "inspect", "--scan", "--json", disk],
        vec!["disk", "map", disk],
        vec!["check", "disk.toml"],
        vec!["check", "--explain", "vm.toml"],
    ]
}

/// A folder with configurations of `disk`.
fn folder(disk: &Path) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let keys = format!(
        "id = \"a\"\npath = \"{}\"\ncache = \"none\"\nthin = {{ soft_limit = \"80%\" }}\n",
        disk.display()
    );
    let machine = "[machine]\nmemory = \"64MiB\"\n[kernel]\nimage = \"vmlinuz\"\n";
    fs::write(folder.path().join("disk.toml"), format!("[disk]\n{keys}")).unwrap();
    fs::write(folder.path().join("vm.toml"), format!("{machine}[[disk]]\n{keys}")).unwrap();
    folder
}

/// A sparse image of 8 MiB with 1 MiB of data.
fn image(folder: &Path) -> PathBuf {
    let image = folder.join("disk.img");
    fs::write(&image, vec![7; 1 << 20]).unwrap();
    File::options().write(true).open(&image).unwrap().set_len(8 * MIB).unwrap();
    File::open(&image).unwrap().sync_all().unwrap();
    image
}

/// Runs a command under strace; its calls as lines.
fn trace(folder: &Path, command: &[&str]) -> Vec<String> {
    let log = folder.join("trace");
    let run = Command::new("strace")
        .args(["-f", "-y", "-qq", "-s", "0", "-e", "signal=none", "-o", log.to_str().unwrap()])
        .args(["-e", &format!("trace={TRACED}"), "--"])
        .args(command)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .expect("strace starts");
    assert!(!run.stdout.is_empty() || !run.stderr.is_empty(), "{command:?} says something");
    fs::read_to_string(log).unwrap().lines().map(str::to_owned).collect()
}

/// Whether a call changes a file or takes a lock.
fn is_change(line: &str) -> bool {
    let call = line.split_once(' ').map_or(line, |(_, call)| call.trim_start());
    let name = call.split('(').next().unwrap_or_default();
    let devices = ["\"/dev/kvm\"", "\"/dev/tty\"", "\"/dev/null\""];
    match name {
        "open" | "openat" | "openat2" => {
            let writes = ["O_RDWR", "O_WRONLY", "O_CREAT", "O_TRUNC"];
            writes.iter().any(|flag| call.contains(flag))
                && !devices.iter().any(|device| call.contains(device))
        }
        // To standard output, standard error and pipes.
        "write" | "writev" => !["(1<", "(2<"].iter().any(|fd| call.contains(fd)),
        "fcntl" => call.contains("SETLK"),
        "ioctl" => ["BLKDISCARD", "BLKSECDISCARD", "BLKZEROOUT", "FICLONE", "BLKFLSBUF"]
            .iter()
            .any(|request| call.contains(request)),
        // The continuation of a call that another thread interrupted, or an exit.
        _ => name.starts_with(|first: char| first.is_ascii_lowercase()),
    }
}

fn changes(calls: &[String]) -> Vec<&String> {
    calls.iter().filter(|line| is_change(line)).collect()
}

/// Opens of devices except the disk `name`: those below it must not be opened.
fn other_devices<'c>(calls: &'c [String], name: &str) -> Vec<&'c String> {
    let allowed = ["\"/dev/kvm\"", "\"/dev/tty\"", "\"/dev/null\"", "\"/dev/net/tun\"", name];
    let is_other = |line: &&String| {
        let is_open = line.contains(" open") && line.contains("\"/dev/");
        is_open && !line.contains("O_PATH") && !allowed.iter().any(|part| line.contains(part))
    };
    calls.iter().filter(is_other).collect()
}

/// Times, size and blocks of a file, without its access time.
fn state(path: &Path) -> [i64; 6] {
    let data = fs::metadata(path).unwrap();
    let size = i64::try_from(data.size()).unwrap();
    let blocks = i64::try_from(data.blocks()).unwrap();
    [data.mtime(), data.mtime_nsec(), data.ctime(), data.ctime_nsec(), size, blocks]
}

/// Asks all questions about `disk`, whose data is in `image`.
fn check_no_change(disk: &Path, image: &Path) {
    let folder = folder(disk);
    let before = state(image);
    for question in questions(disk) {
        let calls = trace(folder.path(), &[&[PROGRAM], question.as_slice()].concat());
        let name = disk.file_name().unwrap().to_str().unwrap();
        assert!(calls.iter().any(|line| line.contains(name)), "{question:?} opens the disk");
        assert_eq!(changes(&calls), Vec::<&String>::new(), "{question:?}");
        assert_eq!(other_devices(&calls, name), Vec::<&String>::new(), "{question:?}");
        assert_eq!(state(image), before, "{question:?}");
    }
}

#[test]
fn questions_change_no_image() {
    let folder = TempDir::new_in(scratch()).unwrap();
    let image = image(folder.path());
    check_no_change(&image, &image);
}

#[test]
fn questions_change_no_device() {
    if !needs::root() {
        return;
    }
    let folder = TempDir::new_in(scratch()).unwrap();
    let image = image(folder.path());
    let device = Loop::new(&image);
    check_no_change(&device.0, &image);
}

#[test]
fn questions_about_a_layer_change_nothing() {
    let folder = TempDir::new_in(scratch()).unwrap();
    let image = image(folder.path());
    let layer = folder.path().join("disk.layer");
    let [base, top] = [&image, &layer].map(|path| path.to_str().unwrap());
    let create = [PROGRAM, "layer", "create", "--base", base, top];
    assert_ne!(changes(&trace(folder.path(), &create)), Vec::<&String>::new());
    let all = File::options().write(true).open(&layer).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&all, &[0xff; 64], 8192).unwrap();
    all.sync_all().unwrap();
    let before = [&image, &layer].map(|path| state(path));
    for question in
        [&["info", top][..], &["map", top], &["check", top], &["diff", "--content", top]]
    {
        let calls = trace(folder.path(), &[&[PROGRAM, "layer"], question].concat());
        assert_eq!(changes(&calls), Vec::<&String>::new(), "{question:?}");
        assert_eq!([&image, &layer].map(|path| state(path)), before, "{question:?}");
    }
    // An export takes the locks of a reader, and changes neither.
    let export = [PROGRAM, "layer", "export", top, "disk.stream"];
    let calls = trace(folder.path(), &export);
    let locks = |line: &&&String| line.contains("F_OFD_SETLK") && line.contains("disk.layer");
    assert_ne!(changes(&calls).iter().filter(locks).count(), 0, "{calls:#?}");
    assert!(!changes(&calls).iter().any(|line| line.contains("F_WRLCK")), "{calls:#?}");
    assert_eq!([&image, &layer].map(|path| state(path)), before, "export");
}

/// The test is not blind: it finds each change that programs make.
#[test]
fn traces_show_changes() {
    let folder = tempfile::tempdir().unwrap();
    image(folder.path());
    for command in [
        &["fallocate", "--verbose", "--punch-hole", "--length", "4096", "disk.img"][..],
        &["flock", "--verbose", "disk.img", "true"],
        &["sh", "-c", "touch disk.img; echo"],
        &["sh", "-c", "echo >>disk.img; echo"],
        &["mv", "--verbose", "disk.img", "other.img"],
    ] {
        let calls = trace(folder.path(), command);
        assert_ne!(changes(&calls), Vec::<&String>::new(), "{command:?}: {calls:#?}");
    }
    let calls = trace(folder.path(), &["dd", "if=/dev/zero", "of=/dev/null", "count=1"]);
    assert_eq!(other_devices(&calls, "disk.img").len(), 1, "{calls:#?}");
}

/// Runs a command with its output in a file until it has printed `answer`; its exit code and
/// output.
fn ask(folder: &Path, command: &[&str], answer: &str) -> (Option<i32>, String) {
    let path = folder.join(format!("{answer}.log").replace([' ', '/'], "-"));
    let log = File::create(&path).unwrap();
    let start = Instant::now();
    let child = killed_with_parent(command.first().unwrap())
        .args(command.get(1..).unwrap())
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn();
    let mut child = OwnedChild(child.unwrap());
    let output = || fs::read_to_string(&path).unwrap();
    wait_for(|| output().contains(answer).then_some(()))
        .unwrap_or_else(|| panic!("{command:?} does not say {answer:?}: {}", output()));
    assert!(start.elapsed() < PATIENCE, "{command:?} takes {:?}", start.elapsed());
    let status = wait_for(|| child.0.try_wait().unwrap()).expect("the command ends");
    (status.code(), output())
}

/// Asks all questions about a disk on a frozen file system.
fn check_answers(disk: &Path) {
    let folder = folder(disk);
    let answers = ["granularity", "zero_bytes", "", "ready to serve", "vmlinuz"];
    for (question, answer) in questions(disk).iter().zip(answers) {
        let (code, output) =
            ask(folder.path(), &[&[PROGRAM], question.as_slice()].concat(), answer);
        let missing = question.contains(&"vm.toml");
        assert_eq!(code, Some(if missing { 2 } else { 0 }), "{question:?}: {output}");
        assert!(!output.contains("could not be"), "{question:?}: {output}");
    }
}

#[test]
fn questions_about_a_frozen_file_system_are_answered() {
    if !needs::root() {
        return;
    }
    let mut store = Ext4::new(4096);
    let image = store.file(8 * MIB, 7);
    let device = Loop::new(&image);
    store.freeze();
    check_answers(&image);
    check_answers(&device.0);
    store.thaw();
}

/// The question about an image of which the host delays `call`; its exit code and output.
fn ask_hung(call: &str, question: &[&str], answer: &str) -> (Option<i32>, String) {
    let store = TempDir::new_in(scratch()).unwrap();
    let image = image(store.path());
    let folder = folder(&image);
    let image = image.to_str().unwrap();
    let (trace, inject) = (format!("trace={call}"), format!("inject={call}:delay_enter=6s"));
    // Calls on descriptors of the image are delayed as well.
    let hung = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", image, "-e", &trace, "-e", &inject];
    let question = question.iter().map(|word| if *word == "IMAGE" { image } else { word });
    let command: Vec<_> = hung.into_iter().chain(["--", PROGRAM]).chain(question).collect();
    ask(folder.path(), &command, answer)
}

/// The other facts are shown.
#[test]
fn inspect_does_not_wait_for_the_storage_below() {
    let folder = TempDir::new_in(scratch()).unwrap();
    image(folder.path());
    let mounts = "/proc/self/mountinfo";
    let inject = ["-P", mounts, "-e", "trace=openat", "-e", "inject=openat:delay_enter=6s"];
    let command = [&["strace", "-f", "-qq", "-o", "/dev/null"], &inject[..]].concat();
    let command = [&command[..], &["--", PROGRAM, "disk", "inspect", "disk.img"]].concat();
    let answer = "direct I/O    could not be learned";
    let (code, output) = ask(folder.path(), &command, answer);
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains("data          1 MiB"), "{output}");
    assert!(!output.contains("The storage below"), "{output}");
}

#[test]
fn questions_about_a_hung_store_say_what_is_unknown() {
    const UNKNOWN: &str = "could not be learned: the host did not answer within 1 s";
    let inspect = ["disk", "inspect", "IMAGE"];
    let map = ["disk", "map", "IMAGE"];
    let check = ["check", "disk.toml"];
    let cases = [
        // Call, question, answer, further parts of the answer, exit code.
        (
            "fstatfs",
            &inspect[..],
            UNKNOWN,
            &["8388608 bytes", "no process", "data          1 MiB"][..],
            1,
        ),
        ("lseek", &inspect[..], UNKNOWN, &["8388608 bytes", "no process", "the host frees"][..], 1),
        ("open,openat", &inspect[..], UNKNOWN, &["disk.img"][..], 1),
        ("lseek", &map[..], UNKNOWN, &["data and holes of"][..], 1),
        (
            "pread64",
            &inspect[..],
            "format        could not be learned: the host did not answer within 1 s",
            &["8388608 bytes", "no process", "data          1 MiB"][..],
            1,
        ),
        (
            "pread64",
            &check[..],
            "could not be checked",
            &["the host did not answer within 1 s"][..],
            2,
        ),
        ("open,openat", &map[..], UNKNOWN, &["disk.img"][..], 1),
        (
            "lseek",
            &check[..],
            "could not be checked",
            &["the host did not answer within 1 s"][..],
            2,
        ),
        (
            "openat",
            &check[..],
            "could not be checked",
            &["the host did not answer within 1 s"][..],
            2,
        ),
    ];
    thread::scope(|scope| {
        for (call, question, answer, parts, expected) in cases {
            scope.spawn(move || {
                let (code, output) = ask_hung(call, question, answer);
                for part in parts {
                    assert!(output.contains(part), "{call} {question:?}: {output}");
                }
                assert_eq!(code, Some(expected), "{call} {question:?}: {output}");
            });
        }
    });
}
