//! Hosts of WASI 0.3. Waiting is the bindings' part: they have an executor for each request.
//!
//! Files: `websocket` is that, with `bindings` of its own.

#[rustfmt::skip]
#[allow(missing_docs, unreachable_pub, reason = "no person writes it")]
#[allow(clippy::allow_attributes_without_reason, clippy::undocumented_unsafe_blocks, reason = "no person writes it")]
pub(super) mod bindings;
pub(crate) mod websocket;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use send_wrapper::SendWrapper;
use wasip3::clocks::monotonic_clock;
use wasip3::http::client;
use wasip3::http::types::{self, ErrorCode, RequestOptions};
use wasip3::http_compat::{self, BodyWriter, IncomingRequestBody, IncomingResponseBody};
use wasip3::wit_bindgen::{FutureReader, StreamReader};

use crate::__private::Answer;
use crate::error::report;
use crate::fetch::{FetchError, place};
use crate::head::{self, content_length, entries, finish_request, finish_response, header_map};
use crate::host::code;
use crate::response::forbids_body;
use crate::{Body, BodyError, Error, IntoResponse, Request, Response, Result};

/// What an answer's trailers are told through.
type Trailers = FutureReader<Result<Option<types::Trailers>, ErrorCode>>;

/// What `#[main]` needs.
pub(crate) mod export {
    pub use wasip3;

    /// Makes a function from requests to responses the component's handler.
    #[doc(hidden)]
    #[macro_export]
    macro_rules! __export {
        ($answer:expr) => {
            struct Component;

            impl $crate::__private::wasip3::exports::http::handler::Guest for Component {
                async fn handle(
                    request: $crate::__private::wasip3::http::types::Request,
                ) -> ::std::result::Result<
                    $crate::__private::wasip3::http::types::Response,
                    $crate::__private::wasip3::http::types::ErrorCode,
                > {
                    $crate::__private::run(request, $answer).await
                }
            }

            $crate::__private::wasip3::http::service::export!(Component);
        };
    }

    pub use super::run;
}

/// Answers one request.
pub async fn run<R, F>(request: types::Request, answer: impl FnOnce(Request) -> F) -> Result<types::Response, ErrorCode>
where
    R: IntoResponse,
    F: Future<Output = Answer<R>>,
{
    let (method, mut response) = match incoming_request(request) {
        Some(request) => (request.method().clone(), answer(request).await.response),
        None => (Method::GET, StatusCode::BAD_REQUEST.into_response()),
    };
    let mut running = crate::websocket::start::<R>(&mut response);
    finish_response(&mut response);
    let fields = match fields(response.headers()) {
        Ok(fields) => fields,
        Err(error) => {
            // A response of our own, whose head is known to be good.
            running = None;
            response = Error::from(format!("the host refused its headers: {error:?}")).into_response();
            finish_response(&mut response);
            self::fields(response.headers()).expect("the host takes two plain headers")
        }
    };
    let status = response.status();
    let has_body = method != Method::HEAD && !forbids_body(status);
    let (body, trailers) = outgoing_body("response", if has_body { response.into_body() } else { Body::empty() });
    let (outgoing, _sent) = types::Response::new(fields, body, trailers);
    outgoing.set_status_code(status.as_u16()).expect("the status is one of HTTP");
    if let Some(running) = running {
        // In the task of this request, which lasts until it has ended, and not before this returns.
        wasip3::spawn_local(running);
    }
    Ok(outgoing)
}

/// The request, or `None` if its head is not HTTP.
fn incoming_request(incoming: types::Request) -> Option<Request> {
    let mut request = Request::new(Body::empty());
    *request.method_mut() = incoming.get_method().try_into().ok()?;
    *request.headers_mut() = header_map(incoming.get_headers().copy_all())?;
    head::set_target(&mut request, incoming.get_authority(), incoming.get_path_with_query())?;
    let left = content_length(request.headers());
    let body = Unread::Request(IncomingRequestBody::new(incoming).ok()?);
    *request.body_mut() = Body::incoming(Incoming { body, left, is_end: false });
    Some(request)
}

/// The response to a request of ours, or `None` if its head is not HTTP.
fn incoming_response(incoming: types::Response, head_only: bool) -> Option<Response> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = incoming.get_status_code().try_into().ok()?;
    *response.headers_mut() = header_map(incoming.get_headers().copy_all())?;
    let left = if head_only { Some(0) } else { content_length(response.headers()) };
    let body = Unread::Response(Box::pin(IncomingResponseBody::new(incoming).ok()?));
    *response.body_mut() = Body::incoming(Incoming { body, left, is_end: false });
    Some(response)
}

fn fields(headers: &HeaderMap) -> Result<types::Fields, types::HeaderError> {
    types::Fields::from_list(&entries(headers))
}

/// A body for the host, which reads it at its own pace, also when the handler has ended.
fn outgoing_body(what: &'static str, body: Body) -> (Option<StreamReader<u8>>, Trailers) {
    if body.is_end_stream() {
        return (None, wasip3::wit_future::new(|| Ok(None)).1);
    }
    let (writer, contents, trailers) = BodyWriter::new();
    wasip3::spawn_local(async move {
        // The reader that left, that is its right; the source's errors are told already.
        if let Err(http_compat::Error::InvalidTrailers(error)) = writer.send_http_body(&mut Told { what, body }).await {
            report(&format!("{what} body cut short"), format!("trailers refused: {error:?}"));
        }
    });
    (Some(contents), trailers)
}

/// A body whose error is told before the host learns of it: that may be the end of the instance.
struct Told {
    what: &'static str,
    body: Body,
}

impl HttpBody for Told {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Err(error))) = &frame {
            report(&format!("{} body cut short", self.what), error);
        }
        frame
    }
}

/// The body of what comes in, read as it is polled.
pub(crate) struct Incoming {
    body: Unread,
    /// Bytes still to come, where the head says how many.
    left: Option<u64>,
    is_end: bool,
}

enum Unread {
    Request(IncomingRequestBody),
    /// Behind a pointer, so that a component which fetches nothing imports nothing of responses: each import costs every
    /// fresh instance.
    Response(Pin<Box<dyn HttpBody<Data = Bytes, Error = ErrorCode> + Send>>),
}

impl Incoming {
    pub(crate) const fn is_end(&self) -> bool {
        self.is_end
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        match (self.is_end, self.left) {
            (true, _) => SizeHint::with_exact(0),
            (false, Some(left)) => SizeHint::with_exact(left),
            (false, None) => SizeHint::default(),
        }
    }

    pub(crate) fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        if self.is_end {
            return Poll::Ready(None);
        }
        let frame = match &mut self.body {
            Unread::Request(body) => Pin::new(body).poll_frame(context),
            Unread::Response(body) => body.as_mut().poll_frame(context),
        };
        frame.map(|frame| match frame {
            Some(Ok(frame)) => {
                self.left =
                    self.left.map(|left| left.saturating_sub(frame.data_ref().map_or(0, |data| data.len() as u64)));
                self.is_end = frame.is_trailers();
                Some(Ok(frame))
            }
            Some(Err(code)) => {
                self.is_end = true;
                Some(Err(format!("reading the body: {}", code::name(code)).into()))
            }
            None => {
                self.is_end = true;
                None
            }
        })
    }
}

/// Sends a request of ours. Its response comes when the head is here; what is left of the request's body follows.
pub(crate) fn fetch(
    request: Request,
    idle_timeout: Option<Duration>,
) -> impl Future<Output = Result<Response, FetchError>> + Send {
    // Guests have one thread.
    SendWrapper::new(send(request, idle_timeout))
}

async fn send(request: Request, idle_timeout: Option<Duration>) -> Result<Response, FetchError> {
    let (mut parts, body) = request.into_parts();
    finish_request(&mut parts.headers, &body);
    let refused = |what: &str| FetchError::Invalid(format!("the host refused its {what}"));
    let fields = fields(&parts.headers).map_err(|error| FetchError::Invalid(format!("its headers: {error:?}")))?;
    let options = idle_timeout.map(|timeout| {
        let options = RequestOptions::new();
        // A host that cannot do it keeps its own.
        let _ = options.set_between_bytes_timeout(Some(nanoseconds(timeout)));
        options
    });
    let (body, trailers) = outgoing_body("request", body);
    let (outgoing, _sent) = types::Request::new(fields, body, trailers, options);
    outgoing.set_method(&(&parts.method).into()).map_err(|()| refused("method"))?;
    outgoing.set_scheme(parts.uri.scheme().map(Into::into).as_ref()).map_err(|()| refused("scheme"))?;
    outgoing.set_authority(parts.uri.authority().map(|it| it.as_str())).map_err(|()| refused("authority"))?;
    outgoing.set_path_with_query(parts.uri.path_and_query().map(|it| it.as_str())).map_err(|()| refused("path"))?;
    match client::send(outgoing).await {
        Ok(response) => incoming_response(response, parts.method == Method::HEAD)
            .ok_or_else(|| FetchError::Failed("the response's head is not valid HTTP".into())),
        Err(ErrorCode::HttpRequestDenied) => Err(FetchError::Denied(place(&parts.uri))),
        Err(ErrorCode::ConnectionTimeout | ErrorCode::HttpResponseTimeout | ErrorCode::ConnectionReadTimeout) => {
            Err(FetchError::TimedOut)
        }
        Err(code) => Err(FetchError::Failed(code::name(code))),
    }
}

pub(crate) fn sleep(duration: Duration) -> impl Future<Output = ()> + Send {
    SendWrapper::new(monotonic_clock::wait_for(nanoseconds(duration)))
}

/// At most some 584 years: longer is as good as for ever.
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

pub(crate) fn random() -> u64 {
    wasip3::random::random::get_random_u64()
}
