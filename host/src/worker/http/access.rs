//! The access log: a line for each request, when it is over.

use std::cell::{Ref, RefCell};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use http::header::{REFERER, USER_AGENT};
use http::{HeaderValue, Request, StatusCode, Version};

use super::outcome::{End, Outcome, Verdict};
use super::text::TextBuffer;
use crate::os::listener::Security;
use crate::os::log_file::LogFile;
use crate::settings::AccessFormat;
use crate::wire::messages::Identity;
use crate::wire::stats::Stats;
use crate::worker::requests::Asked;

/// Bytes of a header field that are logged. A line has 4096 bytes at most, so that it goes into a pipe whole.
const MAX_FIELD: usize = 256;

/// Where a worker's lines go, and what is the same in all of them.
#[derive(Debug)]
pub(crate) struct AccessLog {
    file: std::sync::Arc<LogFile>,
    format: AccessFormat,
    /// Which worker this is, as a line of JSON says it.
    who: String,
    stats: &'static Stats,
    /// The line that is written, for its memory.
    line: RefCell<TextBuffer>,
    /// The second of the last one, and how that is written.
    second: RefCell<(u64, String)>,
    /// The peer of the last one, likewise.
    peer: RefCell<(Option<IpAddr>, TextBuffer)>,
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
        self.agent.as_ref().map(|agent| String::from_utf8_lossy(first(agent)).into_owned())
    }

    fn protocol(&self) -> &'static str {
        match self.version {
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_2 => "HTTP/2.0",
            _ => "HTTP/1.1",
        }
    }
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
        let Identity { generation, slot, .. } = identity;
        Self {
            file,
            format,
            who: format!(",\"generation\":{generation},\"slot\":{slot}"),
            stats,
            line: RefCell::default(),
            second: RefCell::new((u64::MAX, String::new())),
            peer: RefCell::default(),
        }
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
        let mut line = self.line.borrow_mut();
        line.clear();
        match self.format {
            AccessFormat::Json => self.json(&mut line, asked, access, outcome, bytes, in_guest),
            AccessFormat::Common => self.common(&mut line, asked, access, outcome, bytes),
            AccessFormat::Combined => {
                self.common(&mut line, asked, access, outcome, bytes);
                line.text(" ").quoted(field(access.referer.as_ref())).text(" ").quoted(field(access.agent.as_ref()));
            }
        }
        line.text("\n");
        if !self.file.write(line.as_bytes()) {
            self.stats.access_dropped.increment();
        }
    }

    /// A line of JSON. Its fields are a contract: some may be added, none is removed.
    fn json(
        &self,
        line: &mut TextBuffer,
        asked: &Asked,
        access: &AccessFacts,
        outcome: &Outcome,
        bytes: u64,
        in_guest: Option<Duration>,
    ) {
        let cost = asked.cost();
        let instance = cost.instance();
        let since = access.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        line.text("{\"time\":\"").text(&self.second(since.as_secs())).text(".").digits::<6>(since.subsec_micros());
        line.text("Z\",\"request\":\"").number(asked.worker()).text("-").number(asked.number()).text("\"");
        if let Some(id) = asked.client_id() {
            line.text(",\"x_request_id\":").json(id);
        }
        line.text(",\"peer\":")
            .optional(access.peer, |line, peer| line.text("\"").bytes(self.address(peer).as_bytes()).text("\""));
        line.text(",\"method\":").json(asked.short_method()).text(",\"path\":").json(asked.path());
        line.text(",\"protocol\":\"").text(access.protocol()).text("\",\"tls\":");
        line.text(if access.security == Security::Tls { "true" } else { "false" });
        line.text(",\"status\":").optional(outcome.status, |line, status| line.text(status.as_str()));
        line.text(",\"bytes\":").number(bytes);
        line.text(",\"duration_ms\":").milliseconds(outcome.took.unwrap_or_default());
        // Until its guest had the head of its answer; null if none was asked.
        line.text(",\"guest_ms\":").optional(in_guest, |line, time| line.milliseconds(time));
        line.text(",\"ended\":\"").text(ended(outcome)).text("\"");
        // What the instance cost; null if there was none.
        line.text(",\"cpu_ms\":").optional(instance, |line, _| line.milliseconds(cost.cpu()));
        line.text(",\"memory_bytes\":").optional(instance, |line, _| line.number(cost.memory()));
        line.text(",\"instance\":")
            .optional(instance, |line, instance| line.text("\"").text(instance.name()).text("\""));
        line.text(",\"outbound\":").optional(instance, |line, _| line.number(cost.outbound()));
        line.text(",\"store_calls\":").optional(instance, |line, _| line.number(cost.store_calls()));
        if let Some(trace) = asked.trace() {
            line.text(",\"trace_id\":\"").text(&trace.context.trace.hex()).text("\"");
        }
        line.text(&self.who);
        for (name, value) in [(",\"user_agent\":", &access.agent), (",\"referer\":", &access.referer)] {
            if let Some(value) = value {
                line.text(name).json(&String::from_utf8_lossy(first(value)));
            }
        }
        line.text("}");
    }

    /// Apache's Common Log Format, without the identity and the user that it has a place for.
    fn common(&self, line: &mut TextBuffer, asked: &Asked, access: &AccessFacts, outcome: &Outcome, bytes: u64) {
        match access.peer {
            Some(peer) => line.bytes(self.address(peer).as_bytes()),
            None => line.text("-"),
        };
        let since = access.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        line.text(" - - [").text(&self.second(since.as_secs())).text("] \"").escaped(asked.short_method().as_bytes());
        line.text(" ").escaped(asked.path().as_bytes()).text(" ").text(access.protocol()).text("\" ");
        line.text(outcome.status.as_ref().map_or("-", StatusCode::as_str)).text(" ").number(bytes);
    }

    /// How a peer is written. Most requests come from the same as the one before.
    fn address(&self, peer: IpAddr) -> Ref<'_, TextBuffer> {
        if self.peer.borrow().0 != Some(peer) {
            let (last, text) = &mut *self.peer.borrow_mut();
            *last = Some(peer);
            text.clear();
            text.address(peer);
        }
        Ref::map(self.peer.borrow(), |(_, text)| text)
    }

    /// That second as the form has it. Most requests come in the same as the one before.
    fn second(&self, second: u64) -> Ref<'_, str> {
        if self.second.borrow().0 != second {
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
            let text = match self.format {
                AccessFormat::Json => {
                    humantime::format_rfc3339_seconds(at).to_string().trim_end_matches('Z').to_owned()
                }
                AccessFormat::Common | AccessFormat::Combined => clf_time(at),
            };
            *self.second.borrow_mut() = (second, text);
        }
        Ref::map(self.second.borrow(), |(_, text)| text.as_str())
    }
}

fn first(value: &HeaderValue) -> &[u8] {
    let bytes = value.as_bytes();
    &bytes[..bytes.len().min(MAX_FIELD)]
}

fn field(value: Option<&HeaderValue>) -> &[u8] {
    value.map_or(b"-", first)
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
    fn what_lines_consist_of_has_the_usual_form() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(971_186_136);
        assert_eq!(clf_time(at), "10/Oct/2000:13:55:36 +0000");
        assert_eq!(field(None), b"-");
        let long = HeaderValue::from_str(&"x".repeat(5000)).unwrap();
        assert_eq!(field(Some(&long)).len(), MAX_FIELD);
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
