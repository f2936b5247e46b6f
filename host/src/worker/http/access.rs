//! The access log: a line for each request, when it is over.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use http::header::{REFERER, USER_AGENT};
use http::{HeaderValue, Request, Version};
use serde::Serialize;

use super::outcome::{End, Outcome, Verdict};
use crate::os::listener::Security;
use crate::os::log_file::LogFile;
use crate::settings::AccessFormat;
use crate::wire::messages::Identity;
use crate::wire::stats::Stats;
use crate::worker::cost::InstanceUse;
use crate::worker::requests::Asked;

/// Bytes of a header field that are logged. A line has 4096 bytes at most, so that it goes into a pipe whole.
const MAX_FIELD: usize = 256;

/// Where a worker's lines go, and what is the same in all of them.
#[derive(Debug)]
pub(crate) struct AccessLog {
    file: std::sync::Arc<LogFile>,
    format: AccessFormat,
    identity: Identity,
    stats: &'static Stats,
}

/// What is known of a request at its head.
#[derive(Debug)]
pub(super) struct AccessFacts {
    pub(super) peer: Option<IpAddr>,
    pub(super) security: Security,
    version: Version,
    referer: Option<HeaderValue>,
    agent: Option<HeaderValue>,
    pub(super) at: SystemTime,
}

impl AccessFacts {
    pub(super) fn new<B>(request: &Request<B>, peer: Option<IpAddr>, security: Security) -> Self {
        let field = |name| request.headers().get(name).cloned();
        let (referer, agent) = (field(REFERER), field(USER_AGENT));
        Self { peer, security, version: request.version(), referer, agent, at: SystemTime::now() }
    }

    pub(super) fn protocol_version(&self) -> &'static str {
        match self.version {
            Version::HTTP_10 => "1.0",
            Version::HTTP_2 => "2",
            _ => "1.1",
        }
    }

    pub(super) fn user_agent(&self) -> Option<String> {
        self.agent.as_ref().map(|agent| shortened(agent).into_owned())
    }

    fn protocol(&self) -> &'static str {
        match self.version {
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_2 => "HTTP/2.0",
            _ => "HTTP/1.1",
        }
    }
}

/// A line of JSON. Its fields are a contract: some may be added, none is removed.
#[derive(Serialize)]
struct AccessLine<'a> {
    time: String,
    request: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    x_request_id: Option<&'a str>,
    peer: Option<IpAddr>,
    method: &'a str,
    path: &'a str,
    protocol: &'static str,
    tls: bool,
    status: Option<u16>,
    bytes: u64,
    duration_ms: f64,
    /// Until its guest had the head of its answer; null if none was asked.
    guest_ms: Option<f64>,
    ended: &'static str,
    /// How long its guest computed; null, as all that follows, if it had none.
    cpu_ms: Option<f64>,
    /// The most memory that its instance had.
    memory_bytes: Option<u64>,
    instance: Option<InstanceUse>,
    /// Outbound requests, and calls of key-value stores.
    outbound: Option<u32>,
    store_calls: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    generation: u64,
    slot: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    referer: Option<String>,
}

/// How it ended, as the log calls it.
pub(super) fn ended(outcome: &Outcome) -> &'static str {
    match (outcome.verdict, outcome.end) {
        (Verdict::Trapped(_), _) => "trapped",
        (Verdict::Late, _) => "timed_out",
        (Verdict::Refused, _) => "refused",
        (Verdict::Rejected, _) => "full",
        (Verdict::Answered, _) if outcome.is_cut => "cut",
        (Verdict::Answered, End::Aborted) => "client_left",
        (Verdict::Answered, End::HandedOver) => "complete",
    }
}

impl AccessLog {
    pub(crate) fn new(
        file: std::sync::Arc<LogFile>,
        format: AccessFormat,
        identity: Identity,
        stats: &'static Stats,
    ) -> Self {
        Self { file, format, identity, stats }
    }

    /// Writes the line of a request that is over.
    pub(super) fn write(
        &self,
        asked: &Asked,
        access: &AccessFacts,
        outcome: &Outcome,
        bytes: u64,
        in_guest: Option<Duration>,
    ) {
        let mut line = match self.format {
            AccessFormat::Json => self.json(asked, access, outcome, bytes, in_guest),
            AccessFormat::Common => common(asked, access, outcome, bytes),
            AccessFormat::Combined => {
                let mut line = common(asked, access, outcome, bytes);
                let _ = write!(line, " \"{}\" \"{}\"", field(access.referer.as_ref()), field(access.agent.as_ref()));
                line
            }
        };
        line.push('\n');
        if !self.file.write(line.as_bytes()) {
            self.stats.access_dropped.increment();
        }
    }

    fn json(
        &self,
        asked: &Asked,
        access: &AccessFacts,
        outcome: &Outcome,
        bytes: u64,
        in_guest: Option<Duration>,
    ) -> String {
        let ms = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        let (cost, instance) = (asked.cost(), asked.cost().instance());
        let text = |value: Option<&HeaderValue>| value.map(|value| shortened(value).into_owned());
        let line = AccessLine {
            time: humantime::format_rfc3339_micros(access.at).to_string(),
            request: asked.request(),
            x_request_id: asked.client_id(),
            peer: access.peer,
            method: asked.short_method(),
            path: asked.path(),
            protocol: access.protocol(),
            tls: access.security == Security::Tls,
            status: outcome.status.map(|status| status.as_u16()),
            bytes,
            duration_ms: ms(outcome.took.unwrap_or_default()),
            guest_ms: in_guest.map(ms),
            ended: ended(outcome),
            cpu_ms: instance.map(|_| ms(cost.cpu())),
            memory_bytes: instance.map(|_| cost.memory()),
            instance,
            outbound: instance.map(|_| cost.outbound()),
            store_calls: instance.map(|_| cost.store_calls()),
            trace_id: asked.trace().map(|trace| trace.context.trace.to_string()),
            generation: self.identity.generation.0,
            slot: self.identity.slot.0,
            user_agent: text(access.agent.as_ref()),
            referer: text(access.referer.as_ref()),
        };
        serde_json::to_string(&line).unwrap_or_default()
    }
}

fn shortened(value: &HeaderValue) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(first(value))
}

fn first(value: &HeaderValue) -> &[u8] {
    let bytes = value.as_bytes();
    &bytes[..bytes.len().min(MAX_FIELD)]
}

/// Apache's Common Log Format, without the identity and the user that it has a place for.
fn common(asked: &Asked, access: &AccessFacts, outcome: &Outcome, bytes: u64) -> String {
    let mut line = String::with_capacity(256);
    match access.peer {
        Some(peer) => drop(write!(line, "{peer}")),
        None => line.push('-'),
    }
    let status = outcome.status.map_or_else(|| "-".into(), |status| status.as_str().to_owned());
    let _ = write!(
        line,
        " - - [{}] \"{} {} {}\" {status} {bytes}",
        clf_time(access.at),
        escaped(asked.short_method().as_bytes()),
        escaped(asked.path().as_bytes()),
        access.protocol(),
    );
    line
}

fn field(value: Option<&HeaderValue>) -> String {
    value.map_or_else(|| "-".into(), |value| escaped(first(value)))
}

/// Nobody breaks out of its quotes or begins a line of its own.
fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'"' | b'\\' | 0..0x20 | 0x7f.. => drop(write!(text, "\\x{byte:02X}")),
            byte => text.push(char::from(byte)),
        }
    }
    text
}

/// `10/Oct/2000:13:55:36 +0000`, in UTC.
fn clf_time(at: SystemTime) -> String {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let text = humantime::format_rfc3339_seconds(at).to_string();
    let month = text[5..7].parse().ok().and_then(|month: usize| MONTHS.get(month.checked_sub(1)?)).unwrap_or(&"Jan");
    format!("{}/{month}/{}:{} +0000", &text[8..10], &text[..4], &text[11..19])
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::worker::guest::trap::TrapKind;

    #[test]
    fn lines_have_the_usual_forms_and_cannot_be_forged() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(971_186_136);
        assert_eq!(clf_time(at), "10/Oct/2000:13:55:36 +0000");
        assert_eq!(escaped(b"a\"b\\c\nd\xc3\xa4"), "a\\x22b\\x5Cc\\x0Ad\\xC3\\xA4");
        assert_eq!(field(None), "-");
        let long = HeaderValue::from_str(&"x".repeat(5000)).unwrap();
        assert_eq!(field(Some(&long)).len(), MAX_FIELD);
        assert_eq!(field(Some(&HeaderValue::from_bytes(b"\xe4").unwrap())), "\\xE4");
    }

    #[test]
    fn each_end_has_a_name() {
        let of = |verdict, end, is_cut| {
            ended(&Outcome { status: Some(StatusCode::OK), verdict, is_cut, end, took: Some(Duration::ZERO) })
        };
        assert_eq!(of(Verdict::Answered, End::HandedOver, false), "complete");
        assert_eq!(of(Verdict::Answered, End::Aborted, false), "client_left");
        assert_eq!(of(Verdict::Answered, End::Aborted, true), "cut");
        assert_eq!(of(Verdict::Trapped(TrapKind::Exit), End::Aborted, true), "trapped");
        assert_eq!(of(Verdict::Late, End::HandedOver, false), "timed_out");
        assert_eq!(of(Verdict::Rejected, End::HandedOver, false), "full");
    }
}
