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
mod kvm;
mod layout;
mod log;
mod machine;
mod memory;
mod sanitize;
mod socket;
mod sys;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use cmd::check::{self, Form};
use exit::Exit;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    log::init(cli.level());
    let result: anyhow::Result<_> = match cli.command {
        cli::Command::Check { config, json, explain } => check(&config, form(json, explain)),
        cli::Command::Run { config } => run(&config),
        cli::Command::Serve { socket, config } => serve(&config, &socket),
        cli::Command::Ctl { target, ask, json } => {
            cmd::ctl::ctl(&target, &ask, json).map_err(Into::into)
        }
        cli::Command::Disk { look, json } => cmd::disk::disk(&look, json),
    };
    result.unwrap_or_else(|error| {
        log::print(format_args!("error: {error:#}"));
        Exit::Failed.into()
    })
}

fn form(json: bool, explain: bool) -> Form {
    match (json, explain) {
        (true, _) => Form::Json,
        (false, true) => Form::Explained,
        (false, false) => Form::Summary,
    }
}

fn check(config: &Path, form: Form) -> anyhow::Result<ExitCode> {
    Ok(check::check(config, form)?)
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
