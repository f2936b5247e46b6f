//! Responses out, and requests of our own. The head goes first, then the body: in as few calls as the host permits where
//! it is known in full, chunk by chunk and no faster than its reader takes it where it streams.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header};
use http_body::Body as _;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    self, ErrorCode, Fields, HeaderError, OutgoingBody, OutgoingRequest, OutgoingResponse, RequestOptions,
    ResponseOutparam, Scheme,
};
use wasip2::io::streams::{OutputStream, StreamError};

use super::reactor::{self, Waiter};
use super::{incoming, nanoseconds};
use crate::error::report;
use crate::fetch::{FetchError, place};
use crate::head::{entries, finish_request, finish_response};
use crate::host::code;
use crate::response::forbids_body;
use crate::{Body, BodyError, Error, IntoResponse, Request, Response, Result, websocket};

/// Sends the response to a request of this method, made of an `R`. What goes wrong after the head is reported on stderr and cuts the
/// body short, visibly to the client. Behind the response, a WebSocket runs to its end.
pub(super) async fn send<R: IntoResponse>(method: &Method, mut response: Response, out: ResponseOutparam) {
    let mut running = websocket::start::<R>(&mut response);
    finish_response(&mut response);
    let outgoing = match head(&response) {
        Ok(outgoing) => outgoing,
        Err(error) => {
            // A response of our own, whose head is known to be good.
            running = None;
            response = Error::from(format!("the host refused its headers: {error:?}")).into_response();
            finish_response(&mut response);
            head(&response).expect("the host takes two plain headers")
        }
    };
    let head_only = method == Method::HEAD || forbids_body(response.status());
    if head_only && response.headers().contains_key(header::CONTENT_LENGTH) {
        // The length is that of a body which is not sent. Opened, the body would count as cut short.
        return ResponseOutparam::set(out, Ok(outgoing));
    }
    let body = outgoing.body().expect("the body is opened once");
    ResponseOutparam::set(out, Ok(outgoing));
    let source = if head_only { Body::empty() } else { response.into_body() };
    write::<R>("response", body, source).await;
    if let Some(running) = running {
        running.await;
    }
}

fn head(response: &Response) -> Result<OutgoingResponse, HeaderError> {
    let outgoing = OutgoingResponse::new(fields(response.headers())?);
    if response.status() != StatusCode::OK {
        outgoing.set_status_code(response.status().as_u16()).expect("the status is one of HTTP");
    }
    Ok(outgoing)
}

fn fields(headers: &HeaderMap) -> Result<Fields, HeaderError> {
    Fields::from_list(&entries(headers))
}

/// Sends a request of ours. Its response comes when the head is here; what is left of the request's body follows.
pub(crate) async fn fetch(request: Request, idle_timeout: Option<Duration>) -> Result<Response, FetchError> {
    let (mut parts, source) = request.into_parts();
    finish_request(&mut parts.headers, &source);
    let refused = |what: &str| FetchError::Invalid(format!("the host refused its {what}"));
    let fields = fields(&parts.headers).map_err(|error| FetchError::Invalid(format!("its headers: {error:?}")))?;
    let outgoing = OutgoingRequest::new(fields);
    outgoing.set_method(&method(&parts.method)).map_err(|()| refused("method"))?;
    outgoing.set_scheme(parts.uri.scheme().map(scheme).as_ref()).map_err(|()| refused("scheme"))?;
    outgoing.set_authority(parts.uri.authority().map(|it| it.as_str())).map_err(|()| refused("authority"))?;
    outgoing.set_path_with_query(parts.uri.path_and_query().map(|it| it.as_str())).map_err(|()| refused("path"))?;
    let options = idle_timeout.map(|timeout| {
        let options = RequestOptions::new();
        // A host that cannot do it keeps its own.
        let _ = options.set_between_bytes_timeout(Some(nanoseconds(timeout)));
        options
    });
    let body = outgoing.body().expect("the body is opened once");
    let failed = |code| failure(code, &parts.uri);
    let response = outgoing_handler::handle(outgoing, options).map_err(failed)?;
    match source.known() {
        Ok(bytes) if bytes.is_empty() => {
            finish(body, None).unwrap_or_else(|error| report("request body refused", error))
        }
        Ok(bytes) => reactor::spawn(write::<Bytes>("request", body, bytes.into())),
        Err(source) => reactor::spawn(write::<Body>("request", body, source)),
    }
    let waiter = Waiter::new(response.subscribe());
    let incoming = loop {
        match response.get() {
            Some(answer) => break answer.expect("it is taken once").map_err(failed)?,
            None => poll_fn(|context| waiter.poll(context)).await,
        }
    };
    drop(waiter);
    incoming::response(incoming, parts.method == Method::HEAD)
        .ok_or_else(|| FetchError::Failed("the response's head is not valid HTTP".into()))
}

fn failure(code: ErrorCode, uri: &http::Uri) -> FetchError {
    match code {
        ErrorCode::HttpRequestDenied => FetchError::Denied(place(uri)),
        ErrorCode::ConnectionTimeout | ErrorCode::HttpResponseTimeout | ErrorCode::ConnectionReadTimeout => {
            FetchError::TimedOut
        }
        code => FetchError::Failed(code::name(code)),
    }
}

fn method(method: &Method) -> types::Method {
    match *method {
        Method::GET => types::Method::Get,
        Method::HEAD => types::Method::Head,
        Method::POST => types::Method::Post,
        Method::PUT => types::Method::Put,
        Method::DELETE => types::Method::Delete,
        Method::CONNECT => types::Method::Connect,
        Method::OPTIONS => types::Method::Options,
        Method::TRACE => types::Method::Trace,
        Method::PATCH => types::Method::Patch,
        ref other => types::Method::Other(other.as_str().into()),
    }
}

fn scheme(scheme: &http::uri::Scheme) -> Scheme {
    match scheme.as_str() {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        other => Scheme::Other(other.into()),
    }
}

/// Writes the body of an `R` to its end, or drops it unfinished, which tells the host that it is incomplete. That is reported
/// before: the client sees the cut at once, and when it leaves, this guest is ended.
async fn write<R: IntoResponse>(what: &str, body: OutgoingBody, source: Body) {
    match contents::<R>(&body, source).await {
        Ok(trailers) => finish_report(what, finish(body, trailers).map_err(Broken::Sink)),
        Err(broken) => finish_report(what, Err(broken)),
    }
}

/// Writes all but the end of the body; what trailers there are.
async fn contents<R: IntoResponse>(body: &OutgoingBody, source: Body) -> Result<Option<HeaderMap>, Broken> {
    match source.known() {
        Ok(bytes) if bytes.is_empty() => Ok(None),
        Ok(bytes) => Sink::new(body).write(&bytes).await.map(|()| None),
        Err(_) if R::IS_KNOWN => unreachable!("the body is known in full"),
        // Behind a pointer, so that it is no part of components which never come here.
        Err(source) => {
            let pumping: Pin<Box<dyn Future<Output = _> + '_>> = Box::pin(pump(Sink::new(body), source));
            pumping.await
        }
    }
}

/// Moves the frames of the body to the host; its trailers are what is left to send.
async fn pump(mut sink: Sink, source: Body) -> Result<Option<HeaderMap>, Broken> {
    let mut source = pin!(source);
    let mut trailers: Option<HeaderMap> = None;
    while let Some(frame) = poll_fn(|context| source.as_mut().poll_frame(context)).await {
        match frame.map_err(Broken::Source)?.into_data() {
            Ok(chunk) => sink.write(&chunk).await?,
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok(trailers)
}

/// Ends the body.
fn finish(body: OutgoingBody, trailers: Option<HeaderMap>) -> Result<(), String> {
    let trailers = trailers.map(|trailers| fields(&trailers)).transpose();
    let trailers = trailers.map_err(|error| format!("trailers refused: {error:?}"))?;
    OutgoingBody::finish(body, trailers).map_err(code::name)
}

fn finish_report(what: &str, written: Result<(), Broken>) {
    let error = match written {
        // The reader left. That is its right.
        Ok(()) | Err(Broken::Gone) => return,
        Err(Broken::Source(error)) => error.to_string(),
        Err(Broken::Sink(error)) => error,
    };
    report(&format!("{what} body cut short"), error);
}

/// Why a body was not sent to its end.
enum Broken {
    /// Nobody reads it any more.
    Gone,
    /// Its own stream failed.
    Source(BodyError),
    /// The host did not take it.
    Sink(String),
}

impl From<StreamError> for Broken {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Closed => Self::Gone,
            StreamError::LastOperationFailed(error) => Self::Sink(error.to_debug_string()),
        }
    }
}

/// The host's end of a body. Fields drop in order: the waiter before its stream.
struct Sink {
    waiter: Option<Waiter>,
    stream: OutputStream,
}

impl Sink {
    fn new(body: &OutgoingBody) -> Self {
        Self { waiter: None, stream: body.write().expect("the stream is opened once") }
    }

    /// Writes all of it, waiting whenever the host permits no more.
    async fn write(&mut self, mut bytes: &[u8]) -> Result<(), Broken> {
        while !bytes.is_empty() {
            let permit = self.stream.check_write()?;
            if permit == 0 {
                let waiter = self.waiter.get_or_insert_with(|| Waiter::new(self.stream.subscribe()));
                poll_fn(|context| waiter.poll(context)).await;
                continue;
            }
            let (now, rest) = bytes.split_at(bytes.len().min(usize::try_from(permit).unwrap_or(usize::MAX)));
            self.stream.write(now)?;
            bytes = rest;
        }
        Ok(())
    }
}
