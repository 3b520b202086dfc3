//! Runs the programs `zfs` and `zpool`, by absolute path and with a time limit. Control plane only;
//! it never changes a pool.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Time limit of a program, which hangs while its pool is suspended.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Where distributions and `make install` put the programs.
const FOLDERS: [&str; 5] =
    ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/run/current-system/sw/bin"];

/// The output of `zfs` with these arguments. Blocks for some milliseconds, at most ten seconds.
///
/// # Errors
///
/// `zfs` cannot be run or does not end.
pub(super) fn zfs(arguments: &[&str]) -> io::Result<String> {
    run("zfs", arguments)
}

/// Lines of a property and its value, separated by a tab, for the `properties` of a dataset,
/// separated by commas. Empty if one of them is unknown to this version. Blocks as [`zfs`].
///
/// # Errors
///
/// As [`zfs`].
pub(crate) fn zfs_properties(dataset: &str, properties: &str) -> io::Result<String> {
    zfs(&["get", "-Hp", "-o", "property,value", properties, dataset])
}

/// The members of a pool, as `zpool list -vHPL` prints them: with whole paths, and links resolved.
/// Blocks as [`zfs`].
///
/// # Errors
///
/// As [`zfs`].
pub(crate) fn zpool_members(pool: &str) -> io::Result<String> {
    run("zpool", &["list", "-vHPL", pool])
}

fn run(name: &str, arguments: &[&str]) -> io::Result<String> {
    let child = Command::new(program(name))
        .args(arguments)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let child = child.map_err(|error| {
        io::Error::new(error.kind(), format!("cannot run `{name}` of zfsutils: {error}"))
    })?;
    output_of(child, TIMEOUT)
}

/// The program, by absolute path. Spawning it copies no page tables: without a hook in the child,
/// the standard library uses posix_spawn(3).
fn program(name: &str) -> PathBuf {
    let [usual, ..] = FOLDERS;
    let mut paths = FOLDERS.into_iter().map(|folder| Path::new(folder).join(name));
    paths.find(|path| path.exists()).unwrap_or_else(|| Path::new(usual).join(name))
}

/// The output of a program that ends soon and prints less than a pipe holds.
fn output_of(mut child: Child, limit: Duration) -> io::Result<String> {
    let deadline = Instant::now() + limit;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            let limit = limit.as_secs_f32();
            let message = format!("a program of zfsutils did not end within {limit} s");
            abandon(child);
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        thread::sleep(Duration::from_millis(2));
    }
    let mut output = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut output)?;
    }
    Ok(output)
}

/// Kills a program. It may be in a call of a suspended pool that no signal interrupts: its exit is
/// awaited by a thread of its own, if the host permits one.
fn abandon(mut child: Child) {
    let _ = child.kill();
    let _ = thread::Builder::new().name("zfs".to_owned()).spawn(move || child.wait());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_fails_has_no_output() {
        let child = Command::new("false").stdout(Stdio::piped()).spawn().unwrap();
        assert_eq!(output_of(child, TIMEOUT).unwrap(), "");
    }

    #[test]
    fn a_program_that_hangs_is_abandoned() {
        let child = Command::new("sleep").arg("60").stdout(Stdio::piped()).spawn().unwrap();
        let start = Instant::now();
        let error = output_of(child, Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() < Duration::from_secs(30));
    }
}
