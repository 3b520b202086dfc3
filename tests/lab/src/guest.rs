//! A guest (L2) of a scenario: its console and the process of its monitor.

use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::console::{Console, Output};
use super::host::{COMMAND_TIMEOUT, Host};
use super::qemu::GUEST_PORTS;

/// Time limit of a guest's boot, which takes 3 s on an idle machine and up to 100 s on a busy one.
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(400);
/// Time limit for the monitor to exit once its guest is off.
pub const EXIT_TIMEOUT: Duration = Duration::from_secs(200);

/// A guest, killed when dropped.
pub struct Guest<'host> {
    host: &'host Host,
    number: usize,
    console: Console,
}

impl Host {
    /// Starts `bulkhead` with `config` and a socket for the console, and waits until the guest's
    /// agent is ready. Copies the program to the host unless it is there.
    pub fn boot(&self, config: &str) -> Result<Guest<'_>> {
        let program = self.path("bulkhead");
        if self.try_run(&format!("test -e {program}"))?.status != 0 {
            self.put_bulkhead()?;
        }
        let number = self.free_port()?;
        let socket = self.path(&format!("guest{number}.sock"));
        let file = self.write(
            &format!("guest{number}.toml"),
            &format!("{config}\n[console]\nsocket = \"{socket}\"\n"),
        )?;
        let guest = self.spawn_vmm(&format!("{program} run {file}"))?;
        guest.wait_up()?;
        Ok(guest)
    }

    /// Starts a virtual machine monitor that serves its guest's serial console on the unix socket
    /// `$CONSOLE`.
    pub fn spawn_vmm(&self, command: &str) -> Result<Guest<'_>> {
        let number = self.free_port()?;
        let file = |suffix: &str| self.path(&format!("guest{number}.{suffix}"));
        let (socket, pid, out, status) = (file("sock"), file("pid"), file("out"), file("status"));
        let script = self.write(
            &format!("guest{number}.sh"),
            &format!("echo $$ >{pid}\nexport CONSOLE={socket}\nexec {command}\n"),
        )?;
        self.run(&format!(
            "rm -f {socket} {status}; (bash {script} >{out} 2>&1 </dev/null; echo $? >{status}.new; mv {status}.new {status}) >/dev/null 2>&1 &"
        ))?;
        let console = Console::new(
            &format!("guest {number}"),
            self.connect(number, &socket)?,
            &self.logs().join(format!("guest{number}.log")),
        )?;
        self.ports_in_use.borrow_mut().push(number);
        Ok(Guest { host: self, number, console })
    }

    /// Continues the guest with the given number, 0 to 2, that was stopped when this host was
    /// saved.
    pub fn saved_guest(&self, number: usize) -> Result<Guest<'_>> {
        let port = self.guest_port(number)?.context("a saved host is an emulated one")?;
        let name = format!("guest {number}");
        let log = self.logs().join(format!("guest{number}.log"));
        let console = Console::new(&name, port, &log)?;
        self.ports_in_use.borrow_mut().push(number);
        let guest = Guest { host: self, number, console };
        guest.signal("CONT")?;
        Ok(guest)
    }

    fn free_port(&self) -> Result<usize> {
        let used = self.ports_in_use.borrow();
        (0..GUEST_PORTS)
            .find(|number| !used.contains(number))
            .context("all three guest consoles of the lab are in use")
    }

    fn connect(&self, number: usize, socket: &str) -> Result<UnixStream> {
        if let Some(port) = self.guest_port(number)? {
            self.run(&format!(
                "socat UNIX-CONNECT:{socket},retry=1000,interval=0.02 OPEN:/dev/virtio-ports/guest{number} >/dev/null 2>&1 & echo $! >{}",
                self.path(&format!("guest{number}.bridge"))
            ))?;
            return Ok(port);
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match UnixStream::connect(socket) {
                Ok(stream) => return Ok(stream),
                Err(error) if Instant::now() > deadline => bail!("connecting to {socket}: {error}"),
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

impl Guest<'_> {
    fn file(&self, suffix: &str) -> String {
        self.host.path(&format!("guest{}.{suffix}", self.number))
    }

    /// Waits until the guest's agent is ready.
    pub fn wait_up(&self) -> Result<()> {
        let deadline = Instant::now() + BOOT_TIMEOUT;
        while self.console.poll_line("##READY", Duration::from_millis(500))?.is_none() {
            if self.host.try_run(&format!("test -e {}", self.file("status")))?.status == 0 {
                bail!(
                    "the monitor exited before the guest was up{}{}",
                    self.console.last_lines(),
                    self.report()
                );
            }
            ensure!(
                Instant::now() < deadline,
                "the guest is not up after {} s{}{}",
                BOOT_TIMEOUT.as_secs(),
                self.console.last_lines(),
                self.report()
            );
        }
        Ok(())
    }

    /// Waits for a line on the console that starts with `start` and returns it.
    pub fn wait_line(&self, start: &str, timeout: Duration) -> Result<String> {
        Ok(self.console.wait_line(start, timeout)?.0)
    }

    /// Runs a shell command in the guest; a status other than 0 is an error that contains the
    /// output.
    pub fn run(&self, command: &str) -> Result<String> {
        self.run_for(command, COMMAND_TIMEOUT)
    }

    /// As `run`, with the time limit `timeout`.
    pub fn run_for(&self, command: &str, timeout: Duration) -> Result<String> {
        let output = self.console.run_while(command, timeout, || self.check_alive())?;
        output.into_success(command).context("in the guest")
    }

    /// Runs a shell command in the guest and returns its output and status.
    pub fn try_run(&self, command: &str) -> Result<Output> {
        self.console.run_while(command, COMMAND_TIMEOUT, || self.check_alive())
    }

    /// An error with the exit status if the monitor has exited.
    fn check_alive(&self) -> Result<()> {
        let exited = self.host.try_run(&format!("cat {}", self.file("status")))?;
        let status = exited.text.trim();
        ensure!(
            exited.status != 0,
            "the monitor has exited with status {status}; {}",
            self.report()
        );
        Ok(())
    }

    /// Takes each line that starts with `start` until the console is closed, as it is when the
    /// power of the host is cut. Gives up after `patience` without a line.
    pub fn lines_until_cut(&self, start: &str, patience: Duration) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        loop {
            match self.console.poll_line(start, patience) {
                Ok(Some((line, _))) => lines.push(line),
                Ok(None) => bail!("guest {}: its console is open after the power cut", self.number),
                Err(_) => return Ok(lines),
            }
        }
    }

    /// Stops the monitor and leaves it without a console, in a host that is to be saved: QEMU does
    /// not restore a processor that executes a guest.
    pub fn leave_stopped(self) -> Result<()> {
        self.signal("STOP")?;
        self.host.run(&format!(
            "until grep -q '^State:.*stopped' /proc/$(cat {})/status; do sleep 0.02; done",
            self.file("pid")
        ))?;
        std::mem::forget(self);
        Ok(())
    }

    /// Sends `text` to the guest's console unchanged and does not wait.
    pub fn send(&self, text: &str) -> Result<()> {
        self.console.send(text)
    }

    /// Powers the guest off from inside and returns the exit status of the monitor.
    pub fn power_off(&self) -> Result<i32> {
        self.console.send("sync; poweroff -f\n")?;
        self.wait_exit(EXIT_TIMEOUT)
    }

    /// Sends a signal, such as TERM, to the monitor.
    pub fn signal(&self, name: &str) -> Result<()> {
        self.host.run(&format!("kill -{name} $(cat {})", self.file("pid")))?;
        Ok(())
    }

    /// Waits for the monitor to exit and returns its exit status.
    pub fn wait_exit(&self, timeout: Duration) -> Result<i32> {
        let status = self.file("status");
        let command = format!(
            "timeout {} sh -c 'until test -e {status}; do sleep 0.02; done'; cat {status}",
            timeout.as_secs()
        );
        let output = self.host.try_run_for(&command, timeout + Duration::from_secs(30))?;
        ensure!(
            output.status == 0,
            "the monitor has not exited after {} s{}{}",
            timeout.as_secs(),
            self.console.last_lines(),
            self.report()
        );
        let text = output.text.trim();
        text.parse().with_context(|| format!("reading the exit status from {text:?}"))
    }

    /// The monitor's standard output and error so far.
    pub fn vmm_output(&self) -> Result<String> {
        self.host.run(&format!("cat {}", self.file("out")))
    }

    fn report(&self) -> String {
        format!("the monitor's output:\n{}\n", self.vmm_output().unwrap_or_default())
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        // Best effort: the host is dropped next. The monitor's output is kept with the logs.
        let (pid, status, out) = (self.file("pid"), self.file("status"), self.file("out"));
        // A virtio-serial port has one opener: the bridge must end before the next guest's starts.
        let end = format!(
            "test -e {status} || kill -9 $(cat {pid}); cat {out}
             bridge=$(cat {} 2>/dev/null) && {{ kill $bridge 2>/dev/null; while test -e /proc/$bridge; do sleep 0.02; done; }}",
            self.file("bridge")
        );
        if let Ok(output) = self.host.try_run_for(&end, Duration::from_secs(20)) {
            std::fs::write(self.host.logs().join(format!("guest{}.out", self.number)), output.text)
                .ok();
        }
        self.host.ports_in_use.borrow_mut().retain(|number| *number != self.number);
    }
}
