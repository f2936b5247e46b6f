//! Follows the bytes that a client sends, before hyper sees them, and refuses what two implementations of HTTP/1.1 could
//! read differently: whoever stands in front of us may be the other one, and request smuggling lives on the difference.
//! Hyper repairs much of it instead, and then nobody can tell: it drops a Content-Length beside a Transfer-Encoding,
//! folds equal lengths into one, and takes a bare LF for the end of a line. What is sent to whom as the answer, and what
//! is too large to be a body, is for others.
//!
//! ```text
//!        the head is whole, without a body
//!           ┌──────┐     it has a body
//!           ▼      │   ┌────────────────▶ Sized ────┐
//!     ────▶ Head ──┴───┤                            ├──▶ Head
//!                      └────────────────▶ Chunked ──┘ the body is whole
//! ```
//!
//! What is accepted must have the same ends for hyper (1.12, with httparse 1.10) as it has here, or be refused by it. It
//! reads more leniently than this module everywhere, and where it reads the same bytes it agrees:
//!
//! - A head ends at an empty line. Hyper also takes LF alone for a line's end, so each LF is judged when it comes, not
//!   when the head is whole: hyper never holds a head to its end that was not judged. It skips any number of empty
//!   lines in front, and counts them into the head's size; so does this.
//! - `max_buf_size` does not bound a head that comes in one read, for which hyper's buffer may have more room than that,
//!   so a large head is refused here. This, and too many fields, is the only thing for which 431 is the answer.
//! - Whitespace around values is SP and HTAB to both. Hyper trims codings as Unicode does and looks only at the last of
//!   them, but here there is only one, and nothing left to trim.
//! - A length near `u64::MAX`, a URI over 64 KiB, and a target that is no URI make hyper close the connection.
//! - CONNECT and Upgrade change nothing for hyper as long as they are not answered by 2xx and 101.
//! - Chunk sizes: hyper allows any number of digits, and whitespace behind them; the rest is the same. Its bounds on
//!   extensions and trailers are above those here, and when it meets them, it closes the connection.
//! - After `Connection: close`, or HTTP/1.0, hyper reads no further message, and this module goes on to judge them.

#[cfg(test)]
mod fuzz;

use std::mem;
use std::net::Ipv6Addr;

use memchr::{memchr2, memchr2_iter};

/// Empty lines before a request line, which old clients send behind a body (RFC 9112, section 2.2).
const MAX_EMPTY_LINES: usize = 2;
/// Digits of a chunk's size, leading zeros among them.
const MAX_CHUNK_DIGITS: u8 = 16;
/// Bytes of the extensions of one chunk.
const MAX_EXTENSION: u16 = 256;
/// Bytes of the extensions of all chunks of a body: they cost, and nobody wants them. Half of what hyper allows.
const MAX_EXTENSIONS: u16 = 8 * 1024;
/// Bytes of the trailer section. Hyper's bound is never less than 8 KiB.
const MAX_TRAILERS: u16 = 8 * 1024 - 1;

/// What must not come behind a body, where some would take it for a part of the head (RFC 9110, section 6.5.1).
const FORBIDDEN_TRAILERS: [&[u8]; 8] = [
    b"connection",
    b"content-encoding",
    b"content-length",
    b"expect",
    b"host",
    b"te",
    b"transfer-encoding",
    b"upgrade",
];

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    #[error("the head has too many bytes or fields")]
    HeadTooLarge,
    #[error("too many empty lines before a request")]
    EmptyLines,
    #[error("a line ends with a bare LF")]
    BareLf,
    #[error("a CR without its LF")]
    BareCr,
    #[error("a control character in a head or trailer section")]
    Control,
    #[error("a malformed request line")]
    RequestLine,
    #[error("an invalid method")]
    Method,
    #[error("an invalid request target")]
    Target,
    #[error("a version other than HTTP/1.0 and HTTP/1.1")]
    Version,
    #[error("a line begins with whitespace")]
    Folding,
    #[error("whitespace between a field's name and its colon")]
    SpaceBeforeColon,
    #[error("an empty or invalid field name, or no colon")]
    FieldName,
    #[error("an invalid Content-Length")]
    Length,
    #[error("more than one Content-Length")]
    Lengths,
    #[error("a Transfer-Encoding other than chunked, or more than one")]
    Coding,
    #[error("a Transfer-Encoding in HTTP/1.0")]
    OldCoding,
    #[error("a Content-Length beside a Transfer-Encoding")]
    LengthAndCoding,
    #[error("no Host")]
    NoHost,
    #[error("more than one Host")]
    Hosts,
    #[error("an invalid Host")]
    Host,
    #[error("an invalid chunk size")]
    ChunkSize,
    #[error("an invalid or too long chunk extension")]
    ChunkExtension,
    #[error("a chunk's data is not followed by CRLF")]
    ChunkEnd,
    #[error("a field that must not be in a trailer section")]
    Trailer,
    #[error("the trailer section has too many bytes or fields")]
    TrailersTooLarge,
}

/// Of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MessagePart {
    Head,
    Body,
}

/// Where a stream went bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bad {
    /// How many of the bytes in hand may still be passed on: those of earlier messages, or, if it is a body, those
    /// before the first that is wrong. Of a head that came in pieces, earlier ones were passed on, but not its end.
    pub(crate) good: usize,
    /// A head's request was not begun; a body's is under way.
    pub(crate) part: MessagePart,
    pub(crate) violation: Violation,
}

/// The messages of one connection, from the client's side.
#[derive(Debug)]
pub(crate) struct Framing {
    max_head: usize,
    max_fields: usize,
    state: FramingState,
    /// A head that has begun and is not whole. Most come in one piece and never see this.
    begun: Vec<u8>,
    /// Where that is in its request line.
    line: FramedLine,
    /// What is to be escaped of the bytes that were followed last.
    odd: Vec<usize>,
    /// Heads that were whole.
    heads: u64,
}

#[derive(Debug)]
enum FramingState {
    /// Between messages, or in a head.
    Head,
    /// So many bytes of a body are still to come.
    Sized(u64),
    Chunked(Chunked),
    /// Nothing that follows can be trusted.
    Refused(MessagePart, Violation),
}

impl Framing {
    /// `max_head` is in bytes, and counts from the end of the message before to the end of the empty line.
    pub(crate) fn new(max_head: usize, max_fields: usize) -> Self {
        let (begun, odd) = (Vec::new(), Vec::new());
        Self { max_head, max_fields, state: FramingState::Head, begun, line: FramedLine::Method, odd, heads: 0 }
    }

    /// Follows `bytes`, which came next.
    pub(crate) fn follow(&mut self, bytes: &[u8]) -> Result<(), Bad> {
        let mut good = 0;
        self.odd.clear();
        while good < bytes.len() {
            let rest = &bytes[good..];
            let followed = match &mut self.state {
                FramingState::Head => {
                    self.follow_head(rest, good).map_err(|violation| (0, MessagePart::Head, violation))
                }
                FramingState::Sized(left) => Ok(skip(left, rest)),
                FramingState::Chunked(body) => {
                    body.follow(rest, self.max_fields).map_err(|(good, violation)| (good, MessagePart::Body, violation))
                }
                FramingState::Refused(part, violation) => Err((0, *part, *violation)),
            };
            match followed {
                Ok(length) => good += length,
                Err((more, part, violation)) => {
                    self.state = FramingState::Refused(part, violation);
                    return Err(Bad { good: good + more, part, violation });
                }
            }
            if self.is_body_whole() {
                self.state = FramingState::Head;
            }
        }
        Ok(())
    }

    /// Which of the bytes that were followed last hyper would not take in a target, though nginx and Node do. They mean
    /// the same when they are percent-encoded, as browsers send them.
    pub(crate) fn odd(&self) -> &[usize] {
        &self.odd
    }

    /// How many messages have begun with a head that was good.
    pub(crate) fn heads(&self) -> u64 {
        self.heads
    }

    /// Bytes of a head that has begun.
    pub(crate) fn begun(&self) -> usize {
        self.begun.len()
    }

    /// Bytes of memory for it.
    pub(crate) fn held(&self) -> usize {
        self.begun.capacity()
    }

    /// What the next byte goes on with; `None` between messages.
    pub(crate) fn inside(&self) -> Option<MessagePart> {
        match self.state {
            // An empty line begins nothing.
            FramingState::Head if self.begun.iter().all(|byte| matches!(byte, b'\r' | b'\n')) => None,
            FramingState::Head => Some(MessagePart::Head),
            FramingState::Sized(_) | FramingState::Chunked(_) => Some(MessagePart::Body),
            FramingState::Refused(part, _) => Some(part),
        }
    }

    fn is_body_whole(&self) -> bool {
        match &self.state {
            FramingState::Sized(left) => *left == 0,
            FramingState::Chunked(body) => body.step == Step::End,
            FramingState::Head | FramingState::Refused(..) => false,
        }
    }

    /// How many of `bytes`, the first of which is at `at`, belong to the head.
    fn follow_head(&mut self, bytes: &[u8], at: usize) -> Result<usize, Violation> {
        let seen = self.begun.len();
        let piece = &bytes[..bytes.len().min(self.max_head - seen)];
        // The ordinary case, in one go. What it finds wrong does not count yet, as the head may not be whole.
        if seen == 0
            && let Ok(Some(Judged { state, end, is_odd })) = judge(piece, self.max_fields)
        {
            if is_odd {
                FramedLine::Method.follow(&piece[..end], at, &mut self.odd);
            }
            self.state = state;
            self.heads += 1;
            return Ok(end);
        }
        if seen == 0 {
            self.line = FramedLine::Method;
        }
        self.line.follow(piece, at, &mut self.odd);
        self.begun.extend_from_slice(piece);
        let Some(end) = end_of_head(&self.begun, seen)? else {
            return if self.begun.len() < self.max_head { Ok(piece.len()) } else { Err(Violation::HeadTooLarge) };
        };
        self.state = judge(&self.begun[..end], self.max_fields)?.ok_or(Violation::RequestLine)?.state;
        self.heads += 1;
        self.begun = Vec::new();
        Ok(end - seen)
    }
}

/// Takes what there is of the `left` bytes of a body.
fn skip(left: &mut u64, bytes: &[u8]) -> usize {
    let length = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
    *left -= length as u64;
    length
}

/// The length of a head with the empty line that ends it, if that is there. Bytes before `seen` were searched before.
fn end_of_head(bytes: &[u8], seen: usize) -> Result<Option<usize>, Violation> {
    // Again from a CR that was the last.
    let from = empty_lines(bytes)?.max(seen.saturating_sub(1));
    for at in memchr2_iter(b'\r', b'\n', &bytes[from..]).map(|at| from + at) {
        if bytes[at] == b'\r' {
            if bytes.get(at + 1).is_some_and(|&next| next != b'\n') {
                return Err(Violation::BareCr);
            }
            continue;
        }
        let line = bytes[..at].strip_suffix(b"\r").ok_or(Violation::BareLf)?;
        if line.last() == Some(&b'\n') {
            return Ok(Some(at + 1));
        }
    }
    Ok(None)
}

/// The length of the empty lines that `bytes` begin with.
fn empty_lines(bytes: &[u8]) -> Result<usize, Violation> {
    let count = bytes.as_chunks().0.iter().take_while(|&line| line == b"\r\n").count();
    if count > MAX_EMPTY_LINES { Err(Violation::EmptyLines) } else { Ok(count * 2) }
}

/// A head that is good.
struct Judged {
    /// What follows it.
    state: FramingState,
    /// Its length.
    end: usize,
    /// There is something to escape in its target.
    is_odd: bool,
}

/// The head that `bytes` begin with; `None` if it is not whole.
fn judge(bytes: &[u8], max_fields: usize) -> Result<Option<Judged>, Violation> {
    let mut lines = FramedLines { bytes, at: empty_lines(bytes)? };
    let Some(line) = lines.next()? else { return Ok(None) };
    let request = RequestLine::parse(line)?;
    let mut fields = Fields::default();
    let mut count = 0;
    while let Some(line) = lines.next()? {
        if line.is_empty() {
            refuse_controls(&bytes[..lines.at])?;
            return Ok(Some(Judged { state: fields.state(&request)?, end: lines.at, is_odd: request.is_odd }));
        }
        if count == max_fields {
            return Err(Violation::HeadTooLarge);
        }
        count += 1;
        fields.read(line)?;
    }
    Ok(None)
}

/// Where in a request line a byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FramedLine {
    /// Or before it.
    Method,
    Path,
    Query,
    Over,
}

impl FramedLine {
    /// Notes where in `bytes`, the first of which is at `at`, there is something to escape.
    fn follow(&mut self, bytes: &[u8], at: usize, odd: &mut Vec<usize>) {
        for (index, &byte) in bytes.iter().enumerate() {
            match (*self, byte) {
                (Self::Over, _) => return,
                (Self::Method, b' ') => *self = Self::Path,
                (Self::Method, _) => {}
                (Self::Path | Self::Query, b' ' | b'\r' | b'\n') => *self = Self::Over,
                (Self::Path, b'?') => *self = Self::Query,
                (Self::Path, b'<' | b'>' | b'`') | (Self::Query, b'<' | b'>' | b'"') => odd.push(at + index),
                (Self::Path | Self::Query, _) => {}
            }
        }
    }
}

/// FramedLines end with CRLF, and have neither CR nor LF inside (RFC 9112, section 2.2).
struct FramedLines<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> FramedLines<'a> {
    /// The next line without its end, if that is there.
    fn next(&mut self) -> Result<Option<&'a [u8]>, Violation> {
        let rest = &self.bytes[self.at..];
        let Some(end) = memchr2(b'\r', b'\n', rest) else { return Ok(None) };
        match &rest[end..] {
            [b'\n', ..] => Err(Violation::BareLf),
            [b'\r', b'\n', ..] => {
                self.at += end + 2;
                Ok(Some(&rest[..end]))
            }
            [b'\r'] => Ok(None),
            _ => Err(Violation::BareCr),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HttpVersion {
    Http10,
    Http11,
}

/// A request line (RFC 9112, section 3).
struct RequestLine {
    version: HttpVersion,
    /// There may be something to escape in its target.
    is_odd: bool,
}

impl RequestLine {
    /// Parts are separated by a single SP: others may split elsewhere if there are more, or other whitespace.
    fn parse(line: &[u8]) -> Result<Self, Violation> {
        let mut parts = line.split(|&byte| byte == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Violation::RequestLine);
        };
        let version = match version {
            b"HTTP/1.1" => HttpVersion::Http11,
            b"HTTP/1.0" => HttpVersion::Http10,
            _ => return Err(Violation::Version),
        };
        if method.is_empty() || !method.iter().all(|&byte| is_token(byte)) {
            return Err(Violation::Method);
        }
        if !has_good_form(method, target) {
            return Err(Violation::Target);
        }
        // Without a way out, so that it becomes vector code.
        let is_odd = target.iter().fold(false, |odd, byte| odd | matches!(byte, b'<' | b'>' | b'"' | b'`'));
        Ok(Self { version, is_odd })
    }

    /// RFC 9112, section 3.2: HTTP/1.1 requires exactly one Host. A target in absolute form overrides it, whatever it is.
    fn judge_host(&self, host: Option<&[u8]>) -> Result<(), Violation> {
        match host {
            Some(host) => Authority::parse(host).map(drop).ok_or(Violation::Host),
            None if self.version == HttpVersion::Http10 => Ok(()),
            None => Err(Violation::NoHost),
        }
    }
}

/// Whether a target has a form that its method may have (RFC 9112, section 3.2).
fn has_good_form(method: &[u8], target: &[u8]) -> bool {
    // A fragment is never sent (section 3.2.1); those who look for it would see another path.
    if target.iter().fold(false, |bad, &byte| bad | (byte == b'#') | (byte == b'\t')) {
        return false;
    }
    if method == b"CONNECT" {
        return Authority::parse(target).is_some_and(|authority| authority.port.is_some());
    }
    match target {
        [b'/', ..] => true,
        b"*" => method == b"OPTIONS",
        _ => is_absolute(target),
    }
}

/// With a scheme that is ours, and an authority.
fn is_absolute(target: &[u8]) -> bool {
    let Some(colon) = target.iter().position(|&byte| byte == b':') else { return false };
    let (scheme, rest) = target.split_at(colon);
    let is_http = scheme.eq_ignore_ascii_case(b"http") || scheme.eq_ignore_ascii_case(b"https");
    let Some(rest) = rest.strip_prefix(b"://").filter(|_| is_http) else { return false };
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    Authority::parse(&rest[..end]).is_some()
}

/// RFC 3986, section 3.2, without userinfo.
struct Authority {
    /// An empty one is none.
    port: Option<u16>,
}

impl Authority {
    /// `None` if it is not valid, or empty.
    fn parse(text: &[u8]) -> Option<Self> {
        let length = match text {
            [b'[', rest @ ..] => {
                let length = rest.iter().position(|&byte| byte == b']')?;
                str::from_utf8(&rest[..length]).ok()?.parse::<Ipv6Addr>().ok()?;
                length + 2
            }
            _ => text.iter().position(|&byte| !is_host(byte)).unwrap_or(text.len()),
        };
        let port = match &text[length..] {
            [] | [b':'] => None,
            [b':', digits @ ..] => Some(u16::try_from(number(digits)?).ok()?),
            _ => return None,
        };
        (length > 0).then_some(Self { port })
    }
}

/// The fields of a head that say where the message ends and whom it is for.
#[derive(Default)]
struct Fields<'a> {
    host: Option<&'a [u8]>,
    length: Option<u64>,
    chunked: bool,
}

impl<'a> Fields<'a> {
    fn read(&mut self, line: &'a [u8]) -> Result<(), Violation> {
        let (name, value) = field(line)?;
        let violation = match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => self.host.replace(value).map(|_| Violation::Hosts),
            // RFC 9112, section 6.3, allows to repair equal lengths. Nothing that is honest sends them.
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let length = number(value).ok_or(Violation::Length)?;
                self.length.replace(length).map(|_| Violation::Lengths)
            }
            // RFC 9112, section 6.1. We know no other coding, and chunked must be the last and only once.
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                let is_second = mem::replace(&mut self.chunked, true);
                (is_second || !value.eq_ignore_ascii_case(b"chunked")).then_some(Violation::Coding)
            }
            _ => None,
        };
        violation.map_or(Ok(()), Err)
    }

    /// What follows the head (RFC 9112, section 6.3).
    fn state(&self, request: &RequestLine) -> Result<FramingState, Violation> {
        request.judge_host(self.host)?;
        match (self.chunked, self.length) {
            (true, _) if request.version == HttpVersion::Http10 => Err(Violation::OldCoding),
            (true, Some(_)) => Err(Violation::LengthAndCoding),
            (true, None) => Ok(FramingState::Chunked(Chunked::new())),
            (false, Some(length @ 1..)) => Ok(FramingState::Sized(length)),
            (false, Some(0) | None) => Ok(FramingState::Head),
        }
    }
}

/// Name and value of a field (RFC 9112, section 5; RFC 9110, section 5.5).
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Violation> {
    let end = line.iter().position(|&byte| !is_token(byte)).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    match rest {
        [b':', value @ ..] if end > 0 => Ok((name, trim(value))),
        // Obsolete folding (section 5.2), or whitespace before the first field (section 2.2).
        [b' ' | b'\t', ..] if end == 0 => Err(Violation::Folding),
        [b' ' | b'\t', ..] if rest.trim_ascii_start().first() == Some(&b':') => Err(Violation::SpaceBeforeColon),
        _ => Err(Violation::FieldName),
    }
}

/// Without the optional whitespace around it, which is SP and HTAB only (RFC 9110, section 5.6.3).
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// 1*DIGIT: no sign, which `str::parse` would take.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |number, &digit| {
        let digit = char::from(digit).to_digit(10)?;
        number.checked_mul(10)?.checked_add(digit.into())
    })
}

/// Within lines, HTAB is the only control character that has a meaning (RFC 9110, section 5.5).
fn refuse_controls(lines: &[u8]) -> Result<(), Violation> {
    let is_bad = |byte: u8| ((byte < b' ') & (byte != b'\t') & (byte != b'\r') & (byte != b'\n')) | (byte == 0x7f);
    // Without a way out, so that it becomes vector code.
    let is_any_bad = lines.iter().fold(false, |bad, &byte| bad | is_bad(byte));
    if is_any_bad { Err(Violation::Control) } else { Ok(()) }
}

const fn table(members: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut member = 0;
    while member < members.len() {
        table[members[member] as usize] = true;
        member += 1;
    }
    table
}

/// RFC 9110, section 5.6.2.
fn is_token(byte: u8) -> bool {
    static TOKEN: [bool; 256] = table(b"!#$%&'*+-.^_`|~");
    TOKEN[usize::from(byte)]
}

/// Of a registered name or IPv4 address (RFC 3986, section 3.2.2), without `%`, which may decode to anything, and `,`,
/// which is a list to those who join fields of one name.
fn is_host(byte: u8) -> bool {
    static HOST: [bool; 256] = table(b"-._~!$&'()*+;=");
    HOST[usize::from(byte)]
}

/// A body in chunks (RFC 9112, section 7.1).
#[derive(Debug)]
struct Chunked {
    step: Step,
    /// Bytes of extensions so far.
    extensions: u16,
    /// Bytes and fields of the trailer section so far, and its line that is not whole.
    trailers: u16,
    fields: usize,
    line: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Size { digits: u8, size: u64 },
    Extension { length: u16, size: u64 },
    SizeLf { size: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    Trailers,
    End,
}

impl Chunked {
    fn new() -> Self {
        Self { step: Step::Size { digits: 0, size: 0 }, extensions: 0, trailers: 0, fields: 0, line: Vec::new() }
    }

    /// How many of `bytes` belong to the body; or the index of the first that is wrong.
    fn follow(&mut self, bytes: &[u8], max_fields: usize) -> Result<usize, (usize, Violation)> {
        let mut at = 0;
        while at < bytes.len() && self.step != Step::End {
            if let Step::Data { left } = &mut self.step {
                at += skip(left, &bytes[at..]);
                if *left == 0 {
                    self.step = Step::DataCr;
                }
            } else {
                self.step = self.next(bytes[at], max_fields).map_err(|violation| (at, violation))?;
                at += 1;
            }
        }
        Ok(at)
    }

    fn next(&mut self, byte: u8, max_fields: usize) -> Result<Step, Violation> {
        match (self.step, byte) {
            (Step::Size { digits: 1.., size } | Step::Extension { size, .. }, b'\r') => Ok(Step::SizeLf { size }),
            (Step::Size { digits: 1.., size }, b';') => Ok(Step::Extension { length: 0, size }),
            (Step::Size { digits, size }, _) => {
                let digit = char::from(byte).to_digit(16).filter(|_| digits < MAX_CHUNK_DIGITS);
                let digit = digit.ok_or(if byte == b'\n' { Violation::BareLf } else { Violation::ChunkSize })?;
                Ok(Step::Size { digits: digits + 1, size: size << 4 | u64::from(digit) })
            }
            (Step::Extension { length, size }, b'\t' | b' '..=b'~')
                if length < MAX_EXTENSION && self.extensions < MAX_EXTENSIONS =>
            {
                self.extensions += 1;
                Ok(Step::Extension { length: length + 1, size })
            }
            (Step::Extension { .. }, b'\n') => Err(Violation::BareLf),
            (Step::Extension { .. }, _) => Err(Violation::ChunkExtension),
            (Step::SizeLf { size: 0 }, b'\n') => Ok(Step::Trailers),
            (Step::SizeLf { size }, b'\n') => Ok(Step::Data { left: size }),
            (Step::SizeLf { .. }, _) => Err(Violation::BareCr),
            (Step::DataCr, b'\r') => Ok(Step::DataLf),
            (Step::DataLf, b'\n') => Ok(Step::Size { digits: 0, size: 0 }),
            (Step::DataCr | Step::DataLf, _) => Err(Violation::ChunkEnd),
            (Step::Trailers, _) => self.trailer(byte, max_fields),
            (step @ (Step::Data { .. } | Step::End), _) => Ok(step),
        }
    }

    /// RFC 9112, section 7.1.2.
    fn trailer(&mut self, byte: u8, max_fields: usize) -> Result<Step, Violation> {
        self.trailers += 1;
        if self.trailers > MAX_TRAILERS || self.fields > max_fields {
            return Err(Violation::TrailersTooLarge);
        }
        if byte != b'\n' {
            self.line.push(byte);
            return Ok(Step::Trailers);
        }
        let line = self.line.strip_suffix(b"\r").ok_or(Violation::BareLf)?;
        if line.is_empty() {
            return Ok(Step::End);
        }
        if line.contains(&b'\r') {
            return Err(Violation::BareCr);
        }
        refuse_controls(line)?;
        let (name, _) = field(line)?;
        if FORBIDDEN_TRAILERS.iter().any(|forbidden| name.eq_ignore_ascii_case(forbidden)) {
            return Err(Violation::Trailer);
        }
        self.fields += 1;
        self.line.clear();
        Ok(Step::Trailers)
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::{fs, iter};

    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::{Index, select};

    use super::*;

    const MAX_HEAD: usize = 8 * 1024;
    const MAX_FIELDS: usize = 100;

    /// Follows a stream in pieces of these lengths, and the rest in one. Says where it went bad.
    fn follow(stream: &[u8], pieces: impl IntoIterator<Item = usize>) -> Result<Option<MessagePart>, Bad> {
        let mut framing = Framing::new(MAX_HEAD, MAX_FIELDS);
        let mut at = 0;
        for piece in pieces.into_iter().chain(iter::once(usize::MAX)) {
            let end = at + piece.min(stream.len() - at);
            framing.follow(&stream[at..end]).map_err(|bad| {
                assert_eq!(framing.follow(b"G"), Err(Bad { good: 0, ..bad }), "there is no way back");
                Bad { good: at + bad.good, ..bad }
            })?;
            at = end;
        }
        Ok(framing.inside())
    }

    fn corpora() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/corpora/smuggling")
    }

    fn streams(directory: &str) -> Vec<(String, Vec<u8>)> {
        let files = fs::read_dir(corpora().join(directory)).unwrap().map(|entry| entry.unwrap().path());
        files.map(|path| (path.file_stem().unwrap().to_str().unwrap().into(), fs::read(path).unwrap())).collect()
    }

    #[test]
    fn what_smugglers_send_is_refused_for_what_it_is() {
        let expected = fs::read_to_string(corpora().join("refused.txt")).unwrap();
        let mut found = Vec::new();
        for (name, stream) in streams("refused") {
            let bad = follow(&stream, []).expect_err(&name);
            let in_bytes = follow(&stream, iter::repeat_n(1, stream.len())).expect_err(&name);
            assert_eq!((bad.part, bad.violation), (in_bytes.part, in_bytes.violation), "{name}");
            found.push(format!("{name} {:?} {:?}", bad.part, bad.violation));
        }
        found.sort();
        assert_eq!(found.len(), expected.lines().count());
        for (found, expected) in found.iter().zip(expected.lines()) {
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn what_is_unusual_but_clear_is_accepted() {
        let streams = streams("accepted");
        assert!(!streams.is_empty());
        for (name, stream) in streams {
            assert_eq!(follow(&stream, []), Ok(None), "{name}");
            assert_eq!(follow(&stream, iter::repeat_n(1, stream.len())), Ok(None), "{name}, byte by byte");
        }
    }

    #[test]
    fn heads_are_bounded_to_the_byte_and_field() {
        let head = |fields: usize, padding: usize| {
            format!("GET / HTTP/1.1\r\nHost: a\r\n{}X: {}\r\n\r\n", "Y: b\r\n".repeat(fields - 2), "p".repeat(padding))
        };
        let check = |head: &str, is_good: bool| {
            for pieces in [vec![], vec![1; head.len()], vec![MAX_HEAD], vec![MAX_HEAD - 1]] {
                let followed = follow(head.as_bytes(), pieces).map_err(|bad| bad.violation);
                assert_eq!(followed, if is_good { Ok(None) } else { Err(Violation::HeadTooLarge) });
            }
        };
        let padding = MAX_HEAD - head(2, 0).len();
        check(&head(2, padding), true);
        check(&head(2, padding + 1), false);
        check(&format!("\r\n{}", head(2, padding - 1)), false);
        check(&head(MAX_FIELDS, 0), true);
        check(&head(MAX_FIELDS + 1, 0), false);
    }

    #[test]
    fn says_where_the_stream_stands() {
        let mut framing = Framing::new(MAX_HEAD, MAX_FIELDS);
        for (bytes, inside) in [
            ("\r\n", None),
            ("P", Some(MessagePart::Head)),
            ("OST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\na", Some(MessagePart::Body)),
            ("b", None),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", Some(MessagePart::Body)),
            ("0\r\n\r", Some(MessagePart::Body)),
            ("\nGET /", Some(MessagePart::Head)),
            (" HTTP/1.1\r\nHost: a\r\n\r\n", None),
        ] {
            assert_eq!(framing.follow(bytes.as_bytes()), Ok(()));
            assert_eq!(framing.inside(), inside, "behind {bytes:?}");
        }
    }

    /// What hyper would not take is escaped, and nothing else, however it is cut.
    #[test]
    fn says_what_is_to_be_escaped_in_a_target() {
        let check = |stream: &str, escaped: &str| {
            for piece in [usize::MAX, 1, 2, 3, 7] {
                let mut framing = Framing::new(MAX_HEAD, MAX_FIELDS);
                let mut passed_on = Vec::new();
                for piece in stream.as_bytes().chunks(piece) {
                    framing.follow(piece).unwrap();
                    for (at, &byte) in piece.iter().enumerate() {
                        match framing.odd().contains(&at) {
                            true => passed_on.extend(format!("%{byte:02X}").bytes()),
                            false => passed_on.push(byte),
                        }
                    }
                }
                assert_eq!(str::from_utf8(&passed_on).unwrap(), escaped, "in pieces of {piece}");
            }
        };
        let rest = "HTTP/1.1\r\nHost: a\r\nX: <\"`>\r\n\r\n";
        let (odd, escaped) = ("/a<b>`?q=<\">{}|^`", "/a%3Cb%3E%60?q=%3C%22%3E{}|^`");
        check(&format!("GET {odd} {rest}"), &format!("GET {escaped} {rest}"));
        check(&format!("\r\nG`T /\"? {rest}GET {odd} {rest}"), &format!("\r\nG`T /\"? {rest}GET {escaped} {rest}"));
        let body = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nGET /< <>";
        check(&format!("{body}GET {odd} {rest}"), &format!("{body}GET {escaped} {rest}"));
    }

    /// Head and body of a good message.
    fn message() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
        let chunks = vec((vec(any::<u8>(), 1..40), "(;[a-z]{1,9}(=[a-z]{1,9})?)?"), 0..5);
        let body = prop_oneof![
            Just((String::new(), Vec::new())),
            vec(any::<u8>(), 0..200).prop_map(|body| (format!("Content-Length: {}\r\n", body.len()), body)),
            (chunks, "(X-[a-z]{1,9}: [!-~]{1,9}\r\n){0,3}").prop_map(|(chunks, trailers)| {
                let mut body = Vec::new();
                for (data, extension) in chunks {
                    body.extend_from_slice(format!("{:x}{extension}\r\n", data.len()).as_bytes());
                    body.extend_from_slice(&data);
                    body.extend_from_slice(b"\r\n");
                }
                body.extend_from_slice(format!("0\r\n{trailers}\r\n").as_bytes());
                ("Transfer-Encoding: chunked\r\n".into(), body)
            }),
        ];
        let (target, fields) = ("/[a-z0-9/?=&%]{0,20}", "(X-[a-z]{1,9}:[ \t]{0,2}[!-~]{0,30}\r\n){0,5}");
        ("GET|POST|PUT", target, fields, body).prop_map(|(method, target, fields, (framing, body))| {
            (format!("{method} {target} HTTP/1.1\r\nHost: a\r\n{fields}{framing}\r\n").into_bytes(), body)
        })
    }

    fn joined(messages: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
        messages.iter().flat_map(|(head, body)| [&head[..], body]).collect::<Vec<_>>().concat()
    }

    /// Anything from good messages to noise.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let corpus: Vec<_> =
            streams("refused").into_iter().chain(streams("accepted")).map(|(_, stream)| stream).collect();
        let part = prop_oneof![
            message().prop_map(|message| joined(&[message])),
            select(corpus),
            vec(select(b"\r\n\t :;,0aG/*#\0\x7f\xff".to_vec()), 0..6),
            vec(any::<u8>(), 0..60),
        ];
        (vec(part, 0..4), vec((any::<Index>(), any::<u8>()), 0..3)).prop_map(|(parts, changes)| {
            let mut stream = parts.concat();
            for (at, byte) in changes {
                if !stream.is_empty() {
                    let at = at.index(stream.len());
                    stream[at] = byte;
                }
            }
            stream
        })
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(stream in stream(), pieces in vec(0..50usize, 0..60)) {
            let (whole, in_pieces) = (follow(&stream, []), follow(&stream, pieces));
            match (whole, in_pieces) {
                (Err(whole), Err(in_pieces)) => {
                    prop_assert_eq!((whole.part, whole.violation), (in_pieces.part, in_pieces.violation));
                    // The beginning of a head may have been passed on when its end was not there.
                    prop_assert!(whole.good == in_pieces.good || whole.part == MessagePart::Head && whole.good < in_pieces.good);
                }
                _ => prop_assert_eq!(whole, in_pieces),
            }
        }

        #[test]
        fn good_messages_are_accepted(messages in vec(message(), 0..6), pieces in vec(0..50usize, 0..60)) {
            prop_assert_eq!(follow(&joined(&messages), pieces), Ok(None));
        }

        #[test]
        fn no_line_takes_a_stray_byte(
            before in vec(message(), 0..3),
            (mut head, body) in message(),
            at in any::<Index>(),
            stray in select(b"\r\n\0\x0b\x7f".to_vec()),
        ) {
            // Before the last LF at most: behind it, it would be the next message's.
            head.insert(at.index(head.len() - 1), stray);
            let good = joined(&before);
            // It may have undone the head's end, so there is another.
            let stream = [&good[..], &head, &body, b"\r\n\r\n"].concat();
            let bad = follow(&stream, []).expect_err("it was not refused");
            prop_assert_eq!((bad.good, bad.part), (good.len(), MessagePart::Head));
        }

        #[test]
        fn a_second_way_to_frame_is_refused(
            (mut head, body) in message(),
            line in select(vec![
                "Content-Length: 0\r\ntransfer-encoding: chunked\r\n",
                "content-length: 3\r\nContent-Length: 3\r\n",
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                "Transfer-Encoding: gzip, chunked\r\n",
                "Content-Length: 1, 1\r\n",
                " x\r\n",
                "Host: a\r\n",
            ]),
            at in any::<Index>(),
        ) {
            let lines: Vec<usize> = (2..head.len() - 1).filter(|&at| head[..at].ends_with(b"\r\n")).collect();
            let at = lines[at.index(lines.len())];
            head.splice(at..at, line.bytes());
            let bad = follow(&[head, body].concat(), []).expect_err("it was not refused");
            prop_assert_eq!((bad.good, bad.part), (0, MessagePart::Head));
        }
    }
}
