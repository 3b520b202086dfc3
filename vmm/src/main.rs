//! The `bulkhead` program.

mod cli;
mod config;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    cli.init_log();
    let result = match cli.command {
        cli::Command::Check { config, json } => config::check::check(&config, json),
        cli::Command::Run { config } => match config::load(&config) {
            Ok(_) => Err(std::io::Error::other("`run` is not there yet")),
            Err(report) => {
                report.print();
                Ok(2)
            }
        },
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
