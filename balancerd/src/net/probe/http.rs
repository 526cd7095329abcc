//! The answer to a check by HTTP/1: its status, and where it ends. No sockets.

/// Bytes of heads that are looked at, those of interim answers with it. Servers and proxies allow 8 to 32 KiB for one.
pub(super) const MOST_HEAD: usize = 64 * 1024;

/// Headers of one head that are gone through. Servers send some 10 to 50, and 100 is what most programs take.
const MOST_HEADERS: usize = 256;

/// Bytes of a body that are read before the connection is closed, so that the server sees its answer taken.
pub(super) const MOST_BODY: usize = 1024 * 1024;

/// What the last chunk of a body looks like.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// An answer whose status is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// What is still to come. `None`: a part of the head.
    pub(super) body: Option<Body>,
}

/// What is still to come of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Body {
    /// So many bytes.
    Sized(u64),
    /// Chunks, of which these were the last bytes so far.
    Chunked(Vec<u8>),
    /// What comes until the server ends.
    UntilTheEnd,
}

impl Body {
    /// Whether all of it has come.
    pub(super) fn is_over(&self) -> bool {
        match self {
            Self::Sized(left) => *left == 0,
            Self::Chunked(last) => last == LAST_CHUNK,
            Self::UntilTheEnd => false,
        }
    }

    /// More of it has come. Whether that was all. A body that has the bytes of a last chunk in it may be taken to be over
    /// before it is; then the server sees its connection closed early, and nothing else.
    pub(super) fn on_bytes(&mut self, bytes: &[u8]) -> bool {
        match self {
            Self::Sized(left) => {
                *left = left.saturating_sub(bytes.len() as u64);
            }
            Self::Chunked(last) => {
                last.extend_from_slice(&bytes[bytes.len().saturating_sub(LAST_CHUNK.len())..]);
                last.drain(..last.len().saturating_sub(LAST_CHUNK.len()));
            }
            Self::UntilTheEnd => {}
        }
        self.is_over()
    }
}

/// What is known of the answer to a request of this method, of which `received` has come: nothing as long as its status
/// is not there. What only says that the answer is to come (RFC 9110, 15.2) is passed over, unless it is `wanted`.
///
/// # Errors
/// When this is no answer.
pub(super) fn look(
    mut received: &[u8],
    method: &str,
    wanted: impl Fn(u16) -> bool,
) -> Result<Option<Answer>, httparse::Error> {
    loop {
        let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response.parse(received);
        let Some(status) = response.code else { return parsed.map(|_| None) };
        if is_interim(status) && !wanted(status) {
            match parsed? {
                httparse::Status::Complete(length) => received = &received[length..],
                httparse::Status::Partial => return Ok(None),
            }
            continue;
        }
        let body = match parsed {
            Ok(httparse::Status::Complete(length)) => {
                let mut body = body(status, method, response.headers);
                body.on_bytes(&received[length..]);
                Some(body)
            }
            Ok(httparse::Status::Partial) => None,
            // The status is there, and that is what was asked for.
            Err(_) => Some(Body::UntilTheEnd),
        };
        return Ok(Some(Answer { status, body }));
    }
}

/// How a body is framed (RFC 9112, 6.3).
fn body(status: u16, method: &str, headers: &[httparse::Header<'_>]) -> Body {
    let value = |name: &str| {
        let header = headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        str::from_utf8(header.value).ok()
    };
    if method == "HEAD" || status < 200 || status == 204 || status == 304 {
        Body::Sized(0)
    } else if value("transfer-encoding").is_some_and(|how| how.trim().to_ascii_lowercase().ends_with("chunked")) {
        Body::Chunked(Vec::new())
    } else {
        value("content-length").and_then(|length| length.trim().parse().ok()).map_or(Body::UntilTheEnd, Body::Sized)
    }
}

/// Another protocol that was switched to is an answer.
fn is_interim(status: u16) -> bool {
    (100..200).contains(&status) && status != 101
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(received: &str, method: &str) -> Option<Answer> {
        look(received.as_bytes(), method, |_| false).expect("HTTP")
    }

    #[test]
    fn an_answer_ends_where_its_head_says() {
        for (head, method, body) in [
            ("200 OK\r\nContent-Length: 10\r\n\r\nabc", "GET", Body::Sized(7)),
            ("200 OK\r\ncontent-length: 3 \r\n\r\nabc", "GET", Body::Sized(0)),
            ("200 OK\r\nContent-Length: 10\r\n\r\n", "HEAD", Body::Sized(0)),
            ("204 No Content\r\n\r\n", "GET", Body::Sized(0)),
            ("304 Not Modified\r\nContent-Length: 10\r\n\r\n", "GET", Body::Sized(0)),
            (
                "200 OK\r\nTransfer-Encoding: gzip, Chunked\r\nContent-Length: 1\r\n\r\n",
                "GET",
                Body::Chunked(Vec::new()),
            ),
            ("200 OK\r\nContent-Length: many\r\n\r\n", "GET", Body::UntilTheEnd),
            ("200 OK\r\n\r\n", "GET", Body::UntilTheEnd),
        ] {
            let known = answer(&format!("HTTP/1.1 {head}"), method).expect("a status");
            assert_eq!(known.body, Some(body), "{head}");
        }
        assert_eq!(answer("HTTP/1.1 200 OK\r\nServer:", "GET"), Some(Answer { status: 200, body: None }));
        assert_eq!(answer("HTTP/1.1 20", "GET"), None);
    }

    #[test]
    fn the_last_chunk_is_found_however_it_comes() {
        for piece in 1..8 {
            let mut body = Body::Chunked(Vec::new());
            let bytes = b"5\r\nhello\r\n0\r\n\r\n";
            let ends: Vec<bool> = bytes.chunks(piece).map(|piece| body.on_bytes(piece)).collect();
            assert_eq!(ends.iter().position(|end| *end), Some(ends.len() - 1), "{piece}");
        }
    }

    #[test]
    fn interim_answers_of_any_usual_size_are_passed_over() {
        let hints: String = (0..100).map(|n| format!("Link: </{n}.css>; rel=preload; as=style\r\n")).collect();
        let interim = format!("HTTP/1.1 103 Early Hints\r\n{hints}\r\n");
        assert_eq!(answer(&interim, "GET"), None);
        let known = answer(&format!("{interim}{interim}HTTP/1.1 200 OK\r\n\r\n"), "GET").expect("a status");
        assert_eq!(known.status, 200);
    }
}
