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
mod stream;
mod sys;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use cli::{Cli, Command};
use exit::Exit;

fn main() -> ExitCode {
    let cli = Cli::parse();
    log::init(cli.level());
    let result: anyhow::Result<_> = match cli.command {
        Command::Check { config, json, explain } => check(&config, json, explain),
        Command::Run { config } => run(&config),
        Command::Serve { socket, config } => serve(&config, &socket),
        Command::Ctl { target, command, json } => {
            cmd::ctl::ctl(&target, &command, json).map_err(Into::into)
        }
        Command::Disk { command, json } => cmd::disk::disk(&command, json),
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

fn run(config: &Path) -> anyhow::Result<ExitCode> {
    match config::machine_file::load(config) {
        Ok(config) => Ok(cmd::run::run(&config).map(ExitCode::from)?),
        Err(report) => {
            report.print();
            Ok(Exit::BadConfig.into())
        }
    }
}

fn serve(config: &Path, socket: &Path) -> anyhow::Result<ExitCode> {
    match config::disk_file::load(config) {
        Ok(config) => Ok(cmd::serve::serve(&config, socket)?),
        Err(report) => {
            report.print();
            Ok(Exit::BadConfig.into())
        }
    }
}
