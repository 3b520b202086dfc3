//! The `bulkhead` program.

mod acpi;
mod boot;
mod bus;
mod cli;
mod config;
mod console;
mod control;
mod cpu;
mod ending;
mod exit;
mod kvm;
mod layout;
mod machine;
mod memory;
mod pci;
mod run;
mod serial;
mod signals;
mod terminal;
mod vcpu;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use exit::Exit;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    cli.init_log();
    let result = match cli.command {
        cli::Command::Check { config, json } => check(&config, json),
        cli::Command::Run { config } => run(&config),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        Exit::Failed.into()
    })
}

fn check(config: &Path, json: bool) -> anyhow::Result<ExitCode> {
    Ok(config::check::check(config, json).map(ExitCode::from)?)
}

fn run(config: &Path) -> anyhow::Result<ExitCode> {
    match config::load(config) {
        Ok(config) => Ok(run::run(&config).map(ExitCode::from)?),
        Err(report) => {
            report.print();
            Ok(Exit::BadConfig.into())
        }
    }
}
