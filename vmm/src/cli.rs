//! The command line.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{ArgAction, Parser, Subcommand, ValueEnum};
use tracing::level_filters::LevelFilter;

use crate::cmd::crash::CrashCommand;
use crate::cmd::ctl::CtlCommand;
use crate::cmd::disk::DiskCommand;
use crate::cmd::layer::LayerCommand;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const EXAMPLES: &str = "\
Examples:
  bulkhead check vm.toml            show the machine, or its problems
  bulkhead run vm.toml              run it, with its console on this terminal
  bulkhead run -v vm.toml 2>vm.log  the same, with the log in a file
  bulkhead ctl vm.toml status       show its status (needs a [control] socket)

The shortest configuration:
  [machine]
  memory = \"1GiB\"
  [kernel]
  image = \"vmlinuz\"";

const CHECK_EXIT_CODES: &str = "\
Exit codes:
   0  the machine can run
   1  the result cannot be written
   2  the command line or the configuration is wrong";

const CTL_HELP: &str = "\
Examples:
  bulkhead ctl vm.toml status
  bulkhead ctl vm.toml stats root
  bulkhead ctl vm.toml resize root 20GiB
  bulkhead ctl vm.toml attach data.toml
  bulkhead ctl vm.toml detach data
  bulkhead ctl control.sock status --json

Exit codes:
   0  done
   1  the machine is not running, or refused the request
   2  the command line or the configuration is wrong";

const DISK_HELP: &str = "\
Examples:
  bulkhead disk inspect root.img
  bulkhead disk inspect root --config vm.toml --scan
  bulkhead disk map root.img
  bulkhead disk prove root.img

`inspect` and `map` neither lock nor change the disk, so a machine may use it
meanwhile. `prove` writes to a file of its own, or to a range that you name.

Exit codes:
   0  done
   1  the disk cannot be inspected, or may not keep flushes (`prove`)
   2  the command line or the configuration is wrong";

const LAYER_HELP: &str = "\
Examples:
  bulkhead layer create --base debian.img vm1.layer
  bulkhead layer create --base vm1.layer --size 20GiB vm2.layer
  bulkhead layer info vm2.layer
  bulkhead layer check vm2.layer
  bulkhead layer diff vm2.layer
  bulkhead layer export vm2.layer vm2.stream
  bulkhead layer import --base vm1.layer vm2.stream copy.layer
  bulkhead layer rebase --base /new/debian.img vm1.layer
  bulkhead layer commit vm2.layer
  bulkhead layer flatten vm2.layer vm2.img

A machine uses it with these keys of its [[disk]]:
  path = \"vm1.layer\"
  base = \"debian.img\"

A base must not change while a layer stands on it. One that is a layer is
frozen: it can never be written again.

Exit codes:
   0  done
   1  the layer or the stream cannot be made, changed or read, one below it has
      changed (`info`), or it has a problem (`check`)
   2  the command line is wrong";

const CRASH_HELP: &str = "\
Examples:
  bulkhead crash explore disk.log --base base.img \\
    --check check-ext4 --atomic block
  bulkhead crash explain disk.log --base base.img 1234-17
  bulkhead crash open disk.log --base base.img 1234-17
  bulkhead crash log disk.log

Exit codes:
   0  done, and no failing state was found (`explore`)
   1  the recording cannot be read, or the host failed
   2  the command line is wrong
   3  a check fails in a state (`explore`, `open`)
 130  interrupted";

const RUN_EXIT_CODES: &str = "\
Exit codes:
   0  the guest powered off
   1  the host failed while it ran
   2  the command line or the configuration is wrong
  10  the guest rebooted
  11  the guest's kernel panicked
  12  the guest stopped on a triple fault
  13  the guest did not power off within `shutdown_grace` and was stopped";

const SERVE_HELP: &str = "\
Example:
  bulkhead serve --socket /run/root.sock disk.toml
  qemu-system-x86_64 ... -machine memory-backend=mem \\
    -object memory-backend-memfd,id=mem,size=4G,share=on \\
    -chardev socket,id=root,path=/run/root.sock,reconnect-ms=100 \\
    -device vhost-user-blk-pci,chardev=root

The shortest configuration:
  [disk]
  id = \"root\"
  path = \"root.img\"

Exit codes:
   0  ended by a signal
   1  the host failed
   2  the command line or the configuration is wrong
  13  ended by a second signal with requests in flight";

/// Runs Linux guests on KVM, with disks that tell the truth about durability.
#[derive(Debug, Parser)]
#[command(name = "bulkhead", version, styles = STYLES, after_help = EXAMPLES)]
#[command(arg_required_else_help = true, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// The command.
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Log more: -v for info, -vv for debug, -vvv for trace
    #[arg(short, long, action = ArgAction::Count, global = true, conflicts_with = "log_level")]
    verbose: u8,

    /// Log to standard error at LEVEL: off, error, warn, info, debug or trace [default: warn]
    #[arg(long, value_name = "LEVEL", global = true, hide_possible_values = true)]
    log_level: Option<LogLevel>,
}

/// A command.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a machine until its guest stops
    #[command(after_help = RUN_EXIT_CODES)]
    Run {
        /// The configuration, a TOML file
        config: PathBuf,
        /// Allow core dumps, which never have guest memory
        #[arg(long)]
        core_dumps: bool,
        /// Leave the images as they are: record the disks, and keep their changes, in this folder
        #[arg(long, value_name = "FOLDER")]
        record: Option<PathBuf>,
        /// End when this process, which started the program, has ended
        #[arg(long, value_name = "PID", hide = true)]
        end_with: Option<NonZeroU32>,
    },
    /// Serve a disk to the guest of another monitor, as a vhost-user-blk back end
    #[command(after_help = SERVE_HELP)]
    Serve {
        /// The socket that the monitor connects to
        #[arg(long, value_name = "PATH")]
        socket: PathBuf,
        /// The disk's configuration, a TOML file
        config: PathBuf,
        /// Allow core dumps, which never have guest memory
        #[arg(long)]
        core_dumps: bool,
    },
    /// Check a configuration against this host and show the machine
    #[command(after_help = CHECK_EXIT_CODES)]
    Check {
        /// The configuration, a TOML file
        config: PathBuf,
        /// Print JSON, for programs
        #[arg(long, conflicts_with = "explain")]
        json: bool,
        /// Explain for each disk what a write, a flush and a power cut do
        #[arg(long)]
        explain: bool,
    },
    /// Query or control a running machine
    #[command(after_help = CTL_HELP, disable_help_subcommand = true)]
    Ctl {
        /// The machine's control socket, or its configuration
        target: PathBuf,
        /// The request
        #[command(subcommand)]
        command: CtlCommand,
        /// Print the JSON of the machine
        #[arg(long, global = true)]
        json: bool,
    },
    /// Inspect a disk, whether or not a machine uses it, or prove its flushes
    #[command(after_help = DISK_HELP, disable_help_subcommand = true)]
    Disk {
        /// The view
        #[command(subcommand)]
        command: DiskCommand,
        /// Print JSON, for programs
        #[arg(long, global = true)]
        json: bool,
    },
    /// Make layers: disks whose changes go to a file of their own over a base
    #[command(after_help = LAYER_HELP, disable_help_subcommand = true)]
    Layer {
        /// The request
        #[command(subcommand)]
        command: LayerCommand,
        /// Print JSON, for programs
        #[arg(long, global = true)]
        json: bool,
    },
    /// Explore what power cuts could have left of a recorded disk
    #[command(after_help = CRASH_HELP, disable_help_subcommand = true)]
    Crash {
        /// The request
        #[command(subcommand)]
        command: CrashCommand,
        /// Print JSON, for programs
        #[arg(long, global = true)]
        json: bool,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Cli {
    /// The most verbose level to log.
    pub(crate) fn level(&self) -> LevelFilter {
        match (self.log_level, self.verbose) {
            (Some(LogLevel::Off), _) => LevelFilter::OFF,
            (Some(LogLevel::Error), _) => LevelFilter::ERROR,
            (Some(LogLevel::Warn), _) | (None, 0) => LevelFilter::WARN,
            (Some(LogLevel::Info), _) | (None, 1) => LevelFilter::INFO,
            (Some(LogLevel::Debug), _) | (None, 2) => LevelFilter::DEBUG,
            (Some(LogLevel::Trace), _) | (None, 3..) => LevelFilter::TRACE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(arguments: &[&str]) -> LevelFilter {
        Cli::try_parse_from([&["bulkhead", "run", "vm.toml"], arguments].concat()).unwrap().level()
    }

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    /// clap would break longer lines inside a command.
    #[test]
    fn examples_fit_80_columns() {
        let mut commands = vec![<Cli as clap::CommandFactory>::command()];
        let mut helps = 0;
        while let Some(command) = commands.pop() {
            commands.extend(command.get_subcommands().cloned());
            let Some(help) = command.get_after_help().map(ToString::to_string) else { continue };
            helps += 1;
            assert!(help.lines().all(|line| line.len() <= 80), "{help}");
        }
        assert_eq!(helps, 27);
    }

    #[test]
    fn options_set_the_log_level() {
        assert_eq!(level(&[]), LevelFilter::WARN);
        assert_eq!(level(&["-v"]), LevelFilter::INFO);
        assert_eq!(level(&["-vv"]), LevelFilter::DEBUG);
        assert_eq!(level(&["-vvvv"]), LevelFilter::TRACE);
        assert_eq!(level(&["--log-level", "error"]), LevelFilter::ERROR);
    }
}
