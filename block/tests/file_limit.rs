//! A short write at the file size limit. A binary of its own, because it lowers the limit of its
//! process.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod common;

use block::CacheMode;
use block::Durability::{Durable, Volatile};
use rustix::process::{Resource, Rlimit, setrlimit};

use common::{KIB, MIB, Rig, errno, numbered, numbered_file, open};

#[test]
fn a_short_write_fails_with_its_errno() {
    let file = numbered_file(MIB);
    let disk = open(file.path(), CacheMode::WriteThrough);
    let mut rig = Rig::new(&disk);
    // SAFETY: sets the disposition of one signal, with no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let limit = Rlimit { current: Some(512 * KIB), maximum: None };
    setrlimit(Resource::Fsize, limit).unwrap();
    for durability in [Volatile, Durable] {
        // The host writes the first half.
        assert_eq!(errno(rig.fill(256 * KIB, 512 * KIB, 7, durability)), Some(libc::EFBIG));
    }
    assert!(rig.read(256 * KIB, 256 * KIB).unwrap().iter().all(|&byte| byte == 7));
    assert!(rig.read(512 * KIB, 256 * KIB).unwrap() == numbered(512 * KIB, 256 * KIB));
    rig.flush().expect("EFBIG loses no earlier write");
}
