//! Input of the serial console on its way to a guest.

use std::io::Write;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Host;

/// More than the buffers of the port, of Linux' tty layer and of the console together, in lines
/// longer than the port's FIFO.
const PASTE_BYTES: usize = 64 << 10;
const LINE_BYTES: usize = 620;
/// A paste takes half a minute in an emulated host.
const ROUNDS: usize = 1;
/// An emulated host passes some kilobytes a second.
const PASTE_TIMEOUT: Duration = Duration::from_secs(400);

/// A paste of lines of letters, different in each round.
fn paste(round: usize) -> String {
    let letters = ('A'..='Z').cycle().skip(round);
    let ends_line = |at: usize| at % LINE_BYTES == LINE_BYTES - 1;
    letters
        .zip(0..PASTE_BYTES)
        .map(|(letter, at)| if ends_line(at) { '\n' } else { letter })
        .collect()
}

/// The checksum, in the notation of sha256sum(1).
fn sha256(text: &str) -> Result<String> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(text.as_bytes())?;
    let output = Command::new("sha256sum").arg(file.path()).output()?;
    let text = String::from_utf8(output.stdout)?;
    text.split_whitespace().next().map(str::to_owned).context("sha256sum prints nothing")
}

#[test]
fn a_paste_reaches_a_busy_guest_unchanged() -> Result<()> {
    let host = Host::start("console-paste")?;
    let guest = host.boot(&format!(
        "[machine]\nvcpus = 1\nmemory = \"128MiB\"\n[kernel]\nimage = \"{}\"\ninitramfs = \"{}\"\n\
         cmdline = \"console=ttyS0 quiet cryptomgr.notests no_timer_check\"\n",
        host.kit("vmlinux"),
        host.kit("initramfs"),
    ))?;
    guest.run("for i in 1 2 3; do (while :; do :; done) >/dev/null 2>&1 & done")?;
    for round in 0..ROUNDS {
        let text = paste(round);
        let expected = sha256(&text)?;
        guest.send(&format!(
            "echo; echo PASTE-READY; head -c {PASTE_BYTES} </dev/ttyS0 | sha256sum | sed 's/^/PASTED /'\n"
        ))?;
        guest.wait_line("PASTE-READY", PASTE_TIMEOUT)?;
        guest.send(&text)?;
        let line = guest.wait_line("PASTED", PASTE_TIMEOUT)?;
        ensure!(line.contains(&expected), "round {round}: {line:?}, not {expected}");
    }
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}
