//! `writer DISK SLOTS RUN WAY`: writes numbered records to a raw disk until the power is cut.
//!
//! Four threads write with direct I/O. WAY is `flush`: another thread flushes the disk all the
//! time; `settle`: they wait for each other, the disk is flushed, and nothing happens for a while;
//! or `dsync`: each write is durable by itself (`O_DSYNC`). Prints `##ACK FLUSHED ISSUED`
//! before and after each flush, or after some writes: all records up to FLUSHED are durable, and
//! those up to ISSUED have been written or are in flight.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::fs::{OFlags, fdatasync};
use writer::{RECORD, Records};

/// Writes in flight.
const THREADS: usize = 4;
/// Writes with `O_DSYNC` for each line.
const PER_LINE: u64 = 2;
/// Pause between flushes, in which writes complete that are not flushed.
const PAUSE: Duration = Duration::from_millis(40);
/// Writes of each thread before a flush that nothing follows.
const BURST: u64 = 6;
/// Pause after it.
const SETTLED: Duration = Duration::from_millis(150);

/// Memory that is aligned for direct I/O.
#[repr(C, align(4096))]
struct Page([u8; RECORD]);

/// How far the writers are.
#[derive(Default)]
struct Progress {
    issued: u64,
    in_flight: Vec<u64>,
}

impl Progress {
    /// The last record that is complete, as are all before it.
    fn complete(&self) -> u64 {
        self.in_flight.iter().min().map_or(self.issued, |first| first - 1)
    }
}

struct Writer {
    disk: File,
    records: Records,
    progress: Mutex<Progress>,
}

impl Writer {
    fn progress<T>(&self, change: impl FnOnce(&mut Progress) -> T) -> T {
        change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, writes: u64, acknowledge: bool) -> io::Result<()> {
        let mut page = Box::new(Page([0; RECORD]));
        for _ in 0..writes {
            let number = self.progress(|progress| {
                progress.issued += 1;
                progress.in_flight.push(progress.issued);
                progress.issued
            });
            self.records.fill(number, &mut page.0);
            self.disk.write_all_at(&page.0, self.records.slot(number) * RECORD as u64)?;
            let (complete, issued) = self.progress(|progress| {
                progress.in_flight.retain(|other| *other != number);
                (progress.complete(), progress.issued)
            });
            if acknowledge && number.is_multiple_of(PER_LINE) {
                print(complete, issued)?;
            }
        }
        Ok(())
    }

    fn settle(&self) -> io::Result<()> {
        let mut flushed = 0;
        loop {
            thread::scope(|scope| {
                let write = || self.write(BURST, false);
                let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(write)).collect();
                threads.into_iter().try_for_each(|thread| {
                    thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
                })
            })?;
            let issued = self.progress(|progress| progress.issued);
            print(flushed, issued)?;
            fdatasync(&self.disk)?;
            flushed = issued;
            print(flushed, issued)?;
            thread::sleep(SETTLED);
        }
    }

    fn flush(&self) -> io::Result<()> {
        let mut flushed = 0;
        loop {
            let (complete, issued) =
                self.progress(|progress| (progress.complete(), progress.issued));
            print(flushed, issued)?;
            fdatasync(&self.disk)?;
            flushed = complete;
            print(flushed, self.progress(|progress| progress.issued))?;
            thread::sleep(PAUSE);
        }
    }
}

fn print(flushed: u64, issued: u64) -> io::Result<()> {
    io::stdout().lock().write_all(format!("##ACK {flushed} {issued}\n").as_bytes())
}

fn run() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [disk, slots, run, way] = &arguments[..] else {
        return Err("usage: writer DISK SLOTS RUN flush|settle|dsync".to_owned());
    };
    let parse = |text: &str| text.parse().map_err(|error| format!("{text}: {error}"));
    let is_dsync = match way.as_str() {
        "dsync" => true,
        "flush" | "settle" => false,
        other => return Err(format!("{other}: must be flush, settle or dsync")),
    };
    let slots: u64 = parse(slots)?;
    if !slots.is_power_of_two() {
        return Err(format!("{slots} slots: must be a power of two"));
    }
    let mut flags = OFlags::DIRECT;
    flags.set(OFlags::DSYNC, is_dsync);
    let flags = i32::try_from(flags.bits()).map_err(|error| error.to_string())?;
    let file = File::options().read(true).write(true).custom_flags(flags).open(disk);
    let writer = Writer {
        disk: file.map_err(|error| format!("{disk}: {error}"))?,
        records: Records::new(slots, parse(run)?),
        progress: Mutex::default(),
    };
    if way == "settle" {
        return writer.settle().map_err(|error| error.to_string());
    }
    // The first error ends the program.
    let (sender, errors) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..THREADS {
            let (writer, sender) = (&writer, sender.clone());
            scope.spawn(move || sender.send(writer.write(u64::MAX, is_dsync)));
        }
        if !is_dsync {
            let (writer, sender) = (&writer, sender.clone());
            scope.spawn(move || sender.send(writer.flush()));
        }
        if let Ok(Err(error)) = errors.recv() {
            println!("##ERROR {error}");
            std::process::exit(1);
        }
    });
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("##ERROR {error}");
            ExitCode::FAILURE
        }
    }
}
