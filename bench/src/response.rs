//! One HTTP response as a client takes it in: where it ends, and that it is a good one.
//!
//! Not an HTTP parser: it knows what the benchmark's own servers send, a head with `Content-Length` and a body.

use anyhow::{Context as _, Result, bail, ensure};

/// The longest head that is accepted; the servers send about 200 bytes.
const HEAD_LIMIT: usize = 4096;
const HEAD_END: &[u8] = b"\r\n\r\n";

/// A response that is arriving.
#[derive(Default)]
pub struct Response {
    /// The bytes of the head so far; kept to reuse its memory.
    head: Vec<u8>,
    /// Bytes of the body that are still to come, once the head is complete.
    missing: Option<u64>,
}

impl Response {
    /// Takes the next bytes; true when the response is complete.
    ///
    /// # Errors
    /// On a status other than 200 and on bytes after the end: nobody asked for more.
    pub fn push(&mut self, bytes: &[u8]) -> Result<bool> {
        let (mut missing, body) = match self.missing {
            Some(missing) => (missing, bytes.len()),
            None => {
                let before = self.head.len();
                self.head.extend_from_slice(&bytes[..bytes.len().min(HEAD_LIMIT)]);
                let Some(end) = self.head.windows(HEAD_END.len()).position(|window| window == HEAD_END) else {
                    ensure!(self.head.len() < HEAD_LIMIT, "no end of the response's head");
                    return Ok(false);
                };
                let end = end + HEAD_END.len();
                (content_length(&self.head[..end])?, before + bytes.len() - end)
            }
        };
        let body = body as u64;
        ensure!(body <= missing, "{} bytes after the response's end", body - missing);
        missing -= body;
        self.missing = Some(missing);
        Ok(missing == 0)
    }

    /// Makes ready for the next response on the same connection.
    pub fn clear(&mut self) {
        self.head.clear();
        self.missing = None;
    }
}

/// The length of the body that `head` announces.
fn content_length(head: &[u8]) -> Result<u64> {
    let head = std::str::from_utf8(head).context("a response's head that is not text")?;
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        bail!("the response is {status:?}");
    }
    let value = lines.find_map(|line| line.strip_prefix("Content-Length: ")).context("no Content-Length")?;
    value.parse().with_context(|| format!("Content-Length {value:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Length: 3\r\n\r\n";

    #[test]
    fn a_response_is_complete_at_its_last_byte_however_it_is_cut() {
        let whole = [HEAD, b"ok\n"].concat();
        for cut in 1..whole.len() {
            let mut response = Response::default();
            for _ in 0..2 {
                assert!(!response.push(&whole[..cut]).unwrap());
                assert!(response.push(&whole[cut..]).unwrap());
                response.clear();
            }
        }
    }

    #[test]
    fn a_bad_response_fails() {
        assert!(Response::default().push(&[HEAD, b"ok\nmore"].concat()).is_err());
        assert!(Response::default().push(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n").is_err());
        assert!(Response::default().push(&[b'x'; HEAD_LIMIT]).is_err());
    }
}
