//! `lab`: builds the lab and runs commands in it by hand.

#![expect(clippy::print_stderr, reason = "reports progress on a terminal")]

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use lab::{Host, Lab, cache};

/// Builds an emulated host for real Linux guests and runs commands in it.
///
/// Products are kept in $BULKHEAD_LAB, else in bulkhead/lab of the user's cache folder.
#[derive(Parser)]
#[command(name = "lab")]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Build the missing products (as root, on Debian; a few minutes the first time)
    Build {
        /// Also compile ZFS for the host: about five minutes more the first time
        #[arg(long)]
        zfs: bool,
    },
    /// Restore the host, run one command in it, print its output and exit with its status
    Run {
        /// Copy a file to /run/lab/in/ of the host first (may be given more than once)
        #[arg(long, value_name = "FILE")]
        put: Vec<PathBuf>,
        /// Load ZFS
        #[arg(long)]
        zfs: bool,
        /// Copy a file of the host (by its full path) into the current folder afterwards
        #[arg(long, value_name = "PATH")]
        get: Vec<String>,
        /// Give up after this many seconds
        #[arg(long, default_value_t = 600)]
        timeout: u64,
        /// The command, a line of shell
        #[arg(required = true, trailing_var_arg = true)]
        words: Vec<String>,
    },
    /// Restore the host and run commands from standard input in it
    Shell {
        /// Copy a file to /run/lab/in/ of the host first (may be given more than once)
        #[arg(long, value_name = "FILE")]
        put: Vec<PathBuf>,
        /// Load ZFS
        #[arg(long)]
        zfs: bool,
    },
    /// Boot a host in emulated time, run one command in it unattended, print its output
    Deterministic {
        /// Copy a file to the command's current folder first
        #[arg(long, value_name = "FILE")]
        put: Vec<PathBuf>,
        /// Restart a machine without console output for this many seconds, up to four times
        #[arg(long, default_value_t = 900)]
        timeout: u64,
        /// The command, a line of shell
        #[arg(required = true, trailing_var_arg = true)]
        words: Vec<String>,
    },
    /// Show what is built and where
    Status,
    /// Remove the products of other recipes from the cache, including those of other checkouts
    Prune,
    /// Remove the cache
    Clean,
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().command {
        Action::Build { zfs } => {
            let started = Instant::now();
            let lab = Lab::build()?;
            if zfs {
                lab.zfs()?;
            }
            eprintln!("lab: ready after {:.1} s", started.elapsed().as_secs_f64());
        }
        Action::Run { put, zfs, get, timeout, words } => {
            return run(&start(&put, zfs)?, &get, timeout, &words.join(" "));
        }
        Action::Shell { put, zfs } => shell(&start(&put, zfs)?)?,
        Action::Deterministic { put, timeout, words } => {
            return deterministic(&put, timeout, &words.join(" "));
        }
        Action::Status => status()?,
        Action::Prune => Lab::prune()?,
        Action::Clean => {
            let dir = cache()?;
            if dir.exists() {
                std::fs::remove_dir_all(&dir)
                    .with_context(|| format!("removing {}", dir.display()))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn start(put: &[PathBuf], zfs: bool) -> Result<Host> {
    let started = Instant::now();
    let name = format!("by-hand-{}", std::process::id());
    let host = if zfs { Host::start_with_zfs(&name) } else { Host::start(&name) }?;
    host.run(&format!("mkdir -p {}", host.path("in")))?;
    for file in put {
        host.put(file, &format!("in/{}", name_of(file)?))?;
    }
    eprintln!(
        "lab: host up after {:.2} s; logs in {}",
        started.elapsed().as_secs_f64(),
        host.logs().display()
    );
    Ok(host)
}

fn name_of(file: &std::path::Path) -> Result<&str> {
    file.file_name()
        .and_then(|name| name.to_str())
        .with_context(|| format!("{} has no file name", file.display()))
}

fn exit_code(status: i32) -> ExitCode {
    ExitCode::from(u8::try_from(status).unwrap_or(1))
}

fn run(host: &Host, get: &[String], timeout: u64, command: &str) -> Result<ExitCode> {
    let output = host.try_run_for(command, Duration::from_secs(timeout))?;
    println!("{}", output.text);
    for remote in get {
        host.get(remote, std::path::Path::new(name_of(std::path::Path::new(remote))?))?;
    }
    Ok(exit_code(output.status))
}

fn shell(host: &Host) -> Result<()> {
    let prompt = || {
        eprint!("lab# ");
        std::io::stderr().flush()
    };
    prompt()?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if !line.trim().is_empty() {
            let output = host.try_run_for(&line, Duration::from_secs(3600))?;
            println!("{}", output.text);
            if output.status != 0 {
                eprintln!("[status {}]", output.status);
            }
        }
        prompt()?;
    }
    Ok(())
}

fn deterministic(put: &[PathBuf], timeout: u64, command: &str) -> Result<ExitCode> {
    let files =
        put.iter().map(|file| Ok((file.as_path(), name_of(file)?))).collect::<Result<Vec<_>>>()?;
    let name = format!("by-hand-{}", std::process::id());
    let output = Host::deterministic(&name, &files, command, Duration::from_secs(timeout))?;
    print!("{}", output.text);
    Ok(exit_code(output.status))
}

fn status() -> Result<()> {
    println!("cache: {}", cache()?.display());
    match Lab::find() {
        Ok(lab) => println!("built: kernel {}\n{lab:#?}", lab.kernel_version()?),
        Err(error) => println!("{error:#}"),
    }
    Ok(())
}
