//! Which trace a request belongs to, as W3C Trace Context (level 1) has it in `traceparent`, and what is told of each part of
//! one: spans, as workers hand them to the exporter, a line of JSON each.

use std::fmt;
use std::num::{NonZeroU64, NonZeroU128};
use std::ops::Deref;
use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The library that spans of the server's own are told by.
pub(crate) const OWN_SCOPE: &str = "wasmcluster";
/// Bytes of a line: it goes into the pipe whole, whoever else writes there (POSIX's `PIPE_BUF` on Linux).
const MAX_SPAN_LINE: usize = 4096;

/// Defines an id that is written in so many hexadecimal digits, and is never all zeros.
macro_rules! id {
    ($(#[$doc:meta])* $name:ident($number:ty, $plain:ident), $digits:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) struct $name($number);

        impl $name {
            /// A new one, by chance.
            pub(crate) fn new() -> Self {
                // Zero comes up in no lifetime.
                Self(<$number>::new(fastrand::$plain(..)).unwrap_or(<$number>::MIN))
            }

            /// Exactly so many lowercase digits.
            pub(crate) fn parse(text: &str) -> Option<Self> {
                let is_plain = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
                let good = text.len() == $digits && text.bytes().all(is_plain);
                $plain::from_str_radix(text, 16).ok().filter(|_| good).and_then(<$number>::new).map(Self)
            }

            /// As it is written.
            pub(crate) fn hex(self) -> TraceText<$digits> {
                let mut digits = [0; $digits];
                HEXLOWER.encode_mut(&self.0.get().to_be_bytes(), &mut digits);
                TraceText(digits)
            }

            pub(crate) fn to_bytes(self) -> Vec<u8> {
                self.0.get().to_be_bytes().into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.hex())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text: String = Deserialize::deserialize(from)?;
                Self::parse(&text).ok_or_else(|| serde::de::Error::custom("not an id"))
            }
        }
    };
}

id! {
    /// Of all that comes of one request somewhere.
    TraceId(NonZeroU128, u128), 32
}
id! {
    /// Of one part of a trace.
    SpanId(NonZeroU64, u64), 16
}

/// Ids and contexts as they are written, without an allocation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TraceText<const COUNT: usize>([u8; COUNT]);

impl<const COUNT: usize> TraceText<COUNT> {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl<const COUNT: usize> Deref for TraceText<COUNT> {
    type Target = str;

    fn deref(&self) -> &str {
        // It is nothing but digits and hyphens.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// One part of a trace, as those are told of it who take part in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TraceContext {
    pub(crate) trace: TraceId,
    pub(crate) span: SpanId,
    /// Whether it is recorded.
    pub(crate) is_sampled: bool,
}

impl TraceContext {
    /// What a `traceparent` says: version 00, or what that is in a later one.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().splitn(5, '-');
        let (version, trace, span, flags, rest) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next());
        let byte = |text: &str| {
            let is_plain = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            (text.len() == 2 && text.bytes().all(is_plain)).then(|| u8::from_str_radix(text, 16).ok())?
        };
        let is_known = match byte(version)? {
            0 => rest.is_none(),
            // Forbidden.
            0xff => false,
            _ => true,
        };
        let (trace, span, flags) = (TraceId::parse(trace)?, SpanId::parse(span)?, byte(flags)?);
        is_known.then_some(Self { trace, span, is_sampled: flags & 1 == 1 })
    }
}

impl TraceContext {
    /// As `traceparent` has it.
    pub(crate) fn traceparent(&self) -> TraceText<55> {
        let flags = if self.is_sampled { b"01" } else { b"00" };
        let mut text = [b'-'; 55];
        let (trace, span) = (self.trace.hex(), self.span.hex());
        for (at, part) in [(0, &b"00"[..]), (3, trace.as_bytes()), (36, span.as_bytes()), (53, flags)] {
            text[at..at + part.len()].copy_from_slice(part);
        }
        TraceText(text)
    }
}

/// Whose part a span tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SpanKind {
    Internal,
    Server,
    Client,
    Producer,
    Consumer,
}

/// What is told beside it, in the types of OpenTelemetry that we use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum AttributeValue {
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(String),
}

impl From<&str> for AttributeValue {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for AttributeValue {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for AttributeValue {
    fn from(number: u64) -> Self {
        Self::Int(number.min(i64::MAX as u64) as i64)
    }
}

impl From<f64> for AttributeValue {
    fn from(number: f64) -> Self {
        Self::Double(number)
    }
}

/// Names as OpenTelemetry's semantic conventions have them.
pub(crate) type Attributes = Vec<(String, AttributeValue)>;

/// How a span ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SpanStatus {
    #[default]
    Unset,
    Ok,
    Error(String),
}

/// A moment in a span.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SpanEvent {
    pub(crate) name: String,
    pub(crate) at: Nanos,
    pub(crate) attributes: Attributes,
}

/// Another span that one has to do with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SpanLink {
    pub(crate) trace: TraceId,
    pub(crate) span: SpanId,
    pub(crate) attributes: Attributes,
}

/// Since 1970, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Nanos(pub(crate) u64);

impl From<SystemTime> for Nanos {
    fn from(time: SystemTime) -> Self {
        Self(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos() as u64)
    }
}

impl std::ops::Add<Duration> for Nanos {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time.as_nanos() as u64))
    }
}

/// One part of a trace, when it is over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TraceSpan {
    pub(crate) trace: TraceId,
    pub(crate) span: SpanId,
    pub(crate) parent: Option<SpanId>,
    /// The trace's `tracestate`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) state: String,
    pub(crate) kind: SpanKind,
    pub(crate) name: String,
    pub(crate) from: Nanos,
    pub(crate) to: Nanos,
    pub(crate) attributes: Attributes,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) events: Vec<SpanEvent>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) links: Vec<SpanLink>,
    #[serde(default)]
    pub(crate) status: SpanStatus,
    /// The library that a guest was instrumented with, and its version; empty if it is ours.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) scope: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) scope_version: String,
    /// Attributes, events and links that were left out.
    #[serde(default)]
    pub(crate) dropped: [u32; 3],
}

impl TraceSpan {
    /// As a line, newline included, without what makes it too long. None if nothing helps.
    pub(crate) fn line(mut self) -> Option<Vec<u8>> {
        loop {
            let mut line = serde_json::to_vec(&self).ok()?;
            if line.len() < MAX_SPAN_LINE {
                line.push(b'\n');
                return Some(line);
            }
            if self.links.pop().is_some() {
                self.dropped[2] = self.dropped[2].saturating_add(1);
            } else if self.events.pop().is_some() {
                self.dropped[1] = self.dropped[1].saturating_add(1);
            } else {
                self.attributes.pop()?;
                self.dropped[0] = self.dropped[0].saturating_add(1);
            }
        }
    }

    /// Reads what [`Self::line`] wrote.
    pub(crate) fn read(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn contexts_are_read_as_they_are_written() {
        let context = TraceContext::parse(PARENT).unwrap();
        assert!(context.is_sampled);
        assert_eq!(&*context.traceparent(), PARENT);
        let check = |text: &str, expected: Option<bool>| {
            assert_eq!(TraceContext::parse(text).map(|context| context.is_sampled), expected, "{text}");
        };
        check("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", Some(false));
        // Only the last bit is known, and later versions may add to it.
        check("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03", Some(true));
        check("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what", Some(true));
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-+1",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn ids_are_new_each_time() {
        let (one, two) = (TraceId::new(), TraceId::new());
        assert_ne!(one, two);
        assert_eq!((one.to_string().len(), one.to_bytes().len(), SpanId::new().to_string().len()), (32, 16, 16));
        assert_eq!(TraceId::parse(&one.to_string()), Some(one));
    }

    #[test]
    fn a_span_fits_into_a_line() {
        let span = TraceSpan {
            trace: TraceId::new(),
            span: SpanId::new(),
            parent: None,
            state: "a=b".into(),
            kind: SpanKind::Server,
            name: "GET".into(),
            from: SystemTime::now().into(),
            to: Nanos::from(SystemTime::now()) + Duration::from_millis(5),
            attributes: vec![("a".into(), 1_u64.into()), ("b".into(), "two\n".into()), ("c".into(), 0.5.into())],
            events: Vec::new(),
            links: Vec::new(),
            status: SpanStatus::Error("so".into()),
            scope: String::new(),
            scope_version: String::new(),
            dropped: [0; 3],
        };
        let line = span.clone().line().unwrap();
        assert!(line.ends_with(b"\n") && !line[..line.len() - 1].contains(&b'\n'));
        assert_eq!(TraceSpan::read(&line), Some(span.clone()));
        let event = SpanEvent { name: "e".repeat(500), at: span.from, attributes: Vec::new() };
        let long = TraceSpan { events: vec![event; 20], ..span.clone() };
        let line = long.line().unwrap();
        assert!(line.len() <= MAX_SPAN_LINE, "{}", line.len());
        let read = TraceSpan::read(&line).unwrap();
        assert_eq!((read.attributes, read.events.len() + read.dropped[1] as usize), (span.attributes.clone(), 20));
        assert_eq!(TraceSpan { name: "n".repeat(5000), ..span }.line(), None);
        assert_eq!(TraceSpan::read(b"{}\n"), None);
    }
}
