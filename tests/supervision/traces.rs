//! Traces: what a collector gets that decodes it, and what becomes of requests when it is slow, away or talks nonsense.

use std::convert::Infallible;
use std::fs;
use std::future::{pending, ready};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode as SpanCode};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use harness::client::{Connection, whole};
use harness::tls::{Authority, Issued};
use harness::{Cluster, Setup, guest, until, upstream};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// How a collector answers.
#[derive(Clone, Copy, Debug)]
enum Mood {
    Takes,
    /// Takes all but so many.
    Refuses(i64),
    /// A status of HTTP, or one of gRPC, and nothing else.
    Fails(u16),
    Silent,
    /// What is no message.
    Babbles,
}

#[derive(Default)]
struct Got {
    spans: Vec<Span>,
    services: Vec<String>,
    headers: Vec<HeaderMap>,
    tries: usize,
}

/// A collector of traces, in a thread of its own for as long as the test lives.
struct Collector {
    address: SocketAddr,
    is_grpc: bool,
    is_tls: bool,
    mood: Arc<Mutex<Mood>>,
    got: Arc<Mutex<Got>>,
}

impl Collector {
    fn start(is_grpc: bool) -> Self {
        Self::start_as(is_grpc, None)
    }

    /// One that speaks TLS alone.
    fn start_tls(is_grpc: bool, shown: &Issued) -> Self {
        Self::start_as(is_grpc, Some(shown.acceptor(&[if is_grpc { b"h2" } else { b"http/1.1" }])))
    }

    fn start_as(is_grpc: bool, tls: Option<TlsAcceptor>) -> Self {
        let is_tls = tls.is_some();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (mood, got) = (Arc::new(Mutex::new(Mood::Takes)), Arc::new(Mutex::new(Got::default())));
        let told = (mood.clone(), got.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(collect(listener, is_grpc, tls, told));
        });
        Self { address, is_grpc, is_tls, mood, got }
    }

    fn url(&self) -> String {
        let scheme = if self.is_grpc { "grpc" } else { "http" };
        format!("{scheme}{}://{}", if self.is_tls { "s" } else { "" }, self.address)
    }

    fn is_now(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn tries(&self) -> usize {
        self.got.lock().unwrap().tries
    }

    fn spans(&self) -> Vec<Span> {
        self.got.lock().unwrap().spans.clone()
    }

    /// The spans of one kind whose attribute is `value`.
    fn find(&self, kind: SpanKind, key: &str, value: &str) -> Vec<Span> {
        let is_it = |span: &Span| span.kind == kind as i32 && text(&span.attributes, key) == value;
        self.spans().into_iter().filter(is_it).collect()
    }

    #[track_caller]
    fn span_of(&self, path: &str) -> Span {
        until("the span is there", || self.find(SpanKind::Server, "url.path", path).pop())
    }
}

async fn collect(
    listener: std::net::TcpListener,
    is_grpc: bool,
    tls: Option<TlsAcceptor>,
    (mood, got): (Arc<Mutex<Mood>>, Arc<Mutex<Got>>),
) {
    let listener = TcpListener::from_std(listener).unwrap();
    loop {
        let (stream, tls) = (listener.accept().await.unwrap().0, tls.clone());
        let (mood, got) = (mood.clone(), got.clone());
        let service = service_fn(move |request| answer(request, is_grpc, mood.clone(), got.clone()));
        tokio::spawn(async move {
            let stream: Box<dyn Stream> = match tls {
                None => Box::new(stream),
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => Box::new(stream),
                    // It does not trust the certificate.
                    Err(_) => return,
                },
            };
            let stream = TokioIo::new(stream);
            // An exporter that was killed is no matter.
            let _ = match is_grpc {
                true => http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service).await,
                false => http1::Builder::new().serve_connection(stream, service).await,
            };
        });
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

type Body = http_body_util::combinators::BoxBody<Bytes, Infallible>;

async fn answer(
    request: Request<Incoming>,
    is_grpc: bool,
    mood: Arc<Mutex<Mood>>,
    got: Arc<Mutex<Got>>,
) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    let mood = *mood.lock().unwrap();
    got.lock().unwrap().tries += 1;
    let path = if is_grpc { "/opentelemetry.proto.collector.trace.v1.TraceService/Export" } else { "/v1/traces" };
    assert_eq!((&head.method, head.uri.path()), (&Method::POST, path));
    let kind = if is_grpc { "application/grpc" } else { "application/x-protobuf" };
    assert_eq!(head.headers["content-type"], kind);
    // One that was killed in the middle has nothing to say.
    let Ok(body) = body.collect().await else { return pending().await };
    let mut message = body.to_bytes();
    if is_grpc {
        let length = message.split_to(5);
        assert_eq!((length[0], u32::from_be_bytes(length[1..].try_into().unwrap())), (0, message.len() as u32));
    }
    let refused = match mood {
        Mood::Takes => 0,
        Mood::Refuses(count) => count,
        Mood::Silent => return pending().await,
        Mood::Babbles => return Ok(said(is_grpc, 200, "0", Bytes::from_static(b"\0\0\0\0\x06<html>"))),
        Mood::Fails(status) if is_grpc => return Ok(said(true, 200, &status.to_string(), Bytes::new())),
        Mood::Fails(status) => return Ok(said(false, status, "", Bytes::new())),
    };
    let request = ExportTraceServiceRequest::decode(message).unwrap();
    let mut got = got.lock().unwrap();
    got.headers.push(head.headers);
    for resource in request.resource_spans {
        got.services.push(text(&resource.resource.unwrap().attributes, "service.name"));
        got.spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
    }
    let partial = (refused > 0)
        .then(|| ExportTracePartialSuccess { rejected_spans: refused, error_message: "too many of them".into() });
    let message = ExportTraceServiceResponse { partial_success: partial }.encode_to_vec();
    let mut framed = Vec::new();
    if is_grpc {
        framed.push(0);
        framed.extend((message.len() as u32).to_be_bytes());
    }
    framed.extend(message);
    Ok(said(is_grpc, 200, "0", framed.into()))
}

fn said(is_grpc: bool, status: u16, result: &str, body: Bytes) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::try_from(result).unwrap());
    let body = match is_grpc {
        true => Full::new(body).with_trailers(ready(Some(Ok(trailers)))).boxed(),
        false => Full::new(body).boxed(),
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

/// An attribute as text; empty if there is none.
fn text(attributes: &[KeyValue], key: &str) -> String {
    let value = attributes.iter().find(|pair| pair.key == key).and_then(|pair| pair.value.clone()?.value);
    match value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        other => other.map(|other| format!("{other:?}")).unwrap_or_default(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn serve(name: &str, url: &str, args: &[&str]) -> Cluster {
    Setup::new(&guest(name)).workers(1).args(&["--otlp", url]).args(args).start()
}

/// Asks, as somebody who has a trace.
#[tokio::main(flavor = "current_thread")]
async fn ask(cluster: &Cluster, path: &str, fields: &[(&'static str, &str)]) -> (u16, String) {
    let mut request = Request::get(path);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let mut connection = Connection::open(cluster.address()).await;
    let answer = whole(connection.send_request(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap()).await;
    let answer = answer.unwrap();
    (answer.status, answer.text().to_owned())
}

fn sampled() -> String {
    format!("00-{TRACE}-{PARENT}-01")
}

/// The field that a guest or an upstream was sent, in what it says of that.
fn field(said: &str, name: &str) -> Option<String> {
    said.lines().find_map(|line| line.strip_prefix(&format!("{name}: "))).map(ToOwned::to_owned)
}

fn exporter(cluster: &Cluster) -> Pid {
    until("there is an exporter", || cluster.status()["exporter"]["pid"].as_i64().map(|pid| Pid::from_raw(pid as i32)))
}

#[test]
fn a_request_is_a_span_of_its_clients_trace_and_its_guest_is_told() {
    for is_grpc in [false, true] {
        let collector = Collector::start(is_grpc);
        let setup = Setup::new(&guest("scenarios")).workers(1);
        let (log, key) = (setup.folder.path().join("access.log"), setup.folder.path().join("key"));
        fs::write(&key, "Bearer hush\n").unwrap();
        let header = format!("authorization=file:{}", key.display());
        let args = ["--otlp", &collector.url(), "--otlp-header", &header, "--name", "shop", "--access-log"];
        let args = [&args[..], &[log.to_str().unwrap(), "--access-log-format", "json"]].concat();
        let cluster = setup.args(&args).start();
        let fields = [("traceparent", &*sampled()), ("tracestate", "a=1"), ("user-agent", "test")];
        let (_, said) = ask(&cluster, "/headers?token=hush", &fields);
        let span = collector.span_of("/headers");
        assert_eq!((hex(&span.trace_id), hex(&span.parent_span_id)), (TRACE.into(), PARENT.into()));
        let context = format!("00-{TRACE}-{}-01", hex(&span.span_id));
        assert_eq!((field(&said, "traceparent"), field(&said, "tracestate")), (Some(context), Some("a=1".into())));
        assert_eq!((&*span.name, &*span.trace_state), ("GET", "a=1"));
        assert!(span.start_time_unix_nano > 0 && span.end_time_unix_nano > span.start_time_unix_nano);
        assert_eq!(span.status.unwrap().code(), SpanCode::Unset);
        for (key, value) in [
            ("http.request.method", "GET"),
            ("http.response.status_code", "200"),
            ("url.scheme", "http"),
            ("network.protocol.version", "1.1"),
            ("client.address", "127.0.0.1"),
            ("user_agent.original", "test"),
            ("wasmcluster.generation", "1"),
            ("wasmcluster.slot", "0"),
            ("wasmcluster.ended", "complete"),
            ("wasmcluster.instance", "fresh"),
        ] {
            assert_eq!(text(&span.attributes, key), value, "{key}");
        }
        let line = until("it has a line", || fs::read_to_string(&log).ok().filter(|text| text.ends_with('\n')));
        let line: serde_json::Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
        assert_eq!(line["trace_id"], TRACE);
        assert_eq!(text(&span.attributes, "wasmcluster.request"), line["request"].as_str().unwrap());

        // What went wrong is an error, and says how.
        assert_eq!(ask(&cluster, "/trap", &fields[..1]).0, 500);
        let span = collector.span_of("/trap");
        assert_eq!(text(&span.attributes, "error.type"), "trapped");
        assert_eq!(span.status.unwrap().code(), SpanCode::Error);

        let got = collector.got.lock().unwrap();
        assert_eq!(got.services[0], "shop");
        assert_eq!(got.headers[0]["authorization"], "Bearer hush");
        assert!(!format!("{:?}", got.spans).contains("hush"));
        assert!(!cluster.stderr.lines().join("\n").contains("hush"));
    }
}

/// Whoever begins a trace decides; only of traces that begin here, a share is recorded.
#[test]
fn who_began_a_trace_decides_whether_it_is_recorded() {
    let unsampled = format!("00-{TRACE}-{PARENT}-00");
    for (sample, of_own) in [("0", false), ("100", true)] {
        let collector = Collector::start(false);
        let cluster = serve("scenarios", &collector.url(), &["--trace-sample", sample]);
        let (_, own) = ask(&cluster, "/headers", &[]);
        let flags = if of_own { "-01" } else { "-00" };
        assert!(field(&own, "traceparent").unwrap().ends_with(flags), "{own}");
        // Nonsense is replaced.
        let (_, said) = ask(&cluster, "/headers?nonsense", &[("traceparent", "nonsense"), ("tracestate", "a=1")]);
        assert!(field(&said, "traceparent").unwrap().ends_with(flags) && field(&said, "tracestate").is_none());
        let (_, said) = ask(&cluster, "/sleep?ms=1", &[("traceparent", &unsampled)]);
        assert!(!said.is_empty());
        let (_, said) = ask(&cluster, "/headers?theirs", &[("traceparent", &unsampled)]);
        let context = field(&said, "traceparent").unwrap();
        assert!(context.starts_with(&format!("00-{TRACE}-")) && context.ends_with("-00"), "{context}");
        assert!(!context.contains(PARENT));
        ask(&cluster, "/env?name=HOME", &[("traceparent", &sampled())]);
        collector.span_of("/env");
        let paths: Vec<String> = collector.spans().iter().map(|span| text(&span.attributes, "url.path")).collect();
        let expected: &[&str] = if of_own { &["/headers", "/headers", "/env"] } else { &["/env"] };
        assert_eq!(paths, expected);
    }
}

/// Under both versions of WASI. Also the request that nobody answers has a span.
#[test]
fn an_outbound_request_is_a_span_below_its_guests() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (there, nowhere) = runtime.block_on(async { (upstream::start().await, upstream::nowhere().await) });
    for name in ["sdk", "sdk_p3"] {
        let collector = Collector::start(false);
        let grants = [format!("http://{there}"), format!("http://{nowhere}")];
        let args = ["--allow-host", &grants[0], "--allow-host", &grants[1], "--request-timeout", "2s"];
        let cluster = serve(name, &collector.url(), &args);
        let fields = [("traceparent", &*sampled()), ("tracestate", "a=1")];
        let (status, said) = ask(&cluster, &format!("/fetch?url=http://{there}/head?key=hush"), &fields);
        assert_eq!(status, 200, "{name}: {said}");
        let server = collector.span_of("/fetch");
        let client = until("it has a span", || {
            collector.find(SpanKind::Client, "server.address", "127.0.0.1").into_iter().next()
        });
        assert_eq!(field(&said, "traceparent"), Some(format!("00-{TRACE}-{}-01", hex(&client.span_id))), "{name}");
        assert_eq!(field(&said, "tracestate"), Some("a=1".into()), "{name}");
        assert_eq!((&client.trace_id, &client.parent_span_id), (&server.trace_id, &server.span_id), "{name}");
        assert!(client.start_time_unix_nano >= server.start_time_unix_nano);
        assert_eq!(text(&client.attributes, "url.full"), format!("http://{there}/head"));
        assert_eq!(text(&client.attributes, "http.response.status_code"), "200");

        ask(&cluster, &format!("/outcome?url=http://{nowhere}/"), &fields[..1]);
        let port = nowhere.port().to_string();
        let client = until("it has a span", || collector.find(SpanKind::Client, "server.port", &port).pop());
        assert_eq!(client.status.as_ref().unwrap().code(), SpanCode::Error, "{name}: {client:?}");
        assert_eq!(text(&client.attributes, "error.type"), "connection refused", "{name}: {client:?}");

        // One that is never answered is what traces are looked at for.
        assert_eq!(ask(&cluster, &format!("/fetch?url=http://{there}/never"), &fields[..1]).0, 504);
        let url = format!("http://{there}/never");
        let client = until("it has a span", || collector.find(SpanKind::Client, "url.full", &url).pop());
        assert_eq!(text(&client.attributes, "error.type"), "cancelled", "{name}: {client:?}");
        cluster.stderr.find(&format!("an outbound request to http://{there} had no answer when its guest ended"));
    }
}

/// With the SDK, under both versions of WASI: below the request's span, and above that of what is asked for inside.
#[test]
fn spans_of_a_guest_lie_between_its_request_and_what_it_asks_for() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let there = runtime.block_on(upstream::start());
    for name in ["sdk", "sdk_p3"] {
        let collector = Collector::start(false);
        let cluster = serve(name, &collector.url(), &["--allow-host", &format!("http://{there}")]);
        let (_, said) = ask(&cluster, &format!("/traced?url=http://{there}/head"), &[("traceparent", &sampled())]);
        let server = collector.span_of("/traced");
        let work = until("it is told", || collector.find(SpanKind::Internal, "article", "7").pop());
        let client = until("it is told", || collector.find(SpanKind::Client, "server.address", "127.0.0.1").pop());
        assert_eq!(field(&said, "traceparent"), Some(format!("00-{TRACE}-{}-01", hex(&client.span_id))), "{name}");
        let parents = [&server, &work, &client].map(|span| (hex(&span.trace_id), hex(&span.parent_span_id)));
        let expected = [PARENT.to_owned(), hex(&server.span_id), hex(&work.span_id)].map(|id| (TRACE.to_owned(), id));
        assert_eq!(parents, expected, "{name}");
        let event = &work.events[0];
        assert_eq!((&*work.name, &*event.name, &*text(&event.attributes, "step")), ("work", "asking", "1"), "{name}");
        assert!(event.time_unix_nano >= work.start_time_unix_nano && event.time_unix_nano <= work.end_time_unix_nano);
        // It is a line of the log as well.
        cluster.stderr.find(": asking step=1");

        // What is not recorded is not told.
        let unsampled = format!("00-{TRACE}-{PARENT}-00");
        ask(&cluster, &format!("/traced?url=http://{there}/head"), &[("traceparent", &unsampled)]);
        ask(&cluster, &format!("/fetch?url=http://{there}/head"), &[("traceparent", &sampled())]);
        collector.span_of("/fetch");
        assert_eq!(collector.find(SpanKind::Internal, "article", "7").len(), 1, "{name}");
    }
}

/// What it has no time for is sent again, and is there once.
#[test]
fn a_busy_collector_is_asked_again() {
    for (is_grpc, busy) in [(false, 503), (true, 14)] {
        let collector = Collector::start(is_grpc);
        collector.is_now(Mood::Fails(busy));
        let cluster = serve("hello", &collector.url(), &[]);
        for number in 0..20 {
            assert_eq!(ask(&cluster, &format!("/{number}"), &[("traceparent", &sampled())]).0, 200);
        }
        cluster.stderr.find("which is tried again: it answered");
        until("it was asked again", || (collector.tries() >= 3).then_some(()));
        collector.is_now(Mood::Takes);
        cluster.stderr.find(&format!("traces reach {} again", collector.url()));
        let spans = until("all are there", || Some(collector.spans()).filter(|spans| spans.len() >= 20));
        let mut paths: Vec<String> = spans.iter().map(|span| text(&span.attributes, "url.path")).collect();
        paths.sort();
        paths.dedup();
        assert_eq!((spans.len(), paths.len()), (20, 20));
        let told = |field: &str| cluster.status()["exporter"][field].as_u64().unwrap();
        until("they are counted", || (told("exported") == 20).then_some(()));
        assert_eq!(told("lost"), 0);
        let table = cluster.command(&["status"]).stdout;
        assert!(
            table.contains("\nexporter of traces: pid ") && table.contains(", 20 spans exported, 0 lost\n"),
            "{table}"
        );

        collector.is_now(Mood::Refuses(1));
        ask(&cluster, "/refused", &[("traceparent", &sampled())]);
        cluster.stderr.find("refused 1 spans: too many of them");
        until("it is counted", || (told("lost") == 1).then_some(()));
        assert_eq!(told("exported"), 20);
    }
}

/// Requests are answered as ever, the log says what is wrong, and the cluster ends in time.
#[test]
fn collectors_that_are_away_or_slow_or_talk_nonsense_cost_no_request() {
    let check = |collector: Option<&Collector>, url: &str, line: &str, is_lost: bool| {
        let cluster = serve("hello", url, &[]);
        for number in 0..50 {
            assert_eq!(ask(&cluster, &format!("/{number}"), &[("traceparent", &sampled())]).0, 200);
        }
        if !line.is_empty() {
            let line = cluster.stderr.find(line);
            assert!(line.contains(url), "{line}");
        }
        if let Some(collector) = collector {
            until("it was asked", || (collector.tries() > 0).then_some(()));
        }
        if is_lost {
            until("they are counted", || cluster.status()["exporter"]["lost"].as_u64().filter(|&lost| lost == 50));
        }
        assert_eq!(cluster.status()["totals"]["errors"], 0);
        assert_eq!(cluster.command(&["stop"]).code, Some(0));
        cluster.wait();
    };
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    check(None, &format!("http://{nobody}"), "Connection refused", false);
    check(None, &format!("grpc://{nobody}"), "Connection refused", false);
    check(None, "http://no.such.host.invalid:4318", "which is tried again", false);
    for is_grpc in [false, true] {
        let collector = Collector::start(is_grpc);
        let url = collector.url();
        collector.is_now(Mood::Silent);
        check(Some(&collector), &url, "", false);
        collector.is_now(Mood::Babbles);
        check(Some(&collector), &url, "its answer is not OTLP", true);
        let (status, said) = if is_grpc { (3, "status 3 of gRPC") } else { (400, "400 Bad Request") };
        collector.is_now(Mood::Fails(status));
        check(Some(&collector), &url, said, true);
        // It speaks the other protocol.
        let other = if is_grpc { url.replace("grpc", "http") } else { url.replace("http", "grpc") };
        check(None, &other, "traces do not reach", false);
    }
}

/// No request notices, and what was written meanwhile waits.
#[test]
fn an_exporter_that_dies_or_hangs_is_replaced() {
    let collector = Collector::start(false);
    let cluster = serve("hello", &collector.url(), &["--hang-timeout", "2s"]);
    for (number, signal) in [Signal::SIGKILL, Signal::SIGSTOP].into_iter().enumerate() {
        let old = exporter(&cluster);
        // By which logs are told to rotate, perhaps all processes of a service.
        kill(old, Signal::SIGUSR1).unwrap();
        kill(old, signal).unwrap();
        let path = format!("/{signal}");
        assert_eq!(ask(&cluster, &path, &[("traceparent", &sampled())]).0, 200);
        until("it is replaced", || (cluster.status()["exporter"]["restarts"] == number as u64 + 1).then_some(()));
        assert_ne!(exporter(&cluster), old);
        collector.span_of(&path);
        assert_eq!(cluster.status()["totals"]["errors"], 0);
    }
    cluster.stderr.find("the exporter of traces hangs");
}

/// Workers do not wait for who does not read.
#[test]
fn spans_that_have_no_place_are_counted() {
    let collector = Collector::start(false);
    let cluster = serve("hello", &collector.url(), &["--trace-sample", "100", "--hang-timeout", "1h"]);
    let pid = exporter(&cluster);
    kill(pid, Signal::SIGSTOP).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let dropped = || cluster.status()["totals"]["spans_dropped"].as_u64().unwrap();
    runtime.block_on(async {
        let mut connection = Connection::open(cluster.address()).await;
        for number in 0.. {
            assert!(number < 20_000, "a pipe of 1 MiB holds more than it can");
            assert_eq!(connection.get(&format!("/{number}")).await.unwrap().status, 200);
            if number % 500 == 0 && dropped() > 0 {
                return;
            }
        }
    });
    // Goes on where it was, and no line is torn.
    kill(pid, Signal::SIGCONT).unwrap();
    until("they are there", || (collector.spans().len() > 1000).then_some(()));
    let dropped = dropped();
    let all = cluster.status()["totals"]["requests"].as_u64().unwrap();
    until("the others are there", || {
        let status = cluster.status();
        assert_eq!(status["exporter"]["lost"], 0);
        (status["exporter"]["exported"].as_u64().unwrap() + dropped == all).then_some(())
    });
}

#[test]
fn the_last_spans_are_sent_before_the_cluster_ends() {
    let collector = Collector::start(true);
    let cluster = serve("hello", &collector.url(), &[]);
    assert_eq!(ask(&cluster, "/last", &[("traceparent", &sampled())]).0, 200);
    assert_eq!(cluster.command(&["stop"]).code, Some(0));
    assert_eq!(collector.find(SpanKind::Server, "url.path", "/last").len(), 1);
    cluster.wait();
}

/// One is believed if its certificate is of an authority that the machine trusts, and for its name.
#[test]
fn a_collector_may_speak_tls() {
    let folder = tempfile::tempdir().unwrap();
    let (trusted, authority) = (folder.path().join("trusted.pem"), Authority::new("an authority"));
    fs::write(&trusted, &authority.pem).unwrap();
    let strangers = [Authority::new("a stranger").issue(&["127.0.0.1"]), authority.issue(&["elsewhere.test"])];
    for is_grpc in [false, true] {
        let serve = |collector: &Collector| {
            let setup = Setup::new(&guest("hello")).workers(1).args(&["--otlp", &collector.url()]);
            setup.env("SSL_CERT_FILE", trusted.to_str().unwrap()).start()
        };
        let collector = Collector::start_tls(is_grpc, &authority.issue(&["127.0.0.1"]));
        let cluster = serve(&collector);
        assert_eq!(ask(&cluster, "/secret", &[("traceparent", &sampled())]).0, 200);
        assert_eq!(hex(&collector.span_of("/secret").trace_id), TRACE);
        for stranger in &strangers {
            let collector = Collector::start_tls(is_grpc, stranger);
            let cluster = serve(&collector);
            assert_eq!(ask(&cluster, "/secret", &[("traceparent", &sampled())]).0, 200);
            cluster.stderr.find("certificate");
            assert_eq!(collector.tries(), 0);
        }
    }
}

#[test]
fn what_is_wrong_with_the_flags_of_traces_is_told() {
    let check = |args: &[&str], said: &str| {
        let ended = Setup::new(&guest("hello")).args(args).run();
        assert!(ended.code == Some(2) || ended.code == Some(1), "{ended:?}");
        assert!(ended.stderr.contains(said), "{ended:?}");
    };
    check(&["--trace-sample", "5"], "--trace-sample needs a collector of traces; add --otlp URL");
    check(&["--otlp-header", "a=env:HOME"], "--otlp-header needs a collector of traces; add --otlp URL");
    check(&["--otlp", "localhost:4318"], "expected http://HOST:4318");
    check(&["--otlp", "http://me:hush@localhost:4318"], "--otlp-header authorization=file:PATH");
    check(&["--otlp", "http://localhost:4318", "--otlp-header", "a b=env:HOME"], "--otlp-header");
    check(&["--otlp", "http://localhost:4318", "--trace-sample", "101"], "--trace-sample");
}
