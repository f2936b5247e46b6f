//! What a handler may return besides a response.

use http::{HeaderValue, StatusCode, header};

use crate::error::report;
use crate::{Body, Error, Response};

/// Whatever becomes a response.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be answered with",
    note = "a handler returns a `Response`, text, a `StatusCode`, `(StatusCode, T)`, or a `Result` of these"
)]
pub trait IntoResponse {
    /// The response.
    fn into_response(self) -> Response;
}

impl<B: Into<Body>> IntoResponse for http::Response<B> {
    fn into_response(self) -> Response {
        self.map(Into::into)
    }
}

/// Plain text with status 200.
impl IntoResponse for &'static str {
    fn into_response(self) -> Response {
        text(self)
    }
}

/// Plain text with status 200.
impl IntoResponse for String {
    fn into_response(self) -> Response {
        text(self)
    }
}

/// The status with its reason as plain text: `404 Not Found`.
impl IntoResponse for StatusCode {
    fn into_response(self) -> Response {
        if forbids_body(self) {
            return (self, Response::new(Body::empty())).into_response();
        }
        (self, format!("{self}\n")).into_response()
    }
}

/// The same with this status. A failure stays a failure: a status of 500 or more is kept.
impl<T: IntoResponse> IntoResponse for (StatusCode, T) {
    fn into_response(self) -> Response {
        let mut response = self.1.into_response();
        if !response.status().is_server_error() {
            *response.status_mut() = self.0;
        }
        response
    }
}

/// An error becomes status 500 with a body that tells nothing of it, and a line on stderr that does.
impl<T: IntoResponse, E: Into<Error>> IntoResponse for Result<T, E> {
    fn into_response(self) -> Response {
        self.map_or_else(|error| failure("handler failed", &error.into()), IntoResponse::into_response)
    }
}

/// Reports the error and answers with status 500.
pub(crate) fn failure(what: &str, error: &Error) -> Response {
    report(what, error);
    (StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error\n").into_response()
}

/// Whether a response of this status never has a body (RFC 9110, 6.4.1).
pub(crate) fn forbids_body(status: StatusCode) -> bool {
    status.is_informational() || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED
}

fn text(body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
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
        check(String::from("b"), 200, "b");
        check(StatusCode::NOT_FOUND, 404, "404 Not Found\n");
        check(StatusCode::NO_CONTENT, 204, "");
        check((StatusCode::CREATED, "c"), 201, "c");
        check(Response::new("d"), 200, "d");
        check(Ok::<_, Error>("e"), 200, "e");
        check((StatusCode::ACCEPTED, Ok::<_, Error>("f")), 202, "f");
        check((StatusCode::ACCEPTED, Err::<&'static str, _>("g")), 500, "Internal Server Error\n");
    }

    #[test]
    fn an_error_says_nothing_of_the_inside() {
        check(Err::<&'static str, _>("the password is x"), 500, "Internal Server Error\n");
    }

    #[test]
    fn strings_are_plain_text() {
        assert_eq!("a".into_response().headers()[header::CONTENT_TYPE], "text/plain; charset=utf-8");
    }
}
