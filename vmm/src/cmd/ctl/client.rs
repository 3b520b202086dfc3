//! A client of the control socket: one request and its answer.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use crate::control::api::Problem;
use crate::unix_socket;

/// Longer than the machine needs for any request.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Larger than any answer.
const ANSWER_MAX: u64 = 64 << 20;
const HEADERS_MAX: usize = 32;

/// The reason there is no answer.
#[derive(Debug, Error)]
pub(crate) enum ClientError {
    /// The socket does not exist.
    #[error("there is no control socket {0}: is the machine running?")]
    NoSocket(PathBuf),
    /// The socket has no listener.
    #[error("no process listens on {0}: the machine is not running")]
    NotRunning(PathBuf),
    /// The socket belongs to another user.
    #[error("no permission to use {0}: the machine runs as another user")]
    NotAllowed(PathBuf),
    /// The machine did not accept or answer in time.
    #[error(
        "the machine at {0} did not answer within {limit} s: is its process stopped?",
        limit = TIMEOUT.as_secs()
    )]
    NoAnswer(PathBuf),
    /// The connection failed.
    #[error("cannot talk to the machine at {0}")]
    Io(PathBuf, #[source] io::Error),
    /// The answer is not one of a control socket.
    #[error("{0} is not a control socket of bulkhead")]
    NotBulkhead(PathBuf),
    /// The machine refused the request.
    #[error("{}; {}", .0.detail, .0.remedy)]
    Refused(Problem),
}

/// Sends one request, and returns the body of the answer.
///
/// # Errors
///
/// There is no answer, or the machine refused.
pub(in crate::cmd) fn request(
    socket: &Path,
    method: &str,
    path: &str,
    body: &str,
) -> Result<String, ClientError> {
    let io = |error| client_error(socket, error);
    let not_bulkhead = || ClientError::NotBulkhead(socket.into());
    let mut stream =
        unix_socket::connect(socket, TIMEOUT).map_err(|error| client_error(socket, error))?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(io)?;
    stream.set_write_timeout(Some(TIMEOUT)).map_err(io)?;
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).map_err(io)?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer).map_err(io)?;
    let (status, body) = parse(&answer).ok_or_else(not_bulkhead)?;
    if (200..300).contains(&status) {
        return Ok(body);
    }
    let problem = serde_json::from_str(&body).map_err(|_| not_bulkhead())?;
    Err(ClientError::Refused(problem))
}

fn client_error(socket: &Path, error: io::Error) -> ClientError {
    let socket = socket.to_owned();
    match error.kind() {
        io::ErrorKind::NotFound => ClientError::NoSocket(socket),
        io::ErrorKind::ConnectionRefused => ClientError::NotRunning(socket),
        io::ErrorKind::PermissionDenied => ClientError::NotAllowed(socket),
        io::ErrorKind::WouldBlock => ClientError::NoAnswer(socket),
        _ => ClientError::Io(socket, error),
    }
}

/// The path of a disk. The machine rejects an id that is not one.
pub(in crate::cmd) fn disk_path(id: &str) -> String {
    format!("/v1/disks/{id}")
}

/// Status and body of a complete answer.
fn parse(answer: &[u8]) -> Option<(u16, String)> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) = head.parse(answer).ok()? else { return None };
    let header = head.headers.iter().find(|h| h.name.eq_ignore_ascii_case("content-length"))?;
    let body_length: usize = std::str::from_utf8(header.value).ok()?.parse().ok()?;
    let body = answer.get(length..).filter(|body| body.len() == body_length)?;
    Some((head.code?, String::from_utf8(body.to_vec()).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incomplete_answers_are_rejected() {
        let whole = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(parse(whole.as_bytes()), Some((200, "{}".to_owned())));
        for end in 0..whole.len() {
            assert_eq!(parse(&whole.as_bytes()[..end]), None);
        }
        assert_eq!(parse(b"SSH-2.0-OpenSSH\r\n"), None);
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xff\xff"), None);
    }
}
