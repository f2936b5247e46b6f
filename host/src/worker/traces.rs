//! Traces, as a worker takes part in them: which trace a request belongs to, what its guest and others are told of that, and
//! the spans that tell of it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::os::pipe::{LineWriter, PipeWrite};
use crate::settings::Percent;
use crate::wire::stats::Stats;
use crate::wire::trace::{Attributes, Nanos, SpanId, SpanKind, SpanStatus, TraceContext, TraceId, TraceSpan};

/// W3C Trace Context.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// Bytes of a `tracestate` that are passed on, as the specification has it.
const MAX_STATE: usize = 512;
/// Spans that a guest may tell for one request; what comes on top is lost.
const MAX_GUEST_SPANS: u32 = 128;

/// Writes spans to the exporter, and decides what is traced.
#[derive(Debug)]
pub(crate) struct Tracer {
    pipe: LineWriter,
    sample: Percent,
    stats: &'static Stats,
}

impl Tracer {
    pub(crate) fn new(pipe: LineWriter, sample: Percent, stats: &'static Stats) -> Self {
        Self { pipe, sample, stats }
    }

    /// The trace that a request with these headers belongs to: its client's, which decides whether it is recorded, or a new
    /// one.
    pub(super) fn begin(self: &Arc<Self>, headers: &HeaderMap) -> RequestTrace {
        let sent = context_in(headers);
        let state = sent.and_then(|_| state_in(headers));
        let (trace, is_sampled) = match sent {
            Some(sent) => (sent.trace, sent.is_sampled),
            None => (TraceId::new(), fastrand::u32(0..1000) < self.sample.thousandths()),
        };
        RequestTrace {
            tracer: self.clone(),
            context: TraceContext { trace, span: SpanId::new(), is_sampled },
            parent: sent.map(|sent| sent.span),
            state,
            of_guest: AtomicU32::new(0),
        }
    }

    fn tell(&self, span: TraceSpan) {
        let written = span.line().map(|line| self.pipe.write(&line));
        if written != Some(PipeWrite::Whole) {
            self.stats.spans_dropped.increment();
        }
    }
}

/// What the one `traceparent` of a message says, if it is right.
fn context_in(headers: &HeaderMap) -> Option<TraceContext> {
    let mut values = headers.get_all(TRACEPARENT).iter();
    let (first, second) = (values.next()?, values.next());
    first.to_str().ok().filter(|_| second.is_none()).and_then(TraceContext::parse)
}

/// What other systems of tracing have to say, in one line.
fn state_in(headers: &HeaderMap) -> Option<HeaderValue> {
    let values: Vec<&[u8]> = headers.get_all(TRACESTATE).iter().map(HeaderValue::as_bytes).collect();
    let state = values.join(&b","[..]);
    let is_text = state.iter().all(|byte| matches!(byte, b' '..=b'~'));
    (!state.is_empty() && state.len() <= MAX_STATE && is_text).then(|| HeaderValue::from_bytes(&state).ok())?
}

/// The trace of one request, in which its worker has a span.
#[derive(Debug)]
pub(crate) struct RequestTrace {
    tracer: Arc<Tracer>,
    pub(crate) context: TraceContext,
    /// The client's span.
    parent: Option<SpanId>,
    state: Option<HeaderValue>,
    of_guest: AtomicU32,
}

/// A part of a request's trace that has yet to come to its end.
#[derive(Debug)]
pub(crate) struct BegunSpan {
    tracer: Arc<Tracer>,
    pub(crate) context: TraceContext,
    pub(crate) parent: Option<SpanId>,
    pub(crate) state: String,
}

impl BegunSpan {
    /// It is over, well or with that error.
    pub(crate) fn tell(
        self,
        kind: SpanKind,
        name: String,
        time: Range<Nanos>,
        attributes: Attributes,
        error: Option<String>,
    ) {
        let TraceContext { trace, span, .. } = self.context;
        self.tracer.tell(TraceSpan {
            trace,
            span,
            parent: self.parent,
            state: self.state,
            kind,
            name,
            from: time.start,
            to: time.end,
            attributes,
            events: Vec::new(),
            links: Vec::new(),
            status: error.map_or(SpanStatus::Unset, SpanStatus::Error),
            scope: String::new(),
            scope_version: String::new(),
            dropped: [0; 3],
        });
    }
}

impl RequestTrace {
    /// Tells a guest in its request's headers, in place of what the client said.
    pub(crate) fn enter(&self, headers: &mut HeaderMap) {
        tell(headers, self.context, self.state.as_ref());
    }

    /// Its `tracestate`, in parts.
    pub(crate) fn state(&self) -> Vec<(String, String)> {
        let state = self.state.as_ref().and_then(|state| state.to_str().ok()).unwrap_or_default();
        let parts = state.split(',').filter_map(|part| part.trim().split_once('='));
        parts.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    /// The span of the request itself, if it is recorded.
    pub(crate) fn own(&self) -> Option<BegunSpan> {
        self.span(self.context, self.parent)
    }

    /// A guest sends a request of its own: with a span in this trace, unless it speaks of another.
    pub(crate) fn leave(&self, headers: &mut HeaderMap) -> Option<BegunSpan> {
        let said = context_in(headers);
        if said.is_some_and(|said| said.trace != self.context.trace) {
            return None;
        }
        // What a guest passes on as it came has the request's span; one that keeps spans itself says its own.
        let parent = said.map_or(self.context.span, |said| said.span);
        let context = TraceContext { span: SpanId::new(), ..self.context };
        let said_state = said.and_then(|_| state_in(headers));
        tell(headers, context, said_state.as_ref().or(self.state.as_ref()));
        self.span(context, Some(parent))
    }

    /// A span that a guest tells, which has this trace's state.
    pub(crate) fn guest_tells(&self, span: impl FnOnce(String) -> TraceSpan) {
        if !self.context.is_sampled {
            return;
        }
        if self.of_guest.fetch_add(1, Ordering::Relaxed) < MAX_GUEST_SPANS {
            let state = self.state.as_ref().and_then(|state| state.to_str().ok()).unwrap_or_default();
            self.tracer.tell(span(state.to_owned()));
        } else {
            self.tracer.stats.spans_dropped.increment();
        }
    }

    fn span(&self, context: TraceContext, parent: Option<SpanId>) -> Option<BegunSpan> {
        let state = self.state.as_ref().and_then(|state| state.to_str().ok()).unwrap_or_default().to_owned();
        let tracer = self.tracer.clone();
        context.is_sampled.then_some(BegunSpan { tracer, context, parent, state })
    }
}

fn tell(headers: &mut HeaderMap, context: TraceContext, state: Option<&HeaderValue>) {
    if let Ok(value) = HeaderValue::from_bytes(context.traceparent().as_bytes()) {
        headers.insert(TRACEPARENT, value);
    }
    match state {
        Some(state) => drop(headers.insert(TRACESTATE, state.clone())),
        None => drop(headers.remove(TRACESTATE)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::*;
    use crate::os::pipe::output_pipe;
    use crate::wire::stats::Page;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn tracer(sample: &str) -> (Arc<Tracer>, File) {
        let (reader, writer) = output_pipe(Some(4096)).unwrap();
        let stats = Page::open(&Page::create().unwrap().1).unwrap();
        (Arc::new(Tracer::new(LineWriter::new(writer), sample.parse().unwrap(), stats)), reader.into())
    }

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn who_began_a_trace_decides_whether_it_is_recorded() {
        let check = |sample: &str, fields: &[(&'static str, &'static str)], is_sampled: bool, is_theirs: bool| {
            let trace = tracer(sample).0.begin(&headers(fields));
            assert_eq!(trace.context.is_sampled, is_sampled, "{fields:?}");
            assert_eq!(trace.context.traceparent().contains("4bf92f3577b34da6a3ce929d0e0e4736"), is_theirs);
            assert_eq!(trace.parent.is_some(), is_theirs);
            assert!(!trace.context.traceparent().contains("00f067aa0ba902b7"), "a span of its own");
            assert_eq!(trace.own().is_some(), is_sampled);
        };
        check("100", &[], true, false);
        check("0", &[], false, false);
        check("0", &[("traceparent", PARENT)], true, true);
        check("100", &[("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")], false, true);
        check("100", &[("traceparent", "nonsense")], true, false);
        check("0", &[("traceparent", PARENT), ("traceparent", PARENT)], false, false);
    }

    #[test]
    fn guests_and_upstreams_are_told() {
        let (tracer, _reader) = tracer("0");
        let trace = tracer.begin(&headers(&[("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2")]));
        let mut request = headers(&[("traceparent", PARENT), ("tracestate", "x=y"), ("other", "stays")]);
        trace.enter(&mut request);
        assert_eq!(request[TRACEPARENT], &*trace.context.traceparent());
        assert_eq!((&request[TRACESTATE], request.len()), (&HeaderValue::from_static("a=1,b=2"), 3));

        // What came is passed on, or nothing is said.
        for mut sent in [request.clone(), HeaderMap::new()] {
            let span = trace.leave(&mut sent).unwrap();
            assert_eq!(sent[TRACEPARENT], &*span.context.traceparent());
            assert_eq!((span.parent, span.context.trace), (Some(trace.context.span), trace.context.trace));
            assert_ne!(span.context.span, trace.context.span);
            assert_eq!(sent[TRACESTATE], "a=1,b=2");
        }
        // A span of the guest's own is between.
        let own = TraceContext { span: SpanId::new(), ..trace.context };
        let mut sent = HeaderMap::new();
        sent.insert(TRACEPARENT, HeaderValue::try_from(&*own.traceparent()).unwrap());
        assert_eq!(trace.leave(&mut sent).unwrap().parent, Some(own.span));
        // Another trace is none of ours.
        let other = TraceContext { trace: TraceId::new(), ..own }.traceparent().to_string();
        sent.insert(TRACEPARENT, HeaderValue::try_from(&other).unwrap());
        assert!(trace.leave(&mut sent).is_none());
        assert_eq!(sent[TRACEPARENT], other);
        // A state without a trace says nothing.
        let trace = tracer.begin(&headers(&[("tracestate", "a=1")]));
        let mut request = headers(&[("tracestate", "a=1")]);
        trace.enter(&mut request);
        assert!(!request.contains_key(TRACESTATE));
    }

    #[test]
    fn a_guest_tells_so_many_spans_and_no_more() {
        let (tracer, mut reader) = tracer("100");
        let trace = tracer.begin(&HeaderMap::new());
        let span = || TraceSpan {
            trace: trace.context.trace,
            span: SpanId::new(),
            parent: Some(trace.context.span),
            state: String::new(),
            kind: SpanKind::Internal,
            name: "work".into(),
            from: std::time::SystemTime::now().into(),
            to: std::time::SystemTime::now().into(),
            attributes: Vec::new(),
            events: Vec::new(),
            links: Vec::new(),
            status: Default::default(),
            scope: String::new(),
            scope_version: String::new(),
            dropped: [0; 3],
        };
        let mut read = 0;
        let mut buffer = vec![0; 1 << 16];
        for _ in 0..MAX_GUEST_SPANS + 5 {
            trace.guest_tells(|_| span());
            if let Ok(count) = reader.read(&mut buffer) {
                read += buffer[..count].iter().filter(|&&byte| byte == b'\n').count();
            }
        }
        assert_eq!((read, tracer.stats.spans_dropped.get()), (MAX_GUEST_SPANS as usize, 5));
        // Nobody reads any more.
        while trace.own().is_some_and(|begun| begun.tracer.pipe.write(&[b'\n'; 1]) == PipeWrite::Whole) {}
        tracer.tell(span());
        assert_eq!(tracer.stats.spans_dropped.get(), 6);
    }
}
