//! As much of an HTTP client as is needed to see that an answer is right.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// Also for the first request to a guest that takes seconds to begin.
const TIMEOUT: Duration = Duration::from_secs(60);
/// A body of a mebibyte, and a head.
const MAX_ANSWER: usize = (1 << 20) + (64 << 10);

#[derive(Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// For a message about an answer that is wrong.
    pub(crate) fn summary(&self) -> String {
        let start = &self.body[..self.body.len().min(40)];
        format!("status {} and {} bytes: {:?}", self.status, self.body.len(), String::from_utf8_lossy(start))
    }
}

/// A request as clients that keep their connection send it.
pub(crate) fn request(address: SocketAddr, path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").into_bytes()
}

/// The answer to a GET.
pub(crate) fn get(address: SocketAddr, path: &str) -> Result<Answer> {
    exchange(&mut connect(address)?, &request(address, path))
}

/// The answer to a request with a body.
pub(crate) fn send(address: SocketAddr, method: &str, path: &str, body: &[u8]) -> Result<Answer> {
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n", body.len());
    exchange(&mut connect(address)?, &[head.as_bytes(), body].concat())
}

pub(crate) fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, TIMEOUT).context("connecting")?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

/// Sends one request, and waits for the one answer to it.
pub(crate) fn exchange(stream: &mut (impl Read + Write), request: &[u8]) -> Result<Answer> {
    stream.write_all(request).context("sending a request")?;
    let mut received = Vec::new();
    loop {
        if let Some((answer, _)) = parse(&received)? {
            return Ok(answer);
        }
        let mut chunk = [0; 16 * 1024];
        match stream.read(&mut chunk) {
            Ok(0) => bail!("the connection ended within an answer"),
            Ok(count) => received.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("waiting for an answer"),
        }
        ensure!(received.len() <= MAX_ANSWER, "the answer has more than {MAX_ANSWER} bytes");
    }
}

/// The first answer in what was received, and how long it is there; none if it is not complete.
pub(crate) fn parse(received: &[u8]) -> Result<Option<(Answer, usize)>> {
    let Some(end) = find(received, b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&received[..end]).context("reading the head of an answer")?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")).and_then(|rest| rest.get(..3));
    let status = status.and_then(|status| status.parse().ok()).context("an answer begins without a status")?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut answer = Answer { status, headers, body: Vec::new() };
    let rest = &received[end + 4..];
    let length = if let Some(length) = answer.header("content-length") {
        let length = length.parse().context("reading a content-length")?;
        let Some(body) = rest.get(..length) else { return Ok(None) };
        answer.body = body.to_vec();
        length
    } else if answer.header("transfer-encoding") == Some("chunked") {
        let Some((body, length)) = unchunk(rest)? else { return Ok(None) };
        answer.body = body;
        length
    } else {
        bail!("an answer has neither content-length nor chunks");
    };
    Ok(Some((answer, end + 4 + length)))
}

/// A body in chunks, and how long it was with them. There are no trailers.
fn unchunk(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let Some(line) = find(&bytes[at..], b"\r\n") else { return Ok(None) };
        let size = std::str::from_utf8(&bytes[at..at + line]).ok().and_then(|hex| usize::from_str_radix(hex, 16).ok());
        let size = size.filter(|size| *size <= MAX_ANSWER).context("reading the size of a chunk")?;
        at += line + 2;
        let Some(chunk) = bytes.get(at..at + size + 2) else { return Ok(None) };
        body.extend_from_slice(&chunk[..size]);
        at += size + 2;
        if size == 0 {
            return Ok(Some((body, at)));
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_with_a_length_and_in_chunks() {
        let plain = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1";
        let (answer, length) = parse(plain).unwrap().unwrap();
        assert_eq!((answer.status, answer.body.as_slice(), length), (200, &b"abc"[..], plain.len() - 8));

        let chunked = b"HTTP/1.1 503 No\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n";
        let (answer, length) = parse(chunked).unwrap().unwrap();
        assert_eq!((answer.status, answer.body.as_slice(), length), (503, &b"abc"[..], chunked.len()));
    }

    #[test]
    fn incomplete_until_the_last_byte() {
        for whole in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc"[..],
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        ] {
            for end in 0..whole.len() {
                assert_eq!(parse(&whole[..end]).unwrap(), None, "{end} bytes");
            }
        }
    }

    #[test]
    fn nonsense_is_an_error() {
        for wrong in ["SSH-2.0\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"] {
            parse(wrong.as_bytes()).unwrap_err();
        }
    }
}
