//! What a handler may return instead of a response.

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};

use crate::{Body, Error, Response};

/// Anything that converts into a response.
///
/// ```
/// use wasmcluster_guest::http::{StatusCode, header};
/// use wasmcluster_guest::{IntoResponse, Json};
///
/// assert_eq!("text".into_response().status(), 200);
/// assert_eq!((StatusCode::CREATED, Json([1, 2])).into_response().status(), 201);
/// let moved = (StatusCode::SEE_OTHER, [(header::LOCATION, "/there")], ());
/// assert_eq!(moved.into_response().headers()["location"], "/there");
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be returned from a handler",
    note = "a handler returns a `Response`, text, bytes, `Json`, a `StatusCode`, a tuple `(StatusCode, T)`, `([(name, value); N], T)` \
            or `(StatusCode, [(name, value); N], T)`, or a `Result` of these"
)]
pub trait IntoResponse {
    /// Whether the body of each such response is known in full when it is made. On WASI 0.2 the component of a handler that
    /// answers nothing else, and sends no requests, has no imports for what streams: each costs every fresh instance.
    #[doc(hidden)]
    const IS_KNOWN: bool = false;

    /// The response.
    fn into_response(self) -> Response;
}

impl<B: Into<Body>> IntoResponse for http::Response<B> {
    fn into_response(self) -> Response {
        self.map(Into::into)
    }
}

/// No body, with status 200.
impl IntoResponse for () {
    const IS_KNOWN: bool = true;

    fn into_response(self) -> Response {
        Response::new(Body::empty())
    }
}

/// Plain text with status 200.
impl IntoResponse for &'static str {
    const IS_KNOWN: bool = true;

    fn into_response(self) -> Response {
        typed("text/plain; charset=utf-8", self)
    }
}

/// Plain text with status 200.
impl IntoResponse for String {
    const IS_KNOWN: bool = true;

    fn into_response(self) -> Response {
        typed("text/plain; charset=utf-8", self)
    }
}

/// `application/octet-stream` with status 200.
impl IntoResponse for Bytes {
    const IS_KNOWN: bool = true;

    fn into_response(self) -> Response {
        typed("application/octet-stream", self)
    }
}

/// `application/octet-stream` with status 200.
impl IntoResponse for Vec<u8> {
    const IS_KNOWN: bool = true;

    fn into_response(self) -> Response {
        typed("application/octet-stream", self)
    }
}

/// A body without a content type, with status 200.
impl IntoResponse for Body {
    fn into_response(self) -> Response {
        Response::new(self)
    }
}

/// HTML with status 200.
///
/// ```
/// use wasmcluster_guest::{Html, IntoResponse};
/// assert_eq!(Html("<p>hi").into_response().headers()["content-type"], "text/html; charset=utf-8");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Html<T>(pub T);

impl<T: Into<Body>> IntoResponse for Html<T> {
    fn into_response(self) -> Response {
        typed("text/html; charset=utf-8", self.0)
    }
}

/// The status with its reason as plain text: `404 Not Found`.
impl IntoResponse for StatusCode {
    const IS_KNOWN: bool = true;

    fn into_response(self) -> Response {
        if forbids_body(self) {
            return (self, Response::new(Body::empty())).into_response();
        }
        (self, format!("{self}\n")).into_response()
    }
}

/// The same with this status. A failure stays a failure: a status of 500 or more is kept.
impl<T: IntoResponse> IntoResponse for (StatusCode, T) {
    const IS_KNOWN: bool = T::IS_KNOWN;

    fn into_response(self) -> Response {
        let mut response = self.1.into_response();
        if !response.status().is_server_error() {
            *response.status_mut() = self.0;
        }
        response
    }
}

/// The same with these headers, which replace those of the same name.
impl<T: IntoResponse> IntoResponse for (HeaderMap, T) {
    const IS_KNOWN: bool = T::IS_KNOWN;

    fn into_response(self) -> Response {
        let mut response = self.1.into_response();
        response.headers_mut().extend(self.0);
        response
    }
}

/// The same with these headers, which replace those of the same name. An invalid header makes it a 500.
impl<N, V, T, const COUNT: usize> IntoResponse for ([(N, V); COUNT], T)
where
    N: TryInto<HeaderName>,
    V: TryInto<HeaderValue>,
    T: IntoResponse,
{
    const IS_KNOWN: bool = T::IS_KNOWN;

    fn into_response(self) -> Response {
        let mut response = self.1.into_response();
        for (name, value) in self.0 {
            let (Ok(name), Ok(value)) = (name.try_into(), value.try_into()) else {
                return Error::from("a header of the response is not valid").into_response();
            };
            response.headers_mut().insert(name, value);
        }
        response
    }
}

/// The same with this status and these headers.
impl<H, T> IntoResponse for (StatusCode, H, T)
where
    (H, T): IntoResponse,
{
    const IS_KNOWN: bool = <(H, T)>::IS_KNOWN;

    fn into_response(self) -> Response {
        (self.0, (self.1, self.2)).into_response()
    }
}

/// An error becomes status 500 with a body that does not reveal it, and a line on stderr that does, unless it is an
/// [`Error`] with another status.
impl<T: IntoResponse, E: Into<Error>> IntoResponse for Result<T, E> {
    const IS_KNOWN: bool = T::IS_KNOWN;

    fn into_response(self) -> Response {
        self.map_or_else(|error| error.into().into_response(), IntoResponse::into_response)
    }
}

/// Whether a response of this status never has a body (RFC 9110, 6.4.1).
pub(crate) fn forbids_body(status: StatusCode) -> bool {
    status.is_informational() || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED
}

/// The response with this `content-type` and status 200.
pub(crate) fn typed(kind: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(response: impl IntoResponse, status: u16, body: &str) {
        let response = response.into_response();
        assert_eq!(response.status(), status);
        assert_eq!(response.into_body().known().expect("known in full"), body);
    }

    #[test]
    fn each_shape_becomes_its_response() {
        check("a", 200, "a");
        check((), 200, "");
        check(vec![b'a'], 200, "a");
        check(Html("<p>"), 200, "<p>");
        check(String::from("b"), 200, "b");
        check(StatusCode::NOT_FOUND, 404, "404 Not Found\n");
        check(StatusCode::NO_CONTENT, 204, "");
        check((StatusCode::CREATED, "c"), 201, "c");
        check(Response::new("d"), 200, "d");
        check(Ok::<_, Error>("e"), 200, "e");
        check((StatusCode::ACCEPTED, Ok::<_, Error>("f")), 202, "f");
        check((StatusCode::ACCEPTED, Err::<&'static str, _>("g")), 500, "Internal Server Error\n");
        check((StatusCode::CREATED, [("x-a", "1")], "h"), 201, "h");
        check(([("no name", "1")], "i"), 500, "Internal Server Error\n");
    }

    #[test]
    fn what_may_stream_is_told_from_what_cannot() {
        const {
            assert!(<(StatusCode, [(HeaderName, &str); 1], crate::Json<u8>)>::IS_KNOWN);
            assert!(<Result<(HeaderMap, String), Error>>::IS_KNOWN);
            assert!(!<Result<(StatusCode, Body), Error>>::IS_KNOWN && !<Response>::IS_KNOWN && !<Html<Body>>::IS_KNOWN);
        }
    }

    #[test]
    fn an_error_says_nothing_of_the_inside() {
        check(Err::<&'static str, _>("the password is x"), 500, "Internal Server Error\n");
    }

    #[test]
    fn headers_replace_what_the_answer_has() {
        let response = ([(header::CONTENT_TYPE, "text/css")], "a").into_response();
        assert_eq!(response.headers().get_all(header::CONTENT_TYPE).iter().collect::<Vec<_>>(), ["text/css"]);
    }

    #[test]
    fn strings_are_plain_text() {
        assert_eq!("a".into_response().headers()[header::CONTENT_TYPE], "text/plain; charset=utf-8");
    }
}
