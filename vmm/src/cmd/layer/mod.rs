//! `bulkhead layer`: makes layers, shows, changes and moves them.

mod check;
mod commit;
mod copying;
mod create;
mod diff;
mod export;
mod flatten;
mod freeze;
mod import;
mod info;
mod map;
mod ranges;
mod rebase;
mod reset;
mod shown;

use std::path::PathBuf;
use std::process::ExitCode;

use block::CommitOptions;
use clap::Subcommand;

use self::check::{CHECK_HELP, check};
use self::commit::{COMMIT_HELP, commit};
use self::create::create;
use self::diff::{DIFF_HELP, diff};
use self::export::{EXPORT_HELP, export};
use self::flatten::{FLATTEN_HELP, flatten};
use self::freeze::{FREEZE_HELP, freeze};
use self::import::{IMPORT_HELP, import};
use self::info::info;
use self::map::map;
use self::rebase::{REBASE_HELP, rebase};
use self::reset::{RESET_HELP, reset};
use crate::config::parse_size;
use crate::sanitize::sanitize;

/// A request about a layer.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum LayerCommand {
    /// Make a layer over a base, which is only read from then on
    Create {
        /// A raw image, a block device, or another layer, which is frozen
        #[arg(long, value_name = "PATH")]
        base: PathBuf,
        /// Size of the disk, such as 20GiB [default: that of the base]
        #[arg(long, value_parser = parse_size)]
        size: Option<u64>,
        /// The new layer
        path: PathBuf,
    },
    /// Show a layer and everything below it, and whether a base has changed
    Info {
        /// The layer
        path: PathBuf,
    },
    /// Show which level answers for each range of the disk, with data or with zeroes
    Map {
        /// The layer
        path: PathBuf,
    },
    /// Examine a layer and everything below it
    #[command(after_help = CHECK_HELP)]
    Check {
        /// The layer
        path: PathBuf,
    },
    /// Show which ranges a layer has changed
    #[command(after_help = DIFF_HELP)]
    Diff {
        /// The base of the changes, any level below the layer [default: its base]
        #[arg(long, value_name = "BASE")]
        from: Option<PathBuf>,
        /// Read the ranges, and leave out blocks that are equal
        #[arg(long)]
        content: bool,
        /// The layer
        path: PathBuf,
    },
    /// Write what a layer has changed to a stream
    #[command(after_help = EXPORT_HELP)]
    Export {
        /// The base of the changes, any level below the layer [default: its base]
        #[arg(long, value_name = "BASE")]
        from: Option<PathBuf>,
        /// The layer
        path: PathBuf,
        /// The new file of the stream, or `-` for standard output
        out: PathBuf,
    },
    /// Make a layer from a stream
    #[command(after_help = IMPORT_HELP, allow_missing_positional = true)]
    Import {
        /// A copy of the base that the stream was made over
        #[arg(long, value_name = "PATH")]
        base: PathBuf,
        /// Allow a base that only may be the one of the stream
        #[arg(long)]
        force: bool,
        /// The stream, or `-` for standard input [default: -]
        stream: Option<PathBuf>,
        /// The new layer
        path: PathBuf,
    },
    /// Forbid all writes to a layer, as `create` does before another one stands on it
    #[command(after_help = FREEZE_HELP)]
    Freeze {
        /// The layer
        path: PathBuf,
    },
    /// Drop all changes that a layer has: it reads as its base again
    #[command(after_help = RESET_HELP)]
    Reset {
        /// The layer
        path: PathBuf,
    },
    /// Put a layer over another base, or tell it where its base is now
    #[command(after_help = REBASE_HELP)]
    Rebase {
        /// The base: a raw image, a block device, or another layer, which is frozen
        #[arg(long, value_name = "PATH")]
        base: PathBuf,
        /// The layer, which reads the same afterwards
        path: PathBuf,
    },
    /// Make a raw image of a layer and everything below it
    #[command(after_help = FLATTEN_HELP)]
    Flatten {
        /// The layer
        path: PathBuf,
        /// The new image
        image: PathBuf,
    },
    /// Merge a layer into its base
    #[command(after_help = COMMIT_HELP)]
    Commit {
        /// Also if other layers stand on the base, which cannot be used afterwards
        #[arg(long)]
        force: bool,
        /// Remove the layer, instead of making it empty
        #[arg(long)]
        remove: bool,
        /// The layer
        path: PathBuf,
    },
}

/// Runs the request and prints the result.
///
/// # Errors
///
/// The layer cannot be made, changed or read, or the result not be printed.
pub(crate) fn layer(command: &LayerCommand, json: bool) -> anyhow::Result<ExitCode> {
    // An error may have paths of a header, which are untrusted.
    run(command, json).map_err(|error| anyhow::anyhow!("{}", sanitize(&format!("{error:#}"))))
}

fn run(command: &LayerCommand, json: bool) -> anyhow::Result<ExitCode> {
    match command {
        LayerCommand::Create { base, size, path } => create(path, base, *size, json),
        LayerCommand::Info { path } => info(path, json),
        LayerCommand::Map { path } => map(path, json),
        LayerCommand::Check { path } => check(path, json),
        LayerCommand::Diff { from, content, path } => diff(path, from.as_deref(), *content, json),
        LayerCommand::Export { from, path, out } => export(path, from.as_deref(), out, json),
        LayerCommand::Import { base, force, stream, path } => {
            import(stream.as_deref(), base, path, *force, json)
        }
        LayerCommand::Freeze { path } => freeze(path, json),
        LayerCommand::Reset { path } => reset(path, json),
        LayerCommand::Rebase { base, path } => rebase(path, base, json),
        LayerCommand::Flatten { path, image } => flatten(path, image, json),
        &LayerCommand::Commit { force, remove, ref path } => {
            commit(path, CommitOptions { force, remove }, json)
        }
    }
}
