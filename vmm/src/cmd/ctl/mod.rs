//! `bulkhead ctl`: queries and controls a running machine through its control socket.

pub(in crate::cmd) mod client;
mod commands;
mod commit;
pub(crate) mod render;

use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::config;
use crate::exit::Exit;
use commands::RemoteMachine;
pub(crate) use commands::{CtlCommand, CtlError};

/// Executes `command` on the machine whose control socket or configuration is `target`, and prints
/// the answer.
///
/// # Errors
///
/// There is no answer, or it cannot be printed.
pub(crate) fn ctl(target: &Path, command: &CtlCommand, json: bool) -> Result<ExitCode, CtlError> {
    let socket = match socket_of(target) {
        Ok(Some(socket)) => socket,
        Ok(None) => return Err(CtlError::NoControlSocket(target.into())),
        Err(report) => {
            report.print();
            return Ok(Exit::BadConfig.into());
        }
    };
    let text = match (RemoteMachine { socket: &socket, json }).execute(command) {
        Err(CtlError::BadDisk) => return Ok(Exit::BadConfig.into()),
        text => text?,
    };
    let mut stdout = anstream::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        // The reader, for example `head`, has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => Err(CtlError::Output(error)),
        Ok(()) => Ok(ExitCode::SUCCESS),
    }
}

/// The socket that `target` is, or that the configuration `target` names.
fn socket_of(target: &Path) -> Result<Option<PathBuf>, config::Report> {
    let is_config = match target.metadata() {
        Ok(metadata) => !metadata.file_type().is_socket(),
        Err(_) => target.extension().is_some_and(|extension| extension == "toml"),
    };
    if is_config { config::control_socket(target) } else { Ok(Some(target.into())) }
}
