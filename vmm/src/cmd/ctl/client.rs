//! One question to a control socket, and its answer.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use crate::control::api::Problem;

/// Longer than the machine takes for anything.
const PATIENCE: Duration = Duration::from_secs(15);
/// More than any answer has.
const ANSWER_MAX: u64 = 64 << 20;
const HEADERS_MAX: usize = 32;

/// Why there is no answer.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// There is no such socket.
    #[error("there is no control socket {0}: is the machine running?")]
    NoSocket(PathBuf),
    /// It belongs to nobody any more.
    #[error("nobody listens at {0}: the machine is not running")]
    NotRunning(PathBuf),
    /// It belongs to somebody else.
    #[error("you may not use {0}: the machine runs as another user")]
    NotAllowed(PathBuf),
    /// It is something else.
    #[error("cannot talk to the machine at {0}")]
    Io(PathBuf, #[source] io::Error),
    /// Something else answers.
    #[error("what answers at {0} is no control socket of bulkhead")]
    Strange(PathBuf),
    /// The machine refused.
    #[error("{}; {}", .0.detail, .0.remedy)]
    Refused(Problem),
}

/// Sends one request, and returns the body of its answer.
///
/// # Errors
///
/// When there is no answer, or a refusal.
pub(crate) fn ask(socket: &Path, method: &str, path: &str, body: &str) -> Result<String, Error> {
    let io = |error| Error::Io(socket.into(), error);
    let mut stream = UnixStream::connect(socket).map_err(|error| unreachable(socket, error))?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(io)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(io)?;
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).map_err(io)?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer).map_err(io)?;
    let (status, body) = parse(&answer).ok_or_else(|| Error::Strange(socket.into()))?;
    if (200..300).contains(&status) {
        return Ok(body);
    }
    let problem = serde_json::from_str(&body).map_err(|_| Error::Strange(socket.into()))?;
    Err(Error::Refused(problem))
}

fn unreachable(socket: &Path, error: io::Error) -> Error {
    let socket = socket.to_owned();
    match error.kind() {
        io::ErrorKind::NotFound => Error::NoSocket(socket),
        io::ErrorKind::ConnectionRefused => Error::NotRunning(socket),
        io::ErrorKind::PermissionDenied => Error::NotAllowed(socket),
        _ => Error::Io(socket, error),
    }
}

/// Status and body of a whole answer.
fn parse(answer: &[u8]) -> Option<(u16, String)> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) = head.parse(answer).ok()? else { return None };
    let announced = head.headers.iter().find(|h| h.name.eq_ignore_ascii_case("content-length"))?;
    let announced: usize = std::str::from_utf8(announced.value).ok()?.parse().ok()?;
    let body = answer.get(length..).filter(|body| body.len() == announced)?;
    Some((head.code?, String::from_utf8(body.to_vec()).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_answer_is_one() {
        let whole = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(parse(whole.as_bytes()), Some((200, "{}".to_owned())));
        for end in 0..whole.len() {
            assert_eq!(parse(&whole.as_bytes()[..end]), None);
        }
        assert_eq!(parse(b"SSH-2.0-OpenSSH\r\n"), None);
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xff\xff"), None);
    }
}
