//! Runs the program `zfs`, by absolute path and with a time limit. Control plane only; it never
//! changes a pool.

use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Time limit of `zfs`, which hangs while its pool is suspended.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Where distributions and `make install` put `zfs`.
const PROGRAMS: [&str; 5] = [
    "/usr/sbin/zfs",
    "/sbin/zfs",
    "/usr/local/sbin/zfs",
    "/usr/bin/zfs",
    "/run/current-system/sw/bin/zfs",
];

/// The output of `zfs` with these arguments. Blocks for some milliseconds, at most ten seconds.
///
/// # Errors
///
/// `zfs` cannot be run or does not end.
pub(super) fn zfs(arguments: &[&str]) -> io::Result<String> {
    let child = Command::new(program())
        .args(arguments)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let child = child.map_err(|error| {
        io::Error::new(error.kind(), format!("cannot run `zfs` of zfsutils: {error}"))
    })?;
    output_of(child)
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

/// The program, by absolute path. Spawning it copies no page tables: without a hook in the child,
/// the standard library uses posix_spawn(3).
fn program() -> &'static str {
    let [usual, ..] = PROGRAMS;
    PROGRAMS.into_iter().find(|path| Path::new(path).exists()).unwrap_or(usual)
}

/// The output of a program that ends soon and prints less than a pipe holds.
fn output_of(mut child: Child) -> io::Result<String> {
    let deadline = Instant::now() + TIMEOUT;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, "`zfs` did not end within 10 s"));
        }
        thread::sleep(Duration::from_millis(2));
    }
    let mut output = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut output)?;
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_fails_has_no_output() {
        let child = Command::new("false").stdout(Stdio::piped()).spawn().unwrap();
        assert_eq!(output_of(child).unwrap(), "");
    }
}
