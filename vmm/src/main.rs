//! The `bulkhead` program.

#![deny(clippy::print_stdout)]

mod acpi;
mod boot;
mod cli;
mod cmd;
mod config;
mod console;
mod control;
mod cpu;
mod disks;
mod exit;
mod host_query;
mod kvm;
mod layout;
mod log;
mod machine;
mod memory;
mod notifier;
mod process;
mod process_limits;
mod sanitize;
mod store_warning;
mod stream;
mod sys;
mod unix_socket;

use std::num::NonZeroU32;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use cli::{Cli, Command};
use exit::Exit;

fn main() -> ExitCode {
    let cli = Cli::parse();
    log::init(cli.level());
    let result: anyhow::Result<_> = match cli.command {
        Command::Check { config, json, explain } => check(&config, json, explain),
        Command::Run { config, core_dumps, record, end_with } => {
            run(&config, core_dumps, record.as_deref(), end_with)
        }
        Command::Serve { socket, config, core_dumps } => serve(&config, &socket, core_dumps),
        Command::Ctl { target, command, json } => {
            cmd::ctl::ctl(&target, &command, json).map_err(Into::into)
        }
        Command::Disk { command, json } => cmd::disk::disk(&command, json),
        Command::Layer { command, json } => cmd::layer::layer(&command, json),
        Command::Crash { command, json } => cmd::crash::crash(&command, json),
    };
    let exit = result.unwrap_or_else(|error| {
        log::print(format_args!("error: {error:#}"));
        Exit::Failed.into()
    });
    log::drain();
    exit
}

fn check(config: &Path, json: bool, explain: bool) -> anyhow::Result<ExitCode> {
    use cmd::check::Form;
    let form = match (json, explain) {
        (true, _) => Form::Json,
        (false, true) => Form::Explained,
        (false, false) => Form::Summary,
    };
    Ok(cmd::check::check(config, form)?)
}

/// A soft limit of descriptors is for programs that use select(2). A core dump, even without guest
/// memory, has data of the guest in buffers and registers.
fn set_limits(core_dumps: bool) -> anyhow::Result<()> {
    if !core_dumps {
        process_limits::forbid_core_dumps().context("cannot forbid core dumps")?;
    }
    process_limits::raise_descriptor_limit().context(
        "cannot raise the soft limit of file descriptors; lower the hard one (`ulimit -Hn`)",
    )
}

fn run(
    config: &Path,
    core_dumps: bool,
    record: Option<&Path>,
    end_with: Option<NonZeroU32>,
) -> anyhow::Result<ExitCode> {
    set_limits(core_dumps)?;
    match config::machine_file::load(config) {
        Ok(mut config) => {
            if let Some(folder) = record {
                config.record_in(folder)?;
            }
            Ok(cmd::run::run(&config, end_with).map(ExitCode::from)?)
        }
        Err(report) => {
            report.print();
            Ok(Exit::BadConfig.into())
        }
    }
}

fn serve(config: &Path, socket: &Path, core_dumps: bool) -> anyhow::Result<ExitCode> {
    set_limits(core_dumps)?;
    match config::disk_file::load(config) {
        Ok(config) => Ok(cmd::serve::serve(&config, socket)?),
        Err(report) => {
            report.print();
            Ok(Exit::BadConfig.into())
        }
    }
}
