//! The contract, over the thread-pool engine, and the fallback to it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod common;
mod contract;

use std::thread;

use block::{Backend, CacheMode, DiskOptions, EngineKind, OpenError, RawFile};

use common::{KIB, MIB, Rig, numbered, numbered_file};

const ENGINE: EngineKind = EngineKind::Threads;

fn disk_under_test(file: RawFile) -> Box<dyn Backend> {
    Box::new(file)
}

/// Makes the kernel refuse io_uring to this thread and those it starts.
fn refuse_io_uring() {
    const LOAD_NUMBER: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let number = u32::try_from(libc::SYS_io_uring_setup).unwrap();
    let eperm = u32::try_from(libc::EPERM).unwrap();
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut steps = [
        step(LOAD_NUMBER, 0, 0, 0),
        step(JUMP_IF_EQUAL, 0, 1, number),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | eperm),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: steps.as_mut_ptr() };
    // SAFETY: sets a flag of this thread.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    let mode = libc::SECCOMP_MODE_FILTER;
    // SAFETY: the kernel reads the program, which outlives the call.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) }, 0);
}

#[test]
fn threads_replace_a_refused_io_uring_and_the_status_has_the_reason() {
    let file = numbered_file(MIB);
    let options = DiskOptions::new(CacheMode::WriteBack);
    let disk = RawFile::open(file.path(), &options).unwrap();
    assert_eq!(disk.status().engine.name, "auto");
    thread::scope(|scope| {
        scope.spawn(|| {
            refuse_io_uring();
            let mut rig = Rig::new(&disk);
            assert_eq!(rig.read(64 * KIB, 4096).unwrap(), numbered(64 * KIB, 4096));
        });
    });
    let engine = disk.status().engine;
    assert_eq!(engine.name, "threads");
    assert!(engine.reason.contains("refuses io_uring (Operation not permitted"), "{engine:?}");

    drop(Rig::new(&disk));
    assert_eq!(disk.status().engine.name, "io_uring", "this thread may use it");
}

#[test]
fn a_configured_io_uring_is_not_replaced() {
    let file = numbered_file(MIB);
    let options =
        DiskOptions { engine: EngineKind::IoUring, ..DiskOptions::new(CacheMode::WriteBack) };
    let disk = RawFile::open(file.path(), &options).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            refuse_io_uring();
            let refusal = Rig::try_new(&disk).map(drop).unwrap_err();
            assert!(matches!(refusal, OpenError::NoIoUring(_)), "{refusal}");
        });
    });
}
