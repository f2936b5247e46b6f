//! Takes a message to the collector: protobuf over HTTP, or gRPC, whose unary call is a POST over HTTP/2 with five bytes
//! before the message and its result in the trailers.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER, TE, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use rustls::ClientConfig;

use crate::logging::one_line;
use crate::settings::{Otlp, OtlpProtocol};

/// How long the collector may take for its answer, connection and all.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of its answer that are read.
const MAX_ANSWER: usize = 64 * 1024;
/// Longest that it may have us wait.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// Characters of what it says that are passed on.
const MAX_SAID: usize = 200;

/// What became of a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Receipt {
    /// The collector has it. So many spans it refused, and why.
    Taken { refused: u64, why: String },
    /// It may be sent again, after this time if the collector said one.
    Later { why: String, after: Option<Duration> },
    /// It is wrong.
    Refused { why: String },
}

fn later(why: impl ToString) -> Receipt {
    Receipt::Later { why: why.to_string(), after: None }
}

/// Sends messages to one collector.
pub(super) struct OtlpClient {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    otlp: Otlp,
}

impl OtlpClient {
    /// Reads which certificates the machine trusts. Must be called on the executor.
    pub(super) fn new(otlp: Otlp) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let connector = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http();
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_timer(TokioTimer::new()).pool_max_idle_per_host(1);
        let client = match otlp.url.protocol {
            OtlpProtocol::Grpc => builder.http2_only(true).build(connector.enable_http2().build()),
            OtlpProtocol::Http => builder.build(connector.enable_all_versions().build()),
        };
        Self { client, otlp }
    }

    pub(super) async fn send(&self, message: Bytes) -> Receipt {
        match tokio::time::timeout(PATIENCE, self.exchange(message)).await {
            Ok(sent) => sent,
            Err(_) => later(format_args!("it did not answer within {PATIENCE:?}")),
        }
    }

    async fn exchange(&self, message: Bytes) -> Receipt {
        let answer = match self.client.request(self.request(message)).await {
            Ok(answer) => answer,
            Err(error) => return later(causes(&error)),
        };
        let (head, body) = answer.into_parts();
        let body = match Limited::new(body, MAX_ANSWER).collect().await {
            Ok(body) => body,
            Err(error) => return later(format_args!("its answer broke off: {error}")),
        };
        let trailers = body.trailers().cloned().unwrap_or_default();
        let body = body.to_bytes();
        match self.otlp.url.protocol {
            OtlpProtocol::Http => judge_http(head.status, &head.headers, &body),
            OtlpProtocol::Grpc => judge_grpc(head.status, &head.headers, &trailers, &body),
        }
    }

    fn request(&self, message: Bytes) -> Request<Full<Bytes>> {
        let (kind, body) = match self.otlp.url.protocol {
            OtlpProtocol::Http => ("application/x-protobuf", message),
            OtlpProtocol::Grpc => ("application/grpc", framed(&message)),
        };
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.otlp.url.uri();
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("wasmcluster/", env!("CARGO_PKG_VERSION"))));
        if self.otlp.url.protocol == OtlpProtocol::Grpc {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
        for (name, value) in &self.otlp.headers {
            // They were looked at when they were read.
            if let (Ok(name), Ok(mut value)) = (HeaderName::try_from(name), HeaderValue::try_from(value.reveal())) {
                value.set_sensitive(true);
                headers.insert(name, value);
            }
        }
        request
    }
}

/// One message of gRPC: not compressed, its length, itself.
fn framed(message: &[u8]) -> Bytes {
    let mut framed = Vec::with_capacity(5 + message.len());
    framed.push(0);
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend_from_slice(message);
    framed.into()
}

/// Who failed, and why in the end.
fn causes(error: &hyper_util::client::legacy::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// What a collector said, without what would break a line.
fn said(text: &str) -> String {
    one_line(text.get(..text.floor_char_boundary(MAX_SAID)).unwrap_or_default()).to_string()
}

fn taken(message: &[u8]) -> Receipt {
    let Ok(answer) = ExportTraceServiceResponse::decode(message) else {
        return Receipt::Refused { why: "its answer is not OTLP; is the URL that of a collector?".into() };
    };
    let partial = answer.partial_success.unwrap_or_default();
    Receipt::Taken { refused: partial.rejected_spans.try_into().unwrap_or(0), why: said(&partial.error_message) }
}

/// As OTLP over HTTP has it: what may be sent again has one of four statuses.
fn judge_http(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Receipt {
    match status.as_u16() {
        200..300 => taken(body),
        429 | 502..=504 => {
            let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
            let after = seconds.map(|seconds| Duration::from_secs(seconds).min(MAX_WAIT));
            Receipt::Later { why: format!("it answered {status}"), after }
        }
        _ => Receipt::Refused { why: format!("it answered {status}") },
    }
}

/// As OTLP over gRPC has it. Of a call that failed at once, the result is in the head.
fn judge_grpc(status: StatusCode, headers: &HeaderMap, trailers: &HeaderMap, body: &[u8]) -> Receipt {
    let field = |name: &str| trailers.get(name).or_else(|| headers.get(name))?.to_str().ok();
    let Some(result) = field("grpc-status").and_then(|result| result.parse::<u32>().ok()) else {
        return match status.as_u16() {
            429 | 502..=504 => later(format_args!("it answered {status}")),
            _ => Receipt::Refused { why: format!("it answered {status} without a result of gRPC") },
        };
    };
    let why = || format!("it answered with status {result} of gRPC: {}", said(field("grpc-message").unwrap_or("")));
    match result {
        0 => taken(body.get(5..).unwrap_or_default()),
        1 | 4 | 8 | 10 | 11 | 14 | 15 => later(why()),
        _ => Receipt::Refused { why: why() },
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTracePartialSuccess;

    use super::*;

    fn partial(rejected_spans: i64, error_message: &str) -> Vec<u8> {
        let partial = ExportTracePartialSuccess { rejected_spans, error_message: error_message.into() };
        ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec()
    }

    #[test]
    fn answers_over_http_are_understood() {
        let headers = HeaderMap::new();
        let check = |status: u16, body: &[u8]| judge_http(StatusCode::from_u16(status).unwrap(), &headers, body);
        assert_eq!(check(200, b""), Receipt::Taken { refused: 0, why: String::new() });
        assert_eq!(check(200, &partial(3, "too\nold")), Receipt::Taken { refused: 3, why: "too\\nold".into() });
        assert!(matches!(check(200, b"<html>"), Receipt::Refused { .. }));
        assert!(matches!(check(400, b""), Receipt::Refused { .. }));
        assert!(matches!(check(301, b""), Receipt::Refused { .. }));
        for status in [429, 502, 503, 504] {
            assert!(matches!(check(status, b""), Receipt::Later { after: None, .. }), "{status}");
        }
        let waits = |said: &'static str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(said))]);
            match judge_http(StatusCode::SERVICE_UNAVAILABLE, &headers, b"") {
                Receipt::Later { after, .. } => after,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(waits("7"), Some(Duration::from_secs(7)));
        assert_eq!(waits("999999"), Some(MAX_WAIT));
        assert_eq!(waits("tomorrow"), None);
    }

    #[test]
    fn answers_over_grpc_are_understood() {
        let fields = |result: &'static str| {
            HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static(result))])
        };
        let (none, ok) = (HeaderMap::new(), StatusCode::OK);
        let message = framed(&partial(1, "no"));
        assert_eq!(judge_grpc(ok, &none, &fields("0"), &message), Receipt::Taken { refused: 1, why: "no".into() });
        assert_eq!(judge_grpc(ok, &none, &fields("0"), b""), Receipt::Taken { refused: 0, why: String::new() });
        assert!(matches!(judge_grpc(ok, &fields("14"), &none, b""), Receipt::Later { .. }));
        assert!(matches!(judge_grpc(ok, &none, &fields("3"), b""), Receipt::Refused { .. }));
        assert!(matches!(judge_grpc(ok, &none, &fields("what"), b""), Receipt::Refused { .. }));
        assert!(matches!(judge_grpc(StatusCode::BAD_GATEWAY, &none, &none, b""), Receipt::Later { .. }));
    }
}
