//! The part of HTTP/1.1 that the control socket uses: one request and one answer, both bounded.
//! Pure.

use serde::{Deserialize, Serialize};

/// The longest request line and headers, in bytes.
pub(super) const HEAD_MAX: usize = 8 << 10;
/// The most headers.
const HEADERS_MAX: usize = 32;
/// The longest body, in bytes; more than enough for a disk with a path.
pub(super) const BODY_MAX: usize = 16 << 10;

/// A complete request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) body: Vec<u8>,
}

impl Request {
    /// Whether its answer may wait for the host or the guest: everything that changes something.
    pub(super) fn may_wait(&self) -> bool {
        self.method != "GET"
    }
}

/// A problem detail (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Problem {
    /// The HTTP status.
    pub(crate) status: u16,
    /// The status in words.
    pub(crate) title: String,
    /// The problem in one sentence.
    pub(crate) detail: String,
    /// The remedy.
    pub(crate) remedy: String,
}

impl Problem {
    pub(super) fn new(status: u16, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            status,
            title: reason(status).to_owned(),
            detail: detail.into(),
            remedy: remedy.into(),
        }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) content_type: &'static str,
    /// The methods of the path, after a wrong one.
    pub(super) allow: Option<String>,
    pub(super) body: String,
}

impl Response {
    pub(super) fn json(status: u16, body: &impl Serialize) -> Self {
        let body = serde_json::to_string(body).unwrap_or_default() + "\n";
        Self { status, content_type: "application/json", allow: None, body }
    }

    /// The answer in wire format.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let Self { status, content_type, allow, body } = self;
        let allow = allow.as_ref().map_or(String::new(), |methods| format!("Allow: {methods}\r\n"));
        let head = format!(
            "HTTP/1.1 {status} {}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\
             {allow}Cache-Control: no-store\r\nConnection: close\r\n\r\n",
            reason(*status),
            body.len()
        );
        [head.as_bytes(), body.as_bytes()].concat()
    }
}

impl From<Problem> for Response {
    fn from(problem: Problem) -> Self {
        let response = Self::json(problem.status, &problem);
        Self { content_type: "application/problem+json", ..response }
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    }
}

/// Parses the bytes received so far; `None` while the request is incomplete.
///
/// # Errors
///
/// The bytes cannot become a valid request.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<Request>, Problem> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut headers);
    let head_len = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= HEAD_MAX => length,
        Ok(httparse::Status::Partial) if bytes.len() <= HEAD_MAX => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => {
            let detail = format!("the head exceeds {HEAD_MAX} bytes or {HEADERS_MAX} headers");
            return Err(Problem::new(431, detail, "send a shorter request"));
        }
        Err(error) => {
            let remedy = "use HTTP/1.1, as `curl --unix-socket` does";
            return Err(Problem::new(400, format!("not an HTTP request: {error}"), remedy));
        }
    };
    let body_len = body_len(head.headers)?;
    let Some(body) = bytes.get(head_len..head_len + body_len) else { return Ok(None) };
    Ok(Some(Request {
        method: head.method.unwrap_or_default().to_owned(),
        path: head.path.unwrap_or_default().to_owned(),
        body: body.to_vec(),
    }))
}

/// The length of the body, from the headers.
fn body_len(headers: &[httparse::Header<'_>]) -> Result<usize, Problem> {
    let values = |name: &'static str| {
        let found = headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
        found.map(|header| header.value)
    };
    if values("transfer-encoding").next().is_some() {
        return Err(Problem::new(411, "the body has no Content-Length", "send Content-Length"));
    }
    let mut lengths = values("content-length");
    let (Some(length), None) = (lengths.next(), lengths.next()) else {
        return if values("content-length").next().is_none() {
            Ok(0)
        } else {
            Err(Problem::new(400, "more than one Content-Length", "send it once"))
        };
    };
    let digits = std::str::from_utf8(length)
        .ok()
        .filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
    let Some(digits) = digits else {
        return Err(Problem::new(400, "Content-Length is not a number", "send the body's length"));
    };
    match digits.parse() {
        Ok(length) if length <= BODY_MAX => Ok(length),
        _ => {
            let detail = format!("the body exceeds {BODY_MAX} bytes");
            Err(Problem::new(413, detail, "send a shorter body"))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn status(text: &str) -> u16 {
        parse(text.as_bytes()).unwrap_err().status
    }

    fn request(method: &str, path: &str, body: &str) -> Request {
        Request { method: method.into(), path: path.into(), body: body.into() }
    }

    #[test]
    fn a_request_is_parsed_when_complete() {
        let text = "POST /v1/pause HTTP/1.1\r\nHost: x\r\ncontent-length: 2\r\n\r\n{}";
        for end in 0..text.len() {
            assert_eq!(parse(&text.as_bytes()[..end]), Ok(None), "{end}");
        }
        assert_eq!(parse(text.as_bytes()), Ok(Some(request("POST", "/v1/pause", "{}"))));
        let bare = "GET /metrics HTTP/1.0\n\n";
        assert_eq!(parse(bare.as_bytes()), Ok(Some(request("GET", "/metrics", ""))));
    }

    #[test]
    fn invalid_requests_are_refused() {
        assert_eq!(status("\0\0"), 400);
        assert_eq!(status("GET / HTTP/9.9\r\n\r\n"), 400);
        assert_eq!(status("\u{16}\u{3}\u{1}"), 400, "TLS");
        let post = |headers: &str| status(&format!("POST / HTTP/1.1\r\n{headers}\r\n"));
        assert_eq!(post("Content-Length: +5\r\n"), 400);
        assert_eq!(post("Content-Length: 1\r\nContent-Length: 1\r\n"), 400);
        assert_eq!(post("Transfer-Encoding: chunked\r\n"), 411);
    }

    #[test]
    fn each_part_has_a_limit() {
        let with = |header: String| format!("GET / HTTP/1.1\r\n{header}\r\n");
        let (fits, too_long) = (HEAD_MAX - 30, HEAD_MAX);
        assert!(parse(with(format!("a: {}\r\n", "b".repeat(fits))).as_bytes()).is_ok());
        assert_eq!(status(&with(format!("a: {}\r\n", "b".repeat(too_long)))), 431);
        assert_eq!(status(&format!("GET /{}", "a".repeat(HEAD_MAX))), 431);
        assert!(parse(with("a: b\r\n".repeat(HEADERS_MAX)).as_bytes()).is_ok());
        assert_eq!(status(&with("a: b\r\n".repeat(HEADERS_MAX + 1))), 431);
        let post = |length: &str| format!("POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
        assert_eq!(parse(post(&BODY_MAX.to_string()).as_bytes()), Ok(None));
        assert_eq!(status(&post(&(BODY_MAX + 1).to_string())), 413);
        assert_eq!(status(&post("99999999999999999999999")), 413);
    }

    #[test]
    fn answers_have_type_length_and_methods() {
        let problem = Response::from(Problem::new(405, "no", "ask otherwise"));
        let bytes = Response { allow: Some("GET".into()), ..problem }.to_bytes();
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"), "{text}");
        assert!(text.contains("Content-Type: application/problem+json\r\n"), "{text}");
        assert!(text.contains("Allow: GET\r\n"), "{text}");
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{text}");
    }

    proptest! {
        #[test]
        fn no_bytes_cause_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn no_headers_cause_a_panic(text in "(GET|POST) /[a-z/]{0,9} HTTP/1.[01]\r\n(([A-Za-z-]{1,9}|Content-Length): [0-9a-z]{0,9}\r\n){0,4}\r\n[ -~]{0,40}") {
            let _ = parse(text.as_bytes());
        }
    }
}
