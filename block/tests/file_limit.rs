//! A write that the host cuts short. Alone in its process, whose file size limit it lowers.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod common;

use block::CacheMode;
use block::Durability::{Durable, Volatile};
use rustix::process::{Resource, Rlimit, setrlimit};

use common::{KIB, MIB, Rig, errno, numbered, numbered_file, open};

#[test]
fn a_short_write_is_no_success_and_keeps_its_errno() {
    let file = numbered_file(MIB);
    let disk = open(file.path(), CacheMode::WriteThrough);
    let mut rig = Rig::new(&disk);
    // SAFETY: sets the disposition of one signal, with no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let limit = Rlimit { current: Some(512 * KIB), maximum: None };
    setrlimit(Resource::Fsize, limit).unwrap();
    for durability in [Volatile, Durable] {
        // The host takes the first half of it.
        assert_eq!(errno(rig.fill(256 * KIB, 512 * KIB, 7, durability)), Some(libc::EFBIG));
    }
    assert!(rig.read(256 * KIB, 256 * KIB).unwrap().iter().all(|&byte| byte == 7));
    assert!(rig.read(512 * KIB, 256 * KIB).unwrap() == numbered(512 * KIB, 256 * KIB));
    rig.flush().expect("a want of space is the write's own error");
}
